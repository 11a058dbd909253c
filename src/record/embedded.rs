//! The embedded store: a log-structured one on this machine's disk, held by one process at a time.
//!
//! One thread owns it. Writes that come together are made durable together, so that their cost
//! stays far below a request's own; reads see every write that was handed over before them.

use super::{Failed, Record};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use jiff::{SignedDuration, Timestamp};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use tokio::sync::{mpsc, oneshot};

/// The most jobs of one round.
const ROUND: usize = 1024;
/// Bytes of the key under which identifiers are hashed.
const SECRET_BYTES: usize = 32;
/// How often records that outlived the retention are looked for.
const SWEEP_EVERY: SignedDuration = SignedDuration::from_hours(24);

/// A person's key: a keyed hash.
pub type Key = [u8; 16];

enum Job {
    Read { key: Key, reply: oneshot::Sender<Result<Option<Record>, Failed>> },
    Write { key: Key, record: Box<Record>, durable: Option<oneshot::Sender<Result<(), Failed>>> },
    Note { name: String, text: Option<String>, reply: oneshot::Sender<Result<Option<String>, Failed>> },
}

/// A way to the thread that holds the store. When the last one is dropped, it is closed.
#[derive(Clone, Debug)]
pub struct Embedded {
    jobs: mpsc::UnboundedSender<Job>,
    secret: [u8; SECRET_BYTES],
}

impl Embedded {
    /// Opens the store in a directory, or makes one there that only its owner can read.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be read or written.
    pub fn open(directory: &Path, retention: SignedDuration) -> Result<Embedded, Failed> {
        let at = |what: &str, why: &dyn std::fmt::Display| {
            Failed::new(format!("{what} the records in {}: {why}", directory.display()))
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| at("cannot create", &e))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(|e| at("cannot protect", &e))?;
        let database = Database::builder(directory).worker_threads(1).open().map_err(|error| match error {
            fjall::Error::Locked => {
                at("standing by for", &"another worker holds them; this one takes over when that one ends")
            }
            error => at("cannot open", &error),
        })?;
        let keyspace = |name| database.keyspace(name, KeyspaceCreateOptions::default);
        let records = keyspace("records").map_err(|e| at("cannot open", &e))?;
        let notes = keyspace("notes").map_err(|e| at("cannot open", &e))?;
        let secret = secret(&database, &notes).map_err(|e| at("cannot open", &e))?;
        let (jobs, queue) = mpsc::unbounded_channel();
        let holder = Holder { database, records, notes, retention, swept: None };
        let thread = std::thread::Builder::new().name("records".to_owned());
        thread.spawn(move || holder.serve(queue)).map_err(|e| at("cannot serve", &e))?;
        Ok(Embedded { jobs, secret })
    }

    /// Whether nothing failed so far.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// The key under which identifiers are hashed; it never leaves the store's directory.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// What is recorded of a person.
    ///
    /// # Errors
    /// The store failed.
    pub async fn read(&self, key: Key) -> Result<Option<Record>, Failed> {
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Read { key, reply }, answer).await
    }

    /// Records something. It is seen by every later read; the answer comes when it is durable.
    ///
    /// # Errors
    /// The store failed.
    pub fn write(&self, key: Key, record: Record) -> impl Future<Output = Result<(), Failed>> + use<> {
        let (durable, answer) = oneshot::channel();
        let sent = self.jobs.send(Job::Write { key, record: Box::new(record), durable: Some(durable) });
        async move {
            sent.map_err(|_| Failed::closed())?;
            answer.await.map_err(|_| Failed::closed())?
        }
    }

    /// Records something that costs at most a spare request when it is lost: nobody waits for it.
    pub fn write_later(&self, key: Key, record: Record) {
        // A store that is closed has told everybody who waits.
        let _ = self.jobs.send(Job::Write { key, record: Box::new(record), durable: None });
    }

    /// Gives a note of the store about itself, after writing a new one if there is a `text`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn note(&self, name: &str, text: Option<String>) -> Result<Option<String>, Failed> {
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Note { name: name.to_owned(), text, reply }, answer).await
    }

    async fn ask<T>(&self, job: Job, answer: oneshot::Receiver<Result<T, Failed>>) -> Result<T, Failed> {
        self.jobs.send(job).map_err(|_| Failed::closed())?;
        answer.await.map_err(|_| Failed::closed())?
    }
}

