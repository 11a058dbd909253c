//! The embedded store: a log-structured one on this machine's disk, held by one process at a time.
//!
//! A write is visible at once. Writes that come close together go to disk together, in the background: a
//! person's record that changes twice meanwhile is written once, and one sync serves all waiters.

mod directory;

pub(super) use directory::looked_at;

use super::group_commit::{self, CommitResult, Shared};
use super::kept::{EPOCH, OWN_NOTES, StoreOrigin};
use super::keys::{IDENTITY_BYTES, Key, SECRET_BYTES, prefix_of};
use super::rules::Write;
use super::writer::{SUSPECT, SWEPT, Swept, Writer, sound};
use super::{Claim, Failed, Note, Record, SuspectState, codec};
use crate::bytes::random;
use directory::{make, sync_names};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The size in bytes of the library's cache, and of its memtables: small, because an event reads one record
/// and most are not read again soon.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
const MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;
/// The size in bytes of the journals on disk before the memtables are flushed: the least that the library
/// allows.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;

/// The open store; dropping it closes it once everything is written.
pub struct Embedded {
    records: Keyspace,
    notes: Keyspace,
    secret: [u8; SECRET_BYTES],
    identity: [u8; IDENTITY_BYTES],
    shared: Arc<Shared>,
    swept: Swept,
    has_failed: AtomicBool,
    advancing: tokio::sync::Mutex<()>,
}

/// The closing of a store that failed; a disk that hangs holds it up.
pub struct ClosingStore(Arc<Shared>);

impl ClosingStore {
    /// Whether the store may be opened again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_let_go()
    }
}

