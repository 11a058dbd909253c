//! Step 1: deliveries of one integration.
//!
//! Each queue has one consumer for as long as everything flows ([`Inbox::next`]). A look at the head of
//! a queue ([`Inbox::look`]) is a consumer of its own that is cancelled after one delivery. Messages are
//! never taken by `basic.get`, and few consumers of a channel have deliveries in hand: a broker up to
//! 4.0 loses messages after a client died that had many (`docs/rabbitmq.md`).

use super::headers::History;
use super::prefetch::Prefetch;
use super::receipts::{ConsumerId, Due, Receipts};
use super::standing::{Standing, Unsettled};
use super::topology::{self, Queues, Source};
use super::{Error, call};
use crate::integration::Name;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// When nothing more is there to take, further deliveries are left to gather for so long by each one
/// that may be in hand, and at most for so long: to wake for each would cost as much as to handle it.
/// A gate that answers at once is not kept waiting: no worker handles 50,000 a second.
const GATHER_FOR_EACH: Duration = Duration::from_micros(20);
const GATHER_AT_MOST: Duration = Duration::from_millis(5);
/// What is shorter is not worth a timer.
const GATHER_AT_LEAST: Duration = Duration::from_millis(1);

/// How often a queue is asked, before its channel closes, for answers that come after acks.
const LAST_ACKS: usize = 4;
/// While the head of a queue is looked at: between two questions whether there is one.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The most bytes in hand, by which a row of messages that are larger than all before is noticed.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Where a delivery comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// The retry queue: tried, held or returned before; goes first, and its history is believed.
    Retry,
    /// The work queue.
    Work,
    /// Somebody else's queue.
    Source,
}

impl Feed {
    /// The word for it where only closed sets may be.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Feed::Retry => "retry",
            Feed::Work => "work",
            Feed::Source => "source",
        }
    }
}

/// A delivery, with what its queue says of it.
#[derive(Debug)]
pub struct Incoming {
    pub due: Due,
    pub feed: Feed,
    pub standing: Standing,
    pub history: History,
}

/// A consumer, by its number on its channel.
type Numbered = (ConsumerId, Consumer);

/// One queue, with a channel of its own.
#[derive(Debug)]
struct Tap {
    feed: Feed,
    queue: String,
    channel: Channel,
    receipts: Arc<Receipts>,
    prefetch: Prefetch,
    consumer: Option<Numbered>,
    /// So many consumers were made so far.
    made: ConsumerId,
    /// What came through consumers that were replaced, and was not looked at yet.
    left: VecDeque<(ConsumerId, Delivery)>,
    /// Deliveries of the present consumer that wait for long, so that it has no room for others.
    aside: u16,
    is_due: bool,
}

