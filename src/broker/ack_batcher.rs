//! Batches the acks of one channel: one ack for each message costs more than everything else that is done for
//! it.
//!
//! Answers come out of order, so tags are settled out of order. Everything up to the first gap is acked by
//! one command; tags behind a gap that does not close soon are acked singly.

use super::redelivery::{Redelivery, Unsettled, Weight};
use super::{Error, wire};
use crate::task;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::types::DeliveryTag;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How long acks are gathered; twice as long for those behind a gap. Nothing waits for them meanwhile.
const GATHER: Duration = Duration::from_millis(2);

/// The most consumers of one channel with deliveries in hand. With more than about thirty, a broker up to 4.0
/// loses messages at its next restart after their client died (`docs/rabbitmq.md`).
const MOST_CONSUMERS: usize = 8;

/// One consumer of a channel, by its number.
pub(super) type ConsumerId = u32;

/// A delivery as the tracker knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Received {
    /// The hash under which its body is noted as unsettled.
    body: u64,
    consumer: ConsumerId,
}

/// Which tags of a channel are settled (pure). A channel's tags begin at 1 and have no gaps.
#[derive(Debug, Default)]
struct Tracker {
    /// Everything up to here is acked.
    acked: u64,
    /// Tags beyond that which were acked singly.
    singly: BTreeSet<u64>,
    /// Settled deliveries that are not acked yet, by tag.
    settled: BTreeMap<u64, Received>,
    /// Those of them that were settled at the last look already.
    waiting: BTreeSet<u64>,
    /// How many deliveries each consumer has in hand, cancelled consumers included; those with none are
    /// removed.
    in_hand: BTreeMap<ConsumerId, usize>,
}

/// One command to the broker, and what it acks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ack {
    tag: u64,
    multiple: bool,
    received: Vec<Received>,
}

impl Tracker {
    /// Everything settled up to the first gap. The tag must be one that is not acked yet: the broker closes
    /// the channel over any other.
    fn first(&mut self) -> Option<Ack> {
        let mut ack: Option<Ack> = None;
        loop {
            let next = self.acked + 1;
            if let Some(received) = self.settled.remove(&next) {
                let ack = ack.get_or_insert(Ack { tag: next, multiple: true, received: Vec::new() });
                ack.tag = next;
                ack.received.push(received);
            } else if !self.singly.remove(&next) {
                return ack;
            }
            self.acked = next;
        }
    }

    /// Settled tags behind a gap: all of them, or only those that were there at the last look.
    fn rest(&mut self, everything: bool) -> Vec<Ack> {
        let waited = |tag: &u64| everything || self.waiting.contains(tag);
        let tags: Vec<u64> = self.settled.keys().copied().filter(waited).collect();
        let mut acks = Vec::with_capacity(tags.len());
        for tag in tags {
            if let Some(received) = self.settled.remove(&tag) {
                self.singly.insert(tag);
                acks.push(Ack { tag, multiple: false, received: vec![received] });
            }
        }
        self.waiting = self.settled.keys().copied().collect();
        acks
    }

    fn receive(&mut self, consumer: ConsumerId) {
        *self.in_hand.entry(consumer).or_default() += 1;
    }

    /// The ack of a delivery was written.
    fn acked(&mut self, consumer: ConsumerId) {
        if let Some(left) = self.in_hand.get_mut(&consumer) {
            *left -= 1;
            if *left == 0 {
                self.in_hand.remove(&consumer);
            }
        }
    }
}

/// A delivery that must be settled.
#[derive(Debug)]
pub struct Due {
    pub delivery: Delivery,
    /// Acks it.
    ack_batcher: Arc<AckBatcher>,
    received: Received,
    /// Counts its bytes as in hand until it is dropped.
    weight: Weight,
}

impl Due {
    /// Gives the delivery to the batcher, which acks it soon, and returns its body.
    pub(super) fn ack(self) -> Vec<u8> {
        self.ack_batcher.settled(self.delivery.delivery_tag, self.received);
        drop(self.weight);
        self.delivery.data
    }
}

/// The acks of one channel. Dropping it drops those that are not written yet: the channel ends with it, and
/// the broker delivers their messages again.
#[derive(Debug)]
pub struct AckBatcher {
    inner: Arc<Inner>,
    writing: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    channel: Channel,
    unsettled: Arc<Unsettled>,
    tracker: Mutex<Tracker>,
    /// Makes acks reach the channel in the order in which they were decided.
    order: tokio::sync::Mutex<()>,
    wake: Notify,
    /// Notified when a consumer has nothing in hand any more.
    room: Notify,
}

impl Drop for AckBatcher {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

impl AckBatcher {
    /// For a channel on which nothing was delivered yet.
    #[must_use]
    pub fn new(channel: Channel, unsettled: Arc<Unsettled>) -> AckBatcher {
        let (tracker, order) = (Mutex::default(), tokio::sync::Mutex::default());
        let inner = Arc::new(Inner { channel, unsettled, tracker, order, wake: Notify::new(), room: Notify::new() });
        let writing = Arc::clone(&inner);
        let writing = tokio::spawn(async move {
            if task::watched("acks", None, Arc::clone(&writing).write()).await.is_none() {
                // Settled deliveries would never be acked: so the channel is closed, and its integration
                // starts again.
                let _ = writing.channel.close(541, "internal fault".into()).await;
            }
        });
        AckBatcher { inner, writing }
    }

