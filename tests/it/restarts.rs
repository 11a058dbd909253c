//! Workers and brokers that die one after the other, in every order: what a broker loses shows only when it
//! is started again after the death of its clients.
//!
//! The accounting is that of RabbitMQ's own Jepsen tests: what was attempted and confirmed, where each
//! message is in the end, what is lost, what is there that nobody sent, and what arrived more than once. Each
//! event has a person of its own, so that this can be counted. Scaled down here; `scripts/chaos` runs it in
//! full.

use super::chaos::{faults, person};
use super::harness::{Bench, Lab, Letter, Message, Node, Random, Way, choice, note, poll_until, unique};
use super::newest::quiet;
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The order of the deaths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    WorkerThenBroker,
    BrokerThenWorker,
    /// Within ten milliseconds.
    Together,
}

/// How the broker ends; a worker is always killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broker {
    Killed,
    Stopped,
}

#[derive(Clone, Copy, Debug)]
struct Scale {
    events: usize,
    /// How many times the worker is killed, with deliveries in hand, before the broker ends.
    kills: usize,
    /// How long the worker lives between two kills.
    lives_ms: (usize, usize),
    /// How many times the broker ends.
    rounds: usize,
}

const SMALL: Scale = Scale { events: 1_000, kills: 3, lives_ms: (300, 700), rounds: 1 };
const WHOLE: Scale = Scale { events: 4_000, kills: 6, lives_ms: (300, 2_500), rounds: 1 };

/// Where all messages are in the end.
#[derive(Debug)]
struct Account {
    /// Published and confirmed; a message that was not confirmed at first was published again.
    attempted: usize,
    confirmed: usize,
    delivered: usize,
    dead: usize,
    lost: Vec<String>,
    /// At the gate or dead-lettered although nobody sent it, or with another value than was sent.
    unexpected: Vec<String>,
    /// Requests that the gate executed beyond the first one for each person.
    duplicated: u64,
    left_in_queues: u32,
}

impl Account {
    fn of(lab: &Lab, attempted: usize, events: usize) -> Account {
        let expected: BTreeMap<String, &str> =
            (0..events).map(|n| (person(n), if n.is_multiple_of(2) { "1" } else { "0" })).collect();
        let profiles = lab.gate(0).profiles();
        let profiles = profiles.as_object().unwrap();
        let dead: BTreeSet<String> = lab.dead().iter().map(Letter::person).collect();
        let is_right = |person: &String| {
            let profile = profiles.get(person).map(|profile| profile["OPTIN_NEWS"].as_str().unwrap_or_default());
            expected.get(person).is_some_and(|text| profile.is_none_or(|profile| profile == *text))
        };
        let executed = lab.gate(0).requests()["executed"].as_u64().unwrap();
        let left = ["", ".retry", ".unreadable"].iter().map(|suffix| lab.bench.depth(&lab.queue(suffix)));
        Account {
            attempted,
            confirmed: events,
            delivered: profiles.len(),
            dead: dead.len(),
            lost: expected.keys().filter(|p| !profiles.contains_key(*p) && !dead.contains(*p)).cloned().collect(),
            unexpected: profiles.keys().chain(&dead).filter(|person| !is_right(person)).cloned().collect(),
            duplicated: executed.saturating_sub(profiles.len() as u64),
            left_in_queues: left.sum(),
        }
    }

    fn told(&self) -> String {
        let Account { attempted, confirmed, delivered, dead, lost, unexpected, duplicated, left_in_queues } = self;
        format!(
            "attempted {attempted}, confirmed {confirmed}, delivered {delivered}, dead {dead}, lost {}, unexpected {}, duplicated {duplicated}, left in queues {left_in_queues}",
            lost.len(),
            unexpected.len()
        )
    }

    fn assert_whole(&self) {
        assert!(self.lost.is_empty() && self.unexpected.is_empty() && self.left_in_queues == 0, "{self:?}");
    }
}

