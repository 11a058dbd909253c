//! The shared store: records in PostgreSQL, for any number of workers.
//!
//! A record is one row with a revision that grows at each write. Who writes names the revision that
//! was read, so of two workers one writes and the other reads again: merging stays one piece of
//! code, here, and each change is one step. Reads of a moment are one statement, and so are writes,
//! sorted by key so that no two of them wait for each other in a circle.

use super::address::Address;
use super::rules::Write;
use super::store::{IDENTITY_BYTES, Key, SECRET_BYTES, Seen};
use super::suspects::FORGOTTEN_AFTER;
use super::{Claim, Failed, Known, Note, Record};
use crate::bytes::{hex, random};
use crate::task;
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Statement};

/// The longest that one answer of the database is waited for.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The most records of one statement.
const ROUND: usize = 256;
/// How often records that outlived the retention are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// The most records that one sweep's statement deletes, so that it holds up nobody.
const SWEEP_ROUND: i64 = 10_000;
/// How often a worker says that it lives while it handles suspects, and after how many seconds without
/// a word it counts as dead.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
const DEAD_AFTER_SECONDS: f64 = 10.0;
/// Any number: workers that start together make the tables one after the other.
const MIGRATING: i64 = 0x636f_6e73_656e_7467;

/// Each version of the schema, from the first. What is here was released: it never changes.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE consent_gate_notes (
        name text PRIMARY KEY,
        value text NOT NULL
    );
    CREATE TABLE consent_gate_records (
        key bytea PRIMARY KEY,
        revision bigint NOT NULL,
        merged timestamptz NOT NULL,
        record text NOT NULL
    ) WITH (fillfactor = 70);
",
    "
    CREATE TABLE consent_gate_suspects (
        key bytea PRIMARY KEY,
        deaths bigint NOT NULL,
        holder text,
        at timestamptz NOT NULL
    );
",
];

const READ: &str = "SELECT key, revision, record FROM consent_gate_records WHERE key = ANY($1)";
/// Writes what nobody else wrote since it was read, and says which that was.
const WRITE: &str = "
    INSERT INTO consent_gate_records AS known (key, revision, merged, record)
    SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::timestamptz[], $4::text[]) ORDER BY 1
    ON CONFLICT (key) DO UPDATE
        SET revision = excluded.revision, merged = excluded.merged, record = excluded.record
        WHERE known.revision = excluded.revision - 1
    RETURNING key";
/// What is noted of a suspect, and whether its holder said lately that it lives.
const SUSPECT: &str = "
    SELECT deaths, holder, at, at > now() - make_interval(secs => $2) FROM consent_gate_suspects WHERE key = $1";
const NOTE_SUSPECT: &str = "
    INSERT INTO consent_gate_suspects VALUES ($1, $2, $3, now())
    ON CONFLICT (key) DO UPDATE SET deaths = excluded.deaths, holder = excluded.holder, at = excluded.at";
