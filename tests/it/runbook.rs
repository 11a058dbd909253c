//! Every command of the runbook, typed for real beside a running worker.

use super::harness::{Lab, Message, choice, person, poll_until, project, run};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// What the runbook says to type: lines of its blocks, and what it quotes with all arguments.
fn commands() -> BTreeSet<String> {
    let page = fs::read_to_string(project().join("docs/runbook.md")).unwrap();
    let lines = page.lines().map(|line| line.split(" #").next().unwrap().trim());
    let quoted = page.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains("--"));
    let typed = lines.chain(quoted).filter(|line| line.starts_with("consent-gate ") && !line.contains('`'));
    typed.filter(|line| !line.contains('…')).map(str::to_owned).collect()
}

/// A dead letter as the worker writes it.
fn letter(reason: &str) -> (String, Message) {
    let event = choice(&person("runbook", 0), true);
    let id = event["parameters"]["entity"]["id"].as_str().unwrap().to_owned();
    let mut headers = FieldTable::default();
    headers.insert("consent-gate-reason".into(), AMQPValue::LongString(reason.into()));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    (id, Message { body: event.to_string().into_bytes(), properties })
}

#[test]
fn every_command_of_the_runbook_does_what_it_says() {
    let mut lab = Lab::new();
    lab.start();
    lab.publish(vec![choice(&person("known", 0), true).into()]);
    lab.settled(1);
    let started: Value = serde_json::from_str(&lab.worker().line_with("\"starting\"")).unwrap();
    lab.set("CONSENT_GATE_ADMIN__LISTEN", started["admin"].as_str().unwrap());
    let event = lab.folder.write("event.json", choice(&person("sent", 0), true).to_string());
    let commands = commands();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let after = |flag: &str| words.iter().skip_while(|word| **word != flag).nth(1).copied();
        let (id, letter) = letter(after("--reason").unwrap_or("attempts_exhausted"));
        lab.bench.publish("", &lab.queue(".dead"), vec![letter]);
        poll_until("the letter", || (lab.bench.depth(&lab.queue(".dead")) > 0).then_some(()));
        let known = person("known", 0);
        let mut arguments: Vec<&str> = words[1..]
            .iter()
            .map(|word| match *word {
                "acme" => lab.integration(),
                "ID" => &id,
                "IDENTIFIER" => &known,
                "event.json" => event.to_str().unwrap(),
                word => word,
            })
            .collect();
        let asks = ["dead replay", "dead discard", "send ", "store adopt"].iter().any(|asks| command.contains(asks));
        if asks && !command.contains("--dry-run") {
            arguments.push("--yes");
        }
        let environment: Vec<(&str, &str)> = lab.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let done = run(&lab.folder, &environment, &arguments, b"");
        assert_eq!(done.code, 0, "{command}\n{}{}", done.out, done.err);
    }
}
