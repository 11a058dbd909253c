//! One event's turn with the record of its person.

use super::kept::StoredState;
use super::keys::{Key, Prefix, key, message_number};
use super::notes::mappings;
use super::place::Failed;
use super::rules::{self, Around, Ask, Begun, Effect, Erasure, SentRequest, ToSend, TurnEnd, Write};
use super::store::Store;
use super::{Mapped, Offer, Record, Values};
use crate::integration::Name;
use crate::mapping::Slot;
use jiff::{SignedDuration, Timestamp};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// If an event waits longer than this between its turn and its sending, its record is read again.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(1);

/// Records that an integration has compared with what the broker remembers: it merges into no others. After
/// they are reopened, they must be compared again.
#[derive(Debug)]
pub struct Verified {
    /// A weak reference: a store that failed must be released before it is opened again.
    pub(super) store: Weak<Store>,
    pub(super) prefix: Prefix,
    pub(super) mapped: Mutex<Arc<Mapped>>,
    pub(super) execution_horizon: SignedDuration,
    pub(super) retention: SignedDuration,
    pub(super) ids: RandomState,
    pub(super) records: Name,
}

/// How an event's turn begins.
#[derive(Debug)]
pub enum Turn {
    /// The person was erased after this event.
    Erased,
    /// Whether this is the newest cannot be known: the event is older than what is remembered.
    TooOld,
    /// A repair that is no longer needed.
    Needless,
    Taken(Box<Taken>),
}

/// An event's turn: its choices are merged, and what to send is decided.
#[derive(Debug)]
pub struct Taken {
    by: Arc<Verified>,
    store: Arc<Store>,
    key: Key,
    seen: Option<StoredState>,
    id: u64,
    offer: Arc<Offer>,
    begun: Timestamp,
    is_repair: bool,
    /// What to send, by property.
    pub newest: Values,
    /// How many of the event's choices are outdated.
    pub outdated: usize,
    /// What is left out, because its newest value cannot be known.
    pub unknown: Vec<Slot>,
}

/// The consequences of an answer.
#[derive(Debug, Default)]
pub struct Answered {
    /// An older request may still be executed, and would overwrite what was accepted.
    pub is_repair_due: bool,
    /// Another event's choice became the newest meanwhile: it must be sent, too.
    pub superseded: Option<Box<Taken>>,
}

pub(super) async fn erase(
    store: &Store,
    key: Key,
    erasure: Erasure,
    execution_horizon: SignedDuration,
    now: Timestamp,
) -> Result<bool, Failed> {
    let now = store.now(now);
    let erase = |known: &mut Option<Record>, _| rules::erase(known, erasure, now, execution_horizon);
    Ok(store.update(key, None, erase).await?.0)
}

impl Verified {
    /// Begins the turn of an event: merges it, and notes that its request may be executed from now on. Both
    /// are durable on return.
    ///
    /// # Errors
    /// The store failed.
    pub async fn begin(
        self: &Arc<Self>,
        identifier: &str,
        offer: &Arc<Offer>,
        is_repair: bool,
        now: Timestamp,
    ) -> Result<Turn, Failed> {
        let store = self.store()?;
        let key = key(store.secret(), self.prefix, identifier);
        self.turn(store, (key, self.ids.hash_one((key, now))), offer, is_repair, now).await
    }

    /// Erases a person: everything up to an instant, with a mark of the erasure. If the erasure names no
    /// instant, its message (timestamp, id and body) counts from when it was published, as far as that is
    /// known at its first receipt. Returns whether anything was known.
    ///
    /// # Errors
    /// The store failed.
    pub async fn erase(
        &self,
        identifier: &str,
        at: Option<Timestamp>,
        (message, published): ([&[u8]; 3], Timestamp),
        now: Timestamp,
    ) -> Result<bool, Failed> {
        let store = self.store()?;
        let message = message_number(store.secret(), message);
        let key = key(store.secret(), self.prefix, identifier);
        erase(&store, key, Erasure { at, published, message }, self.execution_horizon, now).await
    }

    /// A store that failed must be compared again before events are merged into it.
    fn store(&self) -> Result<Arc<Store>, Failed> {
        self.store.upgrade().filter(|store| store.is_open()).ok_or_else(Failed::closed)
    }

