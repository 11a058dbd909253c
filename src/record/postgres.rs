//! The shared store: records in PostgreSQL, for any number of workers.
//!
//! A record is one row with a revision that grows with each write. A writer names the revision that it read,
//! so of two workers one writes and the other reads again: merging is done in one place, here, and each
//! change is one step. Reads that come close together are one statement, and so are writes, sorted by key so
//! that no two statements deadlock.

use super::address::{Address, CALL_TIMEOUT, describe};
use super::kept::{EPOCH, OWN_NOTES, Origin, Seen};
use super::keys::{IDENTITY_BYTES, Key, Prefix, SECRET_BYTES, prefix_of};
use super::rules::{Write, forgotten_until};
use super::suspects::FORGOTTEN_AFTER;
use super::{Claim, Failed, Known, Note, Record};
use crate::bytes::{hex, random};
use crate::task;
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

/// The most records of one statement.
const ROUND: usize = 256;
/// How often records older than the retention are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3_600);
const SWEEP_AGAIN: Duration = Duration::from_secs(60);
/// The most records that one statement of a sweep deletes, so that it blocks nobody for long.
const SWEEP_ROUND: i64 = 10_000;
/// How often a worker reports that it is alive while it handles suspects, and after how many seconds without
/// a report it counts as dead.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
const DEAD_AFTER_SECONDS: f64 = 10.0;
/// How often the database's clock is compared with this machine's, and the difference from which a warning is
/// logged.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
const FAR_APART: SignedDuration = SignedDuration::from_secs(5);
/// The key of the advisory lock (any number): workers that start together create the tables one after the
/// other.
const MIGRATING: i64 = 0x636f_6e73_656e_7467;

/// The migrations, one for each version of the schema, from the first. Released ones never change.
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

/// Wraps every statement, so that none depends on its session and none is executed by another server than the
/// one that was opened: behind a pooler or a host name the server may change while the connection stays. `$1`
/// is when the server started; statements that write check `is_same`.
fn whole(body: &str) -> String {
    format!(
        "WITH server AS (SELECT pg_postmaster_start_time() = $1 AS is_same), done AS ({body})
        SELECT is_same, done.* FROM server LEFT JOIN (SELECT true AS is_there, * FROM done) AS done ON true"
    )
}

const READ: &str = "SELECT key, revision, record FROM consent_gate_records WHERE key = ANY($2)";
/// Writes the records that nobody else has written since they were read, and returns which those were.
const WRITE: &str = "
    INSERT INTO consent_gate_records AS known (key, revision, merged, record)
    SELECT * FROM unnest($2::bytea[], $3::bigint[], $4::timestamptz[], $5::text[])
    WHERE (SELECT is_same FROM server) ORDER BY 1
    ON CONFLICT (key) DO UPDATE
        SET revision = excluded.revision, merged = excluded.merged, record = excluded.record
        WHERE known.revision = excluded.revision - 1
    RETURNING key";
/// The same for writes that nobody waits for: a commit that is lost in a crash of the database costs only an
/// extra request.
const WRITE_LATER: &str = "
    INSERT INTO consent_gate_records AS known (key, revision, merged, record)
    SELECT * FROM unnest($2::bytea[], $3::bigint[], $4::timestamptz[], $5::text[])
    WHERE (SELECT is_same AND set_config('synchronous_commit', 'off', true) = 'off' FROM server) ORDER BY 1
    ON CONFLICT (key) DO UPDATE
        SET revision = excluded.revision, merged = excluded.merged, record = excluded.record
        WHERE known.revision = excluded.revision - 1
    RETURNING key";
const PAGE: &str = "SELECT key, revision, record FROM consent_gate_records WHERE key > $2 ORDER BY key LIMIT $3";
/// Makes an empty store the copy of another, in one step.
const TAKE_OVER: &str = "
    INSERT INTO consent_gate_notes SELECT * FROM unnest($2::text[], $3::text[])
    WHERE (SELECT is_same FROM server) AND NOT EXISTS (SELECT FROM consent_gate_records)
        AND NOT EXISTS (SELECT FROM consent_gate_notes WHERE name = 'epoch')
    ON CONFLICT (name) DO UPDATE SET value = excluded.value RETURNING name";
