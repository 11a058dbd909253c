//! What an operator does with dead letters: they are shown, replayed, copied and removed, whatever dies
//! meanwhile.

use super::harness::{Finished, Lab, Message, Random, Running, Way, choice, events, note, person, poll_until, unique};
use super::newest::{JANE, at_gate, deliver, news};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldTable};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// A command on the first integration's letters.
pub fn dead(lab: &Lab, verb: &str, more: &[&str]) -> Finished {
    lab.run(&[&["dead", verb, "--integration", lab.integration()][..], more].concat(), b"")
}

/// The lines of a command that succeeded.
pub fn told(lab: &Lab, verb: &str, more: &[&str]) -> Vec<Value> {
    let done = dead(lab, verb, &[more, &["--json"]].concat());
    assert_eq!(done.code, 0, "{verb} {more:?}: {}{}", done.out, done.err);
    done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Starts a command in the background.
pub fn begin(lab: &Lab, verb: &str, more: &[&str]) -> Running {
    let arguments = [&["dead", verb, "--integration", lab.integration()][..], more].concat();
    Running::start(env!("CARGO_BIN_EXE_consent-gate"), &lab.folder, &lab.environment, &arguments)
}

fn table(entries: Vec<(&str, AMQPValue)>) -> FieldTable {
    let entries: BTreeMap<_, _> = entries.into_iter().map(|(key, value)| (key.into(), value)).collect();
    entries.into()
}

/// A letter as the worker writes it.
fn letter(event: Value, reason: &str, age_ms: i64) -> Message {
    let died = jiff::Timestamp::now().as_millisecond() - age_ms;
    let headers = table(vec![
        ("consent-gate-reason", AMQPValue::LongString(reason.into())),
        ("consent-gate-attempts", AMQPValue::LongLongInt(5)),
        ("consent-gate-died-ms", AMQPValue::LongLongInt(died)),
        ("consent-gate-first-died-ms", AMQPValue::LongLongInt(died)),
        ("tenant", AMQPValue::LongString("north".into())),
    ]);
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    Message { body: event.to_string().into_bytes(), properties }
}

/// `count` letters of different people, the oldest first.
pub fn letters(kind: &str, count: usize) -> Vec<Message> {
    let age = |n: usize| i64::try_from(count - n).unwrap();
    (0..count).map(|n| letter(choice(&person(kind, n), true), "attempts_exhausted", age(n))).collect()
}

pub fn put(lab: &Lab, letters: Vec<Message>) {
    lab.bench.publish("", &lab.queue(".dead"), letters);
}

/// The letters' people in the order of the queue, which is emptied.
pub fn people(lab: &Lab) -> Vec<String> {
    lab.dead().iter().map(super::harness::Letter::person).collect()
}

/// A lab whose worker wrote letters of all kinds and was stopped.
fn with_letters() -> Lab {
    let mut lab = Lab::new();
    lab.gate(0).faults(
        json!([{ "status": 503, "identifier": person("down", 0) }, { "status": 400, "identifier": person("bad", 0) }]),
    );
    lab.start();
    lab.publish(vec![b"broken".to_vec().into()]);
    lab.settled(1);
    lab.publish(events("bad", 1));
    lab.settled(2);
    lab.publish(events("down", 1));
    lab.settled(3);
    lab.stop();
    lab
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn letters_are_counted_and_listed_oldest_first_and_nothing_personal_shows() {
    let lab = with_letters();
    let listed = told(&lab, "list", &[]);
    assert_eq!((&listed[0]["letters"], &listed[0]["matching"]), (&json!(3), &json!(3)));
    let reasons: Vec<&str> = listed[1..].iter().map(|row| row["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["undecodable", "refused", "attempts_exhausted"]);
    let last = &listed[3];
    assert_eq!((&last["status"], &last["attempts"], &last["type"]), (&json!(503), &json!(5), &json!("event.created")));
    let group = told(&lab, "list", &["--group"]);
    assert_eq!(
        group,
        [
            json!({ "letters": 3, "matching": 3, "reasons": { "attempts_exhausted": 1, "refused": 1, "undecodable": 1 } })
        ]
    );
    let shown = dead(&lab, "list", &[]);
    assert!(shown.out.starts_with("3 letters, 3 of which match\n"), "{}", shown.out);
    assert!(shown.out.contains("s ago") && !shown.out.contains("@example.com"), "{}", shown.out);
    let revealed = dead(&lab, "list", &["--reveal"]);
    assert!(revealed.out.contains(&person("down", 0)), "{}", revealed.out);
    assert!(revealed.err.contains("personal data was touched") && !revealed.err.contains('@'), "{}", revealed.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn filters_take_what_they_name() {
    let lab = with_letters();
    let matching = |more: &[&str]| told(&lab, "list", more)[0]["matching"].as_u64().unwrap();
    let down = person("down", 0).to_uppercase();
    let id = told(&lab, "list", &["--reason", "refused"])[1]["event_id"].as_str().unwrap().to_owned();
    for (more, expected) in [
        (&["--reason", "refused", "--reason", "undecodable"][..], 2),
        (&["--status", "503"], 1),
        (&["--status", "none"], 1),
        (&["--type", "event.created"], 2),
        (&["--event-id", &id], 1),
        (&["--identifier", &down], 1),
        (&["--attempts", "1..5"], 2),
        (&["--since", "1h"], 3),
        (&["--until", "1h"], 0),
        (&["--older-than", "1d"], 0),
        (&["--since", "1h", "--reason", "refused", "--attempts", "1"], 1),
    ] {
        assert_eq!(matching(more), expected, "{more:?}");
    }
    assert_eq!(told(&lab, "list", &["--limit", "1"]).len(), 2);
    let nothing = dead(&lab, "list", &["--reason", "crashed"]);
    assert_eq!((nothing.code, nothing.out.as_str()), (0, "3 letters, none of which matches\n"));
    let wrong = dead(&lab, "list", &["--reason", "refusd", "--since", "yesterday", "--status", "5xx", "--limit", "x"]);
    assert_eq!(wrong.code, 2);
    for part in ["did you mean refused?", "--since: \"yesterday\" is not a time", "--status", "--limit"] {
        assert!(wrong.err.contains(part), "{part} in {}", wrong.err);
    }
    let wrong = dead(&lab, "replay", &["--rate", "fast", "--canary", "few", "--abort-above", "2", "--until", "then"]);
    assert_eq!((wrong.code, wrong.err.lines().count()), (2, 4), "{}", wrong.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_letter_is_shown_whole_and_masked() {
    let lab = with_letters();
    let listed = told(&lab, "list", &["--reason", "attempts_exhausted"]);
    let id = listed[1]["letter"].as_str().unwrap();
    let shown = &told(&lab, "show", &[id])[0];
    assert_eq!((&shown["reason"], &shown["today"]["outlook"]), (&json!("attempts_exhausted"), &json!("send")));
    assert_eq!(shown["history"].as_array().unwrap().len(), 5);
    assert_eq!(shown["properties"]["MAIL"], "(hidden)");
    assert_eq!((&shown["body"], &shown["headers"]["consent-gate-attempts"]), (&Value::Null, &json!("5")));
    let by_event = dead(&lab, "show", &[listed[1]["event_id"].as_str().unwrap(), "--reveal"]);
    assert!(by_event.out.contains(&person("down", 0)) && by_event.err.contains("personal data"), "{by_event:?}");
    let broken = told(&lab, "list", &["--reason", "undecodable"])[1]["letter"].as_str().unwrap().to_owned();
    let shown = dead(&lab, "show", &[&broken]);
    assert!(shown.out.contains("still invalid (undecodable)") && !shown.out.contains("broken"), "{}", shown.out);
    let absent = dead(&lab, "show", &["0123456789ab"]);
    assert!(absent.code == 1 && absent.err.contains("no letter \"0123456789ab\" among 3"), "{}", absent.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn letters_of_one_event_are_all_shown_and_can_be_told_apart() {
    let lab = Lab::new();
    lab.declare();
    let empty = dead(&lab, "show", &["zzz"]);
    assert!(empty.code == 1 && empty.err.contains("no letter \"zzz\": the queue is empty"), "{}", empty.err);
    let event = choice("jane@example.com", true);
    let mut edited = event.clone();
    edited["parameters"]["entity"]["metadata"] = json!({ "edited": true });
    let id = event["parameters"]["entity"]["id"].as_str().unwrap().to_owned();
    put(&lab, vec![letter(event.clone(), "refused", 2_000), letter(edited, "attempts_exhausted", 1_000)]);
    let both = dead(&lab, "show", &[&id]);
    assert!(both.out.contains("refused") && both.out.contains("attempts_exhausted"), "{}", both.out);
    assert!(both.err.contains("2 letters fit this id: their bodies differ"), "{}", both.err);
    let shown = told(&lab, "show", &[&id]);
    assert_ne!(shown[0]["letter"], shown[1]["letter"]);
    let one = dead(&lab, "show", &[shown[0]["letter"].as_str().unwrap()]);
    assert!(one.out.contains("refused") && !one.out.contains("attempts_exhausted"), "{one:?}");
    assert!(!one.err.contains("letters fit"), "{one:?}");
    put(&lab, vec![letter(event, "refused", 0)]);
    let again = dead(&lab, "show", &[shown[0]["letter"].as_str().unwrap()]);
    assert!(again.err.contains("2 letters fit this id: their bodies are the same"), "{}", again.err);
}

/// The lines of a command's table in a terminal of this width.
fn in_terminal(lab: &Lab, columns: usize, arguments: &str) -> Vec<String> {
    let command = format!("stty rows 24 cols {columns}; {} {arguments}", env!("CARGO_BIN_EXE_consent-gate"));
    let shown = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .current_dir(&lab.folder.0)
        .envs(&lab.environment)
        .output()
        .unwrap();
    assert!(shown.status.success(), "{shown:?}");
    String::from_utf8(shown.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_table_fits_a_narrow_terminal_without_cutting_an_id_and_a_pipe_gets_all_of_it() {
    let lab = with_letters();
    let listed = told(&lab, "list", &[]);
    let list = format!("dead list --integration {}", lab.integration());
    for columns in [132, 150] {
        let lines = in_terminal(&lab, columns, &list);
        let rows: Vec<&String> = lines.iter().skip_while(|line| !line.starts_with("died")).collect();
        assert_eq!(rows.len(), 4, "{lines:#?}");
        assert!(rows.iter().all(|line| line.chars().count() <= columns), "{columns}: {rows:#?}");
        assert!(rows.iter().any(|line| line.contains('…')), "{rows:#?}");
        for (row, letter) in rows[1..].iter().zip(&listed[1..]) {
            let ids = [&letter["letter"], &letter["event_id"]].map(|id| id.as_str().unwrap_or("-"));
            assert!(ids.iter().all(|id| row.contains(id)), "{ids:?} in {row}");
        }
    }
    let piped = dead(&lab, "list", &[]).out;
    assert!(!piped.contains('…') && piped.lines().any(|line| line.chars().count() > 150), "{piped}");
    assert!(in_terminal(&lab, 400, &list).iter().all(|line| !line.contains('…')));
}

/// Letters without headers, with odd types, or unreadable.
fn foreign() -> Vec<Message> {
    let odd = table(vec![
        ("consent-gate-reason", AMQPValue::LongString("jane@example.com".into())),
        ("consent-gate-attempts", AMQPValue::LongString("many".into())),
        ("consent-gate-history", AMQPValue::Boolean(true)),
        ("consent-gate-died-ms", AMQPValue::Double(0.5)),
        ("consent-gate-first-died-ms", AMQPValue::LongString("long ago".into())),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 1, value: 15 })),
        ("bytes", AMQPValue::ByteArray(vec![0, 255].into())),
        ("latin", AMQPValue::LongString(vec![0xe9].into())),
        ("nested", AMQPValue::FieldArray(vec![AMQPValue::FieldTable(FieldTable::default()), AMQPValue::Void].into())),
    ]);
    let properties = BasicProperties::default()
        .with_headers(odd)
        .with_priority(3)
        .with_message_id("m".into())
        .with_timestamp(1_700_000_000)
        .with_type("t".into());
    vec![
        Message { body: vec![0xff, 0x00], properties },
        Message { body: Vec::new(), properties: BasicProperties::default() },
        Message {
            body: choice(&person("foreign", 0), true).to_string().into_bytes(),
            properties: BasicProperties::default(),
        },
    ]
}

/// Characters that a terminal would act on or not show.
const HOSTILE: &str = "\u{1b}[2J\u{7}\r\n\u{9b}31m\u{85}\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}\u{7f}evil";

fn hostile() -> Vec<Message> {
    let text = || AMQPValue::LongString(HOSTILE.into());
    let own = ["attempts", "first-attempt-ms", "not-before-ms", "reason", "last-error", "last-answer", "history"];
    let own = own.into_iter().chain(["repair", "died-ms", "first-died-ms", "report-to", HOSTILE]);
    let mut headers = FieldTable::default();
    for name in own {
        headers.insert(format!("consent-gate-{name}").into(), text());
    }
    headers.insert(HOSTILE.into(), text());
    headers.insert("nested".into(), AMQPValue::FieldArray(vec![text()].into()));
    let death = table(vec![("reason", text()), ("queue", text())]);
    headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
    headers.insert("x-last-death-reason".into(), text());
    headers.insert("x-last-death-queue".into(), text());
    let properties = || {
        BasicProperties::default()
            .with_headers(headers.clone())
            .with_content_type(HOSTILE.into())
            .with_content_encoding(HOSTILE.into())
            .with_correlation_id(HOSTILE.into())
            .with_reply_to(HOSTILE.into())
            .with_message_id(HOSTILE.into())
            .with_type(HOSTILE.into())
            .with_app_id(HOSTILE.into())
    };
    let mut event = choice(HOSTILE, true);
    event["parameters"]["entity"]["id"] = json!(HOSTILE);
    let unknown = json!({ "type": HOSTILE, HOSTILE: HOSTILE, "user": HOSTILE });
    let bodies = [event.to_string().into_bytes(), unknown.to_string().into_bytes(), HOSTILE.as_bytes().to_vec()];
    bodies.into_iter().map(|body| Message { body, properties: properties() }).collect()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn nothing_in_a_letter_reaches_the_terminal_raw() {
    let lab = Lab::new();
    lab.declare();
    put(&lab, hostile());
    let ids: Vec<String> =
        told(&lab, "list", &[]).iter().filter_map(|row| row["letter"].as_str().map(str::to_owned)).collect();
    assert_eq!(ids.len(), 3);
    let mut runs: Vec<Vec<&str>> = vec![
        vec!["list"],
        vec!["list", "--reveal"],
        vec!["list", "--group"],
        vec!["replay", "--dry-run"],
        vec!["export", "--to", "-"],
        vec!["show", HOSTILE],
        vec!["list", "--reason", HOSTILE],
        vec!["export", "--to", "letters.jsonl"],
        vec!["discard", "--yes", "--no-export"],
        vec!["import", "letters.jsonl"],
    ];
    for id in &ids {
        runs.splice(0..0, [vec!["show", id], vec!["show", id, "--reveal"]]);
    }
    let mut transcript = String::new();
    for arguments in &runs {
        for json in [&[][..], &["--json"]] {
            let done = dead(&lab, arguments[0], &[&arguments[1..], json].concat());
            transcript += &format!("{}{}", done.out, done.err);
        }
    }
    let evil = transcript.chars().find(|c| {
        (c.is_control() && *c != '\n') || matches!(c, '\u{200b}'..='\u{202e}' | '\u{2066}' | '\u{feff}' | '\u{e0041}')
    });
    assert_eq!(evil, None, "{transcript:?}");
    assert!(transcript.contains("\\u001b[2J"), "{transcript}");
    assert!(!transcript.lines().any(|line| line.starts_with("evil")), "{transcript}");
    assert_eq!(told(&lab, "list", &[])[0]["matching"], 3, "an import is an export's inverse");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn letters_of_somebody_elses_tool_are_listed_copied_and_replayed() {
    let mut lab = Lab::new();
    lab.declare();
    put(&lab, foreign());
    let listed = told(&lab, "list", &["--reason", "none"]);
    assert_eq!((listed.len(), &listed[0]["matching"]), (4, &json!(3)));
    let odd = dead(&lab, "show", &[listed.iter().find(|row| row["bytes"] == 2).unwrap()["letter"].as_str().unwrap()]);
    assert!(
        odd.code == 0 && odd.out.contains("(hidden): (hidden)") && !odd.out.contains("jane"),
        "{}{}",
        odd.out,
        odd.err
    );
    told(&lab, "export", &["--to", "foreign.jsonl"]);
    told(&lab, "discard", &["--yes", "--no-export"]);
    assert_eq!(told(&lab, "import", &["foreign.jsonl"])[0]["imported"], 3);
    let back = lab.dead();
    let odd = back.iter().find(|letter| letter.body == [0xff, 0x00]).unwrap();
    let headers = odd.properties.headers().clone().unwrap();
    for (key, value) in foreign()[0].properties.headers().clone().unwrap().inner() {
        assert_eq!(headers.inner().get(key.as_str()), Some(value));
    }
    assert_eq!((odd.properties.priority(), odd.properties.timestamp()), (&Some(3), &Some(1_700_000_000)));
    put(&lab, foreign());
    lab.start();
    let replayed = &told(&lab, "replay", &["--yes", "--wait"])[0];
    assert_eq!(
        (&replayed["delivered"], &replayed["still_invalid"]["undecodable"]),
        (&json!(1), &json!(2)),
        "{replayed}"
    );
    assert_eq!(lab.dead().len(), 2);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn browsing_a_hundred_times_changes_nothing() {
    let lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 150));
    let count = json!(150);
    for n in 0..100 {
        match n % 4 {
            0 => drop(told(&lab, "list", &["--limit", "3"])),
            1 => assert_eq!(told(&lab, "list", &["--group"])[0]["letters"], count),
            2 => drop(told(&lab, "export", &["--limit", "5", "--to", &format!("{n}.jsonl")])),
            _ => drop(told(&lab, "replay", &["--dry-run", "--limit", "2"])),
        }
    }
    assert_eq!(people(&lab), (0..150).map(|n| person("p", n)).collect::<Vec<_>>());
}

/// 4.x deletes a message at the 21st look if its queue has no limit. Such a queue is not looked into; the
/// worker's own queues have a limit of a thousand million, which both versions take literally.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_queue_in_which_looking_could_delete_is_not_looked_into() {
    let lab = Lab::new();
    let limit = |limit: i64| {
        table(vec![
            ("x-queue-type", AMQPValue::LongString("quorum".into())),
            ("x-delivery-limit", AMQPValue::LongLongInt(limit)),
        ])
    };
    lab.bench.declare_queue(&lab.queue(".dead"), limit(20));
    put(&lab, letters("p", 1));
    for _ in 0..25 {
        let refused = dead(&lab, "list", &[]);
        assert!(refused.code == 1 && refused.err.contains("its messages are untouched"), "{}", refused.err);
    }
    assert_eq!(people(&lab), [person("p", 0)]);
    lab.bench.delete_queue(&lab.queue(".dead"));
    assert!(dead(&lab, "list", &[]).err.contains("are not declared at this broker"));
    let mut ours = limit(1_000_000_000);
    for (name, value) in [
        ("x-dead-letter-exchange", ""),
        ("x-dead-letter-routing-key", &lab.queue(".aside")),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        ours.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    lab.bench.declare_queue(&lab.queue(".dead"), ours);
    put(&lab, letters("p", 1));
    for _ in 0..25 {
        told(&lab, "list", &[]);
    }
    let letter = lab.dead().remove(0);
    assert_eq!(letter.header("x-delivery-count").as_deref(), Some("25"), "each look counts, and none deletes");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_browse_that_is_killed_loses_nothing() {
    let lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 3_000));
    let mut random = Random::new(7);
    for _ in 0..8 {
        let mut browsing = begin(&lab, "list", &["--json"]);
        let began = Instant::now();
        let for_ms = random.below(400) as u128;
        poll_until("its time", || (began.elapsed().as_millis() >= for_ms).then_some(()));
        if browsing.is_running() {
            browsing.signal("KILL");
        }
        browsing.ended();
    }
    let listed = told(&lab, "list", &[]);
    assert_eq!((listed.len(), &listed[0]["letters"]), (3_001, &json!(3_000)));
    let mut people = people(&lab);
    people.sort();
    people.dedup();
    assert_eq!(people.len(), 3_000);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_replay_moves_everything_and_tells_what_became_of_it() {
    let mut lab = Lab::new();
    lab.start();
    put(&lab, letters("p", 60));
    put(&lab, vec![letter(json!({}), "undecodable", 0)]);
    let mut pending = choice("pending@example.com", true);
    pending["parameters"]["entity"]["status"] = json!("pending_approval");
    put(&lab, vec![letter(pending, "attempts_exhausted", 0)]);
    lab.gate(0).faults(json!([{ "status": 400, "identifier": person("p", 1) }, { "status": 503, "identifier": person("p", 2), "times": 1 }]));
    let unasked = dead(&lab, "replay", &[]);
    assert!(unasked.code == 2 && unasked.err.contains("add --yes"), "{}", unasked.err);
    let done = dead(&lab, "replay", &["--yes", "--wait", "--rate", "500/s", "--json"]);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert!(done.code == 1 && done.err.contains("1 letter died again"), "{report} {}", done.err);
    let expected = json!({
        "asked": 62, "sent": 61, "delivered": 59, "skipped": { "pending": 1 }, "dead_again": { "refused": 1 },
        "on_their_way": 0, "still_invalid": { "undecodable": 1 }, "untouched": 0, "stopped": null,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&report[key], value, "{key} in {report}");
    }
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 59);
    let left = told(&lab, "list", &[]);
    assert_eq!(
        (left.len(), &left[1]["reason"], &left[2]["reason"]),
        (3, &json!("undecodable"), &json!("refused")),
        "{left:?}"
    );
    assert_eq!(left[2]["attempts"], 1, "it began anew");
    let name = lab.integration().to_owned();
    let mut count = |metric: &str| lab.metric(&format!("consent_gate_{metric}{{integration=\"{name}\"}}"));
    assert_eq!((count("parked_total"), count("returned_total")), (1.0, 1.0), "replayed letters were not parked");
    let again = dead(&lab, "replay", &["--yes", "--reason", "crashed"]);
    assert_eq!((again.code, again.out.as_str()), (0, "no letter matches; nothing to replay\n"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_old_opt_in_stays_behind_a_newer_opt_out() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 400, "times": 1 }]));
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    deliver(&mut lab, news(JANE, -1, false), 2);
    assert_eq!(at_gate(&lab, JANE), "0");
    let forecast = told(&lab, "replay", &["--dry-run"]);
    assert_eq!(forecast[0]["outlook"], "nothing_new", "{forecast:?}");
    let id = forecast[0]["letter"].as_str().unwrap();
    assert_eq!(told(&lab, "show", &[id])[0]["today"]["outlook"], "nothing_new");
    let report = &told(&lab, "replay", &["--yes", "--wait"])[0];
    assert_eq!((&report["asked"], &report["delivered"]), (&json!(1), &json!(1)), "{report}");
    assert_eq!(at_gate(&lab, JANE), "0");
    lab.stop();
    put(&lab, vec![letter(news(JANE, -60, true), "refused", 0)]);
    let forecast = told(&lab, "replay", &["--dry-run"]);
    assert_eq!(forecast[0]["outlook"], "nothing_new", "without a worker the command opens the records itself");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_undated_erasure_that_is_replayed_erases_nothing_of_the_time_since_it_died() {
    let mut lab = Lab::new();
    lab.start();
    let entity = json!({ "id": "u", "organization_user_id": JANE });
    put(&lab, vec![letter(json!({ "type": "user.deleted", "parameters": { "entity": entity } }), "panicked", 120_000)]);
    let report = &told(&lab, "replay", &["--yes", "--wait"])[0];
    assert_eq!(report["skipped"]["user_deleted"], 1, "{report}");
    deliver(&mut lab, news(JANE, -150, true), 2);
    assert_eq!(lab.gate(0).outcome("accepted"), 0, "what is older than the death is erased");
    deliver(&mut lab, news(JANE, -90, true), 3);
    assert_eq!(lab.gate(0).outcome("accepted"), 1, "a choice made since counts");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_canary_that_fails_or_is_not_heard_of_stops_the_replay() {
    let mut lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 40));
    let unheard = dead(&lab, "replay", &["--yes", "--canary", "5", "--deadline", "500ms"]);
    assert!(unheard.code == 1 && unheard.err.contains("does a worker run, and is its gate up"), "{}", unheard.err);
    assert_eq!((lab.bench.depth(&lab.queue(".dead")), lab.bench.depth(&lab.queue(".retry"))), (35, 5));
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    let failed = dead(&lab, "replay", &["--yes", "--canary", "6", "--json"]);
    let report: Value = serde_json::from_str(&failed.out).unwrap();
    assert!(failed.code == 1 && failed.err.contains("6 of 6 first attempts failed"), "{}", failed.err);
    assert_eq!((&report["sent"], &report["untouched"]), (&json!(6), &json!(29)), "{report}");
    lab.settled(11);
    lab.gate(0).faults(json!([]));
    let rest = &told(&lab, "replay", &["--yes", "--wait", "--rate", "500/s"])[0];
    assert_eq!((&rest["sent"], &rest["delivered"]), (&json!(40), &json!(40)), "{rest}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_second_command_is_refused_and_an_interrupt_says_what_was_done() {
    let lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 20));
    let mut first = begin(&lab, "replay", &["--yes", "--canary", "3", "--json"]);
    poll_until("the canary", || (lab.bench.depth(&lab.queue(".retry")) == 3).then_some(()));
    for (verb, more) in [("list", &[][..]), ("discard", &["--yes"]), ("replay", &["--yes"])] {
        let second = dead(&lab, verb, more);
        assert!(second.code == 1 && second.err.contains("another command is using them"), "{}", second.err);
    }
    first.signal("INT");
    assert_eq!(first.ended(), Some(1));
    let text = first.text();
    let report: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&report["sent"], &report["untouched"], &report["stopped"]),
        (&json!(3), &json!(17), &json!("interrupted"))
    );
    assert!(text.contains("the same command continues"), "{text}");
    assert_eq!(told(&lab, "list", &["--group"])[0]["letters"], 17);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_replay_that_is_killed_at_random_loses_nothing_and_goes_on() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.start();
    let count = 1_500;
    put(&lab, letters("p", count));
    let mut random = Random::new(11);
    let (mut kills, mut ended) = (0, None);
    while ended.is_none() {
        let mut replaying = begin(&lab, "replay", &["--yes", "--rate", "4000/s", "--canary", "1", "--wait"]);
        let (began, for_ms) = (Instant::now(), 200 + 200 * kills + random.below(400) as u128);
        let over = poll_until("its time or its end", || {
            (began.elapsed().as_millis() >= for_ms || !replaying.is_running()).then(|| !replaying.is_running())
        });
        if over {
            ended = replaying.ended();
        } else {
            replaying.signal("KILL");
            replaying.ended();
            kills += 1;
        }
    }
    note(&format!("{kills} kills"));
    assert!(kills > 0);
    assert_eq!(ended, Some(0));
    poll_until("everybody", || (lab.gate(0).profiles().as_object().unwrap().len() == count).then_some(()));
    assert!(lab.dead().is_empty());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_export_is_whole_or_refused_and_an_import_can_be_resumed() {
    let lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 50));
    put(&lab, foreign());
    assert_eq!(told(&lab, "export", &["--to", "all.jsonl"])[0]["exported"], 53);
    let path = lab.folder.0.join("all.jsonl");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = dead(&lab, "export", &["--to", "all.jsonl"]);
    assert!(again.code == 2 && again.err.contains("all.jsonl exists; name a file with --to"), "{}", again.err);
    let folder = dead(&lab, "export", &["--to", "integrations"]);
    assert!(folder.code == 2 && folder.err.contains("integrations exists"), "{}", folder.err);
    assert!(!folder.err.contains("audit"), "nothing was looked at: {}", folder.err);
    let unreachable = dead(&lab, "export", &["--to", "absent/all.jsonl"]);
    assert!(unreachable.code == 2 && unreachable.err.contains("cannot be created"), "{}", unreachable.err);
    let piped = dead(&lab, "export", &["--to", "-", "--limit", "2"]);
    assert!(piped.out.lines().count() == 4 && piped.err.contains("exported 2 letters"), "{}", piped.err);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let refuse = |name: &str, text: String, code: i32, part: &str| {
        lab.folder.write(name, text);
        let refused = dead(&lab, "import", &[name]);
        assert!(refused.code == code && refused.err.contains(part), "{}", refused.err);
        assert!(refused.err.contains("nothing was imported") && !refused.err.contains('@'), "{}", refused.err);
    };
    refuse("cut.jsonl", lines[..20].join("\n") + "\n", 1, "line 21: the file ends here");
    refuse("edited.jsonl", text.replace(&person("p", 7), "somebody@example.com"), 1, "line 9: it was changed");
    refuse(
        "other.jsonl",
        "{}\n".to_owned(),
        2,
        "line 1: this is not a line of an export; name a file that dead export",
    );
    let discarded = &told(&lab, "discard", &["--yes", "--limit", "30"])[0];
    assert_eq!((&discarded["removed"], &discarded["left"]), (&json!(30), &json!(23)));
    assert!(lab.folder.0.join(discarded["file"].as_str().unwrap()).exists());
    let imported = &told(&lab, "import", &["all.jsonl"])[0];
    assert_eq!((&imported["imported"], &imported["already_there"]), (&json!(30), &json!(23)));
    assert_eq!(told(&lab, "import", &["all.jsonl"])[0]["imported"], 0);
    assert_eq!(told(&lab, "list", &["--group"])[0]["letters"], 53);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_copy_of_what_is_discarded_goes_to_standard_output_or_to_the_state_directory() {
    let mut lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 3));
    let piped = dead(&lab, "discard", &["--yes", "--limit", "2", "--to", "-"]);
    assert_eq!(piped.code, 0, "{}", piped.err);
    assert!(piped.err.contains("removed 2 letters of 3"), "{}", piped.err);
    lab.folder.write("copy.jsonl", &piped.out);
    let imported = dead(&lab, "import", &["copy.jsonl"]);
    assert_eq!((imported.code, lab.bench.depth(&lab.queue(".dead"))), (0, 3), "{}", imported.err);
    let state = lab.folder.0.join("state");
    fs::create_dir(&state).unwrap();
    lab.set("STATE_DIRECTORY", state.to_str().unwrap());
    let file = told(&lab, "discard", &["--yes"])[0]["file"].as_str().unwrap().to_owned();
    assert!(file.starts_with(state.to_str().unwrap()) && fs::metadata(&file).unwrap().len() > 0, "{file}");
    put(&lab, letters("p", 1));
    lab.set("STATE_DIRECTORY", "/proc/1");
    let refused = dead(&lab, "discard", &["--yes"]);
    assert!(refused.code != 0 && refused.err.contains("--to - for standard output"), "{}", refused.err);
    assert_eq!(lab.bench.depth(&lab.queue(".dead")), 1, "without a copy nothing is removed");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_replay_that_stops_says_how_its_letters_failed_and_a_forecast_how_many_stay() {
    let mut lab = Lab::new();
    lab.start();
    put(&lab, letters("p", 3));
    let mut broken = letter(choice("jane@example.com", true), "undecodable", 0);
    broken.body = b"{".to_vec();
    put(&lab, vec![broken]);
    let forecast = dead(&lab, "replay", &["--dry-run"]);
    assert!(forecast.out.contains("3 of 4 letters would be replayed"), "{}", forecast.out);
    assert!(!forecast.out.contains("unreadable"), "{}", forecast.out);
    lab.gate(0).faults(json!([{ "status": 401 }]));
    let stopped = dead(&lab, "replay", &["--yes"]);
    assert_eq!(stopped.code, 1, "{}", stopped.out);
    assert!(stopped.err.contains("(3 misconfigured with status 401)"), "{}", stopped.err);
    let alert = format!("consent_gate_misconfigured{{integration=\"{}\"}}", lab.integration());
    assert_eq!(lab.metric(&alert), 1.0);
    lab.gate(0).faults(json!([]));
    lab.settled(3);
    put(&lab, letters("q", 1));
    let cure = ["--yes", "--wait", "--reason", "attempts_exhausted", "--limit", "1"];
    assert_eq!(dead(&lab, "replay", &cure).code, 0);
    assert_eq!(lab.metric(&alert), 0.0, "one letter is enough, nobody waits for a fresh consent");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_discarded_asks_and_keeps_a_copy() {
    let lab = Lab::new();
    lab.declare();
    let day = 86_400_000;
    put(
        &lab,
        (0..6)
            .map(|n| letter(choice(&person("p", n), true), "refused", i64::try_from(n).unwrap() * 10 * day))
            .collect(),
    );
    let unasked = dead(&lab, "discard", &["--older-than", "30d"]);
    assert!(unasked.code == 2 && unasked.err.contains("add --yes"), "{}", unasked.err);
    let removed = dead(&lab, "discard", &["--older-than", "30d", "--yes", "--to", "old.jsonl"]);
    assert!(
        removed.out.starts_with("removed 3 letters of 6, with a copy in old.jsonl"),
        "{}{}",
        removed.out,
        removed.err
    );
    assert_eq!(people(&lab), [person("p", 0), person("p", 1), person("p", 2)]);
    assert_eq!(told(&lab, "import", &["old.jsonl"])[0]["imported"], 3);
    assert_eq!(
        told(&lab, "discard", &["--older-than", "90d", "--yes"])[0],
        json!({ "removed": 0, "left": 3, "file": null })
    );
    // An id that no letter has is most likely misspelt.
    for (what, arguments) in [("discard", &["--yes"][..]), ("replay", &["--yes"]), ("replay", &["--dry-run"])] {
        let named = dead(&lab, what, &[&["--event-id", "zzz"], arguments].concat());
        assert!(named.code == 1 && named.err.contains("no letter has such an event id"), "{what}: {}", named.err);
    }
    let existing = dead(&lab, "discard", &["--yes", "--to", "old.jsonl"]);
    assert!(existing.code == 2 && existing.err.contains("old.jsonl exists"), "{}", existing.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_person_is_forgotten_with_their_letters() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    put(&lab, letters("p", 5));
    put(
        &lab,
        vec![letter(news(JANE, -30, true), "refused", 0), letter(news("Jane@Example.COM", -30, true), "refused", 0)],
    );
    put(&lab, vec![b"broken".to_vec().into()]);
    let arguments = ["person", "forget", "--integration", lab.integration(), JANE, "--yes", "--json"];
    let forgotten = lab.run(&arguments, b"");
    assert_eq!(forgotten.out.trim(), r#"{"forgotten":true,"letters":2,"was_known":true}"#, "{}", forgotten.err);
    assert!(forgotten.err.contains("1 dead letter cannot be read"), "{}", forgotten.err);
    assert_eq!(told(&lab, "list", &["--group"])[0]["letters"], 6);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn forgetting_somebody_unknown_leaves_a_mark_and_says_that_nothing_was_known() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    let forget = ["person", "forget", "--integration", lab.integration(), "--yes"].map(str::to_owned);
    let forget: Vec<&str> = forget.iter().map(String::as_str).collect();
    let unknown = lab.run(&[&forget[..], &["jane@example.con"]].concat(), b"");
    assert_eq!(unknown.code, 0, "{}", unknown.err);
    assert!(
        unknown.out.starts_with("nothing was known under this identifier, dead letters removed: 0; older"),
        "{unknown:?}"
    );
    assert!(unknown.err.contains("is it spelled correctly? an identifier is compared letter by letter"), "{unknown:?}");
    let json = lab.run(&[&forget[..], &["17", "--json"]].concat(), b"");
    assert!(json.out.contains("\"was_known\":false") && json.err.contains("is it spelled correctly?"), "{json:?}");
    let many = lab.run(&[&forget[..], &["--from", "-"]].concat(), format!("nobody\n{JANE}\n").as_bytes());
    assert!(many.code == 0 && many.err.contains("nothing was known of 1 person: an identifier is"), "{many:?}");
    // An event that was in transit meanwhile.
    let before = lab.gate(0).outcome("accepted");
    deliver(&mut lab, news("jane@example.con", -3_600, true), 2);
    assert_eq!(lab.gate(0).outcome("accepted"), before, "it is from before the erasure");
    lab.stop();
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_report_goes_only_where_reports_may_go() {
    let mut lab = Lab::new();
    let (elsewhere, reports) = (unique(), format!("consent-gate.report.{}", unique()));
    for queue in [&elsewhere, &reports] {
        lab.bench.declare_queue(queue, FieldTable::default());
        lab.also_delete(queue);
    }
    lab.start();
    let to = |queue: &str, event: Value| {
        let headers = table(vec![("consent-gate-report-to", AMQPValue::LongString(queue.into()))]);
        Message { body: event.to_string().into_bytes(), properties: BasicProperties::default().with_headers(headers) }
    };
    lab.gate(0).faults(json!([{ "status": 503, "times": 1 }]));
    lab.publish(vec![to(&reports, choice(JANE, true))]);
    lab.settled(1);
    lab.publish(vec![to(&elsewhere, choice(JANE, true)), to("consent-gate.report.absent", choice(JANE, true))]);
    lab.publish(vec![to(&reports, json!({}))]);
    lab.settled(4);
    let mut found = Vec::new();
    poll_until("the reports", || {
        found.extend(lab.bench.take_all(&reports).into_iter().map(|letter| String::from_utf8(letter.body).unwrap()));
        (found.len() == 3).then_some(())
    });
    let outcomes: Vec<Value> = found.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!((&outcomes[0]["outcome"], &outcomes[0]["attempt"]), (&json!("retry"), &json!(1)));
    assert_eq!((&outcomes[1]["outcome"], &outcomes[1]["attempt"]), (&json!("delivered"), &json!(2)));
    assert_eq!((&outcomes[2]["outcome"], &outcomes[2]["code"]), (&json!("dead_lettered"), &json!("undecodable")));
    assert_eq!(lab.bench.depth(&elsewhere), 0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_that_goes_away_is_told_with_true_counts() {
    let mut lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 30));
    let direct = lab.environment["CONSENT_GATE_BROKER__URL"].clone();
    let way = Way::among(&lab.bench, &[&direct]);
    lab.set("CONSENT_GATE_BROKER__URL", &way.url);
    let mut replaying = begin(&lab, "replay", &["--yes", "--canary", "0", "--rate", "20/s", "--json"]);
    poll_until("some", || (lab.bench.depth(&lab.queue(".retry")) >= 3).then_some(()));
    way.cut();
    assert_eq!(replaying.ended(), Some(1));
    let text = replaying.text();
    let report: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let sent = u32::try_from(report["sent"].as_u64().unwrap()).unwrap();
    assert!(text.contains("error: stopped: "), "{text}");
    // A letter that was being published when the connection was cut may be in both places.
    let count = |suffix| lab.bench.depth(&lab.queue(suffix));
    poll_until("the others to be back", || (count(".dead") + sent >= 30).then_some(()));
    assert!((sent..=sent + 1).contains(&count(".retry")), "{} {report}", count(".retry"));
}

/// Runs a command to its end and returns its report, how long it took, and its peak memory in MiB.
fn measured(lab: &Lab, verb: &str, more: &[&str]) -> (Value, Duration, u64) {
    let began = Instant::now();
    let mut running = begin(lab, verb, &[more, &["--json"]].concat());
    let (mut peak, limit) = (0, Duration::from_secs(600));
    while began.elapsed() < limit {
        let over = poll_until("a moment", || {
            peak = running.peak_memory().unwrap_or_default().max(peak);
            let is_over = !running.is_running();
            (is_over || began.elapsed().as_secs() % 60 == 59).then_some(is_over)
        });
        if over {
            break;
        }
    }
    let took = began.elapsed();
    let text = running.text();
    assert_eq!(running.ended(), Some(0), "{verb} {more:?}: {}", &text[..text.len().min(2_000)]);
    let first = text.lines().find(|line| line.starts_with('{') && !line.contains("personal data")).unwrap_or("null");
    note(&format!("{verb} {}: {took:.1?}, at most {} MiB", more.join(" "), peak / 1024));
    (serde_json::from_str(first).unwrap(), took, peak / 1024)
}

/// Scaled down here; `scripts/chaos` runs it in full, with 200,000, and prints its figures.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn dead_letters_by_the_thousand_are_each_where_they_should_be() {
    let is_whole = std::env::var_os("CONSENT_GATE_CHAOS_WHOLE").is_some();
    let count = if is_whole { 200_000 } else { 2_000 };
    let tenth = count / 10;
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.declare();
    let some = count / 40;
    for block in 0..40 {
        let reason = if block % 10 == 0 { "refused" } else { "attempts_exhausted" };
        put(
            &lab,
            (0..some)
                .map(|n| {
                    let n = block * some + n;
                    letter(choice(&person("p", n), n.is_multiple_of(2)), reason, i64::try_from(count - n).unwrap())
                })
                .collect(),
        );
    }
    let mut peaks = Vec::new();
    let mut measure = |lab: &Lab, verb: &str, more: &[&str]| {
        let (told, took, peak) = measured(lab, verb, more);
        peaks.push(peak);
        (told, took)
    };
    let (listed, _) = measure(&lab, "list", &["--identifier", &person("p", 77)]);
    assert_eq!((&listed["letters"], &listed["matching"]), (&json!(count), &json!(1)));
    measure(&lab, "list", &[]);
    let (grouped, _) = measure(&lab, "list", &["--group"]);
    assert_eq!(grouped["reasons"], json!({ "attempts_exhausted": count - tenth, "refused": tenth }));
    assert_eq!(measure(&lab, "export", &["--to", "all.jsonl"]).0["exported"], count);
    let (discarded, _) = measure(&lab, "discard", &["--reason", "refused", "--yes", "--to", "refused.jsonl"]);
    assert_eq!((&discarded["removed"], &discarded["left"]), (&json!(tenth), &json!(count - tenth)));
    assert_eq!(measure(&lab, "import", &["refused.jsonl"]).0["imported"], tenth);
    let half = count / 2;
    // How fast letters move without waiting.
    let (moved, _) =
        measure(&lab, "replay", &["--yes", "--canary", "0", "--rate", "100000/s", "--limit", &half.to_string()]);
    let rate = half as f64 / moved["seconds"].as_f64().unwrap();
    note(&format!("moved {half} letters at {rate:.0}/s"));
    assert_eq!(
        lab.bench.depth(&lab.queue(".retry")) + lab.bench.depth(&lab.queue(".dead")),
        u32::try_from(count).unwrap()
    );
    lab.start();
    // The canary must not wait behind those that were moved.
    for part in 1..=10 {
        lab.settled(half * part / 10);
    }
    let (replayed, took) = measure(&lab, "replay", &["--yes", "--rate", "5000/s", "--wait"]);
    assert_eq!((&replayed["sent"], &replayed["delivered"]), (&json!(half), &json!(half)), "{replayed}");
    note(&format!("{half} replayed and delivered in {took:.1?}"));
    poll_until("everybody", || (lab.gate(0).outcome("accepted") >= count as u64).then_some(()));
    let profiles = lab.gate(0).profiles();
    let profiles = profiles.as_object().unwrap();
    assert_eq!(profiles.len(), count);
    for n in 0..count {
        assert_eq!(profiles[&person("p", n)]["OPTIN_NEWS"], if n.is_multiple_of(2) { "1" } else { "0" });
    }
    assert!(lab.dead().is_empty());
    assert!(!is_whole || peaks.iter().all(|peak| *peak < 100), "{peaks:?} MiB");
    assert!(!is_whole || rate >= 5_000.0, "{rate}");
}
