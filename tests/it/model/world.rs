//! A world without real time: a broker that reorders and redelivers; a gate that fails, loses answers and
//! executes late; workers that crash at every step, wait with events in hand, and have their own clocks and
//! documents; a store that loses what was not synced, is swept, and is restored from an older state. All
//! decisions are made by the product's own code: its rules of records, its verdicts, its settlement, its
//! claim.

use super::judge::{Profile, Witness};
use super::scenario::{Event, Scenario, Subject, document, second};
use crate::harness::Random;
use consent_gate::gate::{Answer, Outcome};
use consent_gate::mapping::{Choice, Slot};
use consent_gate::record::{
    self, Around, Ask, Backend, Begun, Claim, Effect, Erasure, Mapped, Offer, Record, Said, SentRequest, Values, Write,
};
use consent_gate::schedule::Schedule;
use consent_gate::verdict::Settlement;
use consent_gate::verdict::history::{Attempt, History};
use consent_gate::verdict::{self, DeadReason, Processed, Repair, Skip, too_early};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);
/// How often something goes wrong at each step, in percent.
const CRASH: usize = 4;
const STORE_CRASH: usize = 1;
/// A schedule with more steps counts as endless.
const LONGEST: usize = 200_000;
/// How many times a record that changed meanwhile is sent again.
const RESENDS: usize = 2;
/// How long an event may wait in hand without reading the record again.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(1);

/// A rule that is removed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Without {
    Nothing,
    /// An event sends only its own values.
    Records,
    /// An event is acked before its record is durable.
    Durability,
    /// The record is durable only after the request.
    NoteFirst,
    /// No repairs are made.
    Repairs,
    /// An older value that was accepted although a newer one was known is repaired only by its own event.
    Owed,
    /// Versions are ordered by the time of arrival.
    OwnTime,
    /// Grants of an update that does not say what it changed count from the update.
    UnknownUpdates,
    /// A selection is treated as one text.
    Selections,
    /// It is not checked whether the record changed during a request.
    Look,
    /// With several workers, the record is written only after the request.
    CommitFirst,
    /// An event that waited in hand is sent without reading the record again.
    LookAgain,
    /// A request that was sent twice counts as one.
    FirstCopies,
    /// An erasure leaves no mark.
    Tombstone,
    /// An erasure removes the requests in doubt.
    DoubtsOfErased,
    /// The mark of an erasure keeps no grants.
    GrantsOfErased,
    /// An erasure without a time counts from each receipt.
    FirstReceipts,
    /// It is not recorded under which mappings events were merged.
    Mappings,
    /// A sweep leaves no time.
    Swept,
    /// Events are merged into any store, without comparing it.
    Vouching,
    /// Each worker dates records by its own clock.
    StoreClock,
}

#[derive(Clone, Debug)]
struct Message {
    subject: Subject,
    history: History,
    ready: Timestamp,
}

/// An event that a worker has in hand, and its next step.
#[derive(Clone, Debug)]
struct Work {
    message: Message,
    stage: Stage,
    /// It waits until this time.
    until: Timestamp,
}

#[derive(Clone, Debug)]
enum Stage {
    Merge,
    Ask(Turn),
    Note(Turn, Outcome, bool),
    Settle(Settlement),
}

/// A turn that has begun.
#[derive(Clone, Debug)]
struct Turn {
    id: u64,
    begun: Timestamp,
    newest: Values,
    is_repair_due: bool,
    /// How many times it was sent again before.
    resends: usize,
    opening: usize,
}

#[derive(Clone, Debug, Default)]
struct Worker {
    work: Option<Work>,
    /// The opening of the store that it has compared.
    verified: Option<usize>,
    /// Its document, and what it knows about others.
    document: usize,
    mapped: Mapped,
}

/// The records and their identity.
#[derive(Clone, Debug)]
struct Store {
    record: Option<Record>,
    claim: Claim,
    swept: Option<Timestamp>,
}

