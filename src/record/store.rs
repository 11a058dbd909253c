//! An open store: embedded, or in PostgreSQL.

use super::embedded::{ClosingStore, Embedded};
use super::kept::{EPOCH, MOVED, StoreOrigin, StoredState, UNFINISHED};
use super::keys::Key;
use super::place::{Backend, Claim, Failed};
use super::postgres::Postgres;
use super::rules::Write;
use super::{Note, Record, SuspectState};
use jiff::{SignedDuration, Timestamp};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The interval between two checks of whether a store is closed.
const CLOSING: Duration = Duration::from_millis(10);

/// An open store.
#[derive(Debug)]
pub(super) enum Store {
    Embedded(Embedded),
    Postgres(Postgres),
}

impl Store {
    /// Opens a store for use: refuses an incomplete copy, and a store that was copied to another place.
    pub(super) async fn open(place: Backend, retention: SignedDuration, own: &str) -> Result<Store, Failed> {
        let shown = place.to_string();
        let store = Store::open_whole(place, retention, own, None).await?;
        if store.is_unfinished().await? {
            let why = "the copy is incomplete; type the same consent-gate store copy again, and it continues";
            return Err(Failed::new(format!("cannot use the records in {shown}: {why}")));
        }
        match store.moved().await? {
            Some(to) => {
                Err(Failed::new(format!("cannot use the records in {shown}: they were copied to {to}; use those")))
            }
            None => Ok(store),
        }
    }

    /// Opens a store in any state; with an origin, a store that is a copy of it or becomes one.
    pub(super) async fn open_whole(
        place: Backend,
        retention: SignedDuration,
        own: &str,
        origin: Option<StoreOrigin>,
    ) -> Result<Store, Failed> {
        match place {
            Backend::Directory(directory) => {
                let open = move || Embedded::open(&directory, retention, origin.as_ref());
                let opened = tokio::task::spawn_blocking(open).await;
                Ok(Store::Embedded(opened.map_err(|_| Failed::closed())??))
            }
            Backend::Postgres(address) => {
                Ok(Store::Postgres(Postgres::open(&address, retention, own, origin.as_ref()).await?))
            }
            Backend::Off => Err(Failed::new("no records are kept: [records] store is \"off\"")),
        }
    }

    /// Closes it, and returns once it may be opened again.
    pub(super) async fn close(self) {
        let ending = self.ending();
        drop(self);
        while ending.as_ref().is_some_and(|ending| !ending.is_over()) {
            tokio::time::sleep(CLOSING).await;
        }
    }

    /// What a copy of it takes over to be the same store.
    pub(super) fn origin(&self) -> StoreOrigin {
        match self {
            Store::Embedded(store) => store.origin(),
            Store::Postgres(store) => store.origin(),
        }
    }

    /// Whether it is a copy that is not complete yet.
    pub(super) async fn is_unfinished(&self) -> Result<bool, Failed> {
        Ok(self.note(UNFINISHED).await?.is_some_and(|of| !of.is_empty()))
    }

    /// Marks a copy as complete.
    pub(super) async fn set_finished(&self) -> Result<(), Failed> {
        self.set_note(UNFINISHED, "").await
    }

    /// Where it was copied to.
    pub(super) async fn moved(&self) -> Result<Option<String>, Failed> {
        self.note(MOVED).await
    }

    pub(super) async fn set_moved(&self, to: &str) -> Result<(), Failed> {
        self.set_note(MOVED, to).await
    }

    pub(super) async fn set_epoch(&self, epoch: u64) -> Result<(), Failed> {
        self.set_note(EPOCH, &epoch.to_string()).await
    }

    /// At most `most` records after this key, in the order of their keys.
    pub(super) async fn page(&self, after: Option<Key>, most: usize) -> Result<Vec<(Key, Record)>, Failed> {
        match self {
            Store::Embedded(store) => store.page(after, most),
            Store::Postgres(store) => store.page(after, most).await,
        }
    }

