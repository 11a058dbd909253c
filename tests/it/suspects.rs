//! Messages that kill the worker's process, or the client's connection.

use super::harness::{Bench, Lab, Message, Running, Schema, Way, choice, events, note, poll_until, unacked};
use lapin::BasicProperties;
use lapin::types::FieldTable;
use serde_json::json;
use std::time::{Duration, Instant};

fn in_flight(lab: &Lab, count: usize) {
    poll_until(&format!("{count} requests in flight"), || (lab.gate(0).requests()["in_flight"] == count).then_some(()));
}

/// Ends the worker as a crash would.
fn crash(lab: &mut Lab) {
    lab.worker().signal("ABRT");
    assert_eq!(lab.worker().ended(), None);
}

/// How many times the worker began to consume.
fn began(lab: &mut Lab) -> usize {
    lab.worker().text().matches("\"consuming\"").count()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn who_crashes_the_worker_five_times_is_dead_and_nobody_else() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    let persons = ["before", "killer", "after", "last"].map(|name| format!("{name}@example.com"));
    let killer = persons[1].clone();
    // At first the gate does not answer, so all four are in hand at both crashes and are suspects alike.
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.declare();
    lab.publish(persons.iter().map(|person| choice(person, true).into()).collect());
    for _ in 0..2 {
        lab.start();
        in_flight(&lab, 4);
        crash(&mut lab);
        in_flight(&lab, 0);
    }
    lab.gate(0).faults(json!([{ "hang": true, "identifier": killer }]));
    let mut crashes = 2;
    loop {
        lab.start();
        let dead = poll_until("the killer at the gate or dead", || {
            let at_gate = lab.gate(0).affected() == crashes - 1;
            let dead = lab.bench.depth(&lab.queue(".dead")) == 1;
            (at_gate || dead).then_some(dead)
        });
        if dead {
            break;
        }
        crash(&mut lab);
        crashes += 1;
        in_flight(&lab, 0);
        assert!(crashes <= 5, "it is not given up");
    }
    assert_eq!(crashes, 5);
    lab.settled(1);
    let letter = lab.dead().remove(0);
    assert_eq!(letter.header("consent-gate-reason").as_deref(), Some("crashed"));
    assert!(String::from_utf8(letter.body).unwrap().contains(&killer));
    poll_until("its neighbours at the gate", || (lab.gate(0).profiles().as_object().unwrap().len() == 3).then_some(()));
    poll_until("everybody at the other gate", || {
        (lab.gate(1).profiles().as_object().unwrap().len() == 4).then_some(())
    });
    assert_eq!(lab.bench.depth(&format!("consent-gate.{}.dead", lab.simulated[1].integration)), 0);
    // Afterwards everything works again.
    lab.gate(0).faults(json!([]));
    lab.publish((0..100).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    poll_until("what comes later", || (lab.gate(0).profiles().as_object().unwrap().len() == 103).then_some(()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_connection_that_flaps_under_a_hanging_gate_makes_nobody_guilty() {
    // However long it takes, no event runs out of attempts.
    let gate = json!({ "gate": { "max_in_flight": 4, "timeout": "50s" } });
    let mut lab = Lab::with(&[&|document| document["overrides"] = gate.clone()]);
    let way = Way::new(&lab.bench);
    lab.set("CONSENT_GATE_BROKER__URL", &way.url);
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.declare();
    lab.publish((0..12).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    lab.start();
    for flap in 1..=8 {
        poll_until("to consume", || (began(&mut lab) >= flap).then_some(()));
        // A connection that ends before a confirm duplicates a message, so the number of waiting messages
        // shows nothing.
        poll_until("something in hand", || (unacked(&[lab.queue(""), lab.queue(".retry")]) > 0).then_some(()));
        way.cut();
        poll_until("to consume again", || (began(&mut lab) > flap).then_some(()));
    }
    lab.gate(0).faults(json!([]));
    poll_until("everybody at the gate", || (lab.gate(0).profiles().as_object().unwrap().len() == 12).then_some(()));
    assert!(lab.worker().text().contains("its returns are counted from the start again"), "counts began anew");
    let dead: Vec<_> = lab.dead().iter().map(|letter| letter.header("consent-gate-reason")).collect();
    assert!(dead.is_empty(), "{dead:?}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_message_that_no_client_can_read_is_put_aside_and_the_others_are_delivered() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    let hostile =
        Way::replacing(&lab.bench, (b"UNREADABLE-ID", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff"));
    lab.start();
    let people = |kind: &str| (0..20).map(|n| choice(&format!("{kind}{n}@example.com"), true).into()).collect();
    lab.publish(people("before"));
    let properties = BasicProperties::default().with_message_id("UNREADABLE-ID".into()).with_delivery_mode(2);
    let body = choice("unreadable@example.com", true).to_string().into_bytes();
    Bench::at(&hostile.url).publish("", &lab.queue(""), vec![Message { body, properties }]);
    lab.publish(people("after"));
    poll_until("the broker to give up", || (lab.bench.depth(&lab.queue(".unreadable")) == 1).then_some(()));
    for gate in 0..2 {
        poll_until("everybody else at the gates", || {
            (lab.gate(gate).profiles().as_object().unwrap().len() == 40).then_some(())
        });
    }
    let seen = format!("consent_gate_queue_messages{{integration=\"{}\",queue=\"unreadable\"}}", lab.integration());
    poll_until("an alert to see it", || (lab.metric(&seen) == 1.0).then_some(()));
    assert!(lab.dead().is_empty());
    let other = lab.simulated[1].integration.clone();
    let text = lab.worker().text();
    let lost = text.lines().filter(|line| line.contains("lost the broker") && line.contains(&other)).count();
    assert_eq!(lost, 0, "the other integration never noticed");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn neighbours_of_an_unreadable_message_are_not_put_aside_with_it_nor_sent_over_and_over() {
    let mut lab = Lab::new();
    let hostile =
        Way::replacing(&lab.bench, (b"UNREADABLE-ID", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff"));
    lab.declare();
    // No event is settled before the connection is lost again.
    lab.gate(0).faults(json!([{ "latency_ms": 300 }]));
    let people = |from: usize| (from..from + 4).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect();
    lab.publish(people(0));
    let properties = BasicProperties::default().with_message_id("UNREADABLE-ID".into()).with_delivery_mode(2);
    let body = choice("unreadable@example.com", true).to_string().into_bytes();
    Bench::at(&hostile.url).publish("", &lab.queue(""), vec![Message { body, properties }]);
    lab.publish(people(4));
    lab.start();
    poll_until("the broker to give up", || (lab.bench.depth(&lab.queue(".unreadable")) >= 1).then_some(()));
    poll_until("everybody at the gate", || (lab.gate(0).profiles().as_object().unwrap().len() == 8).then_some(()));
    assert_eq!(lab.bench.depth(&lab.queue(".unreadable")), 1, "nobody went along");
    let requests = lab.gate(0).requests();
    let recent = requests["recent"].as_array().unwrap();
    for n in 0..8 {
        let person = format!("p{n}@example.com");
        let sent = recent.iter().filter(|request| request["identifier"] == person.as_str()).count();
        assert!(sent <= 4, "{person} was sent {sent} times");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_comes_back_from_a_queue_that_keeps_no_count_begins_one() {
    let mut lab = Lab::new();
    let source = format!("{}.classic", lab.exchange);
    lab.bench.declare_queue(&source, FieldTable::default());
    lab.also_delete(&source);
    lab.environment.remove("CONSENT_GATE_SOURCE__EXCHANGE");
    lab.set("CONSENT_GATE_SOURCE__QUEUE", &source);
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.start();
    lab.bench.publish("", &source, (0..5).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    in_flight(&lab, 5);
    crash(&mut lab);
    lab.gate(0).faults(json!([]));
    lab.start();
    lab.settled(5);
    assert_eq!(lab.worker().text().matches("its returns are counted from the start again").count(), 5);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 5);
}

/// Whether the first integration has a dead letter; returns once it has one, or the request that hangs was
/// sent more often than before.
fn sent_or_dead(lab: &Lab, sent: u64) -> Option<bool> {
    let is_dead = lab.bench.depth(&lab.queue(".dead")) > 0;
    (is_dead || lab.gate(0).affected() > sent).then_some(is_dead)
}

/// What happened to a crowd of events one of which kills the worker.
struct Crowd {
    crashes: u64,
    innocent_dead: usize,
    /// From the first crash to the last event of the integration without a guilty event.
    healthy_after: Duration,
}

/// Two integrations, each with a crowd of events in hand; one event of the slower integration kills the
/// worker whenever it is sent.
fn crowd(lab: &mut Lab, people: usize, latencies_ms: [u64; 2]) -> Crowd {
    let killer = "killer@example.com";
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.declare();
    let queues = [0, 1].map(|index| format!("consent-gate.{}", lab.simulated[index].integration));
    lab.bench.publish("", &queues[1], events("healthy", people));
    lab.bench.publish("", &queues[0], events("before", 40));
    lab.bench.publish("", &queues[0], vec![choice(killer, true).into()]);
    lab.bench.publish("", &queues[0], events("after", people - 41));
    // At first the gates do not answer, so both crowds are in hand at the first two crashes, and all are
    // suspects alike.
    for gate in 0..2 {
        lab.gate(gate).faults(json!([{ "hang": true }]));
    }
    let mut first = None;
    for _ in 0..2 {
        lab.start();
        let waiting = people.saturating_sub(256);
        poll_until("the crowds in hand", || {
            queues.iter().all(|queue| lab.bench.depth(queue) as usize <= waiting).then_some(())
        });
        crash(lab);
        first.get_or_insert_with(Instant::now);
        in_flight(lab, 0);
    }
    lab.gate(0).faults(json!([{ "hang": true, "identifier": killer }, { "latency_ms": latencies_ms[0] }]));
    lab.gate(1).faults(json!([{ "latency_ms": latencies_ms[1] }]));
    let (mut crashes, mut sent, mut healthy_after) = (2, 0, None);
    loop {
        lab.start();
        let is_dead = poll_until("the killer at the gate or dead", || {
            if healthy_after.is_none() && lab.gate(1).profiles().as_object().unwrap().len() == people {
                healthy_after = first.map(|first: Instant| first.elapsed());
            }
            sent_or_dead(lab, sent)
        });
        if is_dead {
            break;
        }
        sent = lab.gate(0).affected();
        crash(lab);
        crashes += 1;
        assert!(crashes <= 5, "it is not given up");
    }
    let all_at = |lab: &Lab, gate: usize, count: usize| lab.gate(gate).profiles().as_object().unwrap().len() == count;
    poll_until("everybody else at the healthy gate", || all_at(lab, 1, people).then_some(()));
    let healthy_after = healthy_after.or_else(|| first.map(|first| first.elapsed())).unwrap_or_default();
    poll_until("everybody else at the other gate", || all_at(lab, 0, people - 1).then_some(()));
    let letters = lab.dead();
    assert!(letters.iter().all(|letter| letter.header("consent-gate-reason").as_deref() == Some("crashed")));
    let innocent = letters.iter().filter(|letter| letter.person() != killer).count();
    let others = lab.bench.depth(&format!("{}.dead", queues[1])) as usize;
    Crowd { crashes, innocent_dead: innocent + others, healthy_after }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_crowd_is_not_punished_for_the_one_that_kills() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    let crowd = crowd(&mut lab, 120, [150, 20]);
    assert_eq!((crowd.crashes, crowd.innocent_dead), (5, 0));
}

#[test]
#[ignore = "a minute and a half: scripts/chaos"]
fn a_crowd_of_three_hundred_is_through_within_a_minute() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    let Crowd { crashes, innocent_dead, healthy_after } = crowd(&mut lab, 300, [1_500, 200]);
    note(&format!(
        "{crashes} crashes, {innocent_dead} innocents dead, 300 healthy delivered after {healthy_after:.1?}"
    ));
    assert_eq!((crashes, innocent_dead), (5, 0));
    assert!(healthy_after < Duration::from_secs(60));
}

/// Everything else waits for the suspect that is handled alone, which must not wait for any of it.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn who_is_handled_alone_does_not_wait_for_those_who_wait_for_it() {
    let gate = json!({ "gate": { "max_in_flight": 1 } });
    let mut lab = Lab::with(&[&|document| document["overrides"] = gate.clone()]);
    lab.set("CONSENT_GATE_RECORDS__STORE", "off");
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.declare();
    lab.publish(events("p", 40));
    for _ in 0..2 {
        lab.start();
        in_flight(&lab, 1);
        let in_hand = |lab: &Lab| lab.bench.depth(&lab.queue("")) + lab.bench.depth(&lab.queue(".retry")) <= 36;
        poll_until("some in hand", || in_hand(&lab).then_some(()));
        crash(&mut lab);
        in_flight(&lab, 0);
    }
    lab.gate(0).faults(json!([{ "latency_ms": 20 }]));
    lab.start();
    poll_until("everybody at the gate", || (lab.gate(0).profiles().as_object().unwrap().len() == 40).then_some(()));
    assert!(lab.dead().is_empty());
}

/// With a shared store the other worker may get what a killed one had.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn two_workers_that_share_their_records_convict_together() {
    let schema = Schema::new();
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    lab.set("CONSENT_GATE_RECORDS__STORE", &schema.url());
    lab.declare();
    let killer = "killer@example.com";
    lab.gate(0).faults(json!([{ "hang": true, "identifier": killer }]));
    let mut people = events("p", 30);
    people.push(choice(killer, true).into());
    lab.publish(people);
    lab.start();
    let mut other = lab.worker.take().unwrap();
    lab.start();
    let in_flight = format!("consent_gate_in_flight{{integration=\"{}\"}}", lab.integration());
    let (mut crashes, mut sent) = (0, 0);
    loop {
        let is_dead = poll_until("the killer at the gate or dead", || sent_or_dead(&lab, sent));
        if is_dead {
            break;
        }
        sent = lab.gate(0).affected();
        // The worker that has it dies.
        poll_until("who has it", || {
            std::mem::swap(lab.worker(), &mut other);
            (lab.metric(&in_flight) > 0.0).then_some(())
        });
        crash(&mut lab);
        lab.start();
        crashes += 1;
        assert!(crashes <= 5, "it is not given up");
    }
    assert_eq!(crashes, 5);
    poll_until("everybody else at the gate", || {
        (lab.gate(0).profiles().as_object().unwrap().len() == 30).then_some(())
    });
    let letters = lab.dead();
    assert!(letters.iter().all(|letter| letter.person() == killer), "nobody with it");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_connection_that_flaps_between_two_workers_makes_nobody_guilty() {
    let schema = Schema::new();
    let gate = json!({ "gate": { "max_in_flight": 4, "timeout": "50s" } });
    let mut lab = Lab::with(&[&|document| document["overrides"] = gate.clone()]);
    let way = Way::new(&lab.bench);
    lab.set("CONSENT_GATE_BROKER__URL", &way.url);
    lab.set("CONSENT_GATE_RECORDS__STORE", &schema.url());
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.declare();
    lab.publish((0..12).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    lab.start();
    let mut other = lab.worker.take().unwrap();
    lab.start();
    let count = |worker: &Running| worker.text().matches("\"consuming\"").count();
    for _ in 0..8 {
        // A connection that ends before a confirm duplicates a message, so the number of waiting messages
        // shows nothing.
        poll_until("something in hand", || (unacked(&[lab.queue(""), lab.queue(".retry")]) > 0).then_some(()));
        let before = (count(lab.worker()), count(&other));
        way.cut();
        poll_until("both to consume again", || {
            (count(lab.worker()) > before.0 && count(&other) > before.1).then_some(())
        });
    }
    lab.gate(0).faults(json!([]));
    poll_until("everybody at the gate", || (lab.gate(0).profiles().as_object().unwrap().len() == 12).then_some(()));
    let dead: Vec<_> = lab.dead().iter().map(|letter| letter.header("consent-gate-reason")).collect();
    assert!(dead.is_empty() && other.is_running(), "{dead:?}");
}

#[test]
#[ignore = "a hundred integrations: scripts/chaos"]
fn a_hundred_integrations_are_at_full_speed_soon_after_two_kills_from_outside() {
    let (integrations, each) = (100, 200);
    let mut lab = Lab::with_many(integrations);
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.declare();
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.publish(events("p", each));
    let queues: Vec<String> =
        lab.simulated.iter().map(|simulated| format!("consent-gate.{}", simulated.integration)).collect();
    for _ in 0..2 {
        lab.start();
        for queue in &queues {
            poll_until("everything in hand", || (lab.bench.depth(queue) == 0).then_some(()));
        }
        crash(&mut lab);
        in_flight(&lab, 0);
    }
    lab.gate(0).faults(json!([{ "latency_ms": 200 }]));
    let all = (integrations * each) as u64;
    let began = Instant::now();
    lab.start();
    poll_until("everybody at the gates", || (lab.gate(0).outcome("accepted") >= all).then_some(()));
    note(&format!("{all} suspects of {integrations} integrations delivered after {:.1?}", began.elapsed()));
    assert!(began.elapsed() < Duration::from_secs(40));
    let dead: u32 = queues.iter().map(|queue| lab.bench.depth(&format!("{queue}.dead"))).sum();
    assert_eq!(dead, 0);
}