const NOTES: &str = "SELECT name, value FROM consent_gate_notes";
const NOTE: &str = "SELECT value FROM consent_gate_notes WHERE name = $2";
const KEEP_NOTE: &str = "
    INSERT INTO consent_gate_notes SELECT $2, $3 WHERE (SELECT is_same FROM server)
    ON CONFLICT DO NOTHING RETURNING name";
const SET_NOTE: &str = "
    INSERT INTO consent_gate_notes SELECT $2, $3 WHERE (SELECT is_same FROM server)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value RETURNING name";
const ADVANCE: &str = "
    INSERT INTO consent_gate_notes AS note SELECT 'epoch', '1' WHERE (SELECT is_same FROM server)
    ON CONFLICT (name) DO UPDATE SET value = (note.value::bigint + 1)::text RETURNING value";
const COUNT: &str = "SELECT count(*) FROM consent_gate_records";
/// The note of a suspect, and whether its holder reported recently that it is alive.
const SUSPECT: &str = "
    SELECT deaths, holder, at, at > now() - make_interval(secs => $3) FROM consent_gate_suspects WHERE key = $2";
const NOTE_SUSPECT: &str = "
    INSERT INTO consent_gate_suspects SELECT $2, $3, $4, now() WHERE (SELECT is_same FROM server)
    ON CONFLICT (key) DO UPDATE SET deaths = excluded.deaths, holder = excluded.holder, at = excluded.at
    RETURNING key";
const FORGET_SUSPECT: &str = "
    DELETE FROM consent_gate_suspects WHERE key = $2 AND (SELECT is_same FROM server) RETURNING key";
const SAY_ALIVE: &str = "
    UPDATE consent_gate_suspects SET at = now() WHERE holder = $2 AND (SELECT is_same FROM server) RETURNING key";
const SWEEP_SUSPECTS: &str = "
    DELETE FROM consent_gate_suspects WHERE at < $2 AND (SELECT is_same FROM server) RETURNING key";
/// Remembers the time up to which persons are forgotten, before they are.
const MARK_SWEPT: &str = "
    INSERT INTO consent_gate_notes
    SELECT DISTINCT 'swept ' || encode(substring(key FROM 1 FOR 4), 'hex'), $3 FROM consent_gate_records
    WHERE merged < $2 AND (SELECT is_same FROM server)
    ON CONFLICT (name) DO UPDATE SET value = greatest(consent_gate_notes.value, excluded.value) RETURNING name";
const SWEPT: &str = "
    SELECT decode(substring(name FROM 7), 'hex'), value FROM consent_gate_notes
    WHERE name LIKE 'swept %'";
const SWEEP: &str = "
    DELETE FROM consent_gate_records WHERE (SELECT is_same FROM server) AND key IN
        (SELECT key FROM consent_gate_records WHERE merged < $2 LIMIT $3 FOR UPDATE SKIP LOCKED) RETURNING key";

/// The server that was opened, and the schema of its tables.
#[derive(Clone, Debug)]
struct Home {
    started: SystemTime,
    /// Quoted as an identifier.
    schema: String,
}

/// One connection; every wait for an answer is bounded. Dropping it ends the connection.
struct Session {
    client: Client,
    connection: JoinHandle<()>,
    home: Home,
    has_failed: Arc<AtomicBool>,
}

impl Session {
    /// Connects, and checks that it reaches the same server. The sessions need to run statements in parallel,
    /// which a pooler in session mode may not allow.
    async fn open(address: &Address, home: &Home, has_failed: &Arc<AtomicBool>) -> Result<Session, Failed> {
        let (client, connection) = address.connect().await?;
        let (home, has_failed) = (home.clone(), Arc::clone(has_failed));
        let session = Session { client, connection, home, has_failed };
        session.ask("SELECT true", &[]).await.map_err(|failed| {
            let pooler = "a pooler in session mode needs room for four connections of each worker, or transaction mode";
            Failed::new(format!("{failed} ({pooler})"))
        })?;
        Ok(session)
    }

