//! Step 1: the deliveries of one integration.
//!
//! Each queue has one consumer for as long as everything flows ([`Consumers::next`]). A look at the head of a
//! queue ([`Consumers::look`]) uses a consumer of its own, which is cancelled after one delivery. Messages
//! are never taken with `basic.get`, and few consumers of a channel have deliveries in hand: a broker up to
//! 4.0 loses messages after the death of a client that had many such consumers (`docs/rabbitmq.md`).

mod subscription;

use super::ack_batcher::{AckBatcher, Due};
use super::prefetch::Prefetch;
use super::redelivery::{Redelivery, Unsettled};
use super::topology::{self, EventSource, Queues};
use super::{Error, call};
use crate::integration::Name;
use crate::verdict::history::History;
use futures_util::{FutureExt, StreamExt};
use lapin::Connection;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use subscription::{MOST_BYTES, Subscription};

/// When no delivery is ready, further ones are left to gather: for `GATHER_FOR_EACH` for each one that may be
/// in hand, but for `GATHER_AT_MOST` at most. To wake up for each one would cost as much as to handle it.
/// This does not slow down a gate that answers at once, because no worker handles 50,000 events a second.
const GATHER_FOR_EACH: Duration = Duration::from_micros(20);
const GATHER_AT_MOST: Duration = Duration::from_millis(5);
/// A shorter pause is not worth a timer.
const GATHER_AT_LEAST: Duration = Duration::from_millis(1);

/// How many times a queue is asked for its depth before its channel closes: each answer comes after the acks
/// that the queue has received.
const LAST_ACKS: usize = 4;
/// The interval between two checks of whether a queue is empty, while its head is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where a delivery comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// The retry queue: tried, held or returned before. It goes first, and the history in its headers is
    /// believed.
    Retry,
    /// The work queue.
    Work,
    /// Somebody else's queue.
    Source,
}

impl QueueKind {
    /// The metric label: one of a closed set.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            QueueKind::Retry => "retry",
            QueueKind::Work => "work",
            QueueKind::Source => "source",
        }
    }
}

/// A delivery, with what its queue says about it.
#[derive(Debug)]
pub struct Incoming {
    pub due: Due,
    pub queue_kind: QueueKind,
    pub redelivery: Redelivery,
    pub history: History,
}

/// The queues that feed the integration. This lives as long as its connection; deliveries that were not
/// settled by then return to their queue.
#[derive(Debug)]
pub struct Consumers {
    subscriptions: Vec<Subscription>,
    unsettled: Arc<Unsettled>,
}

impl Consumers {
    /// Opens a channel for each queue. Nothing is delivered yet; later each consumer will have at most
    /// `prefetch` messages in hand.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn open(
        connection: &Connection,
        source: &EventSource,
        integration: &Name,
        unsettled: Arc<Unsettled>,
        prefetch: u16,
    ) -> Result<Consumers, Error> {
        let Queues { retry, work, .. } = Queues::of(integration);
        let mut queues = vec![(QueueKind::Retry, retry), (QueueKind::Work, work)];
        if let EventSource::Queue(queue) = source {
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

    /// The queues, in order of priority.
    #[must_use]
    pub fn queue_kinds(&self) -> Vec<QueueKind> {
        self.subscriptions.iter().map(|subscription| subscription.queue_kind).collect()
    }

    /// Takes the first message of a queue, if there is one. Waits while too many consumers have
    /// deliveries in hand.
    ///
    /// # Errors
    /// The queue or the broker is gone.
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
        // A message that is no longer ready may have been on its way here.
        subscription.cancel((number, consumer)).await?;
        Ok(subscription.left.pop_front())
    }

    /// How many messages are ready in a queue.
    ///
    /// # Errors
    /// The queue or the broker is gone.
    pub async fn depth(&self, queue_kind: QueueKind) -> Result<u32, Error> {
        let Some(subscription) = self.subscriptions.iter().find(|subscription| subscription.queue_kind == queue_kind)
        else {
            return Ok(0);
        };
        topology::depth(&subscription.channel, &subscription.queue).await
    }

    /// Starts a consumer on every queue.
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

    /// Changes the prefetch of consumers where the size of recent messages calls for it. Call this between
    /// two deliveries and await it to its end: only then are the deliveries of a replaced consumer kept.
    ///
    /// # Errors
    /// The broker is gone, or more bytes are in hand than the limit allows: connect again.
    pub async fn adapt(&mut self) -> Result<(), Error> {
        let bytes = self.unsettled.bytes();
        for subscription in &mut self.subscriptions {
            subscription.renew(bytes < MOST_BYTES / 2).await?;
        }
        Ok(())
    }

    /// The next delivery of the flow, retries first. A single delivery after a quiet time is returned at
    /// once; further ones gather for a moment. Cancel-safe.
    ///
    /// # Errors
    /// A channel or a consumer is gone, or more bytes are in hand than the limit allows: connect again.
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

    /// Notes that a delivery of this queue will wait for a long time, so that others can take its place.
    pub fn set_aside(&mut self, queue_kind: QueueKind) {
        for subscription in self.subscriptions.iter_mut().filter(|subscription| subscription.queue_kind == queue_kind) {
            subscription.aside = subscription.aside.saturating_add(1);
        }
    }

    /// Stops the consumers and returns what was delivered and not yet asked for.
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

    /// Acks everything that is settled, now: the next step may end the connection.
    ///
    /// # Errors
    /// A channel is gone.
    pub async fn flush(&self) -> Result<(), Error> {
        for subscription in &self.subscriptions {
            subscription.ack_batcher.flush().await?;
        }
        Ok(())
    }

    /// Returns once the broker's queues have received the last acks. A channel holds back acks beyond 32 that
    /// its queue has not answered, and drops them when it closes (`docs/rabbitmq.md`).
    ///
    /// # Errors
    /// The broker is gone.
    pub async fn acked(&self) -> Result<(), Error> {
        self.flush().await?;
        for subscription in &self.subscriptions {
            // The queue answers a question on the channel of the acks only after the acks that it has
            // received.
            for _ in 0..LAST_ACKS {
                topology::depth(&subscription.channel, &subscription.queue).await?;
            }
        }
        Ok(())
    }
}