/// Reads the store's secret, or makes one.
fn secret(database: &Database, notes: &Keyspace) -> fjall::Result<[u8; SECRET_BYTES]> {
    if let Some(secret) = notes.get("secret")?.and_then(|secret| secret.as_ref().try_into().ok()) {
        return Ok(secret);
    }
    let mut secret = [0; SECRET_BYTES];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut secret)
        .map_err(|_| std::io::Error::other("the system gives no random numbers"))?;
    notes.insert("secret", secret)?;
    database.persist(PersistMode::SyncAll)?;
    Ok(secret)
}

struct Holder {
    database: Database,
    records: Keyspace,
    notes: Keyspace,
    retention: SignedDuration,
    swept: Option<Timestamp>,
}

impl Holder {
    /// Serves until nobody asks any more, or the store fails: then everybody is told and it closes,
    /// so that whoever opens it again sees what is really on the disk.
    fn serve(mut self, mut queue: mpsc::UnboundedReceiver<Job>) {
        let mut round = Vec::with_capacity(ROUND);
        while queue.blocking_recv_many(&mut round, ROUND) > 0 {
            let mut waiting = Vec::new();
            let served = round.drain(..).try_for_each(|job| self.take(job, &mut waiting));
            let durable = served.and_then(|()| self.make_durable(waiting));
            if durable.and_then(|()| self.sweep(Timestamp::now())).is_err() {
                return;
            }
        }
    }

    fn take(&self, job: Job, waiting: &mut Vec<oneshot::Sender<Result<(), Failed>>>) -> Result<(), Failed> {
        match job {
            Job::Read { key, reply } => tell(reply, self.read(key)),
            Job::Note { name, text, reply } => tell(reply, self.note(&name, text)),
            Job::Write { key, record, durable } => {
                let written = self.write(key, &record);
                match (written, durable) {
                    (Ok(()), durable) => waiting.extend(durable),
                    (Err(failed), Some(durable)) => return tell(durable, Err(failed)),
                    (Err(failed), None) => return Err(failed),
                }
                Ok(())
            }
        }
    }

    fn make_durable(&self, waiting: Vec<oneshot::Sender<Result<(), Failed>>>) -> Result<(), Failed> {
        if waiting.is_empty() {
            return Ok(());
        }
        let durable = self.database.persist(PersistMode::SyncData).map_err(|error| Failed::new(error.to_string()));
        for who in waiting {
            let _ = who.send(durable.clone());
        }
        durable
    }

    fn read(&self, key: Key) -> Result<Option<Record>, Failed> {
        let found = self.records.get(key).map_err(|error| Failed::new(error.to_string()))?;
        // What it says is somebody's: only where it is wrong may be told.
        let record = found.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        record.map_err(|error| Failed::new(format!("a record is damaged at column {}", error.column())))
    }

    fn write(&self, key: Key, record: &Record) -> Result<(), Failed> {
        let bytes = serde_json::to_vec(record).map_err(|error| Failed::new(error.to_string()))?;
        self.records.insert(key, bytes).map_err(|error| Failed::new(error.to_string()))
    }

    fn note(&self, name: &str, text: Option<String>) -> Result<Option<String>, Failed> {
        let failed = |error: fjall::Error| Failed::new(error.to_string());
        if let Some(text) = text {
            self.notes.insert(name, text).map_err(failed)?;
            self.database.persist(PersistMode::SyncData).map_err(failed)?;
        }
        let note = self.notes.get(name).map_err(failed)?;
        Ok(note.map(|note| String::from_utf8_lossy(&note).into_owned()))
    }

    /// Forgets, once a day, who was not heard of for longer than the retention.
    fn sweep(&mut self, now: Timestamp) -> Result<(), Failed> {
        if self.swept.is_some_and(|swept| now.duration_since(swept) < SWEEP_EVERY) {
            return Ok(());
        }
        self.swept = Some(now);
        for item in self.records.iter() {
            let (key, bytes) = item.into_inner().map_err(|error| Failed::new(error.to_string()))?;
            let is_old =
                serde_json::from_slice::<Record>(&bytes).is_ok_and(|record| record.is_older_than(self.retention, now));
            if is_old {
                self.records.remove(key).map_err(|error| Failed::new(error.to_string()))?;
            }
        }
        Ok(())
    }
}

/// Answers, and gives the failure on to who ends the store for it.
fn tell<T>(reply: oneshot::Sender<Result<T, Failed>>, answer: Result<T, Failed>) -> Result<(), Failed> {
    let failed = answer.as_ref().err().cloned();
    // Who went away meanwhile does not wait for it.
    let _ = reply.send(answer);
    failed.map_or(Ok(()), Err)
}