#[allow(clippy::struct_excessive_bools, reason = "each happens once")]
pub struct World<'s> {
    scenario: &'s Scenario,
    without: Without,
    random: Random,
    now: Timestamp,
    schedule: Schedule,
    queue: Vec<Message>,
    pub dead: Vec<Subject>,
    pub has_dead_repair: bool,
    workers: Vec<Worker>,
    /// The state on disk, and the state in memory that all workers see.
    disk: Store,
    memory: Store,
    /// How many times the store was opened.
    opening: usize,
    broker: Option<Claim>,
    advanced: Timestamp,
    states: Vec<(Timestamp, Store)>,
    is_restored: bool,
    is_mended: bool,
    is_swept: bool,
    profile: Profile,
    late: Vec<(Timestamp, Values)>,
    pub faults: bool,
    pub witness: Witness,
    /// A log of what happened, if somebody wants to read it.
    pub told: Option<Vec<String>>,
}

/// The process died: what it had in memory is gone, and its deliveries come back.
struct Crash;

impl<'s> World<'s> {
    pub fn new(scenario: &'s Scenario, without: Without) -> World<'s> {
        let message = |(subject, ready): &(Subject, Timestamp)| Message {
            subject: *subject,
            history: History::default(),
            ready: *ready,
        };
        let store = Store { record: None, claim: Claim { store: "s".to_owned(), epoch: 0 }, swept: None };
        World {
            scenario,
            without,
            random: Random::new(scenario.seed),
            now: second(0),
            schedule: Schedule::default(),
            queue: scenario.messages.iter().map(message).collect(),
            dead: Vec::new(),
            has_dead_repair: false,
            workers: vec![Worker { document: usize::MAX, ..Worker::default() }; scenario.workers],
            disk: store.clone(),
            memory: store,
            opening: 0,
            broker: None,
            advanced: second(0),
            states: Vec::new(),
            is_restored: false,
            is_mended: false,
            is_swept: false,
            profile: Profile::new(),
            late: Vec::new(),
            faults: true,
            witness: Witness::default(),
            told: None,
        }
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        let since = self.now.duration_since(second(0)).as_secs();
        if let Some(told) = &mut self.told {
            told.push(format!("{since:>6} s  {}", what()));
        }
    }

    fn execution_horizon(&self) -> SignedDuration {
        SignedDuration::try_from(self.schedule.longest() + TIMEOUT).unwrap() + SignedDuration::from_secs(5)
    }

    fn crashes(&mut self) -> Result<(), Crash> {
        if self.faults && self.random.percent(CRASH) { Err(Crash) } else { Ok(()) }
    }

    /// Lets time pass; meanwhile the gate executes late requests, and the planned operations on the store are
    /// carried out.
    fn pass(&mut self, until: Timestamp) {
        self.late.sort_by_key(|(at, _)| *at);
        while self.late.first().is_some_and(|(at, _)| *at <= until) {
            let (_, values) = self.late.remove(0);
            self.execute(&values);
        }
        self.now = self.now.max(until);
        if let Some(restored) = self.scenario.restored {
            if !self.is_restored && self.now >= restored.at {
                self.is_restored = true;
                self.states.push((self.now, self.memory.clone()));
                let known = self.broker.as_ref().map_or(0, |known| known.epoch);
                let older =
                    self.states.iter().rfind(|(at, store)| *at <= restored.state_of && store.claim.epoch < known);
                // The broker's knowledge is half a minute old: an older state that is more recent than that
                // cannot be detected.
                let older = older.map(|(_, store)| store.clone());
                self.is_mended = older.is_none();
                self.replace(older);
            }
            if self.is_restored && !self.is_mended && self.now >= restored.mended {
                self.is_mended = true;
                let latest = self.states.last().map(|(_, store)| store.clone());
                self.replace(latest);
            }
        }
        if self.scenario.swept.is_some_and(|at| !self.is_swept && self.now >= at) {
            self.is_swept = true;
            let hour = SignedDuration::from_hours(1);
            if self.memory.record.as_ref().is_some_and(|record| record.is_older_than(hour, self.now)) {
                let forgotten = record::forgotten_until(hour, self.now);
                let swept = Some(forgotten).filter(|_| self.without != Without::Swept);
                self.memory = Store { record: None, swept, ..self.memory.clone() };
                self.disk = self.memory.clone();
            }
        }
    }

    /// Opens another state of the store.
    fn replace(&mut self, store: Option<Store>) {
        if let Some(store) = store {
            self.disk = store.clone();
            self.memory = store;
            self.opening += 1;
        }
    }

    fn execute(&mut self, values: &Values) {
        self.tell(|| format!("the gate executes {}", shown(values)));
        for (slot, said) in values {
            self.profile.insert(slot.property().to_owned(), (slot.clone(), Arc::clone(said)));
        }
    }

    /// Runs everything to its end, one step of one worker at a time.
    pub fn run(&mut self) {
        let mut steps = 0;
        while !self.queue.is_empty() || self.workers.iter().any(|worker| worker.work.is_some()) {
            steps += 1;
            if steps > LONGEST {
                self.witness.wrong.push("it never ends".to_owned());
                return;
            }
            // No two statements on one record have the same time.
            self.now += Duration::from_micros(1);
            let worker = self.random.below(self.workers.len());
            match self.workers[worker].work.take() {
                None => self.workers[worker].work = self.take(worker),
                Some(work) if work.until > self.now => {
                    let is_idle = |worker: &Worker| worker.work.as_ref().is_none_or(|work| work.until > self.now);
                    if self.workers.iter().all(is_idle) && self.random.percent(50) {
                        self.pass(work.until);
                    }
                    self.workers[worker].work = Some(work);
                }
                Some(work) => self.go_on(worker, work),
            }
        }
        let end = self.late.iter().map(|(at, _)| *at).max().unwrap_or(self.now);
        self.pass(end);
    }

    fn go_on(&mut self, worker: usize, work: Work) {
        let message = work.message.clone();
        match self.step(worker, work) {
            Ok(next) => self.workers[worker].work = next,
            Err(Crash) => {
                self.tell(|| format!("worker {worker} crashes with {:?} in hand", message.subject));
                self.workers[worker].verified = None;
                if self.workers.len() == 1 || self.random.percent(STORE_CRASH) {
                    self.memory = self.disk.clone();
                    self.opening += 1;
                }
                self.queue.push(message);
            }
        }
    }

    /// Takes a message, in any order; time passes only if no worker has anything to do.
    fn take(&mut self, worker: usize) -> Option<Work> {
        let earliest = self.queue.iter().map(|message| message.ready).min()?;
        if self.workers.iter().all(|worker| worker.work.is_none()) {
            self.pass(self.now.max(earliest));
        }
        let ready: Vec<usize> = (0..self.queue.len()).filter(|n| self.queue[*n].ready <= self.now).collect();
        let chosen = *ready.get(self.random.below(ready.len().max(1)))?;
        self.read_document(worker);
        Some(Work { message: self.queue.swap_remove(chosen), stage: Stage::Merge, until: self.now })
    }

    /// Workers read a changed document one after the other.
    fn read_document(&mut self, worker: usize) {
        let behind = if self.faults { Duration::from_secs(7 * worker as u64) } else { Duration::ZERO };
        let known = self.scenario.documents.iter().rfind(|(at, _)| *at + behind <= self.now || *at == second(0));
        let index = known.map_or(0, |(_, index)| *index);
        if self.workers[worker].document != index {
            self.workers[worker].document = index;
            self.workers[worker].mapped = Mapped::new(document(index));
        }
    }

    fn step(&mut self, worker: usize, Work { message, stage, .. }: Work) -> Result<Option<Work>, Crash> {
        let mut until = self.now;
        let stage = match stage {
            Stage::Merge => {
                let id = 1 + self.random.below(usize::MAX - 1) as u64;
                let stage = self.merge(worker, &message, id)?;
                if self.faults && self.random.percent(15) {
                    until = self.now + Duration::from_millis(self.random.below(20_000) as u64);
                }
                stage
            }
            Stage::Ask(turn) if self.waited(&turn) => self.merge(worker, &message, turn.id)?,
            Stage::Ask(turn) => {
                let is_repair = message.history.is_repair;
                self.witness.asked((turn.begun, self.now), is_repair, &turn.newest, &self.scenario.events);
                self.tell(|| format!("worker {worker} asks for {:?}: {}", message.subject, shown(&turn.newest)));
                let (outcome, was_resent) = self.ask(&turn.newest)?;
                self.tell(|| {
                    format!("the gate answers {outcome:?}{}", if was_resent { " to the second copy" } else { "" })
                });
                Stage::Note(turn, outcome, was_resent)
            }
            Stage::Note(turn, outcome, was_resent) => self.note(worker, &message, turn, (outcome, was_resent))?,
            Stage::Settle(settlement) => return self.settle(message, settlement).map(|()| None),
        };
        Ok(Some(Work { message, stage, until }))
    }

    /// Whether the event waited so long that it must be merged and its record read again.
    fn waited(&self, turn: &Turn) -> bool {
        self.now.duration_since(turn.begun) > LONGEST_WAIT && self.without != Without::LookAgain
    }

    fn settle(&mut self, message: Message, settlement: Settlement) -> Result<(), Crash> {
        let Message { subject, history, .. } = message;
        self.tell(|| format!("{subject:?} is settled: {settlement:?}"));
        match settlement {
            Settlement::Done => {}
            Settlement::Park(delay, history) => self.queue.push(Message { subject, history, ready: self.now + delay }),
            Settlement::Recount(history) => self.queue.push(Message { subject, history, ready: self.now }),
            Settlement::Dead(reason, _) => {
                // What was not repaired before its person was forgotten cannot be repaired.
                let is_forgotten = !self.faults && reason == DeadReason::OlderThanRetention;
                self.has_dead_repair |= history.is_repair || is_forgotten;
                self.dead.push(subject);
            }
        }
        // Published, and not yet acked.
        self.crashes()
    }

    fn event(&self, subject: Subject) -> &'s Event {
        let Subject::Event(event) = subject else { unreachable!("erasures are not sent") };
        &self.scenario.events[event]
    }

