//! Rules as people write them.

use super::*;
use crate::effect::Execution;
use serde_json::json;
use std::time::Duration;

fn parse(value: Value) -> Result<Rule, String> {
    Rule::parse(value, &["shop".to_owned(), "news".to_owned()])
}

fn effect(value: Value) -> Arc<Effect> {
    parse(value).unwrap().effect
}

fn assert_refused(rule: &Value, beginning: &str) {
    let error = parse(rule.clone()).unwrap_err();
    assert!(error.starts_with(beginning), "{rule}: {error}");
}

#[test]
fn selectors_are_read() {
    let rule = parse(json!({
        "integration": "shop", "identifier": "jane", "share": 0.5, "times": 3, "hang": true
    }))
    .unwrap();
    assert_eq!(rule.integration.as_deref(), Some("shop"));
    assert_eq!(rule.identifier.as_deref(), Some("jane"));
    assert_eq!((rule.share, rule.times), (0.5, Some(3)));
    assert_eq!(rule.written.len(), 5);
    let rule = parse(json!({"hang": true, "identifier": null})).unwrap();
    assert_eq!((rule.identifier, rule.share, rule.times), (None, 1.0, None));
}

#[test]
fn what_happens_follows_from_the_keys() {
    let seconds = Duration::from_secs;
    for (rule, execution, status) in [
        (json!({"latency_ms": 5}), Execution::InTurn, Some(200)),
        (json!({"headers": {"A": "b"}}), Execution::InTurn, Some(200)),
        (json!({"body": ""}), Execution::InTurn, Some(200)),
        (json!({"status": 500}), Execution::Never, Some(500)),
        (json!({"status": 200, "is_success": false}), Execution::Never, Some(200)),
        (json!({"in_place": "firewall"}), Execution::Never, Some(200)),
        (json!({"in_place": "challenge", "latency_ms": 5}), Execution::Never, Some(202)),
        (json!({"in_place": "proxy"}), Execution::Never, Some(413)),
        (json!({"hang": true}), Execution::Never, None),
        (json!({"reset": true, "hang": false}), Execution::Never, None),
        (json!({"lose_answer": true}), Execution::InTurn, None),
        (json!({"execute_after_ms": 9000}), Execution::Late(seconds(9)), None),
        (json!({"execute_after_ms": 9000, "status": 504}), Execution::Late(seconds(9)), Some(504)),
    ] {
        let effect = effect(rule.clone());
        assert_eq!(effect.execution, execution, "{rule}");
        assert_eq!(effect.ending.status(), status, "{rule}");
    }
}

#[test]
fn quota_and_network_come_before_authentication() {
    for (rule, early) in [
        (json!({"status": 429}), true),
        (json!({"status": 503, "headers": {"Retry-After": 5}}), true),
        (json!({"hang": true}), true),
        (json!({"reset": true}), true),
        (json!({"status": 500}), false),
        (json!({"status": 401}), false),
        (json!({"lose_answer": true}), false),
        (json!({"latency_ms": 5}), false),
        (json!({"execute_after_ms": 5, "status": 503}), false),
    ] {
        assert_eq!(effect(rule.clone()).is_early(), early, "{rule}");
    }
}

#[test]
fn a_rule_that_cannot_be_meant_is_refused_by_its_key() {
    for (rule, key) in [
        (json!("hang"), "a rule"),
        (json!({}), "nothing happens"),
        (json!({"identifier": "jane"}), "nothing happens"),
        (json!({"hang": false}), "nothing happens"),
        (json!({"in_place": "dragon"}), "in_place: `dragon`"),
        (json!({"in_place": "login", "status": 200}), "status: contradicts in_place"),
        (json!({"latency": 5}), "latency: unknown key"),
        (json!({"hang": true, "colour": 1}), "colour: unknown key"),
        (json!({"hang": true, "integration": "mail"}), "integration: there is no `mail`"),
        (json!({"hang": true, "identifier": 1}), "identifier: "),
        (json!({"hang": true, "share": 1.5}), "share: "),
        (json!({"hang": true, "times": 0}), "times: "),
        (json!({"hang": true, "times": -1}), "times: "),
        (json!({"hang": "yes"}), "hang: "),
        (json!({"latency_ms": 1.5}), "latency_ms: "),
        (json!({"execute_after_ms": "1s"}), "execute_after_ms: "),
        (json!({"status": 99}), "status: "),
        (json!({"status": 600}), "status: "),
        (json!({"status": "500"}), "status: "),
        (json!({"status": 500, "is_success": 0}), "is_success: "),
        (json!({"status": 500, "error": 1}), "error: "),
        (json!({"body": {}}), "body: "),
        (json!({"headers": []}), "headers: "),
        (json!({"headers": {"A": true}}), "headers: A "),
        (json!({"headers": {"A\n": "b"}}), "headers: "),
        (json!({"headers": {"A": "b\n"}}), "headers: A"),
        (json!({"headers": {"Content-Length": "1"}}), "headers: content-length"),
    ] {
        assert_refused(&rule, key);
    }
}

#[test]
fn keys_that_cannot_stand_together_are_refused_by_name() {
    for (rule, key) in [
        (json!({"error": "no"}), "error: needs a status"),
        (json!({"latency_ms": 1, "is_success": false}), "is_success: needs a status"),
        (json!({"hang": true, "status": 500}), "status: contradicts hang"),
        (json!({"hang": true, "latency_ms": 5}), "latency_ms: contradicts hang"),
        (json!({"reset": true, "body": ""}), "body: contradicts reset"),
        (json!({"reset": true, "lose_answer": true}), "lose_answer: contradicts reset"),
        (json!({"lose_answer": true, "headers": {}}), "headers: contradicts lose_answer"),
        (json!({"status": 200, "body": "", "error": ""}), "error: contradicts body"),
        (json!({"execute_after_ms": 5, "body": ""}), "body: needs a status"),
        (json!({"execute_after_ms": 5, "latency_ms": 5}), "latency_ms: needs a status"),
    ] {
        assert_refused(&rule, key);
    }
}
