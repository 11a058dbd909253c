//! Rounds of the embedded store: what changed in a moment goes to the disk together.

use super::embedded::Writer;
use super::store::{Key, Write};
use super::{Failed, Record, compact};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// From the beginning of one round to that of the next at least: a sync for each event would cost
/// more than its request.
const GATHER: Duration = Duration::from_millis(5);
/// How long writes wait for which nobody waits.
const LAZY: Duration = Duration::from_millis(20);
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
}

/// A record that a round writes, as it goes to the disk, and which change it was.
#[derive(Debug)]
pub(super) struct Packed {
    pub key: Key,
    number: u64,
    pub bytes: Result<Vec<u8>, compact::Damaged>,
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
                records.push(Packed { key: *key, number: *number, bytes: compact::pack(record) });
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

/// Writes, round by round, until the store is closed or the disk fails: then everybody is told.
pub(super) async fn serve(mut writer: Writer, shared: Arc<Shared>) {
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
        let must_last = !waiting.is_empty();
        let written = tokio::task::spawn_blocking(move || {
            let done = writer.write(&records, notes, must_last);
            (writer, records, done)
        });
        let Ok((back, records, done)) = written.await else { break };
        writer = back;
        let has_failed = done.is_err();
        for who in waiting {
            // Who went away meanwhile does not wait for it.
            let _ = who.send(done.clone());
        }
        if has_failed || is_last {
            break;
        }
        shared.written(&records);
    }
    shared.is_closed.store(true, Ordering::Relaxed);
    // Who waits for a round that never comes hears of it.
    shared.state().round = Round::default();
}