    /// Runs a statement and returns its rows, whose own columns begin at [`OWN`]. It uses no named prepared
    /// statement, so that each statement may use another server connection of a pooler.
    async fn ask(&self, body: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Failed> {
        let tables = format!("{}.consent_gate_", self.home.schema);
        let statement = whole(body).replace("consent_gate_", &tables);
        let started: Param<'_> = (&self.home.started, Type::TIMESTAMPTZ);
        let params: Vec<Param<'_>> = std::iter::once(started).chain(params.iter().cloned()).collect();
        let mut rows = call(self.client.query_typed(&statement, &params)).await?;
        let is_same = rows.first().map(|row| column::<bool>(row, 0)).transpose()?.unwrap_or(false);
        if !is_same {
            self.has_failed.store(true, Ordering::Relaxed);
            return Err(Failed::new("PostgreSQL: a different server answers than the one that was opened"));
        }
        rows.retain(|row| matches!(row.try_get::<_, Option<bool>>(1), Ok(Some(true))));
        Ok(rows)
    }
}

/// A parameter of a statement with its type, so that the server need not be asked for it.
type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The index at which a row's own columns begin.
const OWN: usize = 2;

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
    /// The revision after the write.
    revision: i64,
    merged: Timestamp,
    record: String,
    /// Whether it was written; false if another worker was faster.
    answer: oneshot::Sender<Result<bool, Failed>>,
}

/// The open store; dropping it ends its connections.
pub struct Postgres {
    secret: [u8; SECRET_BYTES],
    identity: [u8; IDENTITY_BYTES],
    reads: mpsc::UnboundedSender<Asked>,
    durable: mpsc::UnboundedSender<Written>,
    later: mpsc::UnboundedSender<Written>,
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
        origin: Option<&Origin>,
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

    /// What a copy of it takes over to be the same store.
    pub(super) fn origin(&self) -> Origin {
        Origin { secret: self.secret, identity: self.identity }
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

    /// What is known about a suspect.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn suspect(&self, key: Key, own: &str) -> Result<Known, Failed> {
        let of: [Param<'_>; 2] = [(&&key[..], Type::BYTEA), (&DEAD_AFTER_SECONDS, Type::FLOAT8)];
        let rows = self.notes.ask(SUSPECT, &of).await?;
        let Some(row) = rows.first() else { return Ok(Known::Deaths(0)) };
        let at = Timestamp::try_from(column::<SystemTime>(row, OWN + 2)?).unwrap_or(Timestamp::UNIX_EPOCH);
        let deaths = u32::try_from(column::<i64>(row, OWN)?).unwrap_or(u32::MAX);
        let note = Note { deaths, holder: column(row, OWN + 1)?, at };
        let is_alive: bool = column(row, OWN + 3)?;
        Ok(Note::known(Some(&note), own, |_| is_alive))
    }

    /// Notes a suspect; durable on return.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn note_suspect(&self, key: Key, note: &Note) -> Result<(), Failed> {
        let deaths = i64::from(note.deaths);
        let of: [Param<'_>; 3] = [(&&key[..], Type::BYTEA), (&deaths, Type::INT8), (&note.holder, Type::TEXT)];
        self.notes.ask(NOTE_SUSPECT, &of).await.map(drop)
    }

    /// Forgets a suspect.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn forget_suspect(&self, key: Key) -> Result<(), Failed> {
        self.notes.ask(FORGET_SUSPECT, &[(&&key[..], Type::BYTEA)]).await.map(drop)
    }

    /// How many suspects this process is handling.
    pub(super) fn suspects(&self) -> &AtomicUsize {
        &self.suspects
    }

    /// The store's identity and epoch.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim(&self) -> Result<Claim, Failed> {
        let epoch = self.note(EPOCH).await?;
        Ok(Claim { store: hex(&self.identity), epoch: epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0) })
    }

    /// Begins another epoch; durable on return.
    ///
    /// # Errors
    /// The database failed.
    pub async fn advance(&self) -> Result<Claim, Failed> {
        let rows = self.notes.ask(ADVANCE, &[]).await?;
        let epoch: String = rows.first().map(|row| column(row, OWN)).transpose()?.unwrap_or_default();
        Ok(Claim { store: hex(&self.identity), epoch: epoch.parse().unwrap_or(0) })
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

fn column<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, index: usize) -> Result<T, Failed> {
    row.try_get(index).map_err(|error| Failed::new(format!("PostgreSQL: {}", describe(&error))))
}

