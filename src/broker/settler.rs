//! Step 7: settle.
//!
//! At least once: a message is published with `mandatory`, its confirm is awaited and any return is read
//! before the original is acked; any failure leaves the original with the broker. Each channel carries one
//! publish at a time: the client can assign a confirm or a return to the wrong publish when several are under
//! way on one channel.

use super::ack_batcher::Due;
use super::headers::for_publish;
use super::report::Report;
use super::topology::Queues;
use super::vanished::LettersPut;
use super::wire::{self, PublishOutcome, publish};
use super::{Error, call};
use crate::integration::Name;
use crate::task;
use crate::verdict::Settlement;
use crate::verdict::history::History;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::ConfirmSelectOptions;
use lapin::{BasicProperties, Channel, Connection};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_retry::strategy::{ExponentialBackoff, jitter};
use tokio_util::sync::CancellationToken;

/// The most channels on which one integration publishes at once.
const PUBLISHERS: usize = 8;
/// The most that the bodies being published may total, in KiB: the client copies each.
const MOST_KIB: usize = 16 * 1024;
/// The most reports that wait to be sent; more are dropped.
const MOST_REPORTS: usize = 10_000;
/// The first pause after a failed publish, doubled each time, in milliseconds.
const FIRST_PAUSE_MS: u64 = 100;
/// The longest pause between two tries, in milliseconds.
const LONGEST_PAUSE_MS: u64 = 5_000;

/// The delivery's channel is gone: the broker delivers its message again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelGone;

/// Settles the deliveries of one integration over one pair of connections.
#[derive(Debug)]
pub struct Settler {
    queues: Queues,
    publishers: Publishers,
    reports: OnceLock<mpsc::Sender<(String, Report)>>,
    over: CancellationToken,
    missing: Arc<Notify>,
    letters: Arc<LettersPut>,
}

impl Settler {
    /// A settler that opens its channels when it first needs them. `over` ends it together with its
    /// connections; `missing` is notified when a queue that must exist does not; `letters` counts dead
    /// letters.
    #[must_use]
    pub fn new(
        connection: Arc<Connection>,
        integration: &Name,
        over: CancellationToken,
        missing: Arc<Notify>,
        letters: Arc<LettersPut>,
    ) -> Settler {
        Settler {
            queues: Queues::of(integration),
            publishers: Publishers::new(connection, PUBLISHERS),
            reports: OnceLock::new(),
            over,
            missing,
            letters,
        }
    }

    /// Whether a delivery can still be settled by this settler. A connection that froze never reports that
    /// its deliveries are gone, so the end of the settler counts as well.
    #[must_use]
    pub fn holds(&self, delivery: &Delivery) -> bool {
        delivery.acker.usable() && !self.over.is_cancelled()
    }

    /// Returns once no delivery can be settled any more.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Carries a verdict out. Takes the delivery by value, so that each is settled once, and returns its
    /// body. A publish that the broker refuses is tried again for as long as the delivery is still held;
    /// `failed` is called with each refusal.
    ///
    /// # Errors
    /// [`ChannelGone`] if the delivery's channel is gone; nothing is lost then.
    pub async fn settle(
        &self,
        due: Due,
        settlement: &Settlement,
        failed: impl Fn(&Error),
    ) -> Result<Vec<u8>, ChannelGone> {
        if let Some((queue, history, reason)) = self.publication(settlement) {
            let death = reason.map(|reason| (reason, Timestamp::now()));
            let properties = for_publish(&due.delivery.properties, history, death);
            let letter = reason.map(|_| self.letters.begin());
            self.publish_until_confirmed(&due.delivery, &queue, &properties, &failed).await?;
            if let Some(letter) = letter {
                letter.confirmed();
            }
        }
        if !self.holds(&due.delivery) {
            return Err(ChannelGone);
        }
        Ok(due.ack())
    }

