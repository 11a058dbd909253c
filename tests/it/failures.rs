//! What cannot be delivered is kept whole, together with the reason.

use super::harness::{Lab, Letter, Message, choice, ctl, fixture, poll_until};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

/// Every kind of malformed message, with its reason's code.
fn malformed() -> Vec<(Vec<u8>, &'static str)> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut event = choice("bad@example.com", true);
        change(&mut event);
        event.to_string().into_bytes()
    };
    let entity = |key: &'static str, value: Value| with(&|event| event["parameters"]["entity"][key] = value.clone());
    let future = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(6);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let flat = format!("{{\"{}\":1}}", vec!["a"; 10_000].join("__"));
    vec![
        (b"".to_vec(), "undecodable"),
        (b"null".to_vec(), "undecodable"),
        (b"[]".to_vec(), "undecodable"),
        (b"\"text\"".to_vec(), "undecodable"),
        (b"{}".to_vec(), "undecodable"),
        (b"\xff\xfe\x00".to_vec(), "undecodable"),
        (b"{\"type\":\"event.created\"}".to_vec(), "undecodable"),
        (b"{\"type\":7,\"user\":{}}".to_vec(), "undecodable"),
        (b"{\"type\":\"event.created\",\"parameters\":[]}".to_vec(), "undecodable"),
        (deep.into_bytes(), "undecodable"),
        (flat.into_bytes(), "undecodable"),
        (fixture("broken-not-json.txt"), "undecodable"),
        (fixture("broken-truncated.json"), "undecodable"),
        (fixture("broken-wrong-types.json"), "undecodable"),
        (entity("id", json!(7)), "undecodable"),
        (entity("created_at", json!("yesterday")), "undecodable"),
        (entity("created_at", json!(1_700_000_000)), "undecodable"),
        (entity("status", json!("perhaps")), "undecodable"),
        (entity("user", json!("jane")), "undecodable"),
        (entity("user", json!({ "organization_user_id": 5.5 })), "undecodable"),
        (entity("consents", json!([])), "undecodable"),
        (entity("consents", json!({ "purposes": {} })), "undecodable"),
        (entity("consents", json!({ "purposes": ["newsletter"] })), "undecodable"),
        (entity("consents", json!({ "purposes": [{ "id": "newsletter", "enabled": "yes" }] })), "undecodable"),
        (entity("created_at", json!(future.to_string())), "future_dated"),
        (with(&|event| event["padding"] = json!("x".repeat(1024 * 1024))), "too_large"),
    ]
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn malformed_messages_are_kept_whole_and_the_others_are_delivered() {
    let mut lab = Lab::new();
    lab.start();
    let kinds = malformed();
    let repeats = 100 / kinds.len() + 1;
    let mut messages: Vec<Message> = Vec::new();
    for round in 0..repeats {
        for (index, (body, _)) in kinds.iter().enumerate() {
            messages.push(body.clone().into());
            messages.push(choice(&format!("good-{round}-{index}@example.com"), true).into());
        }
    }
    let bad = kinds.len() * repeats;
    assert!(bad >= 100);
    lab.publish(messages);
    lab.settled(2 * bad);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), bad);
    lab.gate(0).saw_only_good_requests();
    let letters = lab.dead();
    assert_eq!(letters.len(), bad);
    for (body, code) in &kinds {
        let same: Vec<&Letter> = letters.iter().filter(|letter| letter.body == *body).collect();
        assert_eq!(same.len(), repeats, "bodies are unchanged");
        for letter in same {
            assert_eq!(
                letter.header("consent-gate-reason").as_deref(),
                Some(*code),
                "{}",
                String::from_utf8_lossy(&body[..body.len().min(200)])
            );
            assert_eq!(letter.header("consent-gate-attempts").as_deref(), Some("0"));
        }
    }
    assert!(lab.worker().is_running());
    assert_eq!(lab.worker().text().matches("\"starting\"").count(), 1, "it never restarted");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_wrong_type_is_named_without_its_value() {
    let mut lab = Lab::new();
    lab.start();
    lab.publish(vec![fixture("broken-wrong-types.json").into()]);
    lab.settled(1);
    let error = lab.dead()[0].header("consent-gate-last-error").unwrap();
    for field in ["id: expected a string", "created_at:", "user: expected an object", "consents: expected an object"] {
        assert!(error.contains(field), "{error}");
    }
    assert!(!error.contains("yesterday") && !error.contains("jane"), "{error}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_failed_send_is_a_dead_letter_with_its_code() {
    let mut lab = Lab::new();
    lab.start();
    let cases = [
        (json!({ "status": 503 }), "attempts_exhausted", Some("503"), 5),
        (json!({ "status": 429 }), "attempts_exhausted", Some("429"), 5),
        (json!({ "reset": true }), "attempts_exhausted", None, 5),
        (json!({ "status": 401 }), "misconfigured", Some("401"), 5),
        (json!({ "status": 302 }), "misconfigured", Some("302"), 5),
        (json!({ "status": 400 }), "refused", Some("400"), 1),
        (json!({ "status": 200, "is_success": false, "error": "no such list" }), "rejected", Some("200"), 5),
        (json!({ "in_place": "firewall" }), "not_the_gate", Some("200"), 5),
        (json!({ "in_place": "challenge" }), "not_the_gate", Some("202"), 5),
        (json!({ "in_place": "login" }), "not_the_gate", Some("200"), 5),
        (json!({ "in_place": "proxy" }), "not_the_gate", Some("413"), 5),
        (json!({ "status": 418 }), "unexpected_status", Some("418"), 5),
    ];
    for (index, (fault, code, status, attempts)) in cases.into_iter().enumerate() {
        lab.gate(0).faults(json!([fault]));
        let event = choice("jane@example.com", true);
        lab.publish(vec![event.clone().into()]);
        lab.settled(index + 1);
        let letters = lab.dead();
        assert_eq!(letters.len(), 1, "{code}");
        let letter = &letters[0];
        assert_eq!(letter.header("consent-gate-reason").as_deref(), Some(code));
        assert_eq!(letter.header("consent-gate-attempts"), Some(attempts.to_string()));
        assert_eq!(letter.body, event.to_string().into_bytes());
        let history = letter.header("consent-gate-history").unwrap();
        assert!(status.is_none_or(|status| history.contains(status)), "{history}");
        assert_eq!(history.matches("\"result\"").count(), attempts, "{history}");
        assert!(letter.header("consent-gate-first-attempt-ms").unwrap().parse::<i64>().unwrap() > 1_700_000_000_000);
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_gate_that_does_not_answer_is_given_up_after_the_timeout() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "timeout": "200ms" } })]);
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    let letter = &lab.dead()[0];
    assert_eq!(letter.header("consent-gate-reason").as_deref(), Some("attempts_exhausted"));
    assert_eq!(letter.header("consent-gate-last-error").as_deref(), Some("unavailable: no answer within 200ms"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_the_gate_says_is_kept_without_any_value_that_was_sent() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 400, "error": "JANE@example.com is unknown to s3cr3t-encryption-key" }]));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    let letter = &lab.dead()[0];
    assert_eq!(letter.header("consent-gate-last-error").as_deref(), Some("refused: status 400"));
    assert_eq!(letter.header("consent-gate-last-answer").as_deref(), Some("*** is unknown to ***"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn somebody_elses_page_in_place_of_a_refusal_is_named_as_such() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 403, "body": "<html>Access Denied</html>" }]));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    let letter = &lab.dead()[0];
    assert_eq!(letter.header("consent-gate-reason").as_deref(), Some("misconfigured"));
    let error = letter.header("consent-gate-last-error").unwrap();
    assert!(error == "misconfigured: status 403, not the gate's answer: a page", "{error}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_gate_that_answers_with_pages_is_believed_by_its_status_where_the_document_says_so() {
    let mut lab = Lab::with(&[&|document| document["properties"]["answer"] = "status".into()]);
    lab.gate(0).faults(json!([{ "body": "<p>thanks</p>" }]));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    assert_eq!(lab.dead().len(), 0);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_firewall_that_answers_for_every_event_opens_the_breaker() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "retry": { "on_outage": "hold" } })]);
    lab.gate(0).faults(json!([{ "in_place": "firewall" }]));
    lab.start();
    lab.publish((0..20).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    let open = format!("consent_gate_breaker_open{{integration=\"{}\"}}", lab.integration());
    poll_until("the breaker to open", || (lab.metric(&open) > 0.5).then_some(()));
    lab.gate(0).faults(json!([]));
    lab.settled(20);
    assert_eq!(lab.dead().len(), 0);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 20);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_dead_letter_keeps_the_publishers_properties_but_cannot_expire_or_spread() {
    let mut lab = Lab::new();
    lab.start();
    let mut headers = FieldTable::default();
    headers.insert("tenant".into(), AMQPValue::LongString("north".into()));
    headers.insert("consent-gate-attempts".into(), AMQPValue::LongLongInt(99));
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString("nowhere".into())].into()));
    headers.insert("x-death".into(), AMQPValue::LongString("forged".into()));
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_message_id("m-1".into())
        .with_content_type("application/json".into())
        .with_user_id("guest".into())
        .with_expiration("60000".into());
    lab.publish(vec![Message { body: b"broken".to_vec(), properties }]);
    lab.settled(1);
    let letter = lab.dead().remove(0);
    assert_eq!(letter.properties.message_id(), &Some("m-1".into()));
    assert_eq!(letter.properties.content_type(), &Some("application/json".into()));
    assert_eq!(letter.properties.delivery_mode(), &Some(2));
    assert_eq!(letter.properties.expiration(), &None);
    let mut names = letter.header_names();
    names.retain(|name| !name.starts_with("consent-gate-"));
    assert_eq!(names, ["tenant"]);
    assert_eq!(letter.header("consent-gate-attempts").as_deref(), Some("0"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_dead_letter_queue_that_was_deleted_is_declared_again_and_gets_the_letter() {
    let mut lab = Lab::new();
    lab.start();
    lab.bench.delete_queue(&lab.queue(".dead"));
    lab.publish(vec![b"broken".to_vec().into()]);
    lab.settled(1);
    assert_eq!(lab.dead().len(), 1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_dead_letter_queue_that_was_full_gets_every_letter_in_the_end() {
    let mut lab = Lab::new();
    lab.start();
    let policy = lab.integration().to_owned();
    let pattern = format!("^{}$", lab.queue(".dead").replace('.', "[.]"));
    let limit = r#"{"max-length":2,"overflow":"reject-publish"}"#;
    ctl(&["set_policy", &policy, &pattern, limit, "--apply-to", "queues"]);
    lab.publish((0..12).map(|n| format!("broken {n}").into_bytes().into()).collect());
    let failures = format!("consent_gate_settle_failures_total{{integration=\"{policy}\"}}");
    poll_until("the full queue to refuse", || (lab.metric(&failures) >= 8.0).then_some(()));
    ctl(&["clear_policy", &policy]);
    lab.settled(12);
    assert_eq!(lab.dead().len(), 12);
}