async fn note(session: &Session, name: &str) -> Result<Option<String>, Failed> {
    let rows = session.ask(NOTE, &[(&name, Type::TEXT)]).await?;
    rows.first().map(|row| column(row, OWN)).transpose()
}

/// Random bytes that the store keeps under a name; created by the first process that asks for them.
async fn kept<const N: usize>(session: &Session, name: &str) -> Result<[u8; N], Failed> {
    let made = hex(&random::<N>().map_err(Failed::new)?);
    if note(session, name).await?.is_none() {
        session.ask(KEEP_NOTE, &[(&name, Type::TEXT), (&made, Type::TEXT)]).await?;
    }
    let text = note(session, name).await?.unwrap_or_default();
    let byte = |index: usize| text.get(2 * index..2 * index + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let mut bytes = [0; N];
    for (index, place) in bytes.iter_mut().enumerate() {
        *place = byte(index).ok_or_else(|| Failed::new(format!("consent_gate_notes: {name} is damaged")))?;
    }
    Ok(bytes)
}

/// Makes an empty store the copy of another.
async fn take_over(session: &Session, origin: &Origin, address: &Address) -> Result<(), Failed> {
    let identity = hex(&origin.identity);
    if note(session, "identity").await?.as_ref() == Some(&identity) {
        return Ok(());
    }
    let (mark, of) = origin.mark();
    let (names, texts) = (vec!["secret", "identity", mark], vec![hex(&origin.secret), identity, of]);
    let taken = session.ask(TAKE_OVER, &[(&names, Type::TEXT_ARRAY), (&texts, Type::TEXT_ARRAY)]).await?;
    if taken.is_empty() {
        let at = address.shown();
        let why = "they are other records, which are in use; name an empty place";
        return Err(Failed::new(format!("cannot copy into the records in PostgreSQL at {at}: {why}")));
    }
    Ok(())
}

/// Whether there are tables of records.
pub(super) async fn is_at(address: &Address) -> Result<bool, Failed> {
    let (client, connection) = address.connect().await?;
    let found = async { version(&client, &find(&client, address).await?.schema).await }.await;
    connection.abort();
    Ok(found? > 0)
}

/// Creates the tables if they are missing, and returns where they are.
async fn home(address: &Address) -> Result<Home, Failed> {
    let (mut client, connection) = address.connect().await?;
    let found = async {
        let home = find(&client, address).await?;
        migrate(&mut client, &home.schema).await?;
        Ok(home)
    }
    .await;
    connection.abort();
    found
}

/// Finds which server it is, and in which schema the tables are or will be created.
async fn find(client: &Client, address: &Address) -> Result<Home, Failed> {
    let find = "SELECT pg_postmaster_start_time(), quote_ident(coalesce($1,
        (SELECT nspname::text FROM pg_class JOIN pg_namespace AS schema ON schema.oid = relnamespace
            WHERE pg_class.oid = to_regclass('consent_gate_notes')), current_schema()::text))";
    let row = call(client.query_typed_one(find, &[(&address.schema(), Type::TEXT)])).await?;
    let schema: Option<String> = column(&row, 1)?;
    let remedy = "create one, or name one with options=-csearch_path%3Dmine (docs/postgresql.md)";
    let none = || Failed::new(format!("PostgreSQL: this role finds no schema: {remedy}"));
    Ok(Home { started: column(&row, 0)?, schema: schema.ok_or_else(none)? })
}

/// Migrates the tables to this version. If they are up to date, a role without the right to create tables
/// suffices.
async fn migrate(client: &mut Client, schema: &str) -> Result<(), Failed> {
    let versions = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version(client, schema).await? == versions {
        return Ok(());
    }
    let transaction = call(client.transaction()).await?;
    call(transaction.execute_typed("SELECT pg_advisory_xact_lock($1)", &[(&MIGRATING, Type::INT8)])).await?;
    call(transaction.batch_execute(&format!("SET LOCAL search_path TO {schema}"))).await?;
    let known = version(transaction.client(), schema).await?;
    if known > versions {
        let why = "the records belong to a newer version of consent-gate; use that one";
        return Err(Failed::new(format!("PostgreSQL: {why}")));
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(known).unwrap_or(0)) {
        call(transaction.batch_execute(migration)).await.map_err(|failed| {
            let remedy = "let this role create tables in its schema once (docs/postgresql.md)";
            Failed::new(format!("cannot create the tables of the records: {failed}; {remedy}"))
        })?;
    }
    let upsert = "INSERT INTO consent_gate_notes VALUES ('version', $1)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    call(transaction.execute_typed(upsert, &[(&versions.to_string(), Type::TEXT)])).await?;
    call(transaction.commit()).await
}