    fn offer(&self, worker: usize, subject: Subject) -> Offer {
        let slots = document(self.workers[worker].document);
        let mut offer = self.event(subject).offer(slots);
        match self.without {
            Without::OwnTime => (offer.at, offer.withdrawn_at) = (Some(self.now), Some(self.now)),
            Without::UnknownUpdates => offer.at = offer.withdrawn_at,
            Without::Selections => {
                for (_, choice) in &mut offer.choices {
                    if let Choice::Selection(_) = choice {
                        *choice = Choice::Text(choice.to_string().into());
                    }
                }
            }
            _ => {}
        }
        offer
    }

    /// Makes sure that events are merged only into the right records.
    fn verify(&mut self, worker: usize) -> bool {
        let is_due = self.now.duration_since(self.advanced) >= SignedDuration::from_secs(30);
        if self.workers[worker].verified == Some(self.opening) && !is_due {
            return true;
        }
        if let Some(known) = &self.broker
            && self.memory.claim.follows(known, &Backend::Off).is_err()
        {
            return self.without == Without::Vouching;
        }
        self.memory.claim.epoch += 1;
        self.disk.claim.epoch = self.memory.claim.epoch;
        self.broker = Some(self.memory.claim.clone());
        self.advanced = self.now;
        self.workers[worker].verified = Some(self.opening);
        true
    }

