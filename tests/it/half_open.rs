//! A connection that freezes without ending: the worst that a network does.

use super::harness::{Lab, choice, poll_until};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Passes bytes on until its own generation is frozen; connections made later are not.
async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, frozen: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if frozen.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// A way to the broker whose present connections freeze when the flag is set.
fn way_to(lab: &Lab, broker: SocketAddr) -> (u16, Arc<AtomicBool>) {
    let frozen = Arc::new(AtomicBool::new(false));
    let first = Arc::clone(&frozen);
    let port = lab.bench.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((front, _)) = listener.accept().await {
                let Ok(back) = TcpStream::connect(broker).await else { return };
                // What is accepted after the freeze belongs to a generation that never freezes.
                let flag = if first.load(Ordering::Relaxed) { Arc::default() } else { Arc::clone(&first) };
                let (front_read, front_write) = front.into_split();
                let (back_read, back_write) = back.into_split();
                tokio::spawn(pass(front_read, back_write, Arc::clone(&flag)));
                tokio::spawn(pass(back_read, front_write, flag));
            }
        });
        port
    });
    (port, frozen)
}

#[test]
fn a_frozen_connection_is_left_behind_with_all_that_hung_on_it() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "max_in_flight": 2 } })]);
    lab.declare();
    let url = lab.environment["CONSENT_GATE_BROKER__URL"].clone();
    let broker = url.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned();
    let (port, frozen) = way_to(&lab, broker.parse().unwrap());
    lab.set("CONSENT_GATE_BROKER__URL", &url.replace(&broker, &format!("127.0.0.1:{port}")));
    lab.gate(0).faults(json!([{ "latency_ms": 1500, "status": 503 }]));
    lab.start();
    // As many as may be in hand, all of which become dead letters that cannot be published.
    lab.publish((0..4).map(|n| choice(&format!("old-{n}@example.com"), true).into()).collect());
    poll_until("requests in flight", || (lab.gate(0).requests()["in_flight"] == 2).then_some(()));
    frozen.store(true, Ordering::Relaxed);
    lab.worker().line_with("lost the broker");
    lab.gate(0).faults(json!([]));
    lab.publish((0..5).map(|n| choice(&format!("new-{n}@example.com"), true).into()).collect());
    poll_until("the new events at the gate", || {
        let profiles = lab.gate(0).profiles();
        (0..5).all(|n| profiles.get(format!("new-{n}@example.com")).is_some()).then_some(())
    });
}
