//! Events arrive: all of them, in the order of each person, whatever other integrations do.

use super::harness::{Lab, Message, choice, poll_until};
use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_profile_ends_as_its_last_event_says() {
    let mut lab = Lab::new();
    lab.start();
    let messages = (0..1000).map(|n| choice(&format!("p{}@example.com", n % 100), (n / 100 + n) % 2 == 0).into());
    lab.publish(messages.collect());
    lab.settled(1000);
    let profiles = lab.gate(0).profiles();
    assert_eq!(profiles.as_object().unwrap().len(), 100);
    for n in 900..1000 {
        let person = format!("p{}@example.com", n % 100);
        let newest = if (n / 100 + n) % 2 == 0 { "1" } else { "0" };
        assert_eq!(profiles[&person]["OPTIN_NEWS"], newest, "{person}");
    }
    lab.gate(0).saw_only_good_requests();
    assert_eq!(lab.gate(0).outcome("accepted"), 1000, "without faults an event is exactly one request");
    assert_eq!(lab.bench.depth(&lab.queue("")), 0);
    assert_eq!(lab.bench.depth(&lab.queue(".dead")), 0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn one_person_has_one_request_at_a_time_in_order_of_receipt() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "latency_ms": 5 }]));
    lab.start();
    let spellings = ["Jane@example.com", "jane@example.com ", "JANE@EXAMPLE.COM"];
    lab.publish((0..8).map(|n| choice(spellings[n % 3], n % 2 == 0).into()).collect());
    lab.settled(8);
    let requests = lab.gate(0).requests();
    assert_eq!(requests["max_in_flight"], 1, "spellings of one address are one person");
    let seen: Vec<&str> = requests["recent"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["properties"]["OPTIN_NEWS"].as_str().unwrap())
        .collect();
    let sent: Vec<&str> = (0..8).map(|n| if n % 2 == 0 { "1" } else { "0" }).collect();
    assert_eq!(seen, sent);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_thousand_events_of_one_person_hold_up_nobody_else() {
    let mut lab = Lab::new();
    lab.set_delays(&[100, 200]);
    lab.gate(0).faults(json!([{ "latency_ms": 2, "identifier": "jane@example.com" }]));
    lab.declare();
    lab.publish((0..1000).map(|n| choice("jane@example.com", n % 2 == 0).into()).collect());
    lab.publish((0..20).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    lab.start();
    let others = |lab: &Lab| lab.gate(0).profiles().as_object().unwrap().len();
    poll_until("everybody else", || (others(&lab) >= 20).then_some(()));
    lab.settled(1020);
    assert_eq!(lab.gate(0).outcome("accepted"), 1020);
    let held = format!("consent_gate_retries_total{{integration=\"{}\",step=\"hold\"}}", lab.integration());
    assert!(lab.metric(&held) > 0.0, "most of them waited at the broker");
    assert!(lab.dead().is_empty());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn different_persons_go_in_parallel_up_to_the_limit() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "max_in_flight": 5 } })]);
    lab.gate(0).faults(json!([{ "latency_ms": 30 }]));
    lab.start();
    lab.publish((0..50).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    lab.settled(50);
    assert_eq!(lab.gate(0).requests()["max_in_flight"], 5);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_hanging_gate_delays_nobody_else() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.start();
    lab.publish((0..300).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    let other = lab.simulated[1].integration.clone();
    lab.settled_of(&other, 300);
    assert_eq!(lab.gate(1).outcome("accepted"), 300);
    assert_eq!(lab.gate(0).outcome("accepted"), 0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn killed_with_events_in_flight_it_loses_none() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "max_in_flight": 20 } })]);
    lab.gate(0).faults(json!([{ "latency_ms": 20 }]));
    lab.start();
    lab.publish((0..1000).map(|n| choice(&format!("p{n}@example.com"), n % 2 == 0).into()).collect());
    poll_until("requests in flight", || (lab.gate(0).outcome("accepted") >= 50).then_some(()));
    lab.worker().signal("KILL");
    assert_eq!(lab.worker().ended(), None);
    assert!(lab.gate(0).outcome("accepted") < 1000, "it was killed in the midst");
    lab.gate(0).faults(json!([]));
    lab.start();
    let profiles = poll_until("every profile", || {
        let profiles = lab.gate(0).profiles();
        (profiles.as_object().unwrap().len() == 1000).then_some(profiles)
    });
    for n in 0..1000 {
        assert_eq!(profiles[format!("p{n}@example.com")]["OPTIN_NEWS"], if n % 2 == 0 { "1" } else { "0" });
    }
    poll_until("empty queues", || (lab.bench.depth(&lab.queue("")) == 0).then_some(()));
    assert_eq!(lab.bench.depth(&lab.queue(".dead")), 0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn sigterm_finishes_what_is_in_hand_and_leaves_the_rest() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "max_in_flight": 4 } })]);
    lab.gate(0).faults(json!([{ "latency_ms": 200 }]));
    lab.start();
    lab.publish((0..100).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    poll_until("requests in flight", || (lab.gate(0).outcome("accepted") >= 4).then_some(()));
    lab.stop();
    lab.worker().line_with("nothing was left in hand");
    let delivered = lab.gate(0).outcome("accepted");
    let waiting = poll_until(
        &format!("the rest of {delivered} to be back in the queue, which has {}", lab.bench.depth(&lab.queue(""))),
        || {
            let waiting = u64::from(lab.bench.depth(&lab.queue("")));
            (delivered + waiting == 100).then_some(waiting)
        },
    );
    assert!(waiting > 0 && lab.gate(0).outcome("abandoned") == 0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_stop_during_an_outage_leaves_nothing_in_hand() {
    let mut lab = Lab::with(&[&|document| {
        document["overrides"] = json!({ "gate": { "timeout": "1s", "max_in_flight": 2 } });
    }]);
    lab.set("CONSENT_GATE_SHUTDOWN__DEADLINE", "6s");
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.start();
    // More events of one person than could all time out before the deadline.
    lab.publish((0..7).map(|n| choice("jane@example.com", n % 2 == 0).into()).collect());
    lab.publish((0..20).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    poll_until("requests under way", || (lab.gate(0).requests()["in_flight"] == 2).then_some(()));
    lab.stop();
    assert!(lab.worker().text().contains("nothing was left in hand"), "{}", lab.worker().text());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_drain_that_takes_too_long_ends_at_its_deadline() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_SHUTDOWN__DEADLINE", "300ms");
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    poll_until("a hanging request", || (lab.gate(0).requests()["in_flight"] == 1).then_some(()));
    lab.worker().signal("INT");
    assert_eq!(lab.worker().ended(), Some(0));
    lab.worker().line_with("stopped with events in hand");
    poll_until("the event to be back", || (lab.bench.depth(&lab.queue("")) == 1).then_some(()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_published_between_declare_and_the_first_start_is_not_missed() {
    let mut lab = Lab::new();
    lab.declare();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.start();
    lab.settled(1);
    assert_eq!(lab.gate(0).profiles()["jane@example.com"]["OPTIN_NEWS"], "1");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_exchange_that_exists_is_used_as_it_is() {
    let mut lab = Lab::new();
    lab.bench.declare_exchange(&lab.exchange, ExchangeKind::Fanout);
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn binding_keys_select_what_an_integration_gets() {
    let mut lab = Lab::with(&[&|document| document["events"] = json!({ "binding_keys": ["shop.#"] }), &|document| {
        document["events"] = json!({ "binding_keys": ["news.#", "both.#"] });
    }]);
    lab.start();
    lab.bench.publish(&lab.exchange, "shop.event", vec![choice("shop@example.com", true).into()]);
    lab.bench.publish(&lab.exchange, "news.event", vec![choice("news@example.com", true).into()]);
    lab.settled(1);
    let other = lab.simulated[1].integration.clone();
    lab.settled_of(&other, 1);
    assert!(lab.gate(0).profiles().get("shop@example.com").is_some());
    assert!(lab.gate(1).profiles().get("news@example.com").is_some());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn somebody_elses_queue_can_be_the_source() {
    let mut lab = Lab::new();
    let queue = format!("{}.theirs", lab.exchange);
    lab.bench.declare_queue(&queue, FieldTable::default());
    lab.bench.declare_exchange(&lab.exchange, ExchangeKind::Topic);
    lab.also_delete(&queue);
    lab.environment.remove("CONSENT_GATE_SOURCE__EXCHANGE");
    lab.set("CONSENT_GATE_SOURCE__QUEUE", &queue);
    lab.start();
    lab.bench.publish("", &queue, vec![choice("theirs@example.com", true).into()]);
    lab.bench.publish("", &lab.queue(""), vec![choice("moved@example.com", true).into()]);
    lab.settled(2);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 2);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_queue_with_other_arguments_is_named_and_left_alone() {
    let mut lab = Lab::new();
    let queue = lab.queue("");
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    lab.bench.declare_queue(&queue, arguments);
    lab.bench.publish("", &queue, vec![choice("jane@example.com", true).into()]);
    lab.spawn();
    let line = lab.worker().line_with("cannot use the broker");
    assert!(line.contains(&queue) && line.contains("inequivalent arg") && line.contains("delete the queue"), "{line}");
    assert_eq!(lab.admin("/readyz").0, 503);
    assert_eq!(lab.bench.depth(&queue), 1);
    lab.bench.declare_exchange(&lab.exchange, ExchangeKind::Topic);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_integration_that_the_broker_refuses_holds_up_no_other() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    let refused = format!("consent-gate.{}", lab.simulated[1].integration);
    lab.bench.declare_queue(&refused, FieldTable::default());
    lab.spawn();
    lab.worker().line_with("delete the queue, and start again");
    lab.worker().line_with("\"consuming\"");
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    let (status, body) = lab.admin("/readyz");
    assert!(status == 503 && body.contains(&format!("\"refused\":[\"{}\"]", lab.simulated[1].integration)), "{body}");
    lab.bench.delete_queue(&refused);
    poll_until("the refused one to be served", || (lab.admin("/readyz").0 == 200).then_some(()));
    lab.publish(vec![choice("jane@example.com", true).into()]);
    let other = lab.simulated[1].integration.clone();
    lab.settled_of(&other, 1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_queue_that_is_deleted_is_declared_and_consumed_again() {
    let mut lab = Lab::new();
    lab.start();
    lab.bench.delete_queue(&lab.queue(""));
    lab.worker().line_with("lost the broker");
    poll_until("the worker to be ready again", || (lab.admin("/readyz").0 == 200).then_some(()));
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_kind_of_sample_ends_as_the_design_says() {
    let mut lab = Lab::new();
    lab.start();
    let mut samples: Vec<String> = std::fs::read_dir(super::harness::project().join("tests/fixtures/events"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    samples.sort();
    let count = samples.len();
    lab.publish(samples.iter().map(|name| Message::from(super::harness::fixture(name))).collect());
    lab.settled(count);
    let name = lab.integration().to_owned();
    let expect = |lab: &mut Lab, series: &str, value: f64| {
        let series = series.replacen('{', &format!("{{integration=\"{name}\","), 1);
        assert!((lab.metric(&format!("consent_gate_{series}")) - value).abs() < 0.5, "{series}");
    };
    for (reason, value) in [
        ("event_deleted", 1.0),
        ("no_identifier", 1.0),
        ("other_regulation", 1.0),
        ("pending", 1.0),
        ("unwanted_type", 1.0),
        ("user_deleted", 1.0),
    ] {
        expect(&mut lab, &format!("skipped_total{{reason=\"{reason}\"}}"), value);
    }
    expect(&mut lab, "events_total{outcome=\"delivered\"}", 5.0);
    expect(&mut lab, "dead_lettered_total{reason=\"undecodable\"}", 3.0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_rate_is_a_hard_limit() {
    let mut lab =
        Lab::with(&[&|document: &mut Value| document["overrides"] = json!({ "gate": { "requests_per_second": 50 } })]);
    lab.start();
    lab.publish((0..26).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    lab.settled(26);
    let requests = lab.gate(0).requests();
    let times: Vec<jiff::Timestamp> =
        requests["recent"].as_array().unwrap().iter().map(|r| r["at"].as_str().unwrap().parse().unwrap()).collect();
    let span = times.iter().max().unwrap().duration_since(*times.iter().min().unwrap());
    assert!(span.as_millis() >= 450, "25 intervals of 20 ms in {span:?}");
}