    /// Takes note of a delivery, and returns how to treat it, judged by its returns.
    pub(super) fn receive(self: &Arc<Self>, delivery: Delivery, consumer: ConsumerId) -> (Due, Redelivery) {
        let (body, redelivery) = self.inner.unsettled.receive(&delivery);
        self.inner.tracker().receive(consumer);
        let weight = self.inner.unsettled.weigh(delivery.data.len());
        (Due { delivery, ack_batcher: Arc::clone(self), received: Received { body, consumer }, weight }, redelivery)
    }

    fn settled(&self, tag: DeliveryTag, received: Received) {
        self.inner.tracker().settled.insert(tag, received);
        self.inner.wake.notify_one();
    }

    /// The total size of the bodies that the integration has in hand, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.inner.unsettled.bytes()
    }

    /// How many consumers have deliveries in hand, cancelled ones included.
    pub(super) fn consumers(&self) -> usize {
        self.inner.tracker().in_hand.len()
    }

    /// Whether there is room for one more consumer besides one that is just starting.
    pub(super) fn has_room(&self) -> bool {
        self.consumers() + 1 < MOST_CONSUMERS
    }

    /// Waits until one more consumer may begin.
    pub(super) async fn room(&self) {
        while self.consumers() >= MOST_CONSUMERS {
            self.inner.room.notified().await;
        }
    }

    /// Acks everything that is settled, now.
    ///
    /// # Errors
    /// The channel is gone.
    pub async fn flush(&self) -> Result<(), Error> {
        self.inner.flush(true).await
    }
}

impl Inner {
    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            tokio::time::sleep(GATHER).await;
            if self.flush(false).await.is_err() {
                return; // the channel is gone, and the supervisor notices that by itself
            }
            if !self.tracker().settled.is_empty() {
                self.wake.notify_one();
            }
        }
    }

    async fn flush(&self, everything: bool) -> Result<(), Error> {
        let _order = self.order.lock().await;
        let acks: Vec<Ack> = {
            let mut tracker = self.tracker();
            tracker.first().into_iter().chain(tracker.rest(everything)).collect()
        };
        for Ack { tag, multiple, received } in acks {
            wire::ack(&self.channel, tag, multiple).await?;
            let mut tracker = self.tracker();
            for Received { body, consumer } in received {
                self.unsettled.forget(body);
                tracker.acked(consumer);
            }
            if tracker.in_hand.len() < MOST_CONSUMERS {
                self.room.notify_one();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn received(body: u64) -> Received {
        Received { body, consumer: 0 }
    }

    fn tracker(settled: &[u64]) -> Tracker {
        Tracker { settled: settled.iter().map(|tag| (*tag, received(*tag))).collect(), ..Tracker::default() }
    }

    #[test]
    fn everything_up_to_the_first_gap_is_one_ack() {
        let mut tracker = tracker(&[1, 2, 3, 5]);
        assert_eq!(tracker.first(), Some(Ack { tag: 3, multiple: true, received: [1, 2, 3].map(received).to_vec() }));
        assert_eq!(tracker.first(), None);
    }

    #[test]
    fn what_lies_behind_a_gap_waits_for_one_look() {
        let mut tracker = tracker(&[2, 3]);
        assert_eq!(tracker.rest(false), []);
        tracker.settled.insert(5, received(5));
        let tags = |acks: Vec<Ack>| acks.into_iter().map(|ack| (ack.tag, ack.multiple)).collect::<Vec<_>>();
        assert_eq!(tags(tracker.rest(false)), [(2, false), (3, false)]);
        tracker.settled.insert(1, received(1));
        assert_eq!(tags(tracker.first().into_iter().collect()), [(1, true)], "2 and 3 are acked already");
        tracker.settled.insert(4, received(4));
        assert_eq!(tags(tracker.first().into_iter().collect()), [(5, true)]);
    }

    #[test]
    fn a_cancelled_consumer_counts_until_its_last_delivery_is_acked() {
        let mut tracker = Tracker::default();
        for consumer in [1, 1, 2] {
            tracker.receive(consumer);
        }
        tracker.acked(1);
        assert_eq!(tracker.in_hand.len(), 2);
        tracker.acked(1);
        assert_eq!(tracker.in_hand, BTreeMap::from([(2, 1)]));
    }

    proptest! {
        #[test]
        fn each_tag_is_acked_once_and_never_before_it_is_settled(
            order in Just((1_u64..40).collect::<Vec<_>>()).prop_shuffle(),
            looks in proptest::collection::vec(0_u8..4, 39),
        ) {
            let mut tracker = Tracker::default();
            let (mut settled, mut acked) = (BTreeSet::new(), BTreeSet::new());
            for (tag, look) in order.iter().zip(looks.into_iter().chain([3])) {
                tracker.settled.insert(*tag, received(*tag));
                settled.insert(*tag);
                if look == 0 {
                    continue;
                }
                for ack in tracker.first().into_iter().chain(tracker.rest(look == 3)) {
                    prop_assert!(!acked.contains(&ack.tag), "{} twice", ack.tag);
                    let covered: Vec<u64> = if ack.multiple { (1..=ack.tag).collect() } else { vec![ack.tag] };
                    for tag in covered {
                        prop_assert!(settled.contains(&tag));
                        acked.insert(tag);
                    }
                }
            }
            let last: Vec<Ack> = tracker.first().into_iter().chain(tracker.rest(true)).collect();
            for ack in last {
                acked.extend(if ack.multiple { (1..=ack.tag).collect() } else { vec![ack.tag] });
            }
            prop_assert_eq!(acked.len(), 39);
        }
    }
}
