//! Step 7: settle. The only publish and the only ack in the crate.
//!
//! At least once: a message is published with `mandatory`, its confirm awaited and any return
//! read, before the original is acked; whatever goes wrong leaves the original with the broker.
//! Each channel carries one publish at a time: the client can give a confirm or a return to the
//! wrong publish when several are under way on one channel.

use super::headers::{History, PERSISTENT, for_publish};
use super::standing::Unsettled;
use super::topology::Queues;
use super::{Error, call};
use crate::integration::Name;
use crate::shutdown::Shutdown;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio_retry::strategy::{ExponentialBackoff, jitter};

/// Channels on which one integration publishes at once.
const PUBLISHERS: usize = 8;
/// The first pause after a failed publish, doubled each time, in milliseconds.
const FIRST_PAUSE_MS: u64 = 100;
/// The longest pause between two tries, in milliseconds.
const LONGEST_PAUSE_MS: u64 = 5_000;

/// What must be at the broker before the original is acked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Nothing: the event is done with.
    Done,
    /// The same, in the queue of this delay.
    Park(Duration, History),
    /// The same at once in the retry queue, which counts its returns anew.
    Anew(History),
    /// A dead letter, with the reason's code.
    Dead(&'static str, History),
}

/// The delivery's channel is gone: the broker delivers its message again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// Settles the deliveries of one integration over one pair of connections.
#[derive(Debug)]
pub struct Outbox {
    queues: Queues,
    unsettled: Arc<Unsettled>,
    connection: Arc<Connection>,
    idle: Mutex<Vec<Channel>>,
    publishers: Semaphore,
    over: Shutdown,
    missing: Arc<Notify>,
}

impl Outbox {
    /// An outbox that opens its channels when it first needs them. `over` ends it together with its
    /// connections; `missing` is told when a queue that must exist does not.
    #[must_use]
    pub fn new(
        connection: Arc<Connection>,
        integration: &Name,
        unsettled: Arc<Unsettled>,
        over: Shutdown,
        missing: Arc<Notify>,
    ) -> Outbox {
        Outbox {
            queues: Queues::of(integration),
            unsettled,
            connection,
            idle: Mutex::new(Vec::new()),
            publishers: Semaphore::new(PUBLISHERS),
            over,
            missing,
        }
    }

    /// Whether a delivery is still ours to settle. A connection that froze never says that its
    /// deliveries are gone, so the end of the outbox counts as well.
    #[must_use]
    pub fn holds(&self, delivery: &Delivery) -> bool {
        delivery.acker.usable() && !self.over.is_stopping()
    }

    /// Returns once no delivery is ours any more.
    pub async fn over(&self) {
        self.over.wait().await;
    }

    /// Carries a verdict out. Takes the delivery by value, so each is settled once. A publish that
    /// the broker refuses is tried again for as long as the delivery is ours; `failed` hears of
    /// each refusal.
    ///
    /// # Errors
    /// [`Gone`] when the delivery's channel is gone; nothing is lost then.
    pub async fn settle(
        &self,
        delivery: Delivery,
        settlement: &Settlement,
        failed: impl Fn(&Error),
    ) -> Result<(), Gone> {
        if let Some((queue, history, reason)) = self.publication(settlement) {
            let properties = for_publish(&delivery.properties, history, reason);
            self.publish_until_confirmed(&delivery, &queue, &properties, &failed).await?;
        }
        match call("ack", delivery.acker.ack(BasicAckOptions::default())).await {
            Ok(true) => {
                self.unsettled.settled(&delivery.data);
                Ok(())
            }
            Ok(false) => Err(Gone),
            Err(error) => {
                failed(&error);
                Err(Gone)
            }
        }
    }

    /// Where to publish what, if anything.
    fn publication<'s>(&self, settlement: &'s Settlement) -> Option<(String, &'s History, Option<&'static str>)> {
        match settlement {
            Settlement::Done => None,
            Settlement::Park(delay, history) => Some((self.queues.delay(*delay), history, None)),
            Settlement::Anew(history) => Some((self.queues.retry.clone(), history, None)),
            Settlement::Dead(reason, history) => Some((self.queues.dead.clone(), history, Some(reason))),
        }
    }

    async fn publish_until_confirmed(
        &self,
        delivery: &Delivery,
        queue: &str,
        properties: &BasicProperties,
        failed: &impl Fn(&Error),
    ) -> Result<(), Gone> {
        let mut pauses = ExponentialBackoff::from_millis(2)
            .factor(FIRST_PAUSE_MS / 2)
            .max_delay(Duration::from_millis(LONGEST_PAUSE_MS))
            .map(jitter);
        while self.holds(delivery) {
            match self.publish(queue, &delivery.data, properties).await {
                Ok(()) => return Ok(()),
                Err(error) => failed(&error),
            }
            tokio::select! {
                () = tokio::time::sleep(pauses.next().unwrap_or_default()) => {}
                () = self.over.wait() => {}
            }
        }
        Err(Gone)
    }

    /// One publish, confirmed. A channel goes back to the others only after it was acked.
    async fn publish(&self, queue: &str, body: &[u8], properties: &BasicProperties) -> Result<(), Error> {
        // The semaphore is never closed, so this is always a permit.
        let _turn = self.publishers.acquire().await;
        let channel = self.channel().await?;
        let published = publish(&channel, queue, body, properties.clone()).await?;
        // A channel that was once refused by a full queue may be refused for ever (docs/rabbitmq.md).
        if published != Published::Refused {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
        }
        if published == Published::Returned {
            self.missing.notify_one();
        }
        published.or_refused(queue)
    }

    async fn channel(&self) -> Result<Channel, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(channel) = idle.filter(|channel| channel.status().connected()) {
            return Ok(channel);
        }
        let channel = call("open a channel", self.connection.create_channel()).await?;
        call("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }
}

/// How the broker answered a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Published {
    Confirmed,
    /// No such queue.
    Returned,
    /// The queue is full or not available.
    Refused,
}

impl Published {
    fn or_refused(self, queue: &str) -> Result<(), Error> {
        let why = match self {
            Published::Confirmed => return Ok(()),
            Published::Returned => "returned: the queue does not exist",
            Published::Refused => "refused by the broker: the queue is full or not available",
        };
        Err(Error::refused(format!("publish to \"{queue}\""), why))
    }
}

/// Publishes on a channel that confirms and on which nothing else is under way.
async fn publish(channel: &Channel, queue: &str, body: &[u8], properties: BasicProperties) -> Result<Published, Error> {
    let what = format!("publish to \"{queue}\"");
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = async { channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await };
    match call(&what, published).await? {
        Confirmation::Ack(None) => Ok(Published::Confirmed),
        Confirmation::Ack(Some(_)) => Ok(Published::Returned),
        Confirmation::Nack(_) => Ok(Published::Refused),
        Confirmation::NotRequested => Err(Error::refused(what, "the channel does not confirm")),
    }
}

/// Puts a message into the place of those that were taken from the same queue.
pub(super) async fn replace(channel: &Channel, queue: &str, taken: Vec<Delivery>, body: &[u8]) -> Result<(), Error> {
    let properties =
        BasicProperties::default().with_delivery_mode(PERSISTENT).with_content_type("application/json".into());
    publish(channel, queue, body, properties).await?.or_refused(queue)?;
    for old in taken {
        call("ack", old.acker.ack(BasicAckOptions::default())).await?;
    }
    Ok(())
}
