//! Everything at once: the worker and the broker killed, connections, channels and consumers cut,
//! under faults of every kind. One person for each event makes the result countable at the gate.
//!
//! Scaled down here; `scripts/chaos` runs it whole and prints its figures.

use super::harness::{Lab, Message, Node, choice, note, poll_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

struct Scale {
    events: usize,
    /// How long everything is disturbed.
    disturbed: Duration,
    /// Between two kills of the worker.
    kill_every: Duration,
    broker_kills: usize,
    cuts: usize,
}

fn scale() -> Scale {
    if std::env::var_os("CONSENT_GATE_CHAOS_WHOLE").is_some() {
        Scale {
            events: 20_000,
            disturbed: Duration::from_secs(60),
            kill_every: Duration::from_secs(2),
            broker_kills: 2,
            cuts: 100,
        }
    } else {
        Scale {
            events: 1_500,
            disturbed: Duration::from_secs(8),
            kill_every: Duration::from_secs(2),
            broker_kills: 1,
            cuts: 9,
        }
    }
}

fn faults() -> Value {
    json!([
        { "share": 0.06, "status": 503 },
        { "share": 0.06, "reset": true },
        { "share": 0.06, "lose_answer": true },
        { "share": 0.06, "status": 429 },
        { "share": 0.04, "hang": true },
        { "share": 0.04, "execute_after_ms": 300, "status": 504 },
    ])
}

fn person(n: usize) -> String {
    format!("p{n}@example.com")
}

fn event(n: usize) -> Message {
    choice(&person(n), n.is_multiple_of(2)).into()
}

/// Persons whose event is at the gate or a dead letter, and how many of each.
fn accounted(lab: &Lab, events: usize) -> (usize, usize) {
    let profiles = lab.gate(0).profiles();
    let profiles = profiles.as_object().unwrap();
    for (person, profile) in profiles {
        let n: usize = person.strip_prefix('p').and_then(|rest| rest.split('@').next()).unwrap().parse().unwrap();
        let expected = if n.is_multiple_of(2) { "1" } else { "0" };
        assert_eq!(profile["OPTIN_NEWS"], expected, "the value of no event of {person}");
    }
    let dead: BTreeSet<String> = lab
        .dead()
        .iter()
        .map(|letter| {
            let event: Value = serde_json::from_slice(&letter.body).unwrap();
            event["parameters"]["entity"]["user"]["organization_user_id"].as_str().unwrap().to_owned()
        })
        .collect();
    let missing: Vec<String> =
        (0..events).map(person).filter(|p| !profiles.contains_key(p) && !dead.contains(p)).collect();
    assert!(missing.is_empty(), "{} of {events} are neither delivered nor dead: {missing:?}", missing.len());
    (profiles.len(), dead.len())
}

fn empty(lab: &Lab) -> bool {
    ["", ".retry", ".delay.100", ".delay.200", ".delay.300", ".unreadable"]
        .iter()
        .all(|suffix| lab.bench.try_depth(&lab.queue(suffix)) == Some(0))
}

#[test]
fn whatever_dies_every_event_is_delivered_or_dead() {
    let Some(node) = Node::start() else { return };
    let Scale { events, disturbed, kill_every, broker_kills, cuts } = scale();
    let mut lab = Lab::at(&node.url, &[&|document| document["overrides"] = json!({ "gate": { "timeout": "300ms" } })]);
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.set_delays(&[100, 200, 300]);
    lab.declare();
    // See docs/rabbitmq.md: what was just declared may not survive a kill.
    node.stop();
    node.restart();
    lab.look_for_the_broker();
    lab.start();
    consumers_and_channels(&mut lab, cuts);
    lab.gate(0).faults(faults());
    let began = Instant::now();
    let (mut published, mut kills, mut broker_killed, mut connections_cut) = (0, 0, 0, 0);
    let mut next_kill = kill_every;
    while began.elapsed() < disturbed || published < events {
        let some = (published..(published + 50).min(events)).map(event).collect();
        lab.publish_surely(some);
        published = (published + 50).min(events);
        if began.elapsed() >= disturbed {
            continue;
        }
        if began.elapsed() > next_kill {
            next_kill += kill_every;
            lab.worker().signal("KILL");
            lab.worker().ended();
            lab.spawn();
            kills += 1;
        }
        if connections_cut < cuts / 3 && lab.worker().text().contains("\"consuming\"") {
            node.ctl(&["close_all_connections", "chaos"]);
            connections_cut += 1;
        }
        if broker_killed < broker_kills && began.elapsed() > disturbed / 3 * (broker_killed + 1).try_into().unwrap() {
            node.kill();
            node.restart();
            broker_killed += 1;
        }
    }
    note(&format!(
        "{events} events, {kills} kills of the worker, {broker_killed} of the broker, {connections_cut} cuts of all connections"
    ));
    lab.gate(0).faults(json!([]));
    if !lab.worker().is_running() {
        lab.spawn();
    }
    lab.publish_surely(vec![event(0)]); // also finds the way back to the broker
    poll_until("all queues to be empty", || empty(&lab).then_some(()));
    lab.worker().signal("TERM");
    assert_eq!(lab.worker().ended(), Some(0));
    let (delivered, dead) = accounted(&lab, events);
    note(&format!("{delivered} persons at the gate, {dead} dead letters, none missing"));
}

/// Deletes queues that are empty: consumers are cancelled, and looking at a queue that is gone
/// costs a channel.
fn consumers_and_channels(lab: &mut Lab, cuts: usize) {
    for cut in 0..cuts * 2 / 3 {
        let consuming = |lab: &mut Lab| lab.worker().text().matches("\"consuming\"").count();
        let before = consuming(lab);
        lab.bench.delete_queue(&lab.queue(["", ".retry", ".unreadable"][cut % 3]));
        poll_until("to consume again", || (consuming(lab) > before).then_some(()));
    }
}