/// The worker is killed again and again under faults of every kind, then it and the broker end in this order;
/// then everything recovers.
fn disturb(node: &Node, seed: u64, scale: Scale, order: Order, broker: Broker) -> Account {
    let mut random = Random::new(seed);
    let mut lab = Lab::at(&node.url, &[&|document| document["overrides"] = json!({ "gate": { "timeout": "1s" } })]);
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.set_delays(&[100, 200, 300]);
    lab.declare();
    // See docs/rabbitmq.md: a queue that was just declared may not survive a kill.
    node.stop();
    node.restart();
    lab.look_for_the_broker();
    let mut rules = faults();
    // Makes deliveries stay in hand for a while.
    rules.as_array_mut().unwrap().push(json!({ "latency_ms": 250 }));
    lab.gate(0).faults(rules);
    let message = |n: usize| Message::from(choice(&person(n), n.is_multiple_of(2)));
    let mut attempted = 0;
    for block in (0..scale.events).collect::<Vec<_>>().chunks(500) {
        lab.publish(block.iter().map(|n| message(*n)).collect());
        attempted += block.len();
    }
    for _ in 0..scale.rounds {
        for _ in 0..scale.kills {
            lab.spawn();
            live(&mut lab, &mut random, scale.lives_ms);
            lab.worker().signal("KILL");
            lab.worker().ended();
        }
        lab.spawn();
        live(&mut lab, &mut random, scale.lives_ms);
        let go = |node: &Node| if broker == Broker::Killed { node.kill() } else { node.stop() };
        match order {
            Order::WorkerThenBroker => {
                lab.worker().signal("KILL");
                lab.worker().ended();
                go(node);
            }
            Order::BrokerThenWorker => {
                go(node);
                lab.worker().signal("KILL");
            }
            Order::Together => std::thread::scope(|scope| {
                let going = scope.spawn(|| go(node));
                lab.worker.as_ref().unwrap().signal("KILL");
                going.join().unwrap();
            }),
        }
        node.restart();
        lab.look_for_the_broker();
    }
    lab.gate(0).faults(json!([]));
    lab.start();
    // Also shows that the broker can be reached again.
    lab.publish_surely(vec![message(0)]);
    attempted += 1;
    quiet(&mut lab);
    Account::of(&lab, attempted, scale.events)
}

/// Lets a worker live for a while and do some work.
fn live(lab: &mut Lab, random: &mut Random, (from, to): (usize, usize)) {
    let least = Duration::from_millis((from + random.below(to - from)).try_into().unwrap());
    lab.worker().line_with("\"consuming\"");
    let began = Instant::now();
    poll_until("some life", || (began.elapsed() > least).then_some(()));
}

const ORDERS: [Order; 3] = [Order::WorkerThenBroker, Order::BrokerThenWorker, Order::Together];

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn workers_and_then_the_broker_die_and_nothing_is_lost() {
    let node = Node::start();
    for (seed, order) in ORDERS.into_iter().enumerate() {
        let broker = if order == Order::BrokerThenWorker { Broker::Stopped } else { Broker::Killed };
        let account = disturb(&node, seed as u64, SMALL, order, broker);
        note(&format!("seed {seed}, {order:?}, {broker:?}: {}", account.told()));
        account.assert_whole();
    }
}

/// `CONSENT_GATE_CHAOS_RUNS` runs, through each order and each end of the broker in turn.
#[test]
#[ignore = "a minute a run: scripts/chaos"]
fn restarts_whole() {
    let number = |name: &str, otherwise: usize| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (runs, first) = (number("CONSENT_GATE_CHAOS_RUNS", 6), number("CONSENT_GATE_CHAOS_SEED", 1));
    let mut lost = 0;
    for seed in first..first + runs {
        let node = Node::start();
        let order = ORDERS[seed % 3];
        let broker = if seed % 6 < 3 { Broker::Killed } else { Broker::Stopped };
        // Every other run has a second round, with what the first one left behind.
        let scale = Scale { rounds: 1 + seed / 2 % 2, ..WHOLE };
        let account = disturb(&node, seed as u64, scale, order, broker);
        note(&format!("seed {seed}, {order:?}, {broker:?}, {} times: {}", scale.rounds, account.told()));
        lost += account.lost.len() + account.unexpected.len() + account.left_in_queues as usize;
    }
    assert_eq!(lost, 0);
}

