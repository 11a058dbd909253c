//! The embedded store: a log-structured one on this machine's disk, held by one process at a time.
//!
//! A write is seen at once. All writes of a moment go to the disk together, beside everything else:
//! a person's record that changes twice meanwhile is written once, and one sync serves all who wait.

use super::group_commit::{self, Answer, Packed, Shared};
use super::keys::{IDENTITY_BYTES, Key, Prefix, SECRET_BYTES, prefix_of};
use super::rules::{Write, forgotten_until, lapse};
use super::store::{EPOCH, OWN_NOTES, Origin};
use super::{Claim, Failed, Known, Note, Record, codec};
use crate::bytes::{hex, random};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::ops::Bound;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the names of notes about suspects begin with, and of those up to when persons were forgotten.
const SUSPECT: &str = "suspect ";
const SWEPT: &str = "swept ";
/// How often records that outlived the retention are looked for.
const SWEEP_EVERY: SignedDuration = SignedDuration::from_hours(24);
/// The most records that are forgotten together.
const SWEEP_ROUND: usize = 10_000;
/// Bytes of the library's cache, and of what it keeps in memory until it is written in order: small,
/// since an event looks at one record and most are not looked at again soon.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
const MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of the journals on disk before what is in them is written in order: the least that is allowed.
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

/// Up to when persons of an integration's records were forgotten.
type Swept = Arc<Mutex<HashMap<Prefix, Timestamp>>>;

/// The end of a store that failed: a disk that hangs holds it up.
pub struct Ending(Arc<Shared>);

impl Ending {
    /// Whether the store may be opened anew.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_let_go()
    }
}

impl std::fmt::Debug for Ending {
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

/// Makes the directory where it is absent, for its owner alone. One that is there keeps its rights: it is
/// somebody's, and the program makes files for their owner alone anyway. One that holds other things
/// would be shared with them, and is taken for a mistake. The name of what is made, and those of
/// directories made above it, lie in the one above and are synced, or a cut of the power could take the
/// whole store.
fn make(directory: &Path) -> std::io::Result<()> {
    let is_absent = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let made: Vec<&Path> = directory.ancestors().take_while(is_absent).collect();
    if made.is_empty() {
        looked_at(directory)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for path in made {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(above)?.sync_all()?;
    }
    Ok(())
}

/// Whether a directory holds a store; one that is there and holds other things is none and cannot become one.
pub(super) fn looked_at(directory: &Path) -> std::io::Result<bool> {
    if is_in(directory) {
        return Ok(true);
    }
    if directory.exists() && holds_others(directory)? {
        let why = "it holds other files and no records; name a directory of their own, such as one below it";
        return Err(std::io::Error::other(why));
    }
    Ok(false)
}

/// Whether there is something in a directory that is not of a store, nor of one that was begun.
fn holds_others(directory: &Path) -> std::io::Result<bool> {
    const OWN: [&str; 4] = ["lock", "keyspaces", super::control_socket::SOCKET, "lost+found"];
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let is_own = OWN.iter().any(|own| name == *own) || Path::new(&name).extension().is_some_and(|end| end == "jnl");
        if !is_own {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Syncs the names in a directory and in those below: the library syncs files and the directories that
/// they are in, but not always the directory in which it made another one.
fn sync_names(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_names(&entry.path())?;
        }
    }
    fs::File::open(directory)?.sync_all()
}

/// Whether there is a store in a directory. What cannot be looked at is told by whoever opens it.
pub(super) fn is_in(directory: &Path) -> bool {
    !matches!(directory.join("version").try_exists(), Ok(false))
}

impl Embedded {
    /// Opens the store in a directory, or makes one there that only its owner can read; with an origin, as
    /// its copy. Runs on a thread of the runtime, which serves its writes.
    ///
    /// # Errors
    /// Another process holds it, it cannot be read or written, or it holds other records than its origin's.
    pub(super) fn open(
        directory: &Path,
        retention: SignedDuration,
        origin: Option<&Origin>,
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

    /// Whether nothing failed so far.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.shared.is_closed() && !self.has_failed.load(Ordering::Relaxed)
    }

    /// Says, for as long as somebody asks, whether the files are closed after a failure.
    #[must_use]
    pub fn ending(&self) -> Ending {
        Ending(Arc::clone(&self.shared))
    }

    /// The key under which identifiers are hashed; it never leaves the store's directory.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// Reads a record, changes it and writes it, as one step. Other changes see it at once; the
    /// answer comes when it is as safe as the change asks for.
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
            // Asked for after the record was: it may be forgotten right now.
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
    ) -> Result<(T, Option<Answer>), Failed> {
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

    /// Which store it is, and how far it got.
    ///
    /// # Errors
    /// The store failed.
    pub fn claim(&self) -> Result<Claim, Failed> {
        let epoch = self.note(EPOCH)?.and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        Ok(Claim { store: hex(&self.identity), epoch })
    }

    /// Begins another epoch; the answer comes when that is durable.
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

    /// How often a record was written since it was opened.
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

    /// What makes a copy of it the same store.
    pub(super) fn origin(&self) -> Origin {
        Origin { secret: self.secret, identity: self.identity }
    }

    /// So many records at most, in the order of their keys, after this one; as they are on the disk.
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

    /// Writes a note; the answer comes when it is durable.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_note(&self, name: &str, text: &str) -> Result<(), Failed> {
        self.shared.note(name.to_owned(), Some(text.to_owned())).await.map_err(|_| Failed::closed())?
    }

    /// What is known of a suspect. Only one process has the store, so every other holder is dead.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn suspect(&self, key: Key, own: &str) -> Result<Known, Failed> {
        let note = self.note(&suspect_name(key))?.and_then(|text| Note::from_text(&text));
        Ok(Note::known(note.as_ref(), own, |_| false))
    }