impl Tap {
    /// A consumer that has this prefetch; it counts for consumers that are made after it was said.
    async fn consume(&mut self, prefetch: u16) -> Result<Numbered, Error> {
        call("limit the prefetch", self.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = self.channel.basic_consume(self.queue.as_str().into(), "".into(), options, arguments);
        let consumer = call(&format!("consume queue \"{}\"", self.queue), consumer).await?;
        self.made += 1;
        Ok((self.made, consumer))
    }

    /// Ends a consumer; what it delivered and was not looked at yet comes next.
    async fn cancel(&mut self, (number, mut consumer): Numbered) -> Result<(), Error> {
        let cancelled = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        call("stop consuming", cancelled).await?;
        while let Some(Ok(delivery)) = consumer.next().await {
            self.left.push_back((number, delivery));
        }
        Ok(())
    }

    /// Replaces the consumer where another prefetch is due, or where most of what it may have in hand
    /// waits for long and there is memory for more.
    async fn renew(&mut self, has_memory: bool) -> Result<(), Error> {
        let is_full = has_memory && self.aside >= self.prefetch.now().div_ceil(2);
        if !(self.is_due || is_full) || !self.receipts.has_room() {
            return Ok(());
        }
        let Some(old) = self.consumer.take() else { return Ok(()) };
        self.is_due = false;
        self.aside = 0;
        self.consumer = Some(self.consume(self.prefetch.now()).await?);
        self.cancel(old).await
    }

    fn received(&mut self, number: ConsumerId, delivery: Delivery) -> Incoming {
        self.is_due |= self.prefetch.received(delivery.data.len());
        let history = match self.feed {
            Feed::Retry => History::read(&delivery.properties),
            Feed::Work | Feed::Source => History::none(&delivery.properties),
        };
        let (due, standing) = self.receipts.receive(delivery, number);
        Incoming { due, feed: self.feed, standing, history }
    }
}

/// The queues that feed the integration. It lives as long as its connection; deliveries that were
/// not settled by then return to their queue.
#[derive(Debug)]
pub struct Inbox {
    taps: Vec<Tap>,
    unsettled: Arc<Unsettled>,
}

impl Inbox {
    /// Opens a channel for each queue; nothing is delivered yet, and at most `prefetch` messages of each
    /// will be in hand of one consumer.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn open(
        connection: &Connection,
        source: &Source,
        integration: &Name,
        unsettled: Arc<Unsettled>,
        prefetch: u16,
    ) -> Result<Inbox, Error> {
        let Queues { retry, work, .. } = Queues::of(integration);
        let mut queues = vec![(Feed::Retry, retry), (Feed::Work, work)];
        if let Source::Queue(queue) = source {
            queues.push((Feed::Source, queue.clone()));
        }
        let mut taps = Vec::with_capacity(queues.len());
        for (feed, queue) in queues {
            let channel = call("open a channel", connection.create_channel()).await?;
            taps.push(Tap {
                feed,
                queue,
                receipts: Arc::new(Receipts::new(channel.clone(), Arc::clone(&unsettled))),
                channel,
                prefetch: Prefetch::new(prefetch),
                consumer: None,
                made: 0,
                left: VecDeque::new(),
                aside: 0,
                is_due: false,
            });
        }
        Ok(Inbox { taps, unsettled })
    }

    /// The queues, those first that go first.
    #[must_use]
    pub fn feeds(&self) -> Vec<Feed> {
        self.taps.iter().map(|tap| tap.feed).collect()
    }

    /// Takes the first message of a queue, if there is one. Waits while too many consumers have
    /// deliveries in hand.
    ///
    /// # Errors
    /// The queue is gone, or the broker.
    pub async fn look(&mut self, feed: Feed) -> Result<Option<Incoming>, Error> {
        let Some(tap) = self.taps.iter_mut().find(|tap| tap.feed == feed) else { return Ok(None) };
        tap.receipts.room().await;
        let (number, mut consumer) = tap.consume(1).await?;
        let delivered = loop {
            if let Ok(delivered) = tokio::time::timeout(LOOK_AGAIN, consumer.next()).await {
                break Some(delivered.and_then(Result::ok).ok_or_else(Error::consumer_gone)?);
            }
            if topology::depth(&tap.channel, &tap.queue).await? == 0 {
                break None;
            }
        };
        tap.cancel((number, consumer)).await?;
        // What is ready no more may have been on its way here.
        let delivered = delivered.map(|delivery| (number, delivery)).or_else(|| tap.left.pop_front());
        Ok(delivered.map(|(number, delivery)| tap.received(number, delivery)))
    }

    /// How many messages are ready in a queue.
    ///
    /// # Errors
    /// The queue is gone, or the broker.
    pub async fn depth(&self, feed: Feed) -> Result<u32, Error> {
        let Some(tap) = self.taps.iter().find(|tap| tap.feed == feed) else { return Ok(0) };
        topology::depth(&tap.channel, &tap.queue).await
    }