impl std::fmt::Debug for ClosingStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ending").finish_non_exhaustive()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in a directory, or creates one there that only its owner can read; with an origin, as
    /// its copy. Must run on a thread of the runtime, which serves its writes.
    ///
    /// # Errors
    /// Another process holds it, it cannot be read or written, or it holds other records than its origin's.
    pub(super) fn open(
        directory: &Path,
        retention: SignedDuration,
        origin: Option<&StoreOrigin>,
    ) -> Result<Embedded, Failed> {
        let at = |what: &str, why: &dyn std::fmt::Display| {
            Failed::new(format!("{what} the records in {}: {why}", directory.display()))
        };
        make(directory).map_err(|e| at("cannot create", &e))?;
        let builder =
            Database::builder(directory).worker_threads(1).cache_size(CACHE_BYTES).max_journaling_size(JOURNAL_BYTES);
        let opened = catch_unwind(AssertUnwindSafe(|| builder.open()));
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(fjall::Error::Locked)) => {
                let why = "another worker holds them; this one takes over when that one ends";
                return Err(Failed::held(format!("standing by for the records in {}: {why}", directory.display())));
            }
            Ok(Err(error)) => return Err(at("cannot open", &error)),
            Err(_) => return Err(at("cannot open", &"its files are damaged")),
        };
        let keyspace = |name| {
            sound(|| database.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)))
        };
        let records = keyspace("records").map_err(|e| at("cannot open", &e))?;
        let notes = keyspace("notes").map_err(|e| at("cannot open", &e))?;
        sync_names(directory).map_err(|e| at("cannot sync", &e))?;
        if let Some(origin) = origin {
            take_over(&database, &records, &notes, origin).map_err(|e| at("cannot copy into", &e))?;
        }
        let secret = kept::<SECRET_BYTES>(&database, &notes, "secret").map_err(|e| at("cannot open", &e))?;
        let identity = kept::<IDENTITY_BYTES>(&database, &notes, "identity").map_err(|e| at("cannot open", &e))?;
        let shared = Arc::new(Shared::default());
        let swept = swept(&notes).map_err(|e| at("cannot open", &e))?;
        let writer = Writer {
            database,
            records: records.clone(),
            notes: notes.clone(),
            retention,
            swept: Arc::clone(&swept),
            last_sweep: None,
        };
        group_commit::start(writer, Arc::clone(&shared)).map_err(|e| at("cannot write", &e))?;
        Ok(Embedded {
            records,
            notes,
            secret,
            identity,
            shared,
            swept,
            has_failed: AtomicBool::new(false),
            advancing: tokio::sync::Mutex::default(),
        })
    }

    /// Whether nothing has failed so far.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.shared.is_closed() && !self.has_failed.load(Ordering::Relaxed)
    }

    /// A handle that tells, after a failure, whether the files are closed.
    #[must_use]
    pub fn ending(&self) -> ClosingStore {
        ClosingStore(Arc::clone(&self.shared))
    }

    /// The key with which identifiers are hashed; it never leaves the store's directory.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// Reads, changes and writes a record as one step. Other changes see it at once; this returns when it is
    /// as durable as the change asks for.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn update<T>(
        &self,
        key: Key,
        change: impl FnOnce(&mut Option<Record>, Option<Timestamp>) -> (T, Write),
    ) -> Result<T, Failed> {
        let swept = || self.swept.lock().unwrap_or_else(PoisonError::into_inner).get(&prefix_of(&key)).copied();
        let (told, durable) = self.change(key, |known| {
            // Read after the record: the person may just be being forgotten.
            let swept = swept();
            change(known, swept)
        })?;
        if let Some(durable) = durable {
            durable.await.map_err(|_| Failed::closed())??;
        }
        Ok(told)
    }

    fn change<T>(
        &self,
        key: Key,
        change: impl FnOnce(&mut Option<Record>) -> (T, Write),
    ) -> Result<(T, Option<CommitResult>), Failed> {
        if !self.is_open() {
            return Err(Failed::closed());
        }
        self.shared.change(key, || self.stored(key), change)
    }

    fn stored(&self, key: Key) -> Result<Option<Record>, Failed> {
        let found = self.checked(|| self.records.get(key))?;
        let record = found.map(|bytes| codec::unpack(&bytes)).transpose();
        record.map_err(|codec::Damaged| self.failed("a record is damaged, or another version's".to_owned()))
    }

    /// The store's identity and epoch.
    ///
    /// # Errors
    /// The store failed.
    pub fn claim(&self) -> Result<Claim, Failed> {
        let epoch = self.note(EPOCH)?.and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        Ok(Claim { store: hex::encode(self.identity), epoch })
    }

    /// Begins another epoch; durable on return.
    ///
    /// # Errors
    /// The store failed.
    pub async fn advance(&self) -> Result<Claim, Failed> {
        let _one_at_a_time = self.advancing.lock().await;
        let claim = self.claim()?;
        let next = Claim { epoch: claim.epoch + 1, ..claim };
        self.set_note(EPOCH, &next.epoch.to_string()).await?;
        Ok(next)
    }

    /// The number of changes since it was opened.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.shared.changes()
    }

    /// How many persons are on record. Reads them all.
    ///
    /// # Errors
    /// The store failed.
    pub fn count(&self) -> Result<u64, Failed> {
        self.checked(|| self.records.len()).map(|count| count as u64)
    }

    /// What a copy of it takes over to be the same store.
    pub(super) fn origin(&self) -> StoreOrigin {
        StoreOrigin { secret: self.secret, identity: self.identity }
    }

    /// At most `most` records after this key, in the order of their keys, as they are on disk.
    pub(super) fn page(&self, after: Option<Key>, most: usize) -> Result<Vec<(Key, Record)>, Failed> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let found = self.records.range((from, Bound::<Key>::Unbounded)).take(most);
        let pairs: Vec<_> = self.checked(|| found.map(fjall::Guard::into_inner).collect())?;
        let damaged = || self.failed("a record is damaged, or another version's".to_owned());
        let read = |(key, bytes): (fjall::Slice, fjall::Slice)| {
            let key = Key::try_from(&*key).map_err(|_| damaged())?;
            Ok((key, codec::unpack(&bytes).map_err(|codec::Damaged| damaged())?))
        };
        pairs.into_iter().map(read).collect()
    }

    /// The notes that a copy takes over.
    pub(super) fn notes(&self) -> Result<Vec<(String, String)>, Failed> {
        let pairs: Vec<_> = self.checked(|| self.notes.iter().map(fjall::Guard::into_inner).collect())?;
        let text = |bytes: fjall::Slice| String::from_utf8_lossy(&bytes).into_owned();
        let all = pairs.into_iter().map(|(name, note)| (text(name), note));
        let ours = all.filter(|(name, _)| !OWN_NOTES.contains(&name.as_str()) && !name.starts_with(SUSPECT));
        Ok(ours.map(|(name, note)| (name, text(note))).collect())
    }

    /// A note of the store about itself.
    ///
    /// # Errors
    /// The store failed.
    pub fn note(&self, name: &str) -> Result<Option<String>, Failed> {
        let note = self.checked(|| self.notes.get(name))?;
        Ok(note.map(|note| String::from_utf8_lossy(&note).into_owned()))
    }

    /// Writes a note; durable on return.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_note(&self, name: &str, text: &str) -> Result<(), Failed> {
        self.shared.note(name.to_owned(), Some(text.to_owned())).await.map_err(|_| Failed::closed())?
    }

    /// What is known about a suspect. Only one process has the store, so every other holder is dead.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn suspect(&self, key: Key, own: &str) -> Result<SuspectState, Failed> {
        let note = self.note(&suspect_name(key))?.and_then(|text| Note::from_text(&text));
        Ok(Note::known(note.as_ref(), own, |_| false))
    }

    /// Notes a suspect; durable on return.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn note_suspect(&self, key: Key, note: &Note) -> Result<(), Failed> {
        self.set_note(&suspect_name(key), &note.to_text()).await
    }

    /// Forgets a suspect, without waiting for the write.
    pub(super) fn forget_suspect(&self, key: Key) {
        // If the removal is lost, an innocent message is handled among few others: harmless, so nobody waits
        // for it.
        drop(self.shared.note(suspect_name(key), None));
    }

    fn checked<T>(&self, read: impl FnOnce() -> fjall::Result<T>) -> Result<T, Failed> {
        sound(read).map_err(|why| self.failed(why))
    }

    /// After a failure the records in memory cannot be relied on: the store must be opened again to see what
    /// is really on disk.
    fn failed(&self, why: String) -> Failed {
        self.has_failed.store(true, Ordering::Relaxed);
        Failed::new(why)
    }
}

