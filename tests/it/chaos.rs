//! Everything at once: the worker and the broker killed, and connections, channels and consumers cut, under
//! faults of every kind. Each event has a person of its own, so that the result can be counted at the gate.
//!
//! Scaled down here; `scripts/chaos` runs it in full and prints its figures.

use super::harness::{Lab, Letter, Message, Node, Way, choice, note, poll_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

struct Scale {
    events: usize,
    /// How long the disturbance lasts.
    disturbed: Duration,
    /// The time between two kills of the worker.
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

pub fn faults() -> Value {
    json!([
        { "share": 0.06, "status": 503 },
        { "share": 0.06, "reset": true },
        { "share": 0.06, "lose_answer": true },
        { "share": 0.06, "status": 429 },
        { "share": 0.04, "hang": true },
        { "share": 0.04, "execute_after_ms": 300, "status": 504 },
    ])
}

pub fn person(n: usize) -> String {
    format!("p{n}@example.com")
}

fn event(n: usize) -> Message {
    choice(&person(n), n.is_multiple_of(2)).into()
}

/// Waits until each person's event is at the gate or a dead letter, and returns how many are where. Empty
/// queues would prove nothing: a message that has expired and is not forwarded yet is counted in no queue.
fn accounted(lab: &Lab, events: usize) -> (usize, usize) {
    let mut dead = BTreeSet::new();
    poll_until("each event to be delivered or dead", || {
        dead.extend(lab.dead().iter().map(Letter::person));
        let profiles = lab.gate(0).profiles();
        let profiles = profiles.as_object().unwrap();
        for (person, profile) in profiles {
            let n: usize = person.strip_prefix('p').and_then(|rest| rest.split('@').next()).unwrap().parse().unwrap();
            let expected = if n.is_multiple_of(2) { "1" } else { "0" };
            assert_eq!(profile["OPTIN_NEWS"], expected, "the value of no event of {person}");
        }
        let missing = (0..events).map(person).find(|p| !profiles.contains_key(p) && !dead.contains(p));
        missing.is_none().then_some((profiles.len(), dead.len()))
    })
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn whatever_dies_every_event_is_delivered_or_dead() {
    let node = Node::start();
    let Scale { events, disturbed, kill_every, broker_kills, cuts } = scale();
    let mut lab = Lab::at(&node.url, &[&|document| document["overrides"] = json!({ "gate": { "timeout": "300ms" } })]);
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.set_delays(&[100, 200, 300]);
    lab.start();
    consumers_and_channels(&mut lab, cuts);
    // See docs/rabbitmq.md: a queue that was just declared may not survive a kill.
    node.stop();
    node.restart();
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
    lab.publish_surely(vec![event(0)]); // also shows that the broker can be reached again
    let (delivered, dead) = accounted(&lab, events);
    note(&format!("{delivered} persons at the gate, {dead} dead letters, none missing"));
}

/// Deletes empty queues: consumers are cancelled, and looking at a deleted queue closes a channel.
fn consumers_and_channels(lab: &mut Lab, cuts: usize) {
    for cut in 0..cuts * 2 / 3 {
        let consuming = |lab: &mut Lab| lab.worker().text().matches("\"consuming\"").count();
        let before = consuming(lab);
        lab.bench.delete_queue(&lab.queue(["", ".retry", ".unreadable"][cut % 3]));
        poll_until("to consume again", || (consuming(lab) > before).then_some(()));
    }
}

#[test]
#[ignore = "three brokers: scripts/chaos"]
fn a_cluster_that_loses_its_leader_loses_nothing_else() {
    let nodes = Node::cluster();
    let [first, leader, third] = &nodes;
    let mut lab = Lab::at(&first.url, &[&|_| {}]);
    lab.set_delays(&[100, 200, 300, 400, 500]);
    // The node on which a queue is declared leads it, so the worker connects to the node that will die.
    let way = Way::among(&lab.bench, &[&leader.url, &third.url]);
    lab.set("CONSENT_GATE_BROKER__URL", &way.url);
    lab.start();
    lab.gate(0).faults(json!([{ "share": 0.2, "status": 503 }, { "latency_ms": 5 }]));
    let events = 5_000;
    lab.publish((0..events).map(event).collect());
    let at_gate = |lab: &Lab| lab.gate(0).profiles().as_object().unwrap().len();
    poll_until("some profiles", || (at_gate(&lab) > 500).then_some(()));
    leader.kill();
    let killed = Instant::now();
    way.cut();
    let before = at_gate(&lab);
    poll_until("consuming to go on", || (at_gate(&lab) > before + 100).then_some(()));
    note(&format!("a hundred more were delivered {:.1?} after the leader was killed", killed.elapsed()));
    assert!(killed.elapsed() < Duration::from_secs(10));
    lab.gate(0).faults(json!([]));
    let (delivered, dead) = accounted(&lab, events);
    note(&format!("{delivered} persons at the gate, {dead} dead letters, none missing"));
}

#[test]
#[ignore = "four minutes: scripts/chaos"]
fn the_real_schedule_behind_a_backlog_of_two_hundred_thousand() {
    let mut lab = Lab::new();
    let schedule = [10_000, 30_000, 60_000, 120_000];
    lab.set_delays(&schedule);
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    let down = |n: usize| format!("down{n}@example.com");
    lab.gate(0).faults((0..200).map(|n| json!({ "status": 503, "identifier": down(n) })).collect());
    lab.declare();
    lab.publish((0..200).map(|n| choice(&down(n), true).into()).collect());
    for block in 0..40 {
        lab.publish((0..5_000).map(|n| choice(&person(block * 5_000 + n), true).into()).collect());
    }
    let began = Instant::now();
    lab.start();
    poll_until("everybody else", || (lab.gate(0).outcome("accepted") == 200_000).then_some(()));
    note(&format!("200,000 delivered in {:.1?}, with half of the slots kept for retries", began.elapsed()));
    while lab.bench.depth(&lab.queue(".dead")) < 200 {
        poll_until("the next letters", || {
            let late = began.elapsed() > Duration::from_secs(240);
            assert!(!late, "some are late");
            (lab.bench.depth(&lab.queue(".dead")) == 200 || began.elapsed().as_secs() % 60 == 59).then_some(())
        });
    }
    let mut latest = 0;
    let letters = lab.dead();
    for letter in &letters {
        assert_eq!(letter.header("consent-gate-reason").as_deref(), Some("attempts_exhausted"));
        let at: Vec<i64> = letter.history().iter().map(|attempt| attempt["at"]).collect();
        assert_eq!(at.len(), 5);
        for (time, expected) in at.iter().zip([0, 10_000, 40_000, 100_000, 220_000]) {
            let off = time - at[0] - expected;
            assert!((0..1_000).contains(&off), "{off} ms off");
            latest = latest.max(off);
        }
    }
    assert_eq!(letters.len(), 200);
    note(&format!("200 dead letters, five attempts each at 0, 10, 40, 100, 220 s, at most {latest} ms late"));
}

#[test]
#[ignore = "twelve minutes: scripts/chaos"]
fn an_outage_of_ten_minutes_that_is_held() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RETRY__ON_OUTAGE", "hold");
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.set_delays(&[10_000, 30_000, 60_000, 120_000]);
    lab.start();
    lab.gate(0).faults(json!([{ "status": 503 }]));
    let (seconds, rate) = (600, 200);
    let began = Instant::now();
    for second in 0..seconds {
        lab.publish((0..rate).map(|n| choice(&person(second * rate + n), true).into()).collect());
        poll_until("the next second", || (began.elapsed().as_secs() > second as u64).then_some(()));
    }
    lab.gate(0).faults(json!([]));
    let healed = Instant::now();
    lab.worker().line_with("the gate is back");
    note(&format!("an outage of {seconds} s at {rate} events/s; recovery began after {:.1?}", healed.elapsed()));
    assert!(healed.elapsed() < Duration::from_secs(31), "within the probe interval");
    poll_until("everything delivered", || (lab.gate(0).outcome("accepted") == (seconds * rate) as u64).then_some(()));
    note(&format!("everything delivered {:.1?} after the gate was back", healed.elapsed()));
    let name = lab.integration().to_owned();
    let spent: f64 = (1..=4)
        .map(|step| lab.metric(&format!("consent_gate_retries_total{{integration=\"{name}\",step=\"{step}\"}}")))
        .sum();
    note(&format!("{spent} attempts were spent, before the breaker opened"));
    assert!(spent < 10.0);
    assert!(lab.dead().is_empty());
}
