//! What surrounds a worker may hang or fail: the reader of its log, its disk, its files.

use super::harness::{Lab, events, fault_library};
use serde_json::Value;
use std::io::{BufRead, Read};

/// More lines than the worker keeps for a reader that is slow, at two for each event.
const EVENTS: usize = 5_000;

#[test]
fn a_standard_error_that_nobody_reads_stops_nothing() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_LOG__LEVEL", "trace");
    let _unread = lab.start_with_pipe();
    lab.publish(events("unread", EVENTS));
    lab.settled(EVENTS);
    assert_eq!(lab.admin("/livez").0, 200);
    assert_eq!(lab.gate(0).outcome("accepted"), EVENTS as u64);
    assert!(lab.metric("consent_gate_log_lines_dropped_total") > 0.0);
    lab.stop();
}

#[test]
fn a_log_that_is_read_again_goes_on_with_whole_lines_to_the_last() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_LOG__LEVEL", "trace");
    let mut unread = lab.start_with_pipe();
    lab.publish(events("unread", EVENTS));
    lab.settled(EVENTS);
    let dropped = lab.metric("consent_gate_log_lines_dropped_total");
    assert!(dropped > 0.0);
    // The oldest lines come first, so those of the next event come once there is room again.
    let mut line = String::new();
    for _ in 0..EVENTS {
        line.clear();
        unread.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
    }
    lab.publish(events("read", 1));
    lab.settled(EVENTS + 1);
    assert!(lab.metric("consent_gate_log_lines_dropped_total") <= dropped, "there was room");
    lab.worker().signal("TERM");
    let mut rest = String::new();
    unread.read_to_string(&mut rest).unwrap();
    assert_eq!(lab.worker().ended(), Some(0));
    for line in rest.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    }
    assert!(rest.lines().last().unwrap().contains("stopped; nothing was left in hand"), "{rest}");
}

#[test]
fn a_task_that_ends_by_a_fault_takes_its_own_integration_down_and_nobody_elses() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    lab.set("LD_PRELOAD", fault_library());
    // The first thread writes the log. The second one would open the records for the integration that
    // comes first, and the runtime panics when it cannot be started.
    lab.set("TEST_FAULT_THREAD", "2");
    lab.spawn();
    let line: Value = serde_json::from_str(&lab.worker().line_with("a task ended by a fault")).unwrap();
    let faulted = line["integration"].as_str().unwrap().to_owned();
    let other = lab.simulated.iter().map(|simulated| simulated.integration.clone()).find(|name| *name != faulted);
    assert_eq!(line["task"], "supervisor");
    let (status, body) = lab.admin("/readyz");
    assert!(status == 503 && body.contains(&format!("\"faulted\":[\"{faulted}\"]")), "{body}");
    let line: Value = serde_json::from_str(&lab.worker().line_with("\"message\":\"consuming\"")).unwrap();
    assert_eq!(line["integration"].as_str(), other.as_deref());
    lab.worker().line_with("ready: consuming");
    lab.publish(events("both", 1));
    lab.settled_of(&faulted, 1);
    lab.settled_of(&other.unwrap(), 1);
    lab.stop();
}
