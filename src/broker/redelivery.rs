//! What a delivery's count of returns means (pure), and which messages this process holds.
//!
//! The broker counts every return of a message, and a lost connection returns all that were in hand, so
//! innocent messages have a count, too. A message that came back twice is therefore only a suspect; it is
//! convicted by a note in the records ([`crate::worker::quarantine`]), or, without records, by its count. A
//! connection that was merely lost makes no suspect: this process is alive, and knows what it had in hand.

use lapin::message::Delivery;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// From this many returns on, a message is a suspect.
const SUSPECT: i64 = 2;
/// From this many returns on, its count begins anew: the broker's own limit is meant for messages that no
/// client can read.
const RECOUNT: i64 = 10;
/// From this many returns on, it becomes a dead letter if no notes can be kept about it.
const CRASHED: i64 = 5;
/// The most messages that are remembered: those that another worker received after a connection was lost
/// would otherwise be remembered forever.
const REMEMBERED: usize = 100_000;
/// How many of the last acked messages are remembered, too: an ack that was written may never have arrived.
const ACKED: usize = 2_048;

/// How a delivery is to be treated, judged by its returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redelivery {
    /// Like any other.
    Innocent,
    /// Its count means nothing or is too high: it goes through the retry queue, where the count begins anew.
    Recount,
    /// It may be the message that kills the process.
    Suspect,
    /// It came back so often, without records that tell which message was being handled, that it must be the
    /// one that kills the process.
    Crashed,
}

/// Judges a delivery by the broker's count of its returns (`None` if the queue keeps none), by whether this
/// very process had it unacknowledged when a connection was lost, and by whether the records can tell which
/// message was being handled when a process died.
#[must_use]
pub fn redelivery(redelivered: bool, returns: Option<i64>, was_ours: bool, has_notes: bool) -> Redelivery {
    // The broker writes its count at the first return; a count before that can only be forged.
    if !redelivered {
        return Redelivery::Innocent;
    }
    match returns {
        None => Redelivery::Recount,
        Some(..SUSPECT) => Redelivery::Innocent,
        Some(_) if was_ours => Redelivery::Recount,
        Some(RECOUNT..) if has_notes => Redelivery::Recount,
        Some(CRASHED..) if !has_notes => Redelivery::Crashed,
        Some(_) => Redelivery::Suspect,
    }
}

/// The messages that this process received, over all connections, and has not settled, or whose ack may be
/// lost.
#[derive(Debug)]
pub struct Unsettled {
    /// Random for each process: the hashes mean nothing elsewhere.
    seed: u64,
    /// Whether the records keep notes of suspects.
    has_notes: bool,
    bodies: Mutex<Bodies>,
    bytes: Arc<AtomicUsize>,
}

/// The bytes of one body in hand; dropping it subtracts them from the sum.
#[derive(Debug)]
pub(super) struct Weight {
    bytes: usize,
    sum: Arc<AtomicUsize>,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Bodies {
    in_hand: HashSet<u64>,
    acked: VecDeque<u64>,
}

impl Bodies {
    /// Notes a body as in hand, and returns whether it was known.
    fn receive(&mut self, body: u64, redelivered: bool) -> bool {
        if self.in_hand.len() >= REMEMBERED {
            self.in_hand.clear();
        }
        // Only redelivered messages are looked up.
        let was_acked = redelivered && self.acked.contains(&body);
        !self.in_hand.insert(body) || was_acked
    }

    fn forget(&mut self, body: u64) {
        self.in_hand.remove(&body);
        if self.acked.len() >= ACKED {
            self.acked.pop_front();
        }
        self.acked.push_back(body);
    }
}

impl Unsettled {
    /// Nothing is in hand yet. `has_notes` says whether the records keep notes of suspects.
    #[must_use]
    pub fn new(has_notes: bool) -> Unsettled {
        let seed = RandomState::new().hash_one(());
        Unsettled { seed, has_notes, bodies: Mutex::default(), bytes: Arc::default() }
    }

    /// The total size of the bodies in hand, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts a body as in hand.
    pub(super) fn weigh(&self, bytes: usize) -> Weight {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Weight { bytes, sum: Arc::clone(&self.bytes) }
    }

    /// Notes a delivery; returns the hash that names its body, and how to treat it.
    pub(super) fn receive(&self, delivery: &Delivery) -> (u64, Redelivery) {
        // The hash reveals nothing of the body.
        let body = xxh3_64_with_seed(&delivery.data, self.seed);
        let was_ours = self.bodies().receive(body, delivery.redelivered);
        let headers = delivery.properties.headers().as_ref();
        let returns = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
        let returns = returns.and_then(super::headers::integer);
        (body, redelivery(delivery.redelivered, returns, was_ours, self.has_notes))
    }

    /// Forgets a delivery whose ack was written.
    pub(super) fn forget(&self, name: u64) {
        self.bodies().forget(name);
    }

    fn bodies(&self) -> MutexGuard<'_, Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_count_that_the_broker_kept_makes_a_suspect() {
        assert_eq!(redelivery(false, Some(99), false, true), Redelivery::Innocent);
        for has_notes in [true, false] {
            let judged = |returns| redelivery(true, returns, false, has_notes);
            assert_eq!(judged(Some(1)), Redelivery::Innocent);
            assert_eq!(judged(Some(2)), Redelivery::Suspect);
            assert_eq!(judged(Some(4)), Redelivery::Suspect);
            assert_eq!(judged(Some(i64::MIN)), Redelivery::Innocent);
        }
    }

    #[test]
    fn a_count_convicts_only_where_nothing_can_be_noted() {
        assert_eq!(redelivery(true, Some(5), false, false), Redelivery::Crashed);
        assert_eq!(redelivery(true, Some(i64::MAX), false, false), Redelivery::Crashed);
        assert_eq!(redelivery(true, Some(9), false, true), Redelivery::Suspect);
        assert_eq!(redelivery(true, Some(10), false, true), Redelivery::Recount);
        assert_eq!(redelivery(true, Some(i64::MAX), false, true), Redelivery::Recount);
    }

    #[test]
    fn what_this_process_lost_with_its_connection_is_innocent() {
        for has_notes in [true, false] {
            assert_eq!(redelivery(true, Some(1), true, has_notes), Redelivery::Innocent);
            for returns in [2, 5, 20] {
                assert_eq!(redelivery(true, Some(returns), true, has_notes), Redelivery::Recount);
            }
        }
    }

    #[test]
    fn what_comes_back_after_a_lost_ack_is_ours() {
        let mut bodies = Bodies::default();
        assert!(!bodies.receive(7, false));
        bodies.forget(7);
        assert!(!bodies.receive(7, false), "the same text, published again");
        bodies.forget(7);
        assert!(bodies.receive(7, true));
        for body in 100..100 + ACKED as u64 {
            assert!(!bodies.receive(body, false));
            bodies.forget(body);
        }
        bodies.forget(7);
        for body in 9_000..9_000 + ACKED as u64 {
            bodies.forget(body);
        }
        assert!(!bodies.receive(7, true), "it is long ago");
        assert_eq!(bodies.acked.len(), ACKED);
    }

    #[test]
    fn a_queue_without_a_count_begins_one() {
        assert_eq!(redelivery(true, None, false, true), Redelivery::Recount);
        assert_eq!(redelivery(false, None, true, true), Redelivery::Innocent);
    }
}