const FORGET_SUSPECT: &str = "DELETE FROM consent_gate_suspects WHERE key = $1";
const SAY_ALIVE: &str = "UPDATE consent_gate_suspects SET at = now() WHERE holder = $1";
const SWEEP_SUSPECTS: &str = "DELETE FROM consent_gate_suspects WHERE at < $1";
const SWEEP: &str = "
    DELETE FROM consent_gate_records WHERE key IN
        (SELECT key FROM consent_gate_records WHERE merged < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";

/// An error with its cause. What the server says is its message and code only: its details can
/// quote rows.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} ({})", said.message(), said.code().code());
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// One connection, each of whose answers is waited for with an end. Dropping it ends it.
struct Session {
    client: Client,
    connection: JoinHandle<()>,
}

impl Session {
    async fn open(address: &Address) -> Result<Session, Failed> {
        let (client, connection) = address.connect().await?;
        Ok(Session { client, connection })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Awaits one answer of the database, bounded in time.
async fn call<T>(asked: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(CALL_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| Failed::new(format!("PostgreSQL: {}", describe(&error)))),
        Err(_) => Err(Failed::new(format!("PostgreSQL: no answer within {CALL_TIMEOUT:?}"))),
    }
}

struct Asked {
    key: Key,
    answer: oneshot::Sender<Result<Seen, Failed>>,
}

struct Written {
    key: Key,
    /// The revision that it becomes.
    revision: i64,
    merged: Timestamp,
    record: String,
    /// Whether it was written; not, if somebody else was faster.
    answer: oneshot::Sender<Result<bool, Failed>>,
}

/// The open store; dropping it ends its connections.
pub struct Postgres {
    secret: [u8; SECRET_BYTES],
    identity: String,
    reads: mpsc::UnboundedSender<Asked>,
    durable: mpsc::UnboundedSender<Written>,
    later: mpsc::UnboundedSender<Written>,
    /// Everything that is no record.
    notes: Arc<Session>,
    /// How many suspects this process handles.
    suspects: Arc<AtomicUsize>,
    commits: AtomicU64,
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
    /// Connects, and makes the tables where they are missing. `own` names this process.
    ///
    /// # Errors
    /// The database cannot be reached, or it refuses.
    pub async fn open(address: &Address, retention: SignedDuration, own: &str) -> Result<Postgres, Failed> {
        let mut notes = Session::open(address).await?;
        migrate(&mut notes.client).await?;
        let secret = kept(&notes.client, "secret").await?;
        let identity = kept::<IDENTITY_BYTES>(&notes.client, "identity").await?;
        let has_failed = Arc::new(AtomicBool::new(false));
        let (reads, asked) = mpsc::unbounded_channel();
        let (durable, written) = mpsc::unbounded_channel();
        let (later, written_later) = mpsc::unbounded_channel();
        let reading = Session::open(address).await?;
        let read = call(reading.client.prepare(READ)).await?;
        let writing = Session::open(address).await?;
        let write = call(writing.client.prepare(WRITE)).await?;
        // A commit that is lost in a crash of the database costs a spare request.
        let lazy = Session::open(address).await?;
        call(lazy.client.batch_execute("SET synchronous_commit = off")).await?;
        let write_later = call(lazy.client.prepare(WRITE)).await?;
        let notes = Arc::new(notes);
        let suspects = Arc::new(AtomicUsize::new(0));
        let tasks = vec![
            watched("suspects", say_alive(Arc::clone(&notes), Arc::clone(&suspects), own.to_owned()), &has_failed),
            watched("records reader", serve_reads(reading, read, asked, Arc::clone(&has_failed)), &has_failed),
            watched("records writer", serve_writes(writing, write, written, Arc::clone(&has_failed)), &has_failed),
            watched(
                "lazy writer",
                serve_writes(lazy, write_later, written_later, Arc::clone(&has_failed)),
                &has_failed,
            ),
            tokio::spawn(task::kept("records sweep", {
                let address = address.clone();
                async move || sweep(&address, retention).await
            })),
        ];
        let commits = AtomicU64::new(0);
        let identity = hex(&identity);
        Ok(Postgres { secret, identity, reads, durable, later, notes, suspects, commits, has_failed, tasks })
    }

    /// Whether nothing failed so far.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.has_failed.load(Ordering::Relaxed) && !self.notes.client.is_closed()
    }

    /// The time by the database's clock.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The key under which identifiers are hashed. It lies in the same database: whoever reads all
    /// of it can try identifiers.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// Reads a record unless it is known, changes it and writes it; again, when another worker was
    /// faster.
    ///
    /// # Errors
    /// The database failed. Whether the change was made is not known then.
    pub(super) async fn update<T>(
        &self,
        key: Key,
        seen: Option<Seen>,
        mut change: impl FnMut(&mut Option<Record>, Option<Timestamp>) -> (T, Write),
    ) -> Result<(T, Seen), Failed> {
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
            let next = Seen { revision: seen.revision + 1, record, swept: None };
            if self.write(key, &next, way).await? {
                self.commits.fetch_add(1, Ordering::Relaxed);
                return Ok((told, next));
            }
            seen = self.read(key).await?;
        }
    }

    async fn read(&self, key: Key) -> Result<Seen, Failed> {
        let (answer, seen) = oneshot::channel();
        self.reads.send(Asked { key, answer }).map_err(|_| Failed::closed())?;
        seen.await.map_err(|_| Failed::closed())?
    }

    async fn write(&self, key: Key, next: &Seen, way: &mpsc::UnboundedSender<Written>) -> Result<bool, Failed> {
        let (answer, written) = oneshot::channel();
        let record = serde_json::to_string(&next.record).map_err(|error| Failed::new(error.to_string()))?;
        let merged = next.record.as_ref().and_then(Record::merged).unwrap_or(Timestamp::UNIX_EPOCH);
        way.send(Written { key, revision: next.revision, merged, record, answer }).map_err(|_| Failed::closed())?;
        written.await.map_err(|_| Failed::closed())?
    }

    /// A note of the store about itself.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note(&self, name: &str) -> Result<Option<String>, Failed> {
        note(&self.notes.client, name).await
    }

    /// Writes a note; returns when it is durable.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_note(&self, name: &str, text: &str) -> Result<(), Failed> {
        let upsert = "INSERT INTO consent_gate_notes VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        call(self.notes.client.execute(upsert, &[&name, &text])).await.map(|_| ())
    }

    /// What is known of a suspect.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn suspect(&self, key: Key, own: &str) -> Result<Known, Failed> {
        let row = call(self.notes.client.query_opt(SUSPECT, &[&&key[..], &DEAD_AFTER_SECONDS])).await?;
        let Some(row) = row else { return Ok(Known::Deaths(0)) };
        let at = Timestamp::try_from(column::<SystemTime>(&row, 2)?).unwrap_or(Timestamp::UNIX_EPOCH);
        let deaths = u32::try_from(column::<i64>(&row, 0)?).unwrap_or(u32::MAX);
        let note = Note { deaths, holder: column(&row, 1)?, at };
        let is_alive: bool = column(&row, 3)?;
        Ok(Note::known(Some(&note), own, |_| is_alive))
    }

    /// Notes a suspect; returns when that is durable.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn note_suspect(&self, key: Key, note: &Note) -> Result<(), Failed> {
        let deaths = i64::from(note.deaths);
        call(self.notes.client.execute(NOTE_SUSPECT, &[&&key[..], &deaths, &note.holder])).await.map(|_| ())
    }

    /// Forgets a suspect.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn forget_suspect(&self, key: Key) -> Result<(), Failed> {
        call(self.notes.client.execute(FORGET_SUSPECT, &[&&key[..]])).await.map(|_| ())
    }

    /// How many suspects this process handles.
    pub(super) fn suspects(&self) -> &AtomicUsize {
        &self.suspects
    }

    /// Which store it is, and how far it got.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim(&self) -> Result<Claim, Failed> {
        let epoch = self.note("epoch").await?;
        Ok(Claim { store: self.identity.clone(), epoch: epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0) })
    }

    /// Begins another epoch; returns when it is durable.
    ///
    /// # Errors
    /// The database failed.
    pub async fn advance(&self) -> Result<Claim, Failed> {
        let grow = "INSERT INTO consent_gate_notes AS note VALUES ('epoch', '1')
            ON CONFLICT (name) DO UPDATE SET value = (note.value::bigint + 1)::text RETURNING value";
        let row = call(self.notes.client.query_one(grow, &[])).await?;
        let epoch: String = column(&row, 0)?;
        Ok(Claim { store: self.identity.clone(), epoch: epoch.parse().unwrap_or(0) })
    }

    /// How often a record was written since it was opened.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// How many persons are on record.
    ///
    /// # Errors
    /// The database failed.
    pub async fn count(&self) -> Result<u64, Failed> {
        let row = call(self.notes.client.query_one("SELECT count(*) FROM consent_gate_records", &[])).await?;
        Ok(u64::try_from(column::<i64>(&row, 0)?).unwrap_or(0))
    }
}

