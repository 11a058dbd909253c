//! The shared store: records in PostgreSQL, for any number of workers.
//!
//! A record is one row with a revision that grows with each write. A writer names the revision that it read,
//! so of two workers one writes and the other reads again: merging is done in one place, here, and each
//! change is one step. Reads that come close together are one statement, and so are writes, sorted by key so
//! that no two statements deadlock.

mod batches;
mod clock;
mod notes;
mod process;
mod session;
mod statements;
mod suspects;
mod sweep;
mod tables;

pub(super) use tables::is_at;

use super::address::Address;
use super::kept::{EPOCH, OWN_NOTES, StoreOrigin, StoredState};
use super::keys::{IDENTITY_BYTES, Key, SECRET_BYTES};
use super::rules::Write;
use super::{Claim, Failed, Record};
use crate::task;
use batches::{ReadRequest, WriteRequest, seen, serve_reads, serve_writes};
use clock::{Clock, keep_time};
use jiff::{SignedDuration, Timestamp};
use notes::{kept, note, take_over};
use session::{OWN, Session, column};
use statements::{ADVANCE, COUNT, NOTES, PAGE, SET_NOTE, WRITE, WRITE_LATER};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use suspects::say_alive;
use sweep::sweep;
use tables::home;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::types::Type;

/// The open store; dropping it ends its connections.
pub struct Postgres {
    secret: [u8; SECRET_BYTES],
    identity: [u8; IDENTITY_BYTES],
    reads: mpsc::UnboundedSender<ReadRequest>,
    durable: mpsc::UnboundedSender<WriteRequest>,
    later: mpsc::UnboundedSender<WriteRequest>,
    /// For everything but records.
    notes: Arc<Session>,
    /// How many suspects this process is handling.
    suspects: Arc<AtomicUsize>,
    commits: AtomicU64,
    clock: Arc<Clock>,
    has_failed: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Postgres {
    /// Connects, and creates the tables if they are missing; with an origin, as its copy. `own` identifies
    /// this process.
    ///
    /// # Errors
    /// The database cannot be reached, it refuses, or it holds other records than the origin's.
    pub(super) async fn open(
        address: &Address,
        retention: SignedDuration,
        own: &str,
        origin: Option<&StoreOrigin>,
    ) -> Result<Postgres, Failed> {
        let has_failed = Arc::new(AtomicBool::new(false));
        let home = home(address).await?;
        let notes = Session::open(address, &home, &has_failed).await?;
        if let Some(origin) = origin {
            take_over(&notes, origin, address).await?;
        }
        let secret = kept(&notes, "secret").await?;
        let identity = kept::<IDENTITY_BYTES>(&notes, "identity").await?;
        let (reads, asked) = mpsc::unbounded_channel();
        let (durable, written) = mpsc::unbounded_channel();
        let (later, written_later) = mpsc::unbounded_channel();
        let reading = Session::open(address, &home, &has_failed).await?;
        let writing = Session::open(address, &home, &has_failed).await?;
        let lazy = Session::open(address, &home, &has_failed).await?;
        let notes = Arc::new(notes);
        let suspects = Arc::new(AtomicUsize::new(0));
        let clock = Arc::new(Clock::default());
        clock.measure(&notes).await?;
        let tasks = vec![
            watched("clock", keep_time(Arc::clone(&notes), Arc::clone(&clock)), &has_failed),
            watched("suspects", say_alive(Arc::clone(&notes), Arc::clone(&suspects), own.to_owned()), &has_failed),
            watched("records reader", serve_reads(reading, asked), &has_failed),
            watched("records writer", serve_writes(writing, WRITE, written), &has_failed),
            watched("lazy writer", serve_writes(lazy, WRITE_LATER, written_later), &has_failed),
            tokio::spawn(task::kept("records sweep", {
                let address = address.clone();
                async move || sweep(&address, &home, retention).await
            })),
        ];
        let commits = AtomicU64::new(0);
        Ok(Postgres { secret, identity, reads, durable, later, notes, suspects, commits, clock, has_failed, tasks })
    }

    /// Whether nothing has failed so far.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.has_failed.load(Ordering::Relaxed) && !self.notes.client.is_closed()
    }

