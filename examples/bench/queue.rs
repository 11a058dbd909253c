//! Filling queues.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most unconfirmed publishes at once: more gain nothing (docs/rabbitmq.md).
const WINDOW: usize = 1_000;

pub struct Bench {
    runtime: tokio::runtime::Runtime,
    _connection: Connection,
    channel: Channel,
}

impl Bench {
    pub fn connect(broker: &str) -> anyhow::Result<Bench> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let connection = runtime.block_on(Connection::connect(broker, ConnectionProperties::default()))?;
        let channel = runtime.block_on(connection.create_channel())?;
        runtime.block_on(channel.confirm_select(ConfirmSelectOptions::default()))?;
        Ok(Bench { runtime, _connection: connection, channel })
    }

    pub fn purge(&self, queue: &str) -> anyhow::Result<()> {
        self.runtime.block_on(self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()))?;
        Ok(())
    }

    /// Publishes this many events about as many persons, each padded to at least `bytes`.
    pub fn fill(&self, queue: &str, events: u64, bytes: usize) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut confirms = VecDeque::new();
            for n in 0..events {
                if confirms.len() >= WINDOW
                    && let Some(confirm) = confirms.pop_front()
                {
                    confirm.await?;
                }
                let body = event(&format!("p{n}@example.com"), n, bytes);
                let properties = BasicProperties::default().with_delivery_mode(2);
                let options = BasicPublishOptions::default();
                confirms
                    .push_back(self.channel.basic_publish("".into(), queue.into(), options, &body, properties).await?);
            }
            for confirm in confirms {
                confirm.await?;
            }
            Ok(())
        })
    }

    /// Publishes this many events at an even rate, each with its time in its person's name.
    pub fn trickle(&self, queue: &str, per_second: u32, events: u64) -> anyhow::Result<()> {
        self.flow(queue, per_second, events, |n| {
            let us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            format!("t{us}-{n}@example.com")
        })
    }

    /// Publishes this many events at an even rate; `person` gives the person of the nth.
    pub fn flow(
        &self,
        queue: &str,
        per_second: u32,
        events: u64,
        person: impl Fn(u64) -> String,
    ) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            for n in 0..events {
                ticks.tick().await;
                let body = event(&person(n), n, 0);
                let properties = BasicProperties::default().with_delivery_mode(2);
                let options = BasicPublishOptions::default();
                self.channel.basic_publish("".into(), queue.into(), options, &body, properties).await?.await?;
            }
            Ok(())
        })
    }
}

/// A webhook envelope of about 1.5 KB, or more.
fn event(person: &str, n: u64, bytes: usize) -> Vec<u8> {
    let purpose =
        |id: &str, on: bool| json!({ "id": id, "enabled": on, "enabled_li": null, "metadata": {}, "values": {} });
    let vendors: Vec<u64> = (0..(bytes / 4) as u64).map(|n| 100 + n % 900).collect();
    let event: Value = json!({
        "type": "event.created",
        "regulation": "gdpr",
        "parameters": { "entity": {
            "id": format!("00000000-0000-4000-8000-{n:012}"),
            "organization_id": "acme",
            "created_at": jiff::Timestamp::now().to_string(),
            "updated_at": jiff::Timestamp::now().to_string(),
            "status": "confirmed",
            "regulation": "gdpr",
            "domain": "www.example.com",
            "metadata": { "source": "preference-center", "locale": "fr-FR", "form": "newsletter-2026" },
            "proofs_id": [],
            "user": {
                "id": format!("11111111-0000-4000-8000-{n:012}"),
                "organization_user_id": person,
                "organization_user_id_type": "email",
                "country": "FR",
                "metadata": { "segment": "b2c" },
            },
            "consents": {
                "purposes": [
                    purpose("newsletter", n.is_multiple_of(2)), purpose("partners", n.is_multiple_of(3)), purpose("analytics", true),
                    purpose("ads", false), purpose("sms_offers", true), purpose("cookies", true),
                ],
                "channels": [],
                "vendors": { "enabled": vendors, "disabled": [], "enabled_li": [], "disabled_li": [] },
                "tcfcs": null,
            },
        } },
    });
    event.to_string().into_bytes()
}
