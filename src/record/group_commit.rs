//! Group commit of the embedded store: changes that come close together are written to disk together.

use super::keys::Key;
use super::rules::Write;
use super::writer::{EncodedRecord, Writer};
use super::{Failed, Record, codec};
use crate::task;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// The minimum time between the beginnings of two rounds: a sync for each event would cost more than its
/// request.
const GATHER: Duration = Duration::from_millis(5);
/// How long writes are delayed for which nobody waits.
const LAZY: Duration = Duration::from_millis(20);
/// The longest that a round may take. The kernel gives a disk 30 s to answer a command before it resets it or
/// reports an error, so a disk that takes longer is not slow but hangs.
pub(super) const LONGEST_WRITE: Duration = Duration::from_secs(30);
type Durable = oneshot::Sender<Result<(), Failed>>;
pub(super) type CommitResult = oneshot::Receiver<Result<(), Failed>>;

/// At least this many records are kept in memory after they were written, and at most twice as many: an event
/// reads its person's record twice, with other events in between.
const KEPT: usize = 2_048;

/// A record that is to be written, or was written and is likely to be read again.
#[derive(Debug)]
struct Pending {
    /// `None` for a person who is not on record.
    record: Option<Record>,
    /// The number of the change, over all records.
    number: u64,
    /// It is in the round that is being collected.
    is_gathered: bool,
    written: Residence,
}

/// How long a record has been on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Residence {
    NotYet,
    /// Since the last time that records were dropped from memory.
    Lately,
    /// For longer: it is dropped from memory next.
    Before,
}

/// Changes that are written together.
#[derive(Debug, Default)]
struct Round {
    keys: Vec<Key>,
    notes: Vec<(String, Option<String>)>,
    waiting: Vec<Durable>,
}

#[derive(Debug, Default)]
struct Unwritten {
    pending: HashMap<Key, Pending>,
    /// How many records are `Residence::Lately`.
    written: usize,
    round: Round,
}

/// What the store and its writer share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<Unwritten>,
    /// There is something to write.
    wake: Notify,
    /// Somebody waits for the write.
    urgent: Notify,
    numbers: AtomicU64,
    is_closed: AtomicBool,
    /// The files are closed, and the store may be opened again.
    is_let_go: AtomicBool,
}

impl Shared {
    /// Changes a person's record in memory and puts it into the next round.
    pub(super) fn change<T>(
        &self,
        key: Key,
        stored: impl FnOnce() -> Result<Option<Record>, Failed>,
        change: impl FnOnce(&mut Option<Record>) -> (T, Write),
    ) -> Result<(T, Option<CommitResult>), Failed> {
        let mut state = self.state();
        state.let_go();
        let Unwritten { pending, written, round } = &mut *state;
        let known = match pending.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let record = stored()?;
                *written += 1;
                unknown.insert(Pending { record, number: 0, is_gathered: false, written: Residence::Lately })
            }
        };
        let (told, write) = change(&mut known.record);
        if write == Write::Nothing {
            return Ok((told, None));
        }
        *written -= usize::from(known.written == Residence::Lately);
        known.written = Residence::NotYet;
        known.number = self.numbers.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut known.is_gathered, true) {
            round.keys.push(key);
        }
        let answer = (write == Write::Durable).then(|| self.await_round(round));
        self.wake.notify_one();
        Ok((told, answer))
    }

    /// Puts a note, or its removal, into the next round.
    pub(super) fn note(&self, name: String, text: Option<String>) -> CommitResult {
        let mut state = self.state();
        state.round.notes.push((name, text));
        let answer = self.await_round(&mut state.round);
        self.wake.notify_one();
        answer
    }

    /// How many changes there were.
    pub(super) fn changes(&self) -> u64 {
        self.numbers.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    pub(super) fn is_let_go(&self) -> bool {
        self.is_let_go.load(Ordering::Relaxed)
    }

    /// Lets the writer end once everything is written.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.wake.notify_one();
        self.urgent.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, Unwritten> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a waiter for the round that is being collected.
    fn await_round(&self, round: &mut Round) -> CommitResult {
        let (durable, answer) = oneshot::channel();
        round.waiting.push(durable);
        self.urgent.notify_one();
        answer
    }

    /// Takes the round, with its records encoded.
    fn take(&self) -> (Round, Vec<EncodedRecord>) {
        let mut state = self.state();
        let round = std::mem::take(&mut state.round);
        let mut records = Vec::with_capacity(round.keys.len());
        for key in &round.keys {
            if let Some(Pending { record: Some(record), number, is_gathered, .. }) = state.pending.get_mut(key) {
                *is_gathered = false;
                records.push(EncodedRecord { key: *key, number: *number, bytes: codec::pack(record) });
            }
        }
        (round, records)
    }

    /// Marks records as written, unless they changed meanwhile.
    fn written(&self, records: &[EncodedRecord]) {
        let mut state = self.state();
        let state = &mut *state;
        for EncodedRecord { key, number, .. } in records {
            if let Some(pending) = state.pending.get_mut(key).filter(|pending| pending.number == *number) {
                pending.written = Residence::Lately;
                state.written += 1;
            }
        }
    }
}