    /// The time by the database's clock.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now().saturating_add(self.clock_offset()).unwrap_or(Timestamp::MAX)
    }

    /// How far the database's clock is ahead of this machine's.
    pub(super) fn clock_offset(&self) -> SignedDuration {
        self.clock.offset()
    }

    /// The key with which identifiers are hashed. It is in the same database: anyone who can read all of it
    /// can try identifiers.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// Reads a record unless it is known, changes it and writes it; repeats this if another worker was
    /// faster.
    ///
    /// # Errors
    /// The database failed. Whether the change was made is then unknown.
    pub(super) async fn update<T>(
        &self,
        key: Key,
        seen: Option<StoredState>,
        mut change: impl FnMut(&mut Option<Record>, Option<Timestamp>) -> (T, Write),
    ) -> Result<(T, StoredState), Failed> {
        let mut seen = match seen {
            Some(seen) => seen,
            None => self.read(key).await?,
        };
        loop {
            let mut record = seen.record.clone();
            let (told, write) = change(&mut record, seen.swept);
            let way = match write {
                Write::Nothing => return Ok((told, seen)),
                Write::Later => &self.later,
                Write::Durable => &self.durable,
            };
            let next = StoredState { revision: seen.revision + 1, record, swept: None };
            if self.write(key, &next, way).await? {
                self.commits.fetch_add(1, Ordering::Relaxed);
                return Ok((told, next));
            }
            seen = self.read(key).await?;
        }
    }

    async fn read(&self, key: Key) -> Result<StoredState, Failed> {
        let (answer, seen) = oneshot::channel();
        self.reads.send(ReadRequest { key, answer }).map_err(|_| Failed::closed())?;
        seen.await.map_err(|_| Failed::closed())?
    }

    async fn write(
        &self,
        key: Key,
        next: &StoredState,
        way: &mpsc::UnboundedSender<WriteRequest>,
    ) -> Result<bool, Failed> {
        let (answer, written) = oneshot::channel();
        let record = serde_json::to_string(&next.record).map_err(|error| Failed::new(error.to_string()))?;
        let merged = next.record.as_ref().and_then(Record::merged).unwrap_or(Timestamp::UNIX_EPOCH);
        way.send(WriteRequest { key, revision: next.revision, merged, record, answer })
            .map_err(|_| Failed::closed())?;
        written.await.map_err(|_| Failed::closed())?
    }

    /// What a copy of it takes over to be the same store.
    pub(super) fn origin(&self) -> StoreOrigin {
        StoreOrigin { secret: self.secret, identity: self.identity }
    }

    /// At most `most` records after this key, in the order of their keys.
    pub(super) async fn page(&self, after: Option<Key>, most: usize) -> Result<Vec<(Key, Record)>, Failed> {
        let after = after.map_or_else(Vec::new, |key| key.to_vec());
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = self.notes.ask(PAGE, &[(&after, Type::BYTEA), (&most, Type::INT8)]).await?;
        rows.iter().map(|row| seen(row).map(|(key, seen)| (key, seen.record.unwrap_or_default()))).collect()
    }

    /// The notes that a copy takes over.
    pub(super) async fn notes(&self) -> Result<Vec<(String, String)>, Failed> {
        let rows = self.notes.ask(NOTES, &[]).await?;
        let all = rows.iter().map(|row| Ok((column::<String>(row, OWN)?, column(row, OWN + 1)?)));
        let all = all.collect::<Result<Vec<(String, String)>, Failed>>()?;
        Ok(all.into_iter().filter(|(name, _)| !OWN_NOTES.contains(&name.as_str())).collect())
    }

    /// A note of the store about itself.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note(&self, name: &str) -> Result<Option<String>, Failed> {
        note(&self.notes, name).await
    }

    /// Writes a note; durable on return.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_note(&self, name: &str, text: &str) -> Result<(), Failed> {
        self.notes.ask(SET_NOTE, &[(&name, Type::TEXT), (&text, Type::TEXT)]).await.map(drop)
    }

    /// The store's identity and epoch.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim(&self) -> Result<Claim, Failed> {
        let epoch = self.note(EPOCH).await?;
        Ok(Claim { store: hex::encode(self.identity), epoch: epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0) })
    }

    /// Begins another epoch; durable on return.
    ///
    /// # Errors
    /// The database failed.
    pub async fn advance(&self) -> Result<Claim, Failed> {
        let rows = self.notes.ask(ADVANCE, &[]).await?;
        let epoch: String = rows.first().map(|row| column(row, OWN)).transpose()?.unwrap_or_default();
        Ok(Claim { store: hex::encode(self.identity), epoch: epoch.parse().unwrap_or(0) })
    }

    /// The number of records written since it was opened.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// How many persons are on record.
    ///
    /// # Errors
    /// The database failed.
    pub async fn count(&self) -> Result<u64, Failed> {
        let rows = self.notes.ask(COUNT, &[]).await?;
        let count: i64 = rows.first().map(|row| column(row, OWN)).transpose()?.unwrap_or(0);
        Ok(u64::try_from(count).unwrap_or(0))
    }
}

/// Starts a task; if it fails, the store must be opened again.
fn watched(
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
    has_failed: &Arc<AtomicBool>,
) -> JoinHandle<()> {
    let has_failed = Arc::clone(has_failed);
    tokio::spawn(async move {
        if task::watched(name, None, task).await.is_none() {
            has_failed.store(true, Ordering::Relaxed);
        }
    })
}
