//! Failed sends: five attempts by delay queues, then a dead letter that explains itself.

use super::harness::{Lab, Letter, Message, Node, choice, ctl, events, person, poll_until};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// When each request of a person was received by the gate, in milliseconds.
fn times(lab: &Lab, person: &str) -> Vec<i64> {
    let requests = lab.gate(0).requests();
    let of_person = requests["recent"].as_array().unwrap().iter().filter(|request| request["identifier"] == person);
    let mut times: Vec<i64> = of_person
        .map(|request| request["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond())
        .collect();
    times.sort_unstable();
    times
}

fn metric(lab: &mut Lab, name: &str, label: &str) -> f64 {
    let series = format!("consent_gate_{name}{{integration=\"{}\",{label}}}", lab.integration());
    lab.metric(&series)
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_gate_that_is_back_for_the_third_attempt_gets_everything() {
    let mut lab = Lab::new();
    let down = (0..20).map(|n| json!({ "status": 503, "identifier": person("p", n), "times": 2 }));
    lab.gate(0).faults(down.collect());
    lab.start();
    lab.publish(events("p", 20));
    lab.settled(20);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 20);
    assert_eq!(metric(&mut lab, "events_total", "outcome=\"delivered\""), 20.0);
    assert_eq!(metric(&mut lab, "retries_total", "step=\"1\""), 20.0);
    assert_eq!(metric(&mut lab, "retries_total", "step=\"2\""), 20.0);
    assert_eq!(metric(&mut lab, "retries_total", "step=\"3\""), 0.0);
    assert_eq!(metric(&mut lab, "consent_latency_seconds_count", "path=\"retry\""), 20.0);
    assert!(lab.dead().is_empty());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn five_attempts_behind_a_backlog_and_then_a_letter_with_its_whole_history() {
    let mut lab = Lab::new();
    let delays = [200, 300, 400, 500];
    lab.set_delays(&delays);
    let down = (0..30).map(|n| json!({ "status": 503, "identifier": person("down", n) }));
    lab.gate(0).faults(down.collect());
    lab.declare();
    lab.publish(events("down", 30));
    lab.publish(events("fine", 3_000));
    lab.start();
    lab.settled(3_030);
    let letters = lab.dead();
    assert_eq!(letters.len(), 30);
    for letter in &letters {
        assert_eq!(letter.header("consent-gate-reason").as_deref(), Some("attempts_exhausted"));
        assert_eq!(letter.header("consent-gate-attempts").as_deref(), Some("5"));
        assert_eq!(letter.header("consent-gate-last-error").as_deref(), Some("unavailable: status 503"));
        assert_eq!(letter.header("consent-gate-last-answer").as_deref(), Some("a fault was asked for"));
        let history = letter.history();
        assert_eq!(history.len(), 5);
        for (attempt, delay) in history.windows(2).zip(delays) {
            let gap = u64::try_from(attempt[1]["at"] - attempt[0]["at"]).unwrap();
            assert!(gap >= delay, "attempts {gap} ms apart, the delay was {delay}");
        }
        assert!(history.iter().all(|attempt| attempt["status"] == 503));
        assert_eq!(letter.header("consent-gate-first-attempt-ms"), Some(history[0]["at"].to_string()));
    }
    assert_eq!(lab.gate(0).outcome("accepted"), 3_000);
    for queue in ["", ".retry", ".delay.200", ".delay.500"] {
        assert_eq!(lab.bench.depth(&lab.queue(queue)), 0, "{queue}");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_moved_back_to_the_work_queue_has_five_new_attempts() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    lab.publish(events("p", 3));
    lab.settled(3);
    let messages = lab.dead().into_iter().map(|letter| Message { body: letter.body, properties: letter.properties });
    lab.bench.publish("", &lab.queue(""), messages.collect());
    lab.settled(6);
    let letters = lab.dead();
    assert_eq!(letters.len(), 3);
    for letter in letters {
        assert_eq!(letter.header("consent-gate-attempts").as_deref(), Some("5"));
        assert_eq!(letter.history().len(), 5, "the history is the new one");
        assert_eq!(times(&lab, &letter.person()).len(), 10);
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_shovel_moves_dead_letters_back_and_each_has_five_new_attempts() {
    let node = Node::with_shovel();
    let mut lab = Lab::at(&node.url, &[&|_| {}]);
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    lab.publish(events("p", 100));
    lab.settled(100);
    let shovel = json!({
        "src-protocol": "amqp091", "src-uri": "amqp://", "src-queue": lab.queue(".dead"), "src-delete-after": "queue-length",
        "dest-protocol": "amqp091", "dest-uri": "amqp://", "dest-queue": lab.queue(""),
    });
    node.ctl(&["set_parameter", "shovel", "back", &shovel.to_string()]);
    lab.settled(200);
    let letters = lab.dead();
    assert_eq!(letters.len(), 100);
    for letter in letters {
        assert_eq!(letter.history().len(), 5);
        assert_eq!(letter.header("consent-gate-attempts").as_deref(), Some("5"));
        assert_eq!(times(&lab, &letter.person()).len(), 10);
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn retry_after_is_kept_and_pauses_the_whole_integration() {
    let mut lab = Lab::new();
    lab.set_delays(&[100, 200, 300]);
    let asked =
        json!({ "status": 429, "headers": { "Retry-After": "2" }, "times": 1, "identifier": person("first", 0) });
    lab.gate(0).faults(json!([asked]));
    lab.start();
    lab.publish(events("first", 1));
    lab.worker().line_with("asks for a pause");
    lab.publish(events("other", 10));
    lab.settled(11);
    let first = times(&lab, &person("first", 0));
    assert_eq!(first.len(), 2);
    assert!(first[1] - first[0] >= 2_000, "{first:?}");
    for n in 0..10 {
        let other = times(&lab, &person("other", n));
        assert_eq!(other.len(), 1);
        assert!(other[0] - first[0] >= 2_000, "asked {} ms after the gate had asked for 2000", other[0] - first[0]);
    }
    assert_eq!(metric(&mut lab, "retries_total", "step=\"1\""), 1.0);
    assert!(lab.dead().is_empty());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_retry_after_beyond_the_window_is_a_dead_letter() {
    for headers in [json!({ "Retry-After": "86400" }), json!({ "X-RateLimit-Reset": "99999999999999999999" })] {
        let mut lab = Lab::new();
        lab.set("CONSENT_GATE_RETRY__WINDOW", "51s");
        lab.gate(0).faults(json!([{ "status": 429, "headers": headers }]));
        lab.start();
        lab.publish(events("p", 1));
        lab.settled(1);
        let letter = lab.dead().remove(0);
        assert_eq!(letter.header("consent-gate-reason").as_deref(), Some("retry_after_beyond_window"));
        assert_eq!(letter.header("consent-gate-attempts").as_deref(), Some("1"));
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_outage_that_is_held_costs_no_attempt() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RETRY__ON_OUTAGE", "hold");
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    lab.publish(events("p", 500));
    lab.worker().line_with("the gate is down");
    assert_eq!(metric_plain(&mut lab, "breaker_open"), 1.0);
    let (status, body) = lab.admin("/readyz");
    assert!(
        status == 200 && body.contains("\"down\""),
        "a gate that is down shows, and is no reason to restart: {body}"
    );
    lab.worker().line_with("the gate is still down");
    lab.gate(0).faults(json!([{ "status": 503, "identifier": person("p", 7), "times": 1 }]));
    lab.worker().line_with("the gate is back");
    lab.settled(500);
    assert_eq!(metric_plain(&mut lab, "breaker_open"), 0.0);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 500);
    let attempts = (1..=4).map(|step| metric(&mut lab, "retries_total", &format!("step=\"{step}\""))).sum::<f64>();
    assert!(attempts <= 10.0, "{attempts} attempts were spent, more than those before it opened");
    assert!(lab.dead().is_empty());
}

fn metric_plain(lab: &mut Lab, name: &str) -> f64 {
    let series = format!("consent_gate_{name}{{integration=\"{}\"}}", lab.integration());
    lab.metric(&series)
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_hanging_gate_with_a_backlog_leaves_retries_their_slots() {
    let mut lab = Lab::with(&[&|document| {
        document["overrides"] = json!({ "gate": { "max_in_flight": 4, "timeout": "200ms" } });
    }]);
    lab.set_delays(&[50, 50, 50, 50]);
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.declare();
    lab.publish(events("p", 120));
    lab.start();
    lab.settled(20);
    // Without reserved slots no retry would be sent before the last of the fresh events.
    let mut begun: BTreeMap<String, usize> = BTreeMap::new();
    for request in lab.gate(0).requests()["recent"].as_array().unwrap() {
        *begun.entry(request["identifier"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(begun.len() < 60, "{} of 120 were begun before 20 were through", begun.len());
}

/// 200 events that become dead letters at once, and 200 that are parked first.
fn doomed(lab: &Lab) -> Vec<Message> {
    lab.gate(0).faults(json!([{ "status": 503 }]));
    (0..200).flat_map(|n| [format!("broken {n}").into_bytes().into(), choice(&person("p", n), true).into()]).collect()
}

/// Waits until each of them is a dead letter.
fn all_dead(lab: &mut Lab) {
    lab.settled(400);
    let bodies: BTreeSet<Vec<u8>> = lab.dead().into_iter().map(|letter| letter.body).collect();
    assert_eq!(bodies.len(), 400);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn queues_that_are_full_cost_nobody_the_original() {
    let mut lab = Lab::new();
    lab.set_delays(&[100]);
    let name = lab.integration().to_owned();
    let pattern = format!("^{}[.](dead|delay[.]100)$", lab.queue("").replace('.', "[.]"));
    let limit = r#"{"max-length":3,"overflow":"reject-publish"}"#;
    ctl(&["set_policy", &name, &pattern, limit, "--apply-to", "queues"]);
    lab.declare();
    lab.publish(doomed(&lab));
    lab.start();
    let failures = format!("consent_gate_settle_failures_total{{integration=\"{name}\"}}");
    poll_until("refusals", || (lab.metric(&failures) >= 100.0).then_some(()));
    ctl(&["clear_policy", &name]);
    all_dead(&mut lab);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn queues_that_are_gone_cost_nobody_the_original() {
    let mut lab = Lab::new();
    lab.set_delays(&[100]);
    lab.start();
    lab.bench.delete_queue(&lab.queue(".dead"));
    lab.bench.delete_queue(&lab.queue(".delay.100"));
    lab.publish(doomed(&lab));
    lab.worker().line_with("lost the broker");
    all_dead(&mut lab);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_message_put_into_the_retry_queue_by_hand_has_a_defined_result() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    let huge = AMQPValue::LongLongInt(i64::MAX);
    let once = u32::MAX.to_string();
    // Name, headers, and how many attempts its letter records.
    let forged = [
        ("no header", vec![], "5"),
        ("negative", vec![("consent-gate-attempts", AMQPValue::LongInt(-7))], "5"),
        ("text", vec![("consent-gate-attempts", AMQPValue::LongString("4".into()))], "5"),
        ("three made", vec![("consent-gate-attempts", AMQPValue::ShortShortUInt(3))], "5"),
        ("huge", vec![("consent-gate-attempts", huge.clone())], once.as_str()),
        ("far ahead", vec![("consent-gate-not-before-ms", huge.clone())], "5"),
        ("forged death", vec![("x-death", AMQPValue::FieldArray(vec![huge].into()))], "5"),
        ("forged count", vec![("x-delivery-count", AMQPValue::LongLongInt(99))], "5"),
    ];
    let messages = forged.iter().map(|(name, headers, _)| {
        let mut table = FieldTable::default();
        for (key, value) in headers {
            table.insert((*key).into(), value.clone());
        }
        let properties = BasicProperties::default().with_headers(table).with_message_id((*name).into());
        Message {
            body: choice(&format!("{}@example.com", name.replace(' ', "-")), true).to_string().into(),
            properties,
        }
    });
    lab.bench.publish("", &lab.queue(".retry"), messages.collect());
    lab.settled(forged.len());
    let letters = lab.dead();
    for (name, _, attempts) in &forged {
        let of_name = |letter: &&Letter| letter.properties.message_id().as_ref().is_some_and(|id| id.as_str() == *name);
        let letter = letters.iter().find(of_name).unwrap_or_else(|| panic!("{name} is not there"));
        assert_eq!(letter.header("consent-gate-attempts").as_deref(), Some(*attempts), "{name}");
        assert_eq!(letter.header("consent-gate-reason").as_deref(), Some("attempts_exhausted"), "{name}");
    }
    assert_eq!(times(&lab, "three-made@example.com").len(), 2);
    assert_eq!(times(&lab, "huge@example.com").len(), 1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn headers_that_leave_no_room_for_a_count_cost_no_endless_loop() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    let sizes = [62 * 1024, 64 * 1024, 127 * 1024];
    let messages = sizes.iter().map(|size| {
        let mut headers = FieldTable::default();
        headers.insert("big".into(), AMQPValue::LongString("x".repeat(*size).into()));
        let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
        Message { body: choice(&format!("{size}@example.com"), true).to_string().into(), properties }
    });
    lab.publish(messages.collect());
    lab.settled(sizes.len());
    let letters = lab.dead();
    assert_eq!(letters.len(), sizes.len());
    for (size, attempts) in sizes.iter().zip([5, 1, 1]) {
        assert_eq!(times(&lab, &format!("{size}@example.com")).len(), attempts, "{size}");
    }
    assert!(letters.iter().all(|letter| letter.header_names().contains(&"big".to_owned())), "whole as they came");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_new_schedule_takes_what_waits_in_the_old_one() {
    let mut lab = Lab::new();
    lab.set_delays(&[1_500, 1_500]);
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    lab.publish(events("p", 5));
    poll_until("all parked", || (metric(&mut lab, "retries_total", "step=\"1\"") == 5.0).then_some(()));
    lab.stop();
    lab.set_delays(&[50, 60, 70, 80]);
    lab.start();
    lab.settled(5);
    let letters = lab.dead();
    assert_eq!(letters.len(), 5);
    for letter in letters {
        assert_eq!(letter.history().len(), 5, "the attempt of the old schedule counts");
    }
    assert_eq!(lab.bench.depth(&lab.queue(".delay.1500")), 0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_removed_integration_keeps_what_waits_for_it_until_it_is_back() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    lab.set_delays(&[400, 400]);
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    lab.publish(events("p", 4));
    poll_until("all parked", || (metric(&mut lab, "retries_total", "step=\"1\"") == 4.0).then_some(()));
    lab.stop();
    let document = lab.folder.0.join(format!("integrations/{}.json", lab.integration()));
    let aside = lab.folder.0.join("removed.json");
    std::fs::rename(&document, &aside).unwrap();
    lab.start();
    poll_until("all of them to rest", || (lab.bench.depth(&lab.queue(".retry")) == 4).then_some(()));
    lab.stop();
    std::fs::rename(&aside, &document).unwrap();
    lab.gate(0).faults(json!([]));
    lab.start();
    lab.settled(4);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 4);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_delay_queue_with_other_arguments_is_named_with_the_difference() {
    let mut lab = Lab::new();
    let queue = lab.queue(".delay.50");
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    lab.bench.declare_queue(&queue, arguments);
    lab.bench.publish("", &queue, vec![b"somebody's".to_vec().into()]);
    lab.spawn();
    let line = lab.worker().line_with("cannot use the broker");
    for part in [queue.as_str(), "inequivalent arg", "untouched", "move them away"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert_eq!(lab.bench.depth(&queue), 1);
    assert_eq!(lab.admin("/readyz").0, 503);
}