    /// Changes the record: the only step that no other worker can interrupt between reading and writing.
    fn update<T>(&mut self, change: impl FnOnce(&mut Option<Record>) -> (T, Write)) -> T {
        let (told, write) = change(&mut self.memory.record);
        self.memory.record = self.memory.record.take().map(|record| taken_away(record, self.without));
        if write == Write::Durable && self.without != Without::Durability {
            self.disk = self.memory.clone();
        }
        if self.scenario.restored.is_some() {
            self.states.push((self.now, self.memory.clone()));
        }
        told
    }

    fn around<'m>(&self, worker: usize, mapped: &'m Mapped) -> Around<'m> {
        let own = if self.without == Without::StoreClock { self.scenario.ahead[worker] } else { 0 };
        let now = self.now + Duration::from_secs(own as u64);
        let retention = SignedDuration::from_hours(if self.is_swept { 365 * 24 } else { 1 });
        Around { now, execution_horizon: self.execution_horizon(), retention, swept: self.memory.swept, mapped }
    }

    /// The time by a worker's own clock.
    fn clock(&self, worker: usize) -> Timestamp {
        self.now + Duration::from_secs(self.scenario.ahead[worker] as u64)
    }

    fn merge(&mut self, worker: usize, message: &Message, id: u64) -> Result<Stage, Crash> {
        if !self.verify(worker) {
            // Nothing is consumed meanwhile.
            let mended = self.scenario.restored.map_or(self.now, |restored| restored.mended);
            self.queue.push(Message { ready: mended.max(self.now), ..message.clone() });
            return Ok(Stage::Settle(Settlement::Done));
        }
        let Message { subject, history, .. } = message;
        if let Subject::Erasure(number, at) = *subject {
            self.erase(number, at);
            return Ok(Stage::Settle(Settlement::Done));
        }
        let Subject::Event(number) = *subject else { unreachable!("erasures are carried out above") };
        if let Some(at) = too_early(history, &self.schedule, self.clock(worker)) {
            return Ok(Stage::Settle(self.decided(worker, &Processed::TooEarly(at), None, history, None)));
        }
        let offer = self.offer(worker, *subject);
        let slots: Vec<Slot> = document(self.workers[worker].document).collect();
        let mapped = self.mapped(worker);
        let around = self.around(worker, &mapped);
        let ask = Ask { id, offer: &offer, is_repair: history.is_repair };
        let mut record = self.memory.record.clone();
        let (begun, write) = record::begin(&mut record, ask, &around);
        self.tell(|| {
            let what = if let Begun::Send(to_send) = &begun { shown(&to_send.newest) } else { format!("{begun:?}") };
            format!("worker {worker} begins {subject:?}{}: {what}", if history.is_repair { " as a repair" } else { "" })
        });
        let processed = match begun {
            Begun::Send(to_send) => {
                let newest = if self.without == Without::Records { own(&offer) } else { to_send.newest };
                self.crashes()?;
                if !matches!(self.without, Without::CommitFirst) {
                    let write = if self.without == Without::NoteFirst { Write::Later } else { write };
                    self.update(|known| {
                        *known = record;
                        ((), write)
                    });
                    self.witness.noted(&newest);
                }
                if !history.is_repair {
                    self.witness.merged(self.now, &slots, number);
                    self.witness.came(&slots, number);
                }
                self.crashes()?;
                let (begun, opening) = (self.now, self.opening);
                return Ok(Stage::Ask(Turn { id, begun, newest, is_repair_due: false, resends: 0, opening }));
            }
            Begun::Erased => {
                self.witness.came(&slots, number);
                Processed::NotWanted(Skip::Erased)
            }
            Begun::TooOld => Processed::OlderThanRetention,
            Begun::Needless => Processed::NeedlessRepair,
        };
        self.update(|known| {
            *known = record;
            ((), write)
        });
        Ok(Stage::Settle(self.decided(worker, &processed, None, history, None)))
    }

    /// What a worker maps, with what it has learned about other documents.
    fn mapped(&mut self, worker: usize) -> Mapped {
        let Worker { mapped, document: own, .. } = &mut self.workers[worker];
        while let Some(set) = self.memory.record.as_ref().and_then(|record| mapped.unknown(record)) {
            let found = match self.without {
                Without::Mappings => Some(*own),
                _ => (0..4).find(|index| Mapped::new(document(*index)).own() == set),
            };
            mapped.learn(set, found.into_iter().flat_map(document));
        }
        mapped.clone()
    }

    fn erase(&mut self, number: u64, at: Option<Timestamp>) {
        let (now, execution_horizon) = (self.now, self.execution_horizon());
        if self.without == Without::Tombstone {
            self.witness.erased(now, at.unwrap_or(now));
            return;
        }
        let message =
            if self.without == Without::FirstReceipts { self.random.below(usize::MAX) as u64 } else { number };
        let erasure = Erasure { at, published: now, message };
        let before = self.memory.record.as_ref().and_then(Record::erased);
        self.update(|known| record::erase(known, erasure, now, execution_horizon));
        let after = self.memory.record.as_ref().and_then(Record::erased);
        self.witness.erased_by(number, (before, after), now);
    }

    /// Takes note of an answer, and checks whether the record changed meanwhile.
    fn note(
        &mut self,
        worker: usize,
        message: &Message,
        turn: Turn,
        (outcome, was_resent): (Outcome, bool),
    ) -> Result<Stage, Crash> {
        let Message { subject, history, .. } = message;
        if turn.opening != self.opening && self.without != Without::Vouching {
            return Err(Crash);
        }
        let offer = self.offer(worker, *subject);
        let mapped = self.workers[worker].mapped.clone();
        let around = self.around(worker, &mapped);
        let Turn { id, begun, newest, resends, .. } = turn;
        let carries_others = newest.values().any(|said| !said.is_of(&offer));
        let [first, next] = [(); 2].map(|()| 1 + self.random.below(usize::MAX - 1) as u64);
        let without = self.without;
        let effect = Effect::of(outcome, carries_others);
        let was_resent = was_resent && without != Without::FirstCopies;
        let ask = Ask { id, offer: &offer, is_repair: history.is_repair };
        let by_the_stores_clock = begun + around.now.duration_since(self.now);
        let request = SentRequest { carried: &newest, begun: by_the_stores_clock, effect, was_resent, first, next };
        let ended = self.update(|known| {
            if without == Without::CommitFirst {
                record::begin(known, ask, &around);
            }
            record::end(known, ask, &request, &around)
        });
        self.witness.answered(effect, *subject, &newest);
        self.crashes()?;
        if outcome == Outcome::Accepted {
            self.witness.accepted(&newest);
        }
        let is_repair_due = turn.is_repair_due || ended.is_repair_due;
        let superseded = ended.superseded.filter(|_| !matches!(without, Without::Look | Without::Records));
        if let (Some(newest), true) = (&superseded, resends < RESENDS) {
            let (newest, begun, opening) = (newest.clone(), self.now, self.opening);
            return Ok(Stage::Ask(Turn { id: next, begun, newest, is_repair_due, resends: resends + 1, opening }));
        }
        if superseded.is_some() || (resends > 0 && effect != Effect::Accepted) {
            return Ok(Stage::Settle(self.decided(worker, &Processed::Held, None, history, None)));
        }
        let repair = is_repair_due && without != Without::Repairs;
        let at = self.clock(worker) + self.execution_horizon();
        let repair = repair.then(|| Repair { at, delay: self.schedule.longest() });
        let attempt = Attempt { at: begun, result: outcome, status: None, ms: 1 };
        let answer = Answer { error: Some("faulty".to_owned()), ..Answer::of(outcome) };
        let processed = Processed::of(answer, false, carries_others);
        Ok(Stage::Settle(self.decided(worker, &processed, Some(attempt), history, repair)))
    }

    fn decided(
        &self,
        worker: usize,
        processed: &Processed,
        attempt: Option<Attempt>,
        history: &History,
        repair: Option<Repair>,
    ) -> Settlement {
        let verdict = verdict::decide(processed, history, &self.schedule, self.clock(worker));
        verdict::settlement(&verdict, processed, attempt, history.clone(), repair)
    }

    /// One request: executed or not, now or late, answered or not, or cut off by a crash. Also returns
    /// whether it was sent twice.
    fn ask(&mut self, newest: &Values) -> Result<(Outcome, bool), Crash> {
        let latest = usize::try_from((self.schedule.longest() + TIMEOUT).as_secs()).unwrap();
        // Often as late as possible.
        let late = if self.random.percent(40) { latest } else { 1 + self.random.below(latest) };
        let lately = self.now + Duration::from_secs(late as u64);
        let taken = self.now + Duration::from_millis(self.random.below(3_000) as u64);
        if self.faults && self.random.percent(self.scenario.unanswered) {
            return match self.random.below(20) {
                // Executed at once, and the answer is lost.
                0..6 => {
                    self.execute(newest);
                    self.pass(taken);
                    Ok((Outcome::Unavailable, false))
                }
                // Not answered in time, and executed later.
                6..14 => {
                    self.late.push((lately, newest.clone()));
                    self.pass(self.now + TIMEOUT);
                    Ok((Outcome::Unavailable, false))
                }
                14..17 => Ok((Outcome::Unavailable, false)),
                // The worker dies; what it sent may still be executed.
                _ => {
                    self.late.push((lately, newest.clone()));
                    Err(Crash)
                }
            };
        }
        match if self.faults { self.random.below(100) } else { 100 } {
            0..3 => Ok((Outcome::Throttled, false)),
            3..6 => Ok((Outcome::Rejected, false)),
            6..10 => Ok((Outcome::Refused, false)),
            // The first copy went to a connection that was closed, and may still be executed.
            10..14 => {
                self.late.push((lately, newest.clone()));
                self.pass(taken);
                self.execute(newest);
                Ok((Outcome::Accepted, true))
            }
            _ => {
                self.pass(taken);
                self.execute(newest);
                Ok((Outcome::Accepted, false))
            }
        }
    }

    /// Judges the state once everything is quiet.
    pub fn judge(&mut self) {
        let slots: Vec<Slot> = self.scenario.lasting().collect();
        let World { witness, profile, scenario, dead, .. } = self;
        witness.judge(profile, &slots, &scenario.events, dead, self.has_dead_repair);
    }

    /// The faults end, and an operator replays the dead letters, in any order.
    pub fn replay(&mut self) {
        self.faults = false;
        self.has_dead_repair = false;
        self.pass(self.now + Duration::from_secs(600));
        for subject in std::mem::take(&mut self.dead) {
            let ready = self.now + Duration::from_secs(self.random.below(60) as u64);
            self.queue.push(Message { subject, history: History::default(), ready });
        }
    }
}