async fn version(client: &Client, schema: &str) -> Result<i64, Failed> {
    let notes = format!("{schema}.consent_gate_notes");
    let found = call(client.query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(&notes, Type::TEXT)])).await?;
    if !column::<bool>(&found, 0)? {
        return Ok(0);
    }
    let query = format!("SELECT value FROM {notes} WHERE name = 'version'");
    let row = call(client.query_typed_opt(&query, &[])).await?;
    let version: Option<String> = row.map(|row| column(&row, 0)).transpose()?;
    Ok(version.and_then(|version| version.parse().ok()).unwrap_or(0))
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

/// Serves reads, in batches of one statement.
async fn serve_reads(session: Session, mut asked: mpsc::UnboundedReceiver<Asked>) {
    let mut round = Vec::with_capacity(ROUND);
    while asked.recv_many(&mut round, ROUND).await > 0 {
        let keys: HashSet<&[u8]> = round.iter().map(|asked| &asked.key[..]).collect();
        let keys: Vec<&[u8]> = keys.into_iter().collect();
        let rows = session.ask(READ, &[(&keys, Type::BYTEA_ARRAY)]).await;
        // Read afterwards: a person who is not on record may just be being forgotten.
        let swept = match &rows {
            Ok(rows) if rows.len() < keys.len() => session.ask(SWEPT, &[]).await,
            _ => Ok(Vec::new()),
        };
        let found = rows.and_then(|rows| rows.iter().map(seen).collect::<Result<HashMap<Key, Seen>, Failed>>());
        let swept =
            swept.and_then(|rows| rows.iter().map(mark).collect::<Result<HashMap<Prefix, Timestamp>, Failed>>());
        let found = found.and_then(|found| Ok((found, swept?)));
        session.has_failed.fetch_or(found.is_err(), Ordering::Relaxed);
        for Asked { key, answer } in round.drain(..) {
            let seen = found.as_ref().map(|(found, swept)| {
                let unknown = || Seen { swept: swept.get(&prefix_of(&key)).copied(), ..Seen::default() };
                found.get(&key).cloned().unwrap_or_else(unknown)
            });
            // The caller may have gone away meanwhile.
            let _ = answer.send(seen.map_err(Clone::clone));
        }
    }
}

fn seen(row: &Row) -> Result<(Key, Seen), Failed> {
    let record: &str = column(row, OWN + 2)?;
    // The record is personal: only the position of the error may be logged.
    let record = serde_json::from_str(record)
        .map_err(|error| Failed::new(format!("a record is damaged at column {}", error.column())))?;
    Ok((key_of(row)?, Seen { revision: column(row, OWN + 1)?, record, swept: None }))
}

/// The time up to which persons of an integration's records were forgotten.
fn mark(row: &Row) -> Result<(Prefix, Timestamp), Failed> {
    let (prefix, until): (&[u8], &str) = (column(row, OWN)?, column(row, OWN + 1)?);
    let until = until.parse().map_err(|_| Failed::new("consent_gate_notes: up to when was swept is damaged"))?;
    Ok((prefix_of(prefix), until))
}

/// Converts a time for the client; nothing was merged before 1970.
fn system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + at.duration_since(Timestamp::UNIX_EPOCH).try_into().unwrap_or(Duration::ZERO)
}

fn key_of(row: &Row) -> Result<Key, Failed> {
    let key: &[u8] = column(row, OWN)?;
    key.try_into().map_err(|_| Failed::new("a record's key is damaged"))
}