/// Members of a cluster freeze, long enough for a new leader, and workers die meanwhile.
#[test]
#[ignore = "three brokers, four minutes: scripts/chaos"]
fn a_cluster_whose_members_freeze_loses_nothing() {
    let [first, second, third] = Node::cluster();
    let mut random = Random::new(1);
    let mut lab = Lab::at(&first.url, &[&|document| document["overrides"] = json!({ "gate": { "timeout": "300ms" } })]);
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.set_delays(&[100, 200, 300]);
    let way = Way::among(&lab.bench, &[&second.url, &third.url, &first.url]);
    lab.set("CONSENT_GATE_BROKER__URL", &way.url);
    lab.start();
    let mut rules = faults();
    rules.as_array_mut().unwrap().push(json!({ "latency_ms": 60 }));
    lab.gate(0).faults(rules);
    let events = 6_000;
    let message = |n: usize| Message::from(choice(&person(n), n.is_multiple_of(2)));
    lab.publish((0..events / 2).map(message).collect());
    for frozen in [&second, &third, &second, &third] {
        live(&mut lab, &mut random, (500, 1_500));
        frozen.signal("STOP");
        // Its connections are silent; a network partition would look the same.
        way.cut();
        lab.worker().signal("KILL");
        lab.worker().ended();
        lab.spawn();
        let began = Instant::now();
        poll_until("another leader", || (began.elapsed() > Duration::from_secs(15)).then_some(()));
        frozen.signal("CONT");
        way.cut();
    }
    let url = first.url.clone();
    lab.publish_surely_at(&url, (events / 2..events).map(message).collect());
    lab.gate(0).faults(json!([]));
    quiet(&mut lab);
    let account = Account::of(&lab, events, events);
    note(&account.told());
    account.assert_whole();
}

/// How a client takes the first messages of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taking {
    /// The old way, `basic.get`: to the broker each such message is a consumer of its own.
    Get,
    Consume,
}

const TAKEN: u16 = 60;
const MESSAGES: usize = 2_000;

/// Clients die with messages in hand, and others take what came back and ack some of it; then the broker is
/// killed. Returns how many confirmed and unacked messages are gone.
fn lost_after(node: &Node, taking: Taking) -> usize {
    let (bench, queue) = (Bench::at(&node.url), unique());
    let text = |value: &str| AMQPValue::LongString(value.into());
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(1_000_000_000));
    bench.declare_queue(&queue, arguments);
    // See docs/rabbitmq.md: a queue that was just declared may not survive a kill.
    node.stop();
    node.restart();
    let bench = Bench::at(&node.url);
    bench.publish("", &queue, (0..MESSAGES).map(|n| Message::from(body(n))).collect());
    let mut acked = BTreeSet::new();
    for _ in 0..5 {
        for (taking, acks) in [(taking, false), (Taking::Consume, true)] {
            let way = Way::among(&bench, &[&node.url]);
            acked.extend(die_with(&Bench::at(&way.url), &queue, taking, acks));
            way.cut();
            poll_until("what was in hand to be back", || {
                (bench.depth(&queue) as usize + acked.len() == MESSAGES).then_some(())
            });
        }
    }
    node.kill();
    node.restart();
    let bench = Bench::at(&node.url);
    let left: BTreeSet<Vec<u8>> = bench.take_all(&queue).into_iter().map(|letter| letter.body).collect();
    (0..MESSAGES).map(body).filter(|body| !left.contains(body) && !acked.contains(body)).count()
}

fn body(n: usize) -> Vec<u8> {
    format!("{n:>400}").into_bytes()
}

/// Takes messages and, if `acks`, acks every other one; returns those.
#[expect(clippy::disallowed_methods, reason = "shows what the broker does to whoever uses it")]
fn die_with(client: &Bench, queue: &str, taking: Taking, acks: bool) -> Vec<Vec<u8>> {
    client.block_on(async {
        let channel = client.channel().await;
        channel.basic_qos(TAKEN, BasicQosOptions::default()).await.unwrap();
        let mut taken = Vec::new();
        if taking == Taking::Get {
            while taken.len() < TAKEN.into() {
                let message = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
                taken.push(message.unwrap().delivery);
            }
        } else {
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let mut consumer = channel.basic_consume(queue.into(), "".into(), options, arguments).await.unwrap();
            while taken.len() < TAKEN.into() {
                taken.push(consumer.next().await.unwrap().unwrap());
            }
        }
        let mut acked = Vec::new();
        for message in taken.into_iter().step_by(2).filter(|_| acks) {
            message.acker.ack(BasicAckOptions::default()).await.unwrap();
            acked.push(message.data);
        }
        // The queue answers only after the acks that it has received.
        for _ in 0..4 {
            client.depth_on(&channel, queue).await;
        }
        acked
    })
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_that_loses_gotten_messages_keeps_consumed_ones() {
    let node = Node::start();
    assert_eq!(lost_after(&node, Taking::Consume), 0);
    let lost = lost_after(&node, Taking::Get);
    let version = node.ctl(&["eval", "rabbit_misc:version()."]);
    note(&format!(
        "RabbitMQ {}: {lost} of {MESSAGES} lost after clients died with {TAKEN} gotten ones",
        version.trim()
    ));
    let is_mended = !["\"3.", "\"4.0."].iter().any(|old| version.trim().starts_with(old));
    assert_eq!(lost == 0, is_mended, "{version}: what docs/rabbitmq.md says of it is not so");
}
