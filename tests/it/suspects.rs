//! Messages that kill: the worker's process, or the client's connection.

use super::harness::{Bench, Lab, Message, Way, choice, poll_until};
use lapin::BasicProperties;
use lapin::types::FieldTable;
use serde_json::json;

fn in_flight(lab: &Lab, count: usize) {
    poll_until(&format!("{count} requests in flight"), || (lab.gate(0).requests()["in_flight"] == count).then_some(()));
}

/// Ends the worker as a crash does.
fn crash(lab: &mut Lab) {
    lab.worker().signal("ABRT");
    assert_eq!(lab.worker().ended(), None);
}

/// How often the worker began to consume.
fn began(lab: &mut Lab) -> usize {
    lab.worker().text().matches("\"consuming\"").count()
}

#[test]
fn who_crashes_the_worker_five_times_is_dead_and_nobody_else() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    let persons = ["before", "killer", "after", "last"].map(|name| format!("{name}@example.com"));
    let killer = persons[1].clone();
    // At first nobody is answered, so all four are in hand at both crashes and are accused alike.
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
    // Afterwards everything flows again.
    lab.gate(0).faults(json!([]));
    lab.publish((0..100).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    poll_until("what comes later", || (lab.gate(0).profiles().as_object().unwrap().len() == 103).then_some(()));
}

#[test]
fn a_connection_that_flaps_under_a_hanging_gate_makes_nobody_guilty() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "max_in_flight": 4 } })]);
    let way = Way::new(&lab.bench);
    lab.set("CONSENT_GATE_BROKER__URL", &way.url);
    lab.gate(0).faults(json!([{ "hang": true }]));
    lab.declare();
    lab.publish((0..12).map(|n| choice(&format!("p{n}@example.com"), true).into()).collect());
    lab.start();
    for flap in 1..=8 {
        poll_until("to consume", || (began(&mut lab) >= flap).then_some(()));
        let waiting = |lab: &Lab| lab.bench.depth(&lab.queue("")) + lab.bench.depth(&lab.queue(".retry"));
        poll_until("something in hand", || (waiting(&lab) < 12).then_some(()));
        way.cut();
        poll_until("to consume again", || (began(&mut lab) > flap).then_some(()));
    }
    lab.gate(0).faults(json!([]));
    poll_until("everybody at the gate", || (lab.gate(0).profiles().as_object().unwrap().len() == 12).then_some(()));
    assert!(lab.worker().text().contains("its returns are counted anew"), "counts began anew");
    let dead: Vec<_> = lab.dead().iter().map(|letter| letter.header("consent-gate-reason")).collect();
    assert!(dead.is_empty(), "{dead:?}");
}

#[test]
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
fn neighbours_of_an_unreadable_message_are_not_put_aside_with_it_nor_sent_over_and_over() {
    let mut lab = Lab::new();
    let hostile =
        Way::replacing(&lab.bench, (b"UNREADABLE-ID", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff"));
    lab.declare();
    // Nobody is done before the connection is gone again.
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
    assert_eq!(lab.worker().text().matches("its returns are counted anew").count(), 5);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 5);
}
