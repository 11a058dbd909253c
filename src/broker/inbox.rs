//! Step 1: deliveries of one integration.
//!
//! Two ways to get them: one by one ([`Inbox::take`]), which shows the head of a queue and no more,
//! or in a flow ([`Inbox::flow`]) that is bounded by the prefetch. What came back is at the head of
//! its queue, so a look tells whether suspects are about.

use super::headers::History;
use super::receipts::{Due, Receipts};
use super::standing::{Standing, Unsettled};
use super::topology::{self, Queues, Source};
use super::{Error, call};
use crate::integration::Name;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
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

/// One queue, with a channel of its own.
#[derive(Debug)]
struct Tap {
    feed: Feed,
    queue: String,
    channel: Channel,
    receipts: Arc<Receipts>,
    consumer: Option<Consumer>,
}

/// The queues that feed the integration. It lives as long as its connection; deliveries that were
/// not settled by then return to their queue.
#[derive(Debug)]
pub struct Inbox {
    taps: Vec<Tap>,
    unsettled: Arc<Unsettled>,
    /// How long deliveries gather.
    pause: Option<Duration>,
}

impl Inbox {
    /// Opens a channel for each queue; nothing is delivered yet.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn open(
        connection: &Connection,
        source: &Source,
        integration: &Name,
        unsettled: Arc<Unsettled>,
    ) -> Result<Inbox, Error> {
        let Queues { retry, work, .. } = Queues::of(integration);
        let mut queues = vec![(Feed::Retry, retry), (Feed::Work, work)];
        if let Source::Queue(queue) = source {
            queues.push((Feed::Source, queue.clone()));
        }
        let mut taps = Vec::with_capacity(queues.len());
        for (feed, queue) in queues {
            let channel = call("open a channel", connection.create_channel()).await?;
            let receipts = Arc::new(Receipts::new(channel.clone(), Arc::clone(&unsettled)));
            taps.push(Tap { feed, queue, channel, receipts, consumer: None });
        }
        Ok(Inbox { taps, unsettled, pause: None })
    }

    /// The queues, those first that go first.
    #[must_use]
    pub fn feeds(&self) -> Vec<Feed> {
        self.taps.iter().map(|tap| tap.feed).collect()
    }

    /// Takes the first message of a queue, if there is one.
    ///
    /// # Errors
    /// The queue is gone, or the broker.
    pub async fn take(&mut self, feed: Feed) -> Result<Option<Incoming>, Error> {
        let Some(tap) = self.taps.iter().find(|tap| tap.feed == feed) else { return Ok(None) };
        let got = tap.channel.basic_get(tap.queue.as_str().into(), BasicGetOptions::default());
        let got = call(&format!("look into \"{}\"", tap.queue), got).await?;
        Ok(got.map(|message| self.received(feed, &tap.receipts, message.delivery)))
    }

    /// Lets every queue flow, each with at most `prefetch` deliveries in hand.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn flow(&mut self, prefetch: u16) -> Result<(), Error> {
        let pause = (GATHER_FOR_EACH * prefetch.into()).min(GATHER_AT_MOST);
        self.pause = Some(pause).filter(|pause| *pause >= GATHER_AT_LEAST);
        for tap in &mut self.taps {
            call("limit the prefetch", tap.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
            let consumer = tap.channel.basic_consume(
                tap.queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            tap.consumer = Some(call(&format!("consume queue \"{}\"", tap.queue), consumer).await?);
        }
        Ok(())
    }

    /// The next delivery of the flow, retries first; `None` once a channel or a consumer is gone,
    /// which means to start again. One that comes after a while is there at once; further ones gather.
    pub async fn next(&mut self) -> Option<Incoming> {
        let there = self.delivered().now_or_never();
        let (feed, receipts, next) = match (there, self.pause) {
            (Some(there), _) => there,
            (None, None) => self.delivered().await,
            (None, Some(pause)) => {
                tokio::time::sleep(pause).await;
                self.delivered().await
            }
        };
        Some(self.received(feed, &receipts, next?.ok()?))
    }

    async fn delivered(&mut self) -> (Feed, Arc<Receipts>, Option<lapin::Result<Delivery>>) {
        poll_fn(|cx| {
            for tap in &mut self.taps {
                if let Some(Poll::Ready(next)) = tap.consumer.as_mut().map(|consumer| consumer.poll_next_unpin(cx)) {
                    return Poll::Ready((tap.feed, Arc::clone(&tap.receipts), next));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Ends the flow and gives what was delivered and not yet looked at.
    ///
    /// # Errors
    /// The broker is gone.
    pub async fn ebb(&mut self) -> Result<Vec<Incoming>, Error> {
        let mut left = Vec::new();
        for tap in &mut self.taps {
            let Some(mut consumer) = tap.consumer.take() else { continue };
            let cancelled = tap.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
            call("stop consuming", cancelled).await?;
            while let Some(Ok(delivery)) = consumer.next().await {
                left.push((tap.feed, Arc::clone(&tap.receipts), delivery));
            }
        }
        Ok(left.into_iter().map(|(feed, receipts, delivery)| self.received(feed, &receipts, delivery)).collect())
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

    fn received(&self, feed: Feed, receipts: &Arc<Receipts>, delivery: Delivery) -> Incoming {
        let (name, standing) = self.unsettled.receive(&delivery);
        let history = match feed {
            Feed::Retry => History::read(&delivery.properties),
            Feed::Work | Feed::Source => History::none(&delivery.properties),
        };
        Incoming { due: Due { delivery, receipts: Arc::clone(receipts), name }, feed, standing, history }
    }
}
