//! How the embedded store writes to disk, a round at a time, and what it forgets.

use super::keys::{Key, Prefix, prefix_of};
use super::rules::{forgotten_until, lapse};
use super::{Failed, Note, codec};
use fjall::{Database, Keyspace, PersistMode};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// The prefixes of the notes about suspects, and of those about the time up to which persons were forgotten.
pub(super) const SUSPECT: &str = "suspect ";
pub(super) const SWEPT: &str = "swept ";
/// How often records older than the retention are looked for.
const SWEEP_EVERY: SignedDuration = SignedDuration::from_hours(24);
/// The most records that are forgotten at once.
const SWEEP_ROUND: usize = 10_000;

/// The time up to which persons were forgotten, by an integration's records.
pub(super) type Swept = Arc<Mutex<HashMap<Prefix, Timestamp>>>;

/// A record in a round, encoded, and the number of the change.
#[derive(Debug)]
pub(super) struct EncodedRecord {
    pub key: Key,
    pub number: u64,
    pub bytes: Result<Vec<u8>, codec::Damaged>,
}

/// Writes to disk.
pub(super) struct Writer {
    pub database: Database,
    pub records: Keyspace,
    pub notes: Keyspace,
    pub retention: SignedDuration,
    pub swept: Swept,
    pub last_sweep: Option<Timestamp>,
}

impl Writer {
    /// Writes one round; `must_last` syncs it.
    pub(super) fn write(
        &mut self,
        records: &[EncodedRecord],
        notes: Vec<(String, Option<String>)>,
        must_last: bool,
    ) -> Result<(), Failed> {
        let mut batch = self.database.batch();
        for EncodedRecord { key, bytes, .. } in records {
            let bytes = bytes.as_ref().map_err(|codec::Damaged| Failed::new("a record cannot be written"))?;
            batch.insert(&self.records, *key, bytes.as_slice());
        }
        for (name, text) in notes {
            match text {
                Some(text) => batch.insert(&self.notes, name, text),
                None => batch.remove(&self.notes, name),
            }
        }
        let database = &self.database;
        sound(|| {
            batch.commit()?;
            if must_last { database.persist(PersistMode::SyncData) } else { Ok(()) }
        })
        .and_then(|()| sound(|| self.sweep(Timestamp::now())))
        .map_err(Failed::new)
    }

    /// Once a day: forgets persons without an event for longer than the retention, erased values that are no
    /// longer needed, and suspects that never came back.
    fn sweep(&mut self, now: Timestamp) -> fjall::Result<()> {
        if self.last_sweep.is_some_and(|last| now.duration_since(last) < SWEEP_EVERY) {
            return Ok(());
        }
        self.last_sweep = Some(now);
        let mut forgotten = Vec::new();
        for item in self.records.iter() {
            let (key, bytes) = item.into_inner()?;
            let Ok(record) = codec::unpack(&bytes) else { continue };
            if record.is_older_than(self.retention, now) {
                forgotten.push(key);
            } else if let Some(bytes) = lapse(&record, now).and_then(|record| codec::pack(&record).ok()) {
                self.records.insert(key, bytes)?;
            }
            if forgotten.len() >= SWEEP_ROUND {
                self.forget(std::mem::take(&mut forgotten), now)?;
            }
        }
        self.forget(forgotten, now)?;
        for item in self.notes.prefix(SUSPECT) {
            let (name, text) = item.into_inner()?;
            let note = std::str::from_utf8(&text).ok().and_then(Note::from_text);
            if note.is_none_or(|note| note.is_old(now)) {
                self.notes.remove(name)?;
            }
        }
        Ok(())
    }

    /// Forgets records, and remembers up to what time. A reader that finds no record sees that time already.
    fn forget(&mut self, keys: Vec<fjall::Slice>, now: Timestamp) -> fjall::Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let until = forgotten_until(self.retention, now);
        let prefixes: BTreeSet<Prefix> = keys.iter().map(|key| prefix_of(key)).collect();
        let mut batch = self.database.batch();
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            for prefix in prefixes {
                let known = swept.entry(prefix).or_insert(until);
                *known = until.max(*known);
                batch.insert(&self.notes, format!("{SWEPT}{}", hex::encode(prefix)), known.to_string());
            }
        }
        for key in keys {
            batch.remove(&self.records, key);
        }
        batch.commit()?;
        self.database.persist(PersistMode::SyncData)
    }
}

/// The library panics on some kinds of damage; this turns panics into errors.
pub(super) fn sound<T>(work: impl FnOnce() -> fjall::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("its files are damaged".to_owned()),
    }
}
