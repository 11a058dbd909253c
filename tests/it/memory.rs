//! Memory is bounded by bytes, not only by messages.

use super::harness::{Lab, Message, events, poll_until};
use lapin::BasicProperties;

const LARGE: usize = 16 * 1024 * 1024;
const COUNT: usize = 24;

/// A worker whose prefetch has grown with small messages gets a run of the largest messages that RabbitMQ 4
/// accepts.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_row_of_large_messages_neither_takes_256_mib_nor_holds_up_its_neighbours() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.start();
    lab.publish(events("before", 1_000));
    lab.settled(1_000);
    for _ in 0..COUNT {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let large = Message { body: vec![b' '; LARGE], properties };
        lab.bench.publish("", &lab.queue(""), vec![large]);
    }
    lab.publish(events("after", 200));
    lab.settled_of(&lab.simulated[1].integration.clone(), 1_200);
    lab.settled(1_200 + COUNT);
    let peak = lab.worker().peak_memory().unwrap();
    assert!(peak < 256 * 1024, "{} MiB", peak / 1024);
    // A connection that is given up may cause a duplicate letter.
    poll_until("the letters", || (lab.bench.depth(&lab.queue(".dead")) as usize >= COUNT).then_some(()));
    let name = lab.integration().to_owned();
    let too_large = format!("consent_gate_dead_lettered_total{{integration=\"{name}\",reason=\"too_large\"}}");
    assert!(lab.metric(&too_large) >= COUNT as f64);
}
