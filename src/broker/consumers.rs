//! Step 1: deliveries of one integration.
//!
//! Each queue has one consumer for as long as everything flows ([`Consumers::next`]). A look at the head of
//! a queue ([`Consumers::look`]) is a consumer of its own that is cancelled after one delivery. Messages are
//! never taken by `basic.get`, and few consumers of a channel have deliveries in hand: a broker up to
//! 4.0 loses messages after a client died that had many (`docs/rabbitmq.md`).

use super::ack_batcher::{AckBatcher, ConsumerId, Due};
use super::headers::History;
use super::prefetch::Prefetch;
use super::redelivery::{Redelivery, Unsettled};
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
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
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
const MOST_BYTES: usize = 48 * 1024 * 1024;

/// Where a delivery comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// The retry queue: tried, held or returned before; goes first, and its history is believed.
    Retry,
    /// The work queue.
    Work,
    /// Somebody else's queue.
    Source,
}

impl QueueKind {
    /// The word for it where only closed sets may be.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            QueueKind::Retry => "retry",
            QueueKind::Work => "work",
            QueueKind::Source => "source",
        }
    }
}

/// A delivery, with what its queue says of it.
#[derive(Debug)]
pub struct Incoming {
    pub due: Due,
    pub queue_kind: QueueKind,
    pub redelivery: Redelivery,
    pub history: History,
}

/// A consumer, by its number on its channel.
type Numbered = (ConsumerId, Consumer);

/// One queue, with a channel of its own.
#[derive(Debug)]
struct Subscription {
    queue_kind: QueueKind,
    queue: String,
    channel: Channel,
    ack_batcher: Arc<AckBatcher>,
    prefetch: Prefetch,
    consumer: Option<Numbered>,
    /// So many consumers were made so far.
    made: ConsumerId,
    /// What came and was not asked for yet.
    left: VecDeque<Incoming>,
    /// The channel or the consumer is gone.
    is_gone: bool,
    /// Deliveries of the present consumer that wait for long, so that it has no room for others.
    aside: u16,
    is_due: bool,
}