    /// What to publish and where, if anything.
    fn publication<'s>(&self, settlement: &'s Settlement) -> Option<(String, &'s History, Option<&'static str>)> {
        match settlement {
            Settlement::Done => None,
            Settlement::Park(delay, history) => Some((self.queues.delay(*delay), history, None)),
            Settlement::Recount(history) => Some((self.queues.retry.clone(), history, None)),
            Settlement::Dead(reason, history) => Some((self.queues.dead.clone(), history, Some(reason.code()))),
        }
    }

    async fn publish_until_confirmed(
        &self,
        delivery: &Delivery,
        queue: &str,
        properties: &BasicProperties,
        failed: &impl Fn(&Error),
    ) -> Result<(), ChannelGone> {
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
                () = self.over.cancelled() => {}
            }
        }
        Err(ChannelGone)
    }

    async fn publish(&self, queue: &str, body: &[u8], properties: &BasicProperties) -> Result<(), Error> {
        let published = self.publishers.publish(queue, body, properties.clone()).await?;
        if published == PublishOutcome::Returned {
            self.missing.notify_one();
        }
        published.or_refused(queue)
    }

    /// Reports to a queue what became of an event. Does not wait: a report for which there is no room, no
    /// queue or no broker is dropped.
    pub fn report(&self, queue: String, report: Report) {
        let reports = self.reports.get_or_init(|| {
            let (sender, mut reports) = mpsc::channel(MOST_REPORTS);
            let connection = Arc::clone(&self.publishers.connection);
            tokio::spawn(task::kept("reports", async move || tell(&connection, &mut reports).await));
            sender
        });
        let _ = reports.try_send((queue, report));
    }
}

/// Publishes reports on a channel of their own, neither persistent nor confirmed, for as long as their
/// settler lives.
async fn tell(connection: &Connection, reports: &mut mpsc::Receiver<(String, Report)>) {
    let mut open = None;
    while let Some((queue, report)) = reports.recv().await {
        let told = async {
            let channel = match open.take().filter(|channel: &Channel| channel.status().connected()) {
                Some(channel) => channel,
                None => call("open a channel", connection.create_channel()).await?,
            };
            let body = serde_json::json!(report).to_string();
            wire::tell(&channel, &queue, body.as_bytes()).await?;
            Ok::<_, Error>(channel)
        };
        match told.await {
            Ok(channel) => open = Some(channel),
            // All other waiting reports would fail as slowly.
            Err(_) => while reports.try_recv().is_ok() {},
        }
    }
}

/// Channels in confirm mode, each with at most one publish under way.
#[derive(Debug)]
pub struct Publishers {
    connection: Arc<Connection>,
    idle: Mutex<Vec<Channel>>,
    turns: Semaphore,
    kib: Semaphore,
}

impl Publishers {
    /// At most `channels` channels, opened when they are first needed.
    #[must_use]
    pub fn new(connection: Arc<Connection>, channels: usize) -> Publishers {
        let (turns, kib) = (Semaphore::new(channels), Semaphore::new(MOST_KIB));
        Publishers { connection, idle: Mutex::new(Vec::new()), turns, kib }
    }

    /// Publishes, and returns once the broker has confirmed.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn put(&self, queue: &str, body: &[u8], properties: BasicProperties) -> Result<(), Error> {
        self.publish(queue, body, properties).await?.or_refused(queue)
    }

    /// One publish and its confirm. A channel goes back to the idle ones only after the broker answered and
    /// did not refuse.
    async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) -> Result<PublishOutcome, Error> {
        // The semaphores are never closed, so these are always permits.
        let _turn = self.turns.acquire().await;
        let kib = (body.len() / 1024).min(MOST_KIB);
        let _kib = self.kib.acquire_many(u32::try_from(kib).unwrap_or(u32::MAX)).await;
        let channel = self.channel().await?;
        let published = publish(&channel, queue, body, properties).await?;
        // A channel on which a full queue refused a publish once may be refused forever (docs/rabbitmq.md).
        if published != PublishOutcome::Refused {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
        }
        Ok(published)
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

    /// Closes the connection in order.
    pub async fn close(&self) {
        let _ = call("close", self.connection.close(200, "done".into())).await;
    }
}