    /// Notes a suspect; the answer comes when that is durable.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn note_suspect(&self, key: Key, note: &Note) -> Result<(), Failed> {
        self.set_note(&suspect_name(key), &note.to_text()).await
    }

    /// Forgets a suspect, soon.
    pub(super) fn forget_suspect(&self, key: Key) {
        // Nobody waits for it: what is not removed costs an innocent one a place among few.
        drop(self.shared.note(suspect_name(key), None));
    }

    fn checked<T>(&self, read: impl FnOnce() -> fjall::Result<T>) -> Result<T, Failed> {
        sound(read).map_err(|why| self.failed(why))
    }

    /// After a failure nobody may rely on what is in memory: the store is to be opened again, and
    /// shows what is really on the disk.
    fn failed(&self, why: String) -> Failed {
        self.has_failed.store(true, Ordering::Relaxed);
        Failed::new(why)
    }
}

/// The library panics at some damages: they are failures as all others.
fn sound<T>(work: impl FnOnce() -> fjall::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("its files are damaged".to_owned()),
    }
}

/// Random bytes that the store keeps under a name; made when they are first asked for.
fn kept<const N: usize>(database: &Database, notes: &Keyspace, name: &str) -> Result<[u8; N], String> {
    let found = sound(|| notes.get(name))?;
    if let Some(bytes) = found.and_then(|bytes| bytes.as_ref().try_into().ok()) {
        return Ok(bytes);
    }
    let bytes = random::<N>()?;
    sound(|| notes.insert(name, bytes).and_then(|()| database.persist(PersistMode::SyncAll)))?;
    Ok(bytes)
}

/// Makes a store that knows nothing the copy of another.
fn take_over(database: &Database, records: &Keyspace, notes: &Keyspace, origin: &Origin) -> Result<(), String> {
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

/// Brings writes to the disk.
pub(super) struct Writer {
    database: Database,
    records: Keyspace,
    notes: Keyspace,
    retention: SignedDuration,
    swept: Swept,
    last_sweep: Option<Timestamp>,
}

impl Writer {
    /// One round; `must_last` syncs it.
    pub(super) fn write(
        &mut self,
        records: &[Packed],
        notes: Vec<(String, Option<String>)>,
        must_last: bool,
    ) -> Result<(), Failed> {
        let mut batch = self.database.batch();
        for Packed { key, bytes, .. } in records {
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

    /// Once a day: forgets who was not heard of for longer than the retention, what was erased and is
    /// not needed any more, and suspects that never came back.
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

    /// Forgets records, and remembers up to when. Whoever finds no record sees that first.
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
                batch.insert(&self.notes, format!("{SWEPT}{}", hex(&prefix)), known.to_string());
            }
        }
        for key in keys {
            batch.remove(&self.records, key);
        }
        batch.commit()?;
        self.database.persist(PersistMode::SyncData)
    }
}

/// Up to when persons were forgotten, as it was noted.
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
    format!("{SUSPECT}{}", hex(&key))
}