/// Random bytes that the store keeps under a name; created when they are first asked for.
fn kept<const N: usize>(database: &Database, notes: &Keyspace, name: &str) -> Result<[u8; N], String> {
    let found = sound(|| notes.get(name))?;
    if let Some(bytes) = found.and_then(|bytes| bytes.as_ref().try_into().ok()) {
        return Ok(bytes);
    }
    let bytes = random::<N>()?;
    sound(|| notes.insert(name, bytes).and_then(|()| database.persist(PersistMode::SyncAll)))?;
    Ok(bytes)
}

/// Makes an empty store the copy of another.
fn take_over(database: &Database, records: &Keyspace, notes: &Keyspace, origin: &StoreOrigin) -> Result<(), String> {
    let own = sound(|| notes.get("identity"))?;
    if own.is_some_and(|own| *own == origin.identity) {
        return Ok(());
    }
    if !sound(|| records.is_empty())? || sound(|| notes.get(EPOCH))?.is_some() {
        return Err("they are other records, which are in use; name an empty place".to_owned());
    }
    let mut batch = database.batch();
    batch.insert(notes, "secret", origin.secret);
    batch.insert(notes, "identity", origin.identity);
    let (name, text) = origin.mark();
    batch.insert(notes, name, text);
    sound(|| batch.commit().and_then(|()| database.persist(PersistMode::SyncAll)))
}

/// Reads the notes about the time up to which persons were forgotten.
fn swept(notes: &Keyspace) -> Result<Swept, String> {
    let mut swept = HashMap::new();
    for item in notes.prefix(SWEPT) {
        let (name, until) = sound(|| item.into_inner())?;
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| "its notes are damaged".to_owned());
        let until = text(&until)?.parse().map_err(|_| "its notes are damaged".to_owned())?;
        let prefix = u32::from_str_radix(text(&name)?.trim_start_matches(SWEPT), 16);
        swept.insert(prefix.map_err(|_| "its notes are damaged")?.to_be_bytes(), until);
    }
    Ok(Arc::new(Mutex::new(swept)))
}

fn suspect_name(key: Key) -> String {
    format!("{SUSPECT}{}", hex::encode(key))
}
