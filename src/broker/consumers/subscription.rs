//! One queue and its consumer.

use super::{Incoming, QueueKind};
use crate::broker::ack_batcher::{AckBatcher, ConsumerId};
use crate::broker::prefetch::Prefetch;
use crate::broker::{Error, call};
use crate::verdict::history::History;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The most bytes in hand. This catches a run of messages that are larger than all those before.
pub(super) const MOST_BYTES: usize = 48 * 1024 * 1024;

/// A consumer, by its number on its channel.
type Numbered = (ConsumerId, Consumer);

/// One queue, with a channel of its own.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) queue_kind: QueueKind,
    pub(super) queue: String,
    pub(super) channel: Channel,
    pub(super) ack_batcher: Arc<AckBatcher>,
    pub(super) prefetch: Prefetch,
    pub(super) consumer: Option<Numbered>,
    /// How many consumers were created so far.
    pub(super) made: ConsumerId,
    /// Deliveries that arrived and were not asked for yet.
    pub(super) left: VecDeque<Incoming>,
    /// The channel or the consumer is gone.
    pub(super) is_gone: bool,
    /// Deliveries of the current consumer that will wait for a long time and take up its prefetch meanwhile.
    pub(super) aside: u16,
    pub(super) is_due: bool,
}

impl Subscription {
    /// Starts a consumer with this prefetch. A prefetch applies to the consumers that start after it was set.
    pub(super) async fn consume(&mut self, prefetch: u16) -> Result<Numbered, Error> {
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

    /// Cancels a consumer; what it delivered and nobody asked for yet comes next.
    pub(super) async fn cancel(&mut self, mut old: Numbered) -> Result<(), Error> {
        let (channel, tag) = (self.channel.clone(), old.1.tag());
        let cancelling =
            async move { call("stop consuming", channel.basic_cancel(tag, BasicCancelOptions::default())).await };
        self.meanwhile(Some(&mut old), cancelling).await
    }

    /// Waits for an answer of the broker, and meanwhile takes in all deliveries that come before it, which
    /// may be many. If the call cancels a consumer, its deliveries are taken in up to the last one.
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
            // Polled after its end, it would never be ready.
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

    /// Takes in every delivery that has arrived, so that their size is known.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(mut consumer) = self.consumer.take_if(|_| !self.is_gone) {
            self.is_gone = self.take_in(&mut consumer, cx);
            self.consumer = Some(consumer);
        }
    }

    /// Takes in the deliveries that a consumer has, and returns whether it has ended.
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

    /// Whether more bytes are in hand than the limit allows.
    pub(super) fn is_flooded(&self) -> bool {
        self.ack_batcher.bytes() > MOST_BYTES
    }

    /// Replaces the consumer if another prefetch is due, or if most of what it may have in hand will wait for
    /// a long time and there is memory for more.
    pub(super) async fn renew(&mut self, has_memory: bool) -> Result<(), Error> {
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

    pub(super) fn receive(&mut self, number: ConsumerId, delivery: Delivery) {
        self.is_due |= self.prefetch.received(delivery.data.len());
        let history = match self.queue_kind {
            QueueKind::Retry => History::read(&delivery.properties),
            QueueKind::Work | QueueKind::Source => History::none(&delivery.properties),
        };
        let (due, redelivery) = self.ack_batcher.receive(delivery, number);
        self.left.push_back(Incoming { due, queue_kind: self.queue_kind, redelivery, history });
    }
}