    /// Lets every queue flow.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn start(&mut self) -> Result<(), Error> {
        for tap in &mut self.taps {
            tap.receipts.room().await;
            tap.aside = 0;
            tap.is_due = false;
            tap.consumer = Some(tap.consume(tap.prefetch.now()).await?);
        }
        Ok(())
    }

    /// Gives consumers another prefetch where what came asks for it. To be called between two
    /// deliveries, and to its end: what a consumer that is replaced delivered is kept by then.
    ///
    /// # Errors
    /// The broker is gone, or more bytes are in hand than may be: connect again.
    pub async fn adapt(&mut self) -> Result<(), Error> {
        let bytes = self.unsettled.bytes();
        if bytes > MOST_BYTES {
            return Err(Error::too_many_bytes(MOST_BYTES));
        }
        for tap in &mut self.taps {
            tap.renew(bytes < MOST_BYTES / 2).await?;
        }
        Ok(())
    }

    /// The next delivery of the flow, retries first. One that comes after a while is there at once;
    /// further ones gather. May be given up at any time.
    ///
    /// # Errors
    /// A channel or a consumer is gone: connect again.
    pub async fn next(&mut self) -> Result<Incoming, Error> {
        let there = self.delivered().now_or_never();
        let (tap, delivered) = match (there, self.pause()) {
            (Some(there), _) => there,
            (None, None) => self.delivered().await,
            (None, Some(pause)) => {
                tokio::time::sleep(pause).await;
                self.delivered().await
            }
        };
        let (number, delivery) = delivered.ok_or_else(Error::consumer_gone)?;
        let tap = self.taps.get_mut(tap).ok_or_else(Error::consumer_gone)?;
        Ok(tap.received(number, delivery))
    }

    /// How long deliveries gather.
    fn pause(&self) -> Option<Duration> {
        let prefetch = self.taps.iter().map(|tap| tap.prefetch.now()).max()?;
        let pause = (GATHER_FOR_EACH * prefetch.into()).min(GATHER_AT_MOST);
        Some(pause).filter(|pause| *pause >= GATHER_AT_LEAST)
    }

    /// What comes next, and to which tap.
    async fn delivered(&mut self) -> (usize, Option<(ConsumerId, Delivery)>) {
        poll_fn(|cx| {
            for (index, tap) in self.taps.iter_mut().enumerate() {
                if let Some(left) = tap.left.pop_front() {
                    return Poll::Ready((index, Some(left)));
                }
                let Some((number, consumer)) = &mut tap.consumer else { continue };
                if let Poll::Ready(next) = consumer.poll_next_unpin(cx) {
                    let delivery = next.and_then(Result::ok);
                    return Poll::Ready((index, delivery.map(|delivery| (*number, delivery))));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// A delivery of this queue waits for long: others take its place.
    pub fn set_aside(&mut self, feed: Feed) {
        for tap in self.taps.iter_mut().filter(|tap| tap.feed == feed) {
            tap.aside = tap.aside.saturating_add(1);
        }
    }

    /// Ends the flow and gives what was delivered and not yet looked at.
    ///
    /// # Errors
    /// The broker is gone.
    pub async fn stop(&mut self) -> Result<Vec<Incoming>, Error> {
        let mut left = Vec::new();
        for tap in &mut self.taps {
            if let Some(consumer) = tap.consumer.take() {
                tap.cancel(consumer).await?;
            }
            while let Some((number, delivery)) = tap.left.pop_front() {
                left.push(tap.received(number, delivery));
            }
        }
        Ok(left)
    }

    /// Acks everything that is settled, now: whatever comes next may end the connection.
    ///
    /// # Errors
    /// A channel is gone.
    pub async fn flush(&self) -> Result<(), Error> {
        for tap in &self.taps {
            tap.receipts.flush().await?;
        }
        Ok(())
    }

    /// Returns once the broker's queues have heard of the last acks: a channel holds back what goes
    /// beyond 32 that its queue has not answered, and forgets it when it closes (`docs/rabbitmq.md`).
    ///
    /// # Errors
    /// The broker is gone.
    pub async fn acked(&self) -> Result<(), Error> {
        self.flush().await?;
        for tap in &self.taps {
            // Asked on the channel of the acks, the queue answers after those that it has.
            for _ in 0..LAST_ACKS {
                topology::depth(&tap.channel, &tap.queue).await?;
            }
        }
        Ok(())
    }
}