    fn mapped(&self) -> Arc<Mapped> {
        Arc::clone(&self.mapped.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn turn(
        self: &Arc<Self>,
        store: Arc<Store>,
        (key, id): (Key, u64),
        offer: &Arc<Offer>,
        is_repair: bool,
        now: Timestamp,
    ) -> Result<Turn, Failed> {
        let (now, execution_horizon, retention) = (store.now(now), self.execution_horizon, self.retention);
        loop {
            let mapped = self.mapped();
            let change = |known: &mut Option<Record>, swept| {
                if let Some(set) = known.as_ref().and_then(|record| mapped.unknown(record)) {
                    return (Err(set), Write::Nothing);
                }
                let around = Around { now, execution_horizon, retention, swept, mapped: &mapped };
                let (begun, write) = rules::begin(known, Ask { id, offer, is_repair }, &around);
                (Ok(begun), write)
            };
            let (begun, seen) = store.update(key, None, change).await?;
            let ToSend { newest, outdated, unknown, .. } = match begun {
                Ok(Begun::Send(to_send)) => to_send,
                Ok(Begun::Erased) => return Ok(Turn::Erased),
                Ok(Begun::TooOld) => return Ok(Turn::TooOld),
                Ok(Begun::Needless) => return Ok(Turn::Needless),
                Err(set) => {
                    self.learn(&store, set).await?;
                    continue;
                }
            };
            let (by, offer) = (Arc::clone(self), Arc::clone(offer));
            let seen = Some(seen);
            let taken = Taken { by, store, key, seen, id, offer, begun: now, is_repair, newest, outdated, unknown };
            return Ok(Turn::Taken(Box::new(taken)));
        }
    }

    /// Learns another document's mappings under which an event was merged.
    async fn learn(&self, store: &Store, set: u64) -> Result<(), Failed> {
        let slots = mappings(store, &self.records, set).await?;
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut mapped).learn(set, slots);
        Ok(())
    }
}

impl Taken {
    /// Merges and reads the record again, if it waited so long that other events may have come meanwhile.
    ///
    /// # Errors
    /// The store failed: the event may not be acked.
    pub async fn looked_again(self: Box<Self>, now: Timestamp) -> Result<Turn, Failed> {
        if self.store.now(now).duration_since(self.begun) <= LONGEST_WAIT {
            return Ok(Turn::Taken(self));
        }
        let Taken { by, key, id, offer, is_repair, .. } = *self;
        by.turn(by.store()?, (key, id), &offer, is_repair, now).await
    }

    /// Whether the request carries another event's newer values.
    #[must_use]
    pub fn carries_others(&self) -> bool {
        self.newest.values().any(|said| !said.is_of(&self.offer))
    }

    /// Takes note of the result of the request, and checks whether the record changed meanwhile. If it
    /// `was_resent`, the result of the second copy says nothing about the first.
    ///
    /// # Errors
    /// The store failed, and what is due would not be remembered.
    pub async fn answered(
        mut self: Box<Self>,
        effect: Effect,
        was_resent: bool,
        now: Timestamp,
    ) -> Result<Answered, Failed> {
        let (store, Verified { execution_horizon, retention, ids, .. }) = (&self.store, &*self.by);
        let next = ids.hash_one((self.id, now));
        let first = ids.hash_one((next, self.id));
        let (now, mapped) = (store.now(now), self.by.mapped());
        let ask = Ask { id: self.id, offer: &self.offer, is_repair: self.is_repair };
        let request = SentRequest { carried: &self.newest, begun: self.begun, effect, was_resent, first, next };
        let end = |known: &mut Option<Record>, swept| {
            let around =
                Around { now, execution_horizon: *execution_horizon, retention: *retention, swept, mapped: &mapped };
            rules::end(known, ask, &request, &around)
        };
        let (ended, seen) = store.update(self.key, self.seen.clone(), end).await?;
        let TurnEnd { is_repair_due, superseded } = ended;
        self.seen = Some(seen);
        self.id = next;
        self.begun = now;
        let superseded = superseded.map(|newest| {
            self.newest = newest;
            self
        });
        Ok(Answered { is_repair_due, superseded })
    }
}