impl Unwritten {
    /// Once enough of the records in memory are written, drops those that were written longest ago.
    fn let_go(&mut self) {
        if self.written > KEPT {
            self.pending.retain(|_, pending| pending.written != Residence::Before);
            for pending in self.pending.values_mut().filter(|pending| pending.written == Residence::Lately) {
                pending.written = Residence::Before;
            }
            self.written = 0;
        }
    }
}

/// A round for the thread that writes.
struct Work {
    records: Vec<EncodedRecord>,
    notes: Vec<(String, Option<String>)>,
    must_last: bool,
    done: oneshot::Sender<(Vec<EncodedRecord>, Result<(), Failed>)>,
}

/// Starts to write, round by round, until the store is closed or the disk fails; then all waiters are told. A
/// separate thread writes: the threads of the runtime may all be waiting for something else, and closing the
/// store may take as long as its disk takes.
///
/// # Errors
/// The system has no thread left.
pub(super) fn start(mut writer: Writer, shared: Arc<Shared>) -> std::io::Result<()> {
    let (work, works) = mpsc::channel::<Work>();
    let closing = CloseAtEnd(Arc::clone(&shared));
    let let_go = LetGoAtEnd(Arc::clone(&shared));
    let write = move || {
        // Dropped after the writer.
        let _let_go = let_go;
        let mut write = move |Work { records, notes, must_last, done }| {
            let written = writer.write(&records, notes, must_last);
            // Nobody waits any longer for a disk that took too long.
            let _ = done.send((records, written));
        };
        works.into_iter().for_each(&mut write);
    };
    thread::Builder::new().name("records".to_owned()).spawn(write)?;
    tokio::spawn(async move {
        let _closing = closing;
        task::watched("records", None, serve(work, &shared)).await;
    });
    Ok(())
}

async fn serve(work: mpsc::Sender<Work>, shared: &Shared) {
    let mut next = Instant::now();
    loop {
        shared.wake.notified().await;
        if shared.state().round.waiting.is_empty() {
            // A timeout is no error: the round is written then.
            let _ = tokio::time::timeout(LAZY, shared.urgent.notified()).await;
        }
        tokio::time::sleep_until(next).await;
        next = Instant::now() + GATHER;
        let is_last = shared.is_closed.load(Ordering::Relaxed);
        let (Round { notes, waiting, .. }, records) = shared.take();
        let (done, written) = oneshot::channel();
        // If the thread is gone, `written` fails.
        let _ = work.send(Work { records, notes, must_last: !waiting.is_empty(), done });
        let (records, done) = match tokio::time::timeout(LONGEST_WRITE, written).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => (Vec::new(), Err(Failed::closed())),
            Err(_) => (Vec::new(), Err(Failed::silent())),
        };
        if let Err(failed) = &done {
            tracing::error!(%failed, "the records cannot be written");
        }
        let has_failed = done.is_err();
        for who in waiting {
            // A waiter may have gone away meanwhile.
            let _ = who.send(done.clone());
        }
        if has_failed || is_last {
            return;
        }
        shared.written(&records);
    }
}

/// Marks the store as closed, however writing ends.
struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.is_closed.store(true, Ordering::Relaxed);
        // Dropping the round tells those who wait for it.
        self.0.state().round = Round::default();
    }
}

/// Marks the store as released, however the thread ends.
struct LetGoAtEnd(Arc<Shared>);

impl Drop for LetGoAtEnd {
    fn drop(&mut self) {
        self.0.is_let_go.store(true, Ordering::Relaxed);
    }
}
