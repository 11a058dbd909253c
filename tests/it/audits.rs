//! The worker's log shows who looked at personal data, whatever its level.

use super::dead::{dead, letters, put};
use super::harness::{Finished, Lab, person, poll_until};
use super::newest::{JANE, deliver, news};
use nix::unistd::Uid;
use serde_json::{Value, json};

fn command(lab: &Lab, arguments: &[&str]) -> Finished {
    // Variables in which anybody can claim to be somebody else.
    let claimed = ["USER", "SUDO_USER", "LOGNAME"].map(|name| (name, "somebody-else"));
    lab.run_with(&claimed, arguments, b"")
}

/// The expected audit fields of a command: codes, counts and filters.
type Expected<'e> = &'e [(&'e str, Value, &'e str)];

/// The audit lines of the worker's log, once there are `count` of them.
fn audited(lab: &mut Lab, count: usize) -> Vec<Value> {
    poll_until(&format!("{count} audit lines"), || {
        let text = lab.worker().text();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<Value> = lines.filter(|line| line["target"] == "audit").collect();
        (lines.len() >= count).then_some(lines)
    })
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_look_is_in_the_workers_log_whatever_its_level() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -1, true), 1);
    lab.stop();
    lab.set("CONSENT_GATE_LOG__LEVEL", "error");
    lab.spawn();
    put(&lab, letters("audit", 3));
    let name = lab.integration().to_owned();
    let identifier = person("audit", 0);
    let one = || json!(1);
    let list = ["dead", "list", "--reveal", "--identifier", &identifier, "--limit", "5"];
    lab.folder.write("event.json", news(JANE, -1, true).to_string());
    let typed: [(&[&str], Expected<'_>); 7] = [
        (&list, &[("dead_list", one(), "persons 1; limit 5")]),
        (
            &["dead", "export", "--to", "all.jsonl"],
            &[("dead_export", Value::Null, "all"), ("dead_export", json!(3), "all")],
        ),
        (&["dead", "discard", "--yes", "--limit", "1", "--to", "one.jsonl"], &[("dead_discard", one(), "limit 1")]),
        (&["dead", "replay", "--yes", "--limit", "1"], &[("dead_replay", one(), "limit 1")]),
        (&["person", "show", JANE, "--reveal"], &[("person_show", one(), "1 person")]),
        (&["map", "--recorded", "event.json"], &[("person_show", one(), "1 person")]),
        (&["person", "forget", JANE, "--yes"], &[("person_forget", one(), "1 person")]),
    ];
    let mut expected = Vec::new();
    for (line, entries) in typed {
        let done = command(&lab, &[line, &["--integration", &name]].concat());
        assert_eq!(done.code, 0, "{line:?}: {}{}", done.out, done.err);
        let told = done.err.contains("personal data was touched") != line.contains(&"replay");
        assert!(!done.err.contains("warning"), "{line:?}: {}", done.err);
        assert!(told && !done.err.contains('@') && !done.err.contains("somebody-else"), "{line:?}: {}", done.err);
        expected.extend(entries);
    }
    let lines = audited(&mut lab, expected.len());
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for ((code, count, filter), line) in expected.into_iter().zip(&lines) {
        assert_eq!(
            (&line["command"], &line["count"], &line["filter"]),
            (&json!(code), count, &json!(filter)),
            "{line}"
        );
        assert_eq!((&line["integration"], &line["uid"]), (&json!(name), &json!(Uid::current().as_raw())), "{line}");
        assert!(line["user"].is_string() && line["host"].is_string() && line["at"].is_string(), "{line}");
    }
    let log = lab.worker().text();
    assert!(!log.contains('@') && !log.contains("somebody-else"), "{log}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_entry_waits_for_the_next_worker_and_a_lost_one_is_a_warning() {
    let mut lab = Lab::new();
    lab.start();
    lab.stop();
    put(&lab, letters("waits", 2));
    let shown = dead(&lab, "list", &["--reveal"]);
    assert!(shown.code == 0 && !shown.err.contains("warning"), "{}", shown.err);
    lab.bench.publish("", &lab.queue(".audit"), vec![b"jane@example.com".to_vec().into()]);
    lab.start();
    let line = audited(&mut lab, 1).remove(0);
    assert_eq!((&line["command"], &line["count"]), (&json!("dead_list"), &json!(2)));
    poll_until("what is not an entry to be dropped", || {
        lab.worker().text().contains("an entry that this version cannot read").then_some(())
    });
    assert!(!lab.worker().text().contains("jane@"));
    let name = lab.integration().to_owned();
    let counted = format!("consent_gate_audit_entries_total{{command=\"dead_list\",integration=\"{name}\"}}");
    assert_eq!(lab.metric(&counted), 1.0);
    lab.stop();
    // A full queue, as if no worker had run for a long time.
    let full = (0..10_001).map(|_| b"{}".to_vec().into()).collect::<Vec<_>>();
    let _ = lab.bench.try_publish("", &lab.queue(".audit"), &full);
    let shown = dead(&lab, "list", &["--reveal"]);
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(shown.out.contains(&person("waits", 0)), "{}", shown.out);
    assert!(shown.err.contains("warning: this is not in the worker's log"), "{}", shown.err);
}
