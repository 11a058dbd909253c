//! Group commit of the embedded store: what changed in a moment goes to the disk together.

use super::embedded::Writer;
use super::keys::Key;
use super::rules::Write;
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

/// From the beginning of one round to that of the next at least: a sync for each event would cost
/// more than its request.
const GATHER: Duration = Duration::from_millis(5);
/// How long writes wait for which nobody waits.
const LAZY: Duration = Duration::from_millis(20);
/// The longest that a round may take. The kernel gives a disk 30 s to answer a command before it
/// resets it or reports an error, so what takes longer is no slow disk but one that hangs.
pub(super) const LONGEST_WRITE: Duration = Duration::from_secs(30);
type Durable = oneshot::Sender<Result<(), Failed>>;
pub(super) type Answer = oneshot::Receiver<Result<(), Failed>>;

/// So many records at least are kept in memory once they are written, and at most twice as many: an
/// event looks at its person's record twice, and those that are in hand come between.
const KEPT: usize = 2_048;

/// A record on its way to the disk, or there already and likely to be asked for again.
#[derive(Debug)]
struct Pending {
    /// `None` for who is not on record.
    record: Option<Record>,
    /// Which write it was, of all.
    number: u64,
    /// It is in the round that is being gathered.
    is_gathered: bool,
    written: Written,
}

/// Since when a record is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    NotYet,
    /// Since records were last let go of.
    Lately,
    /// For longer: it is let go of next.
    Before,
}

/// What is to be written together.
#[derive(Debug, Default)]
struct Round {
    keys: Vec<Key>,
    notes: Vec<(String, Option<String>)>,
    waiting: Vec<Durable>,
}

#[derive(Debug, Default)]
struct State {
    pending: HashMap<Key, Pending>,
    /// How many were written lately.
    written: usize,
    round: Round,
}

/// What the store and its writer share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    wake: Notify,
    /// And somebody waits for it.
    urgent: Notify,
    numbers: AtomicU64,
    is_closed: AtomicBool,
    /// The files are closed, and the store may be opened anew.
    is_let_go: AtomicBool,
}

/// A record that a round writes, as it goes to the disk, and which change it was.
#[derive(Debug)]
pub(super) struct Packed {
    pub key: Key,
    number: u64,
    pub bytes: Result<Vec<u8>, codec::Damaged>,
}

impl Shared {
    /// What is known of a person, changed, and on its way to the disk.
    pub(super) fn change<T>(
        &self,
        key: Key,
        stored: impl FnOnce() -> Result<Option<Record>, Failed>,
        change: impl FnOnce(&mut Option<Record>) -> (T, Write),
    ) -> Result<(T, Option<Answer>), Failed> {
        let mut state = self.state();
        state.let_go();
        let State { pending, written, round } = &mut *state;
        let known = match pending.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let record = stored()?;
                *written += 1;
                unknown.insert(Pending { record, number: 0, is_gathered: false, written: Written::Lately })
            }
        };
        let (told, write) = change(&mut known.record);
        if write == Write::Nothing {
            return Ok((told, None));
        }
        *written -= usize::from(known.written == Written::Lately);
        known.written = Written::NotYet;
        known.number = self.numbers.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut known.is_gathered, true) {
            round.keys.push(key);
        }
        let answer = (write == Write::Durable).then(|| self.await_round(round));
        self.wake.notify_one();
        Ok((told, answer))
    }

    /// A note, or that there is none any more, on its way to the disk.
    pub(super) fn note(&self, name: String, text: Option<String>) -> Answer {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the round that is being gathered.
    fn await_round(&self, round: &mut Round) -> Answer {
        let (durable, answer) = oneshot::channel();
        round.waiting.push(durable);
        self.urgent.notify_one();
        answer
    }

    /// Takes the round, with the records that it writes.
    fn take(&self) -> (Round, Vec<Packed>) {
        let mut state = self.state();
        let round = std::mem::take(&mut state.round);
        let mut records = Vec::with_capacity(round.keys.len());
        for key in &round.keys {
            if let Some(Pending { record: Some(record), number, is_gathered, .. }) = state.pending.get_mut(key) {
                *is_gathered = false;
                records.push(Packed { key: *key, number: *number, bytes: codec::pack(record) });
            }
        }
        (round, records)
    }

    /// Notes what is on the disk now, unless it changed meanwhile.
    fn written(&self, records: &[Packed]) {
        let mut state = self.state();
        let state = &mut *state;
        for Packed { key, number, .. } in records {
            if let Some(pending) = state.pending.get_mut(key).filter(|pending| pending.number == *number) {
                pending.written = Written::Lately;
                state.written += 1;
            }
        }
    }
}

impl State {
    /// When much of what is kept is on the disk, lets go of what is there for longer.
    fn let_go(&mut self) {
        if self.written > KEPT {
            self.pending.retain(|_, pending| pending.written != Written::Before);
            for pending in self.pending.values_mut().filter(|pending| pending.written == Written::Lately) {
                pending.written = Written::Before;
            }
            self.written = 0;
        }
    }
}

/// A round for the thread that writes.
struct Work {
    records: Vec<Packed>,
    notes: Vec<(String, Option<String>)>,
    must_last: bool,
    done: oneshot::Sender<(Vec<Packed>, Result<(), Failed>)>,
}

/// Starts to write, round by round, until the store is closed or the disk fails: then everybody is
/// told. A thread of its own writes: those of the runtime may all be waiting for somebody else, and
/// to let go of the store may take as long as its disk takes.
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
            // Nobody waits any more for a disk that took too long.
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
            // Too late is no error: it is written then.
            let _ = tokio::time::timeout(LAZY, shared.urgent.notified()).await;
        }
        tokio::time::sleep_until(next).await;
        next = Instant::now() + GATHER;
        let is_last = shared.is_closed.load(Ordering::Relaxed);
        let (Round { notes, waiting, .. }, records) = shared.take();
        let (done, written) = oneshot::channel();
        // Where the thread is gone, nothing is answered.
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
            // Who went away meanwhile does not wait for it.
            let _ = who.send(done.clone());
        }
        if has_failed || is_last {
            return;
        }
        shared.written(&records);
    }
}

/// However writing ends, nobody relies on it any more.
struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.is_closed.store(true, Ordering::Relaxed);
        // Who waits for a round that never comes hears of it.
        self.0.state().round = Round::default();
    }
}

/// However the thread ends, its store is nobody's any more.
struct LetGoAtEnd(Arc<Shared>);

impl Drop for LetGoAtEnd {
    fn drop(&mut self) {
        self.0.is_let_go.store(true, Ordering::Relaxed);
    }
}