fn column<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r tokio_postgres::Row, index: usize) -> Result<T, Failed> {
    row.try_get(index).map_err(|error| Failed::new(format!("PostgreSQL: {}", describe(&error))))
}

async fn note(client: &Client, name: &str) -> Result<Option<String>, Failed> {
    let row = call(client.query_opt("SELECT value FROM consent_gate_notes WHERE name = $1", &[&name])).await?;
    row.map(|row| column(&row, 0)).transpose()
}

/// Random bytes that the store keeps under a name; made by whoever asks for them first.
async fn kept<const N: usize>(client: &Client, name: &str) -> Result<[u8; N], Failed> {
    let made = hex(&random::<N>().map_err(Failed::new)?);
    let insert = "INSERT INTO consent_gate_notes VALUES ($1, $2) ON CONFLICT DO NOTHING";
    if note(client, name).await?.is_none() {
        call(client.execute(insert, &[&name, &made])).await?;
    }
    let text = note(client, name).await?.unwrap_or_default();
    let byte = |index: usize| text.get(2 * index..2 * index + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let mut bytes = [0; N];
    for (index, place) in bytes.iter_mut().enumerate() {
        *place = byte(index).ok_or_else(|| Failed::new(format!("consent_gate_notes: {name} is damaged")))?;
    }
    Ok(bytes)
}

/// Brings the tables to this version. A role that may not make tables is enough where they are.
async fn migrate(client: &mut Client) -> Result<(), Failed> {
    let versions = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version(client).await? == versions {
        return Ok(());
    }
    let transaction = call(client.transaction()).await?;
    call(transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATING])).await?;
    let known = version(transaction.client()).await?;
    if known > versions {
        let why = "the records belong to a newer version of consent-gate; use that one";
        return Err(Failed::new(format!("PostgreSQL: {why}")));
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(known).unwrap_or(0)) {
        call(transaction.batch_execute(migration)).await.map_err(|failed| {
            let remedy = "let this role create tables in its schema once (docs/postgresql.md)";
            Failed::new(format!("cannot make the tables of the records: {failed}; {remedy}"))
        })?;
    }
    let upsert = "INSERT INTO consent_gate_notes VALUES ('version', $1)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    call(transaction.execute(upsert, &[&versions.to_string()])).await?;
    call(transaction.commit()).await
}