    /// Its notes, except those that each store has for itself and those that matter only to its process.
    pub(super) async fn notes(&self) -> Result<Vec<(String, String)>, Failed> {
        match self {
            Store::Embedded(store) => store.notes(),
            Store::Postgres(store) => store.notes().await,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        match self {
            Store::Embedded(store) => store.is_open(),
            Store::Postgres(store) => store.is_open(),
        }
    }

    /// What must end before it can be opened again.
    pub(super) fn ending(&self) -> Option<ClosingStore> {
        match self {
            Store::Embedded(store) => Some(store.ending()),
            Store::Postgres(_) => None,
        }
    }

    /// The time by the clock that dates its content.
    pub(super) fn now(&self, now: Timestamp) -> Timestamp {
        match self {
            Store::Embedded(_) => now,
            Store::Postgres(store) => store.now(),
        }
    }

    pub(super) fn secret(&self) -> &[u8] {
        match self {
            Store::Embedded(store) => store.secret(),
            Store::Postgres(store) => store.secret(),
        }
    }

    /// Reads, changes and writes a record as one step. `change` also gets the time up to which persons were
    /// forgotten. It must be repeatable, because it is called again if another worker was faster. If it asks
    /// for no write, it must leave the record unchanged.
    pub(super) async fn update<T>(
        &self,
        key: Key,
        seen: Option<StoredState>,
        change: impl FnMut(&mut Option<Record>, Option<Timestamp>) -> (T, Write),
    ) -> Result<(T, StoredState), Failed> {
        match self {
            Store::Embedded(store) => Ok((store.update(key, change).await?, StoredState::default())),
            Store::Postgres(store) => store.update(key, seen, change).await,
        }
    }

    pub(super) async fn note(&self, name: &str) -> Result<Option<String>, Failed> {
        match self {
            Store::Embedded(store) => store.note(name),
            Store::Postgres(store) => store.note(name).await,
        }
    }

    pub(super) async fn set_note(&self, name: &str, text: &str) -> Result<(), Failed> {
        match self {
            Store::Embedded(store) => store.set_note(name, text).await,
            Store::Postgres(store) => store.set_note(name, text).await,
        }
    }

    pub(super) async fn suspect(&self, key: Key, own: &str) -> Result<SuspectState, Failed> {
        match self {
            Store::Embedded(store) => store.suspect(key, own),
            Store::Postgres(store) => store.suspect(key, own).await,
        }
    }

    pub(super) async fn note_suspect(&self, key: Key, note: &Note) -> Result<(), Failed> {
        match self {
            Store::Embedded(store) => store.note_suspect(key, note).await,
            Store::Postgres(store) => store.note_suspect(key, note).await,
        }
    }

    pub(super) async fn forget_suspect(&self, key: Key) -> Result<(), Failed> {
        match self {
            Store::Embedded(store) => {
                store.forget_suspect(key);
                Ok(())
            }
            Store::Postgres(store) => store.forget_suspect(key).await,
        }
    }

    pub(super) fn count_suspects(&self, change: isize) {
        if let Store::Postgres(store) = self {
            store.suspects().fetch_add(change.cast_unsigned(), Ordering::Relaxed);
        }
    }

    pub(super) async fn claim(&self) -> Result<Claim, Failed> {
        match self {
            Store::Embedded(store) => store.claim(),
            Store::Postgres(store) => store.claim().await,
        }
    }

    pub(super) async fn advance(&self) -> Result<Claim, Failed> {
        match self {
            Store::Embedded(store) => store.advance().await,
            Store::Postgres(store) => store.advance().await,
        }
    }

    pub(super) fn commits(&self) -> u64 {
        match self {
            Store::Embedded(store) => store.commits(),
            Store::Postgres(store) => store.commits(),
        }
    }

    pub(super) async fn count(&self) -> Result<u64, Failed> {
        match self {
            Store::Embedded(store) => store.count(),
            Store::Postgres(store) => store.count().await,
        }
    }
}