/// Serves writes, in batches of one statement.
async fn serve_writes(session: Session, write: &'static str, mut written: mpsc::UnboundedReceiver<Written>) {
    let mut round = Vec::with_capacity(ROUND);
    while written.recv_many(&mut round, ROUND).await > 0 {
        // A statement can write a row only once; a second write of it counts as overtaken.
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
        let columns: [Param<'_>; 4] = [
            (&keys, Type::BYTEA_ARRAY),
            (&revisions, Type::INT8_ARRAY),
            (&merged, Type::TIMESTAMPTZ_ARRAY),
            (&records, Type::TEXT_ARRAY),
        ];
        let rows = session.ask(write, &columns).await;
        let done = rows.and_then(|rows| rows.iter().map(key_of).collect::<Result<HashSet<Key>, Failed>>());
        session.has_failed.fetch_or(done.is_err(), Ordering::Relaxed);
        for Written { key, answer, .. } in batch {
            let was_written = done.as_ref().map(|done| done.contains(&key));
            // The caller may have gone away meanwhile.
            let _ = answer.send(was_written.map_err(Clone::clone));
        }
    }
}

/// How far the database's clock is ahead of this machine's, in microseconds.
#[derive(Debug, Default)]
struct Clock(AtomicI64);

impl Clock {
    fn offset(&self) -> SignedDuration {
        SignedDuration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// Asks for the time; the answer is half a round trip old.
    async fn measure(&self, session: &Session) -> Result<(), Failed> {
        let before = Timestamp::now();
        let rows = session.ask("SELECT clock_timestamp()", &[]).await?;
        let took = Timestamp::now().duration_since(before);
        let Some(row) = rows.first() else { return Ok(()) };
        let theirs = Timestamp::try_from(column::<SystemTime>(row, OWN)?).unwrap_or(before);
        let offset = theirs.duration_since(before) - took / 2;
        let known = self.0.swap(i64::try_from(offset.as_micros()).unwrap_or(i64::MAX), Ordering::Relaxed);
        let is_far = |offset: SignedDuration| offset.abs() > FAR_APART;
        if is_far(offset) && !is_far(SignedDuration::from_micros(known)) {
            let ahead = offset.as_secs_f64();
            tracing::warn!(ahead, "the database's clock and this machine's are seconds apart: synchronize both");
        }
        Ok(())
    }
}

async fn keep_time(session: Arc<Session>, clock: Arc<Clock>) {
    loop {
        tokio::time::sleep(MEASURE_EVERY).await;
        // An error here also occurs where somebody waits for an answer.
        let _ = clock.measure(&session).await;
    }
}

/// Reports that this process is alive while it handles suspects: another worker that gets one of them must
/// not conclude that the message killed this process.
async fn say_alive(session: Arc<Session>, suspects: Arc<AtomicUsize>, own: String) {
    loop {
        tokio::time::sleep(ALIVE_EVERY).await;
        if suspects.load(Ordering::Relaxed) > 0 {
            // An error here also occurs where somebody waits for an answer.
            let _ = session.ask(SAY_ALIVE, &[(&own, Type::TEXT)]).await;
        }
    }
}

/// Once a day, forgets persons without an event for longer than the retention. If that fails, another worker
/// does it, or the next day's sweep.
async fn sweep(address: &Address, home: &Home, retention: SignedDuration) {
    loop {
        // Failures of the sweep do not affect the store.
        let own = Arc::new(AtomicBool::new(false));
        let session = Session::open(address, home, &own).await;
        if let (Ok(session), Ok(before)) = (session, Timestamp::now().checked_sub(retention)) {
            let oldest: [Param<'_>; 2] = [(&system_time(before), Type::TIMESTAMPTZ), (&SWEEP_ROUND, Type::INT8)];
            // In a format in which a later time is a greater text.
            let until = forgotten_until(retention, Timestamp::now()).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let marked: [Param<'_>; 2] = [(&system_time(before), Type::TIMESTAMPTZ), (&until, Type::TEXT)];
            if session.ask(MARK_SWEPT, &marked).await.is_err() {
                tokio::time::sleep(SWEEP_AGAIN).await;
                continue;
            }
            while session.ask(SWEEP, &oldest).await.is_ok_and(|deleted| !deleted.is_empty()) {}
            if let Ok(before) = Timestamp::now().checked_sub(FORGOTTEN_AFTER) {
                let _ = session.ask(SWEEP_SUSPECTS, &[(&system_time(before), Type::TIMESTAMPTZ)]).await;
            }
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}
