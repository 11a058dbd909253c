//! Brokers that are down, come back, refuse, or do not answer.

use super::harness::{Lab, Letter, Node, events, person, poll_until};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::TcpListener;

fn not_ready_but_alive(lab: &mut Lab) {
    assert_eq!(lab.admin("/readyz").0, 503);
    assert_eq!(lab.admin("/livez").0, 200, "a restart would not help");
    assert_eq!(lab.metric("consent_gate_broker_connected"), 0.0);
}

fn delivered(lab: &Lab, count: usize) {
    poll_until(&format!("{count} profiles"), || {
        (lab.gate(0).profiles().as_object().unwrap().len() == count).then_some(())
    });
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_that_refuses_or_cannot_be_found_is_tried_again_and_sigterm_still_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut lab = Lab::new();
    let right = lab.environment["CONSENT_GATE_BROKER__URL"].clone();
    let refused_port = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", free.local_addr().unwrap().port())
    };
    for (url, part) in [
        (right.replace("guest:guest", "guest:wrong-secret"), "ACCESS_REFUSED"),
        ("amqp://guest:guest@broker.invalid:5672/%2f".to_owned(), "broker.invalid"),
        (right.replace("%2f", "nowhere"), "nowhere"),
        (refused_port, "refused"),
    ] {
        lab.set("CONSENT_GATE_BROKER__URL", &url);
        lab.spawn();
        let line = lab.worker().line_with("cannot use the broker");
        assert!(line.contains(part), "{part} in {line}");
        not_ready_but_alive(&mut lab);
        lab.stop();
        assert!(!lab.worker().text().contains("wrong-secret"));
    }
    // A broker that accepts the connection and stays silent.
    lab.set("CONSENT_GATE_BROKER__URL", &format!("amqp://guest:guest@127.0.0.1:{port}/%2f"));
    lab.spawn();
    let (_held, _) = taken.accept().unwrap();
    not_ready_but_alive(&mut lab);
    lab.stop();
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_may_come_late_go_in_order_and_be_killed() {
    let node = Node::start();
    let mut lab = Lab::at(&node.url, &[&|_| {}]);
    lab.set_delays(&[300, 300, 300, 300, 300, 300]);
    // A node that is killed soon after the first declaration of a quorum queue may never elect its leader
    // (docs/rabbitmq.md); an orderly stop makes the declaration safe.
    lab.declare();
    node.stop();
    lab.spawn();
    lab.worker().line_with("cannot use the broker");
    not_ready_but_alive(&mut lab);
    node.restart();
    lab.worker().line_with("ready: consuming");
    // Some events are parked and some are in hand when it is killed.
    lab.gate(0).faults(json!([{ "status": 503, "share": 0.5 }, { "latency_ms": 20 }]));
    lab.publish_surely(events("a", 200));
    delivered_some(&lab);
    node.kill();
    poll_until("to be not ready", || (lab.admin("/readyz").0 == 503).then_some(()));
    node.restart();
    poll_until("to be ready", || (lab.admin("/readyz").0 == 200).then_some(()));
    lab.gate(0).faults(json!([]));
    lab.publish_surely(events("b", 50));
    let mut dead = BTreeSet::new();
    poll_until("each one delivered or dead", || {
        dead.extend(lab.dead().iter().map(Letter::person));
        let profiles = lab.gate(0).profiles();
        let everybody = (0..200).map(|n| person("a", n)).chain((0..50).map(|n| person("b", n)));
        let mut missing = everybody.filter(|p| profiles.get(p).is_none() && !dead.contains(p));
        missing.next().is_none().then_some(())
    });
    lab.stop();
}

fn delivered_some(lab: &Lab) {
    poll_until("some profiles", || (lab.gate(0).profiles().as_object().unwrap().len() > 20).then_some(()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_that_blocks_publishers_still_gets_acks() {
    let node = Node::start();
    let mut lab = Lab::at(&node.url, &[&|_| {}]);
    // Long enough that the alarm comes before the attempts are used up.
    lab.set_delays(&[3_000; 9]);
    lab.gate(0).faults(json!([
        { "status": 503, "identifier": person("bad", 0), "latency_ms": 500 },
        { "latency_ms": 500 },
    ]));
    lab.start();
    lab.publish([events("bad", 1), events("good", 30)].into_iter().flatten().collect());
    node.ctl(&["set_vm_memory_high_watermark", "0.0001"]);
    delivered(&lab, 30);
    poll_until("the acks", || (unacked(&node, &lab) == 1).then_some(()));
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    lab.gate(0).faults(json!([]));
    delivered(&lab, 31);
    lab.stop();
}

/// How many messages are unacked: with retries, in case the alarm came only then.
fn unacked(node: &Node, lab: &Lab) -> usize {
    let listed = node.ctl(&["--silent", "list_queues", "name", "messages_unacknowledged"]);
    let of = |queue: String| -> usize {
        let line = listed.lines().find_map(|line| line.strip_prefix(&format!("{queue}\t")));
        line.unwrap_or_else(|| panic!("no {queue} in {listed}")).trim().parse().unwrap()
    };
    of(lab.queue("")) + of(lab.queue(".retry"))
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_exchange_that_is_deleted_is_made_again_and_one_made_by_others_is_bound_again() {
    let mut lab = Lab::new();
    lab.start();
    lab.publish(events("before", 1));
    lab.settled(1);
    lab.bench.delete_exchange(&lab.exchange);
    lab.worker().line_with("the exchange was missing");
    let missing = format!("consent_gate_exchange_missing_total{{integration=\"{}\"}}", lab.integration());
    assert_eq!(lab.metric(&missing), 1.0);
    lab.publish(events("after", 1));
    lab.settled(2);
    // Nothing shows that this exchange lost its bindings, and yet they come back.
    lab.bench.delete_exchange(&lab.exchange);
    lab.bench.declare_exchange(&lab.exchange, lapin::ExchangeKind::Topic);
    poll_until("an event to arrive", || {
        lab.publish(events("later", 1));
        let delivered = lab.gate(0).profiles().as_object().unwrap().len();
        (delivered == 3).then_some(())
    });
    assert_eq!(lab.metric(&missing), 1.0);
}
