//! What the broker remembers of the records to which an integration's events went.
//!
//! Records that were lost or replaced would forget in silence what is newest. So their identity and
//! epoch lie at the broker, too: one message in `consent-gate.{i}.store`, looked at and replaced
//! only by who holds the queue `consent-gate.{i}.lock`. The records commit an epoch first, the
//! broker second: after any crash the right ones are equal or ahead.

use super::topology::{self, Queues};
use super::{Error, call, link, settler};
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

/// The longest pause, in milliseconds, while somebody else looks.
const PAUSE_MS: u64 = 400;
/// How often it is tried to look before somebody else who looks is in the way.
const TRIES: usize = 50;

/// The most messages of which the queue is read at once; there is one.
const MOST: u16 = 16;
/// While nothing comes: between two questions whether there is something.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The only look of the moment. Dropping it lets go.
#[derive(Debug)]
pub struct ClaimGuard {
    connection: Connection,
    channel: Channel,
    queue: String,
    work: String,
    found: Vec<Delivery>,
}

impl ClaimGuard {
    /// Looks, on a connection that was opened for it, while nobody else does.
    ///
    /// # Errors
    /// The broker refuses or is gone, or somebody else looks without end.
    pub async fn take(settings: &link::Settings, mut connection: Connection, name: &Name) -> Result<ClaimGuard, Error> {
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
            // A channel's end can take its connection along.
            connection = link::dial_to_declare(settings).await?;
        };
        call("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let found = everything_in(&channel, &store).await?;
        Ok(ClaimGuard { connection, channel, queue: store, work, found })
    }

    /// What is remembered; the furthest, should there be several.
    #[must_use]
    pub fn known(&self) -> Option<Claim> {
        let unreadable = Claim { store: "unreadable".to_owned(), epoch: 0 };
        let read = |found: &Delivery| serde_json::from_slice(&found.data).unwrap_or_else(|_| unreadable.clone());
        self.found.iter().map(read).max_by_key(|claim| claim.epoch)
    }

    /// How many consumers the integration's events have.
    ///
    /// # Errors
    /// Their queue is gone, or the broker.
    pub async fn consumers(&self) -> Result<u32, Error> {
        topology::consumers(&self.channel, &self.work).await
    }

    /// Remembers something else, and lets go.
    ///
    /// # Errors
    /// The broker refuses or is gone; what was known is still there.
    pub async fn replace(self, claim: &Claim) -> Result<(), Error> {
        let ClaimGuard { connection, channel, queue, found, .. } = self;
        let body = serde_json::json!(claim).to_string();
        let replaced = settler::replace(&channel, &queue, found, body.as_bytes()).await;
        close(&connection).await;
        replaced
    }

    /// Lets go; what is known stays.
    pub async fn leave(self) {
        close(&self.connection).await;
    }
}

/// Reads a queue of few messages to its end; they stay in hand.
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
    // What is ready no more may have been on its way here.
    while let Some(Ok(message)) = consumer.next().await {
        found.push(message);
    }
    Ok(found)
}

async fn close(connection: &Connection) {
    // What was looked at returns to its queue with the connection, and the lock frees itself.
    let _ = tokio::time::timeout(Duration::from_secs(2), connection.close(200, "done".into())).await;
}