fn shown(values: &Values) -> String {
    let shown = values.iter().map(|(slot, said)| {
        let latest = said.latest();
        let at = latest.at.map_or(-1, |at| at.duration_since(second(0)).as_secs());
        format!("{}={} by {} of {at} s", slot.property(), said.choice(), latest.event.as_deref().unwrap_or("?"))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// The event's own values.
fn own(offer: &Offer) -> Values {
    offer.choices.iter().map(|(slot, choice)| (slot.clone(), Arc::new(Said::offered(choice, offer)))).collect()
}

/// A record as it would be without a rule.
fn taken_away(record: Record, without: Without) -> Record {
    let change: &dyn Fn(&mut Value) = match without {
        // Without the look nothing is owed either.
        Without::Owed | Without::Look => &|record| {
            record.as_object_mut().map(|record| record.remove("o"));
        },
        Without::DoubtsOfErased if record.erased().is_some() => &|record| {
            record.as_object_mut().map(|record| record.remove("d"));
        },
        Without::GrantsOfErased if record.erased().is_some() => &|record| {
            record.get_mut("x").and_then(Value::as_object_mut).map(|mark| mark.remove("g"));
        },
        _ => return record,
    };
    let mut told = serde_json::to_value(&record).unwrap();
    change(&mut told);
    serde_json::from_value(told).unwrap()
}