async fn version(client: &Client) -> Result<i64, Failed> {
    let found = call(client.query_one("SELECT to_regclass('consent_gate_notes') IS NOT NULL", &[])).await?;
    if !column::<bool>(&found, 0)? {
        return Ok(0);
    }
    Ok(note(client, "version").await?.and_then(|version| version.parse().ok()).unwrap_or(0))
}

/// Starts a task without which the store is to be opened anew.
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

/// Answers reads, all of a moment in one statement.
async fn serve_reads(
    session: Session,
    read: Statement,
    mut asked: mpsc::UnboundedReceiver<Asked>,
    has_failed: Arc<AtomicBool>,
) {
    let mut round = Vec::with_capacity(ROUND);
    while asked.recv_many(&mut round, ROUND).await > 0 {
        let keys: HashSet<&[u8]> = round.iter().map(|asked| &asked.key[..]).collect();
        let keys: Vec<&[u8]> = keys.into_iter().collect();
        let found = match call(session.client.query(&read, &[&keys])).await {
            Ok(rows) => rows.iter().map(seen).collect::<Result<HashMap<Key, Seen>, Failed>>(),
            Err(failed) => Err(failed),
        };
        has_failed.fetch_or(found.is_err(), Ordering::Relaxed);
        for Asked { key, answer } in round.drain(..) {
            let seen = found.as_ref().map(|found| found.get(&key).cloned().unwrap_or_default());
            // Who went away meanwhile does not wait for it.
            let _ = answer.send(seen.map_err(Clone::clone));
        }
    }
}

