//! Who may have crashed the process (pure), and what this process holds.
//!
//! The broker counts every return of a message, and a lost connection returns all that were in
//! hand: the count accuses innocents too. So a message that came back twice is a suspect and is
//! handled alone, and who comes back a fifth time is guilty. A connection that was merely lost
//! accuses nobody: this process is alive, and knows what it had.

use lapin::message::Delivery;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// From so many returns on, a message is a suspect.
const SUSPECT: i64 = 2;
/// At so many returns it is dead.
const CRASHED: i64 = 5;
/// The most messages that are remembered; those that another worker got after a connection was
/// lost would be remembered for ever.
const REMEMBERED: usize = 100_000;
/// So many that were acked last are remembered, too: an ack that was written may never have arrived.
const ACKED: usize = 2_048;

/// How a delivery is to be treated, by how it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As every other.
    Innocent,
    /// Its count means nothing: it begins anew in the retry queue.
    Anew,
    /// Handled with nothing else of its integration in hand.
    Suspect,
    /// It came back so often that it must be what kills the process.
    Crashed,
}

/// Judges a delivery by the broker's count of its returns (`None` where the queue keeps none), and
/// by whether this very process had it unacknowledged when a connection was lost.
#[must_use]
pub fn standing(redelivered: bool, returns: Option<i64>, was_ours: bool) -> Standing {
    // The broker writes its count at the first return; before that it could only be forged.
    if !redelivered {
        return Standing::Innocent;
    }
    match returns {
        None => Standing::Anew,
        Some(..SUSPECT) => Standing::Innocent,
        Some(_) if was_ours => Standing::Anew,
        Some(SUSPECT..CRASHED) => Standing::Suspect,
        Some(_) => Standing::Crashed,
    }
}

/// The messages that this process received and did not settle, over all connections, or whose ack may
/// be lost.
#[derive(Debug)]
pub struct Unsettled {
    /// Drawn for each process: names mean nothing elsewhere.
    seed: u64,
    bodies: Mutex<Bodies>,
}

impl Default for Unsettled {
    fn default() -> Unsettled {
        Unsettled { seed: RandomState::new().hash_one(()), bodies: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Bodies {
    in_hand: HashSet<u64>,
    acked: VecDeque<u64>,
}

impl Bodies {
    /// Notes a body in hand, and says whether it was known.
    fn receive(&mut self, body: u64, redelivered: bool) -> bool {
        if self.in_hand.len() >= REMEMBERED {
            self.in_hand.clear();
        }
        // Only what came back is looked for.
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
    /// Notes a delivery, names its body, and says how to treat it.
    pub(super) fn receive(&self, delivery: &Delivery) -> (u64, Standing) {
        // Nothing of the body is in its name.
        let body = xxh3_64_with_seed(&delivery.data, self.seed);
        let was_ours = self.bodies().receive(body, delivery.redelivered);
        let headers = delivery.properties.headers().as_ref();
        let returns = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
        (body, standing(delivery.redelivered, returns.and_then(super::headers::integer), was_ours))
    }

    /// Lets go of a delivery whose ack was written.
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
    fn only_a_count_that_the_broker_kept_accuses() {
        let judged = |returns| standing(true, returns, false);
        assert_eq!(standing(false, Some(99), false), Standing::Innocent);
        assert_eq!(judged(Some(1)), Standing::Innocent);
        assert_eq!(judged(Some(2)), Standing::Suspect);
        assert_eq!(judged(Some(4)), Standing::Suspect);
        assert_eq!(judged(Some(5)), Standing::Crashed);
        assert_eq!(judged(Some(i64::MIN)), Standing::Innocent);
        assert_eq!(judged(Some(i64::MAX)), Standing::Crashed);
    }

    #[test]
    fn what_this_process_lost_with_its_connection_is_innocent() {
        assert_eq!(standing(true, Some(1), true), Standing::Innocent);
        for returns in [2, 5, 20] {
            assert_eq!(standing(true, Some(returns), true), Standing::Anew);
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
        assert_eq!(standing(true, None, false), Standing::Anew);
        assert_eq!(standing(false, None, true), Standing::Innocent);
    }
}
