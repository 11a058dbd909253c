//! What the worker is compared with: the shortest honest loop with the same client libraries. It consumes, posts, and
//! acks each message; it has no order, no retry, no records, no signature, and takes any answer for a success.

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Consumes until it is killed: on the runtime that `#[tokio::main]` gives, or tuned like the worker, on one thread
/// for all tasks, which was the fastest (docs/rabbitmq.md).
pub fn run(broker: &str, queue: &str, gate: &str, in_flight: u16, is_tuned: bool) -> anyhow::Result<()> {
    let mut builder = if is_tuned {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = builder.enable_all().build()?;
    runtime.block_on(async {
        let connection = Connection::connect(broker, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(in_flight * 2, BasicQosOptions::default()).await?;
        let mut deliveries = channel
            .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
            .await?;
        let client = reqwest::Client::builder().pool_max_idle_per_host(in_flight.into()).build()?;
        let slots = Arc::new(Semaphore::new(in_flight.into()));
        while let Some(delivery) = deliveries.next().await {
            let delivery = delivery?;
            let slot = Arc::clone(&slots).acquire_owned().await?;
            let request = client.post(gate).header("content-type", "application/json");
            tokio::spawn(async move {
                let event: Option<serde_json::Value> = serde_json::from_slice(&delivery.data).ok();
                let person = event.as_ref().map(|event| &event["parameters"]["entity"]["user"]["organization_user_id"]);
                let body = serde_json::json!({ "Gate": "didomi", "GateInput": { "MAIL": person } }).to_string();
                let answer = request.body(body).send().await;
                drop(slot);
                if let Ok(answer) = answer
                    && answer.bytes().await.is_ok()
                {
                    // A lost connection ends the loop above.
                    let _ = delivery.acker.ack(BasicAckOptions::default()).await;
                }
            });
        }
        Ok(())
    })
}