fn seen(row: &tokio_postgres::Row) -> Result<(Key, Seen), Failed> {
    let record: &str = column(row, 2)?;
    // What it says is somebody's: only where it is wrong may be told.
    let record = serde_json::from_str(record)
        .map_err(|error| Failed::new(format!("a record is damaged at column {}", error.column())))?;
    Ok((key_of(row)?, Seen { revision: column(row, 1)?, record, swept: None }))
}

/// A time as the client takes it; nothing was merged before 1970.
fn system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + at.duration_since(Timestamp::UNIX_EPOCH).try_into().unwrap_or(Duration::ZERO)
}

fn key_of(row: &tokio_postgres::Row) -> Result<Key, Failed> {
    let key: &[u8] = column(row, 0)?;
    key.try_into().map_err(|_| Failed::new("a record's key is damaged"))
}

/// Writes, all of a moment in one statement.
async fn serve_writes(
    session: Session,
    write: Statement,
    mut written: mpsc::UnboundedReceiver<Written>,
    has_failed: Arc<AtomicBool>,
) {
    let mut round = Vec::with_capacity(ROUND);
    while written.recv_many(&mut round, ROUND).await > 0 {
        // A statement takes a row once; who comes second was overtaken.
        let mut taken = HashSet::new();
        let (mut batch, overtaken): (Vec<Written>, Vec<Written>) =
            round.drain(..).partition(|written| taken.insert(written.key));
        for Written { answer, .. } in overtaken {
            let _ = answer.send(Ok(false));
        }
        batch.sort_unstable_by_key(|written| written.key);
        let keys: Vec<&[u8]> = batch.iter().map(|written| &written.key[..]).collect();
        let revisions: Vec<i64> = batch.iter().map(|written| written.revision).collect();
        let merged: Vec<SystemTime> = batch.iter().map(|written| system_time(written.merged)).collect();
        let records: Vec<&str> = batch.iter().map(|written| written.record.as_str()).collect();
        let rows = call(session.client.query(&write, &[&keys, &revisions, &merged, &records])).await;
        let done = rows.and_then(|rows| rows.iter().map(key_of).collect::<Result<HashSet<Key>, Failed>>());
        has_failed.fetch_or(done.is_err(), Ordering::Relaxed);
        for Written { key, answer, .. } in batch {
            let was_written = done.as_ref().map(|done| done.contains(&key));
            // Who went away meanwhile does not wait for it.
            let _ = answer.send(was_written.map_err(Clone::clone));
        }
    }
}

/// Says that this process lives, for as long as it handles suspects: another worker that gets one of
/// them must not take it for what killed this one.
async fn say_alive(session: Arc<Session>, suspects: Arc<AtomicUsize>, own: String) {
    loop {
        tokio::time::sleep(ALIVE_EVERY).await;
        if suspects.load(Ordering::Relaxed) > 0 {
            // What fails here fails where somebody waits for it, too.
            let _ = call(session.client.execute(SAY_ALIVE, &[&own])).await;
        }
    }
}

/// Forgets, once a day, who was not heard of for longer than the retention. What fails is done by
/// another worker, or the next day.
async fn sweep(address: &Address, retention: SignedDuration) {
    loop {
        if let (Ok(session), Ok(before)) = (Session::open(address).await, Timestamp::now().checked_sub(retention)) {
            let before = system_time(before);
            let mut deleted = u64::MAX;
            while deleted > 0 {
                deleted = call(session.client.execute(SWEEP, &[&before, &SWEEP_ROUND])).await.unwrap_or(0);
            }
            if let Ok(before) = Timestamp::now().checked_sub(FORGOTTEN_AFTER) {
                let _ = call(session.client.execute(SWEEP_SUSPECTS, &[&system_time(before)])).await;
            }
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}
