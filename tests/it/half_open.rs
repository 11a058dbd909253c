//! A connection that freezes without ending: the worst fault of a network.

use super::harness::{Lab, Way, choice, poll_until};
use serde_json::json;

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_frozen_connection_is_left_behind_with_all_that_hung_on_it() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "max_in_flight": 2 } })]);
    lab.declare();
    let way = Way::new(&lab.bench);
    lab.set("CONSENT_GATE_BROKER__URL", &way.url);
    lab.gate(0).faults(json!([{ "latency_ms": 1500, "status": 503 }]));
    lab.start();
    // All of them fail, and cannot be published again. There are ten: two of the first consumer and eight of
    // the one that replaces it, so that the frozen connection has no room for the new ones.
    lab.publish((0..10).map(|n| choice(&format!("old-{n}@example.com"), true).into()).collect());
    poll_until("requests in flight", || (lab.gate(0).requests()["in_flight"] == 2).then_some(()));
    way.freeze();
    lab.worker().line_with("lost the broker");
    lab.gate(0).faults(json!([]));
    lab.publish((0..5).map(|n| choice(&format!("new-{n}@example.com"), true).into()).collect());
    poll_until("the new events at the gate", || {
        let profiles = lab.gate(0).profiles();
        (0..5).all(|n| profiles.get(format!("new-{n}@example.com")).is_some()).then_some(())
    });
}
