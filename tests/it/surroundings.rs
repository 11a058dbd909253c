//! What surrounds a worker may hang or fail: the reader of its log, its disk, its files.

use super::harness::{Lab, events};
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
