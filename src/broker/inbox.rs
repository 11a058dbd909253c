//! Step 1: deliveries of one integration, one after the other.

use super::topology::{Queues, Source};
use super::{Error, call};
use crate::integration::Integration;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};

/// A channel with a consumer on every queue that feeds the integration. It lives as long as its
/// connection; deliveries that were not settled by then return to their queue.
#[derive(Debug)]
pub struct Inbox {
    channel: Channel,
    consumers: SelectAll<Consumer>,
    tags: Vec<String>,
}

impl Inbox {
    /// Starts to consume, with at most `prefetch` deliveries in hand.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn open(
        connection: &Connection,
        source: &Source,
        integration: &Integration,
        prefetch: u16,
    ) -> Result<Inbox, Error> {
        let channel = call("open a channel", connection.create_channel()).await?;
        call("limit the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let mut queues = vec![Queues::of(&integration.name).work];
        if let Source::Queue(queue) = source {
            queues.push(queue.clone());
        }
        let mut inbox = Inbox { channel, consumers: SelectAll::new(), tags: Vec::new() };
        for queue in queues {
            let what = format!("consume queue \"{queue}\"");
            let consumer = inbox.channel.basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            let consumer = call(&what, consumer).await?;
            inbox.tags.push(consumer.tag().to_string());
            inbox.consumers.push(consumer);
        }
        Ok(inbox)
    }

    /// The next delivery; `None` once the channel or a consumer is gone, which means to start
    /// again.
    pub async fn next(&mut self) -> Option<Delivery> {
        let expected = self.tags.len();
        // A consumer that ended leaves the set; its queue would be forgotten.
        if self.consumers.len() < expected {
            return None;
        }
        let delivery = self.consumers.next().await?.ok()?;
        (self.consumers.len() == expected).then_some(delivery)
    }

    /// Asks for no more; what was delivered can still be settled.
    pub async fn cancel(&self) {
        for tag in &self.tags {
            let cancelled = self.channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default());
            // When the channel is gone the consumers are too.
            let _ = call("stop consuming", cancelled).await;
        }
    }
}
