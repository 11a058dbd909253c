//! What the broker remembers about the records to which an integration's events went.
//!
//! Records that were lost or replaced would silently forget which values are the newest. So their identity
//! and epoch are kept at the broker, too: one message in `consent-gate.{i}.store`, which is read and replaced
//! only by the holder of the queue `consent-gate.{i}.lock`. The records commit an epoch first, the broker
//! second: after any crash the right records are equal or ahead.

use super::topology::{self, Queues};
use super::{Error, call, link, wire};
use crate::integration::Name;
use crate::record::Claim;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use std::time::Duration;
use tokio_retry::strategy::{FixedInterval, jitter};

/// The longest pause between two tries, in milliseconds, while somebody else holds the lock.
const PAUSE_MS: u64 = 400;
/// How many times to try for the lock before giving up.
const TRIES: usize = 50;

/// The most messages that are read from the queue at once; there is one.
const MOST: u16 = 16;
/// The interval between two checks of whether the queue is empty, while nothing arrives.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Exclusive access to what the broker remembers. Dropping it releases the lock.
#[derive(Debug)]
pub struct ClaimGuard {
    connection: Connection,
    channel: Channel,
    queue: String,
    work: String,
    found: Vec<Delivery>,
}

impl ClaimGuard {
    /// Takes the lock and reads the message, on a connection that was opened for it.
    ///
    /// # Errors
    /// The broker refuses or is gone, or somebody else keeps the lock.
    pub async fn take(
        settings: &link::BrokerSettings,
        mut connection: Connection,
        name: &Name,
    ) -> Result<ClaimGuard, Error> {
        let Queues { work, store, lock, .. } = Queues::of(name);
        let mut pauses = FixedInterval::from_millis(PAUSE_MS).map(jitter).take(TRIES);
        let channel = loop {
            let channel = call("open a channel", connection.create_channel()).await?;
            let exclusive =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(lock.as_str().into(), exclusive, FieldTable::default());
            match (call(&format!("hold \"{lock}\""), declared).await, pauses.next()) {
                (Ok(_), _) => break channel,
                (Err(error), Some(pause)) if error.code() == Some(405) => tokio::time::sleep(pause).await,
                (Err(error), _) => return Err(error),
            }
            // The end of a channel can end its connection, too.
            connection = link::dial_to_declare(settings).await?;
        };
        call("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let found = everything_in(&channel, &store).await?;
        Ok(ClaimGuard { connection, channel, queue: store, work, found })
    }

    /// What is remembered; the one with the highest epoch, should there be several.
    #[must_use]
    pub fn known(&self) -> Option<Claim> {
        let unreadable = Claim { store: "unreadable".to_owned(), epoch: 0 };
        let read = |found: &Delivery| serde_json::from_slice(&found.data).unwrap_or_else(|_| unreadable.clone());
        self.found.iter().map(read).max_by_key(|claim| claim.epoch)
    }

    /// How many consumers the integration's work queue has.
    ///
    /// # Errors
    /// The queue or the broker is gone.
    pub async fn consumers(&self) -> Result<u32, Error> {
        topology::consumers(&self.channel, &self.work).await
    }

    /// Remembers another claim, and releases the lock.
    ///
    /// # Errors
    /// The broker refuses or is gone; what was remembered is still there.
    pub async fn replace(self, claim: &Claim) -> Result<(), Error> {
        let ClaimGuard { connection, channel, queue, found, .. } = self;
        let body = serde_json::json!(claim).to_string();
        let replaced = wire::replace(&channel, &queue, found, body.as_bytes()).await;
        close(&connection).await;
        replaced
    }

    /// Releases the lock; what is remembered stays.
    pub async fn leave(self) {
        close(&self.connection).await;
    }
}

/// Reads a queue of few messages to its end; they stay unacked.
async fn everything_in(channel: &Channel, queue: &str) -> Result<Vec<Delivery>, Error> {
    call("limit the prefetch", channel.basic_qos(MOST, BasicQosOptions::default())).await?;
    let consumer =
        channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = call(&format!("consume queue \"{queue}\""), consumer).await?;
    let mut found = Vec::new();
    loop {
        match tokio::time::timeout(LOOK_AGAIN, consumer.next()).await {
            Ok(message) => found.push(message.and_then(Result::ok).ok_or_else(Error::consumer_gone)?),
            Err(_) if topology::depth(channel, queue).await? == 0 => break,
            Err(_) => {}
        }
    }
    let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    call("stop consuming", cancelled).await?;
    // A message that is no longer ready may have been on its way here.
    while let Some(Ok(message)) = consumer.next().await {
        found.push(message);
    }
    Ok(found)
}

async fn close(connection: &Connection) {
    // The messages that were read return to their queue with the end of the connection, and the lock is
    // released.
    let _ = tokio::time::timeout(Duration::from_secs(2), connection.close(200, "done".into())).await;
}
