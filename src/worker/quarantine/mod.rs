//! Messages that may kill the process.
//!
//! The broker counts each return of a message, and a lost connection returns all that were in hand: so the
//! count makes a message no more than a suspect ([`crate::broker::redelivery`]). What convicts it is a note.
//! A suspect is noted durably before it is handled, and the note is removed afterwards. A suspect that is
//! still noted when its process is gone was being handled when the process died.
//!
//! | deaths | handled |
//! |---|---|
//! | none | beside everything else, at most 256 suspects of the process at once |
//! | one | beside everything else, at most 16 |
//! | two | alone: nothing else is under way in the whole process |
//! | three | never again: a dead letter |
//!
//! So a message that kills the process becomes a dead letter after five deaths: two that made it a suspect,
//! and three at which it was noted. At each of these three at most 256 + 16 others are noted with it, and at
//! the last one none. An innocent message passes as fast as its gate answers. Without records nothing can be
//! noted: then each suspect is handled alone, and the broker's count convicts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock, RwLockReadGuard, Semaphore};

/// The most suspects without a noted death under way at once.
const MANY: usize = 256;
/// The most suspects with one noted death under way at once.
const FEW: usize = 16;
/// The longest that everything else waits for a suspect that is handled alone.
pub const LONGEST_ALONE: Duration = Duration::from_secs(60);

/// How a suspect is to be handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// Beside many other suspects.
    Many,
    /// Beside few other suspects.
    Few,
    /// With nothing else under way.
    Alone,
    /// Not at all: it is the message that kills the process.
    Convicted,
}

impl Care {
    /// How to handle a suspect, by the number of deaths at which it was being handled; `None` if that cannot
    /// be known.
    #[must_use]
    pub fn of(deaths: Option<u32>) -> Care {
        match deaths {
            Some(0) => Care::Many,
            Some(1) => Care::Few,
            Some(2) | None => Care::Alone,
            Some(3..) => Care::Convicted,
        }
    }
}

/// Which messages may be under way together, in the whole process.
#[derive(Clone, Debug)]
pub struct Quarantine {
    many: Arc<Semaphore>,
    few: Arc<Semaphore>,
    /// All work that is under way holds a read lock; a suspect that is handled alone holds the write lock.
    work: Arc<RwLock<()>>,
}

impl Default for Quarantine {
    fn default() -> Quarantine {
        Quarantine { many: Arc::new(Semaphore::new(MANY)), few: Arc::new(Semaphore::new(FEW)), work: Arc::default() }
    }
}

/// Limits the suspects that one integration handles at once, so that it does not keep those of others waiting
/// while its own wait for its gate.
#[derive(Debug, Default)]
pub struct Share {
    taken: AtomicUsize,
    freed: Notify,
}

/// One place in a share; dropping it frees the place.
#[derive(Debug)]
pub struct Part<'s>(&'s Share);

impl Share {
    /// Waits until fewer than `most` places are taken; `most` is called each time, because a gate's limit
    /// changes.
    pub async fn take(&self, most: impl Fn() -> usize) -> Part<'_> {
        loop {
            let taken = self.taken.load(Ordering::Relaxed);
            let is_mine =
                || self.taken.compare_exchange(taken, taken + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if taken >= most().max(1) {
                self.freed.notified().await;
            } else if is_mine() {
                // A limit that rose may have room for more than one waiter.
                self.freed.notify_one();
                return Part(self);
            }
        }
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

/// The right to handle a suspect; dropping it releases it.
#[derive(Debug)]
pub enum Admitted {
    Beside(Option<OwnedSemaphorePermit>),
    Alone(OwnedRwLockWriteGuard<()>),
}

impl Quarantine {
    /// Waits until a suspect may be handled.
    pub async fn admit(&self, care: Care) -> Admitted {
        match care {
            // The semaphores are never closed.
            Care::Many => Admitted::Beside(Arc::clone(&self.many).acquire_owned().await.ok()),
            Care::Few => Admitted::Beside(Arc::clone(&self.few).acquire_owned().await.ok()),
            Care::Alone => Admitted::Alone(Arc::clone(&self.work).write_owned().await),
            Care::Convicted => Admitted::Beside(None),
        }
    }

    /// Waits until nothing is handled alone. Work holds the returned guard while it is under way; waiting is
    /// not work.
    pub async fn beside(&self) -> RwLockReadGuard<'_, ()> {
        match self.work.try_read() {
            Ok(beside) => beside,
            Err(_) => self.work.read().await,
        }
    }
}

#[cfg(test)]
mod tests;