impl Subscription {
    /// A consumer that has this prefetch; it counts for consumers that are made after it was said.
    async fn consume(&mut self, prefetch: u16) -> Result<Numbered, Error> {
        let (channel, queue) = (self.channel.clone(), self.queue.clone());
        let consuming = async move {
            call("limit the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, arguments);
            call(&format!("consume queue \"{queue}\""), consumer).await
        };
        let consumer = self.meanwhile(None, consuming).await?;
        self.made += 1;
        Ok((self.made, consumer))
    }

    /// Ends a consumer; what it delivered and was not looked at yet comes next.
    async fn cancel(&mut self, mut old: Numbered) -> Result<(), Error> {
        let (channel, tag) = (self.channel.clone(), old.1.tag());
        let cancelling =
            async move { call("stop consuming", channel.basic_cancel(tag, BasicCancelOptions::default())).await };
        self.meanwhile(Some(&mut old), cancelling).await
    }

    /// Waits for an answer of the broker and takes in what comes before it, which may be much; also from a
    /// consumer that this ends, to its last delivery.
    async fn meanwhile<T>(
        &mut self,
        mut ending: Option<&mut Numbered>,
        asked: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut asked = pin!(asked);
        let mut answer = None;
        poll_fn(|cx| {
            self.poll(cx);
            if answer.is_none()
                && let Poll::Ready(answered) = asked.as_mut().poll(cx)
            {
                answer = Some(answered);
            }
            // Polled after its end, it would wait without end.
            if ending.as_mut().is_some_and(|ending| self.take_in(ending, cx)) {
                ending = None;
            }
            if self.is_flooded() {
                return Poll::Ready(Err(Error::too_many_bytes(MOST_BYTES)));
            }
            match answer.take() {
                Some(Ok(told)) if ending.is_some() => {
                    answer = Some(Ok(told));
                    Poll::Pending
                }
                Some(answered) => Poll::Ready(answered),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Takes in everything that is there, so that its size is known.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(mut consumer) = self.consumer.take_if(|_| !self.is_gone) {
            self.is_gone = self.take_in(&mut consumer, cx);
            self.consumer = Some(consumer);
        }
    }

    /// Takes in what a consumer has, and says whether it has ended.
    fn take_in(&mut self, (number, consumer): &mut Numbered, cx: &mut Context<'_>) -> bool {
        // While one is taken in, another may arrive.
        while !self.is_flooded()
            && let Poll::Ready(next) = consumer.poll_next_unpin(cx)
        {
            let Some(Ok(delivery)) = next else { return true };
            self.receive(*number, delivery);
        }
        false
    }

    /// Whether more bytes are in hand than may be.
    fn is_flooded(&self) -> bool {
        self.ack_batcher.bytes() > MOST_BYTES
    }

    /// Replaces the consumer where another prefetch is due, or where most of what it may have in hand
    /// waits for long and there is memory for more.
    async fn renew(&mut self, has_memory: bool) -> Result<(), Error> {
        let is_full = has_memory && self.aside >= self.prefetch.now().div_ceil(2);
        if !(self.is_due || is_full) || !self.ack_batcher.has_room() {
            return Ok(());
        }
        if self.consumer.is_none() {
            return Ok(());
        }
        self.is_due = false;
        self.aside = 0;
        let next = self.consume(self.prefetch.now()).await?;
        match self.consumer.replace(next) {
            Some(old) => self.cancel(old).await,
            None => Ok(()),
        }
    }

    fn receive(&mut self, number: ConsumerId, delivery: Delivery) {
        self.is_due |= self.prefetch.received(delivery.data.len());
        let history = match self.queue_kind {
            QueueKind::Retry => History::read(&delivery.properties),
            QueueKind::Work | QueueKind::Source => History::none(&delivery.properties),
        };
        let (due, redelivery) = self.ack_batcher.receive(delivery, number);
        self.left.push_back(Incoming { due, queue_kind: self.queue_kind, redelivery, history });
    }
}

/// The queues that feed the integration. It lives as long as its connection; deliveries that were
/// not settled by then return to their queue.
#[derive(Debug)]
pub struct Consumers {
    subscriptions: Vec<Subscription>,
    unsettled: Arc<Unsettled>,
}

impl Consumers {
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
    ) -> Result<Consumers, Error> {
        let Queues { retry, work, .. } = Queues::of(integration);
        let mut queues = vec![(QueueKind::Retry, retry), (QueueKind::Work, work)];
        if let Source::Queue(queue) = source {
            queues.push((QueueKind::Source, queue.clone()));
        }
        let mut subscriptions = Vec::with_capacity(queues.len());
        for (queue_kind, queue) in queues {
            let channel = call("open a channel", connection.create_channel()).await?;
            subscriptions.push(Subscription {
                queue_kind,
                queue,
                ack_batcher: Arc::new(AckBatcher::new(channel.clone(), Arc::clone(&unsettled))),
                channel,
                prefetch: Prefetch::new(prefetch),
                consumer: None,
                made: 0,
                left: VecDeque::new(),
                is_gone: false,
                aside: 0,
                is_due: false,
            });
        }
        Ok(Consumers { subscriptions, unsettled })
    }

    /// The queues, those first that go first.
    #[must_use]
    pub fn queue_kinds(&self) -> Vec<QueueKind> {
        self.subscriptions.iter().map(|subscription| subscription.queue_kind).collect()
    }

    /// Takes the first message of a queue, if there is one. Waits while too many consumers have
    /// deliveries in hand.
    ///
    /// # Errors
    /// The queue is gone, or the broker.
    pub async fn look(&mut self, queue_kind: QueueKind) -> Result<Option<Incoming>, Error> {
        let Some(subscription) =
            self.subscriptions.iter_mut().find(|subscription| subscription.queue_kind == queue_kind)
        else {
            return Ok(None);
        };
        subscription.ack_batcher.room().await;
        let (number, mut consumer) = subscription.consume(1).await?;
        loop {
            if let Ok(delivered) = tokio::time::timeout(LOOK_AGAIN, consumer.next()).await {
                let delivery = delivered.and_then(Result::ok).ok_or_else(Error::consumer_gone)?;
                subscription.receive(number, delivery);
                break;
            }
            if topology::depth(&subscription.channel, &subscription.queue).await? == 0 {
                break;
            }
        }
        // What is ready no more may have been on its way here.
        subscription.cancel((number, consumer)).await?;
        Ok(subscription.left.pop_front())
    }

    /// How many messages are ready in a queue.
    ///
    /// # Errors
    /// The queue is gone, or the broker.
    pub async fn depth(&self, queue_kind: QueueKind) -> Result<u32, Error> {
        let Some(subscription) = self.subscriptions.iter().find(|subscription| subscription.queue_kind == queue_kind)
        else {
            return Ok(0);
        };
        topology::depth(&subscription.channel, &subscription.queue).await
    }

    /// Lets every queue flow.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn start(&mut self) -> Result<(), Error> {
        for subscription in &mut self.subscriptions {
            subscription.ack_batcher.room().await;
            subscription.aside = 0;
            subscription.is_due = false;
            subscription.consumer = Some(subscription.consume(subscription.prefetch.now()).await?);
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
        for subscription in &mut self.subscriptions {
            subscription.renew(bytes < MOST_BYTES / 2).await?;
        }
        Ok(())
    }

    /// The next delivery of the flow, retries first. One that comes after a while is there at once;
    /// further ones gather. May be given up at any time.
    ///
    /// # Errors
    /// A channel or a consumer is gone, or more bytes are in hand than may be: connect again.
    pub async fn next(&mut self) -> Result<Incoming, Error> {
        match (self.delivered().now_or_never(), self.pause()) {
            (Some(there), _) => there,
            (None, None) => self.delivered().await,
            (None, Some(pause)) => {
                tokio::time::sleep(pause).await;
                self.delivered().await
            }
        }
    }

    /// How long deliveries gather.
    fn pause(&self) -> Option<Duration> {
        let prefetch = self.subscriptions.iter().map(|subscription| subscription.prefetch.now()).max()?;
        let pause = (GATHER_FOR_EACH * prefetch.into()).min(GATHER_AT_MOST);
        Some(pause).filter(|pause| *pause >= GATHER_AT_LEAST)
    }

    /// What comes next.
    async fn delivered(&mut self) -> Result<Incoming, Error> {
        poll_fn(|cx| {
            for subscription in &mut self.subscriptions {
                subscription.poll(cx);
            }
            if self.subscriptions.iter().any(Subscription::is_flooded) {
                return Poll::Ready(Err(Error::too_many_bytes(MOST_BYTES)));
            }
            let next = self.subscriptions.iter_mut().find_map(|subscription| subscription.left.pop_front());
            match next {
                Some(incoming) => Poll::Ready(Ok(incoming)),
                None if self.subscriptions.iter().any(|subscription| subscription.is_gone) => {
                    Poll::Ready(Err(Error::consumer_gone()))
                }
                None => Poll::Pending,
            }
        })
        .await
    }

    /// A delivery of this queue waits for long: others take its place.
    pub fn set_aside(&mut self, queue_kind: QueueKind) {
        for subscription in self.subscriptions.iter_mut().filter(|subscription| subscription.queue_kind == queue_kind) {
            subscription.aside = subscription.aside.saturating_add(1);
        }
    }

    /// Ends the flow and gives what was delivered and not yet looked at.
    ///
    /// # Errors
    /// The broker is gone.
    pub async fn stop(&mut self) -> Result<Vec<Incoming>, Error> {
        let mut left = Vec::new();
        for subscription in &mut self.subscriptions {
            if let Some(consumer) = subscription.consumer.take() {
                subscription.cancel(consumer).await?;
            }
            left.extend(subscription.left.drain(..));
        }
        Ok(left)
    }

    /// Acks everything that is settled, now: whatever comes next may end the connection.
    ///
    /// # Errors
    /// A channel is gone.
    pub async fn flush(&self) -> Result<(), Error> {
        for subscription in &self.subscriptions {
            subscription.ack_batcher.flush().await?;
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
        for subscription in &self.subscriptions {
            // Asked on the channel of the acks, the queue answers after those that it has.
            for _ in 0..LAST_ACKS {
                topology::depth(&subscription.channel, &subscription.queue).await?;
            }
        }
        Ok(())
    }
}
