//! A model of the whole under everything that can go wrong, without real time: a broker that
//! reorders and delivers twice, a gate that fails, loses answers and executes late, workers that
//! crash at every step. One worker keeps its records beside it; two or three share them, and their
//! steps interleave in any way. The decisions are the real ones: merge, verdict, settlement.
//!
//! In the end each property of the profile must be the newest of all events, always; and without
//! any one of the rules it must not, or the model would prove nothing.

use super::harness::{Random, note};
use consent_gate::broker::headers::{Attempt, History};
use consent_gate::broker::outbox::Settlement;
use consent_gate::gate::{Answer, Outcome};
use consent_gate::mapping::Choice;
use consent_gate::record::{Mapped, Newest, Offer, Record, Sent, Values};
use consent_gate::schedule::Schedule;
use consent_gate::verdict::{self, Course, too_early};
use jiff::{SignedDuration, Timestamp};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);
const PROPERTIES: [&str; 2] = ["NEWS", "SMS"];

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Without {
    Nothing,
    /// An event sends its own values.
    Records,
    /// An event is acked before its record is durable.
    Durability,
    /// The record is durable only after the request.
    NoteFirst,
    /// Nobody repairs.
    Repairs,
    /// The order of versions counts from the arrival.
    OwnTime,
    /// Nobody looks whether the record moved on during a request.
    Look,
    /// What several workers share is written only after the request.
    CommitFirst,
    /// An erasure leaves no mark.
    Tombstone,
}

/// The shares, in a hundred, of what goes wrong.
const CRASH: usize = 4;
const TWICE: usize = 15;

/// How often, in a hundred, a person is erased.
const ERASED: usize = 10;
/// How often a record that moved on is sent again.
const RESENDS: usize = 2;

#[derive(Clone, Debug)]
struct Message {
    /// `None` erases the person.
    event: Option<usize>,
    history: History,
    ready: Timestamp,
}

/// One worker's event in hand, and what is to be done with it next.
#[derive(Clone, Debug)]
struct Work {
    message: Message,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    Merge,
    Ask(Request),
    Note(Request, Outcome),
    Settle(Settlement),
}

#[derive(Clone, Debug)]
struct Request {
    id: u64,
    begun: Timestamp,
    newest: Values,
    is_repair_due: bool,
    /// How often it was sent before.
    resends: usize,
}

struct World {
    without: Without,
    random: Random,
    now: Timestamp,
    schedule: Schedule,
    events: Vec<Offer>,
    queue: Vec<Message>,
    dead: Vec<usize>,
    workers: Vec<Option<Work>>,
    /// What is on the disk, and what the only worker has written since; several share the disk.
    disk: Record,
    memory: Record,
    profile: BTreeMap<Arc<str>, Choice>,
    late: Vec<(Timestamp, BTreeMap<Arc<str>, Choice>)>,
    faults: bool,
    /// Everything up to then was erased, and something older was sent since.
    erased: Option<Timestamp>,
    was_brought_back: bool,
}

/// The process died: what it had in memory is gone, what it had in hand comes back.
struct Crash;

fn second(seconds: usize) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).unwrap()).unwrap()
}

impl World {
    fn new(seed: u64, workers: usize, without: Without) -> World {
        let mut random = Random::new(seed);
        let count = 2 + random.below(5);
        let events: Vec<Offer> = (0..count)
            .map(|n| {
                let named = PROPERTIES.iter().filter(|_| random.percent(70)).copied().collect::<Vec<_>>();
                Offer {
                    // Ties occur.
                    at: (!random.percent(5)).then(|| second(random.below(6) * 20)),
                    event: Some(format!("e{n}").into()),
                    choices: named
                        .into_iter()
                        .map(|property| (property.into(), Choice::Switch(random.percent(50))))
                        .collect(),
                }
            })
            .collect();
        let mut queue = Vec::new();
        for event in 0..count {
            for _ in 0..=usize::from(random.percent(TWICE)) {
                // Several at one moment, so that workers meet.
                let ready = second(if workers > 1 { random.below(4) * 50 } else { random.below(200) });
                queue.push(Message { event: Some(event), history: History::default(), ready });
            }
        }
        if random.percent(ERASED) {
            queue.push(Message { event: None, history: History::default(), ready: second(random.below(200)) });
        }
        World {
            without,
            random,
            now: second(0),
            schedule: Schedule::default(),
            events,
            queue,
            dead: Vec::new(),
            workers: vec![None; workers],
            disk: Record::default(),
            memory: Record::default(),
            profile: BTreeMap::new(),
            late: Vec::new(),
            faults: true,
            erased: None,
            was_brought_back: false,
        }
    }

    fn lateness(&self) -> SignedDuration {
        SignedDuration::try_from(self.schedule.longest() + TIMEOUT).unwrap() + SignedDuration::from_secs(5)
    }

    fn crashes(&mut self) -> Result<(), Crash> {
        if self.faults && self.random.percent(CRASH) { Err(Crash) } else { Ok(()) }
    }

    /// Time passes, and with it what the gate executes late.
    fn pass(&mut self, until: Timestamp) {
        self.late.sort_by_key(|(at, _)| *at);
        while self.late.first().is_some_and(|(at, _)| *at <= until) {
            let (_, values) = self.late.remove(0);
            self.profile.extend(values);
        }
        self.now = self.now.max(until);
    }

    /// Lets everything run to its end, one step of one worker after the other.
    fn run(&mut self) {
        let mut steps = 0;
        while !self.queue.is_empty() || self.workers.iter().any(Option::is_some) {
            steps += 1;
            assert!(steps < 10_000, "it never ends");
            let worker = self.random.below(self.workers.len());
            match self.workers[worker].take() {
                None => self.workers[worker] = self.take(),
                Some(work) => {
                    let message = work.message.clone();
                    match self.step(work) {
                        Ok(next) => self.workers[worker] = next,
                        Err(Crash) => {
                            self.memory = self.disk.clone();
                            self.queue.push(message);
                        }
                    }
                }
            }
        }
    }

    /// Takes a message, in any order; time passes only when nobody has anything to do.
    fn take(&mut self) -> Option<Work> {
        let earliest = self.queue.iter().map(|message| message.ready).min()?;
        if self.workers.iter().all(Option::is_none) {
            self.pass(self.now.max(earliest));
        }
        let ready: Vec<usize> = (0..self.queue.len()).filter(|n| self.queue[*n].ready <= self.now).collect();
        let chosen = *ready.get(self.random.below(ready.len().max(1)))?;
        Some(Work { message: self.queue.swap_remove(chosen), stage: Stage::Merge })
    }

    fn step(&mut self, Work { message, stage }: Work) -> Result<Option<Work>, Crash> {
        let stage = match stage {
            Stage::Merge => self.merge(&message)?,
            Stage::Ask(request) => {
                let outcome = self.ask(&request.newest)?;
                Stage::Note(request, outcome)
            }
            Stage::Note(request, outcome) => self.note(&message, request, outcome)?,
            Stage::Settle(settlement) => return self.settle(message, settlement).map(|()| None),
        };
        Ok(Some(Work { message, stage }))
    }

    fn settle(&mut self, message: Message, settlement: Settlement) -> Result<(), Crash> {
        let Message { event, .. } = message;
        match settlement {
            Settlement::Done => {}
            Settlement::Park(delay, history) => self.queue.push(Message { event, history, ready: self.now + delay }),
            Settlement::Recount(history) => self.queue.push(Message { event, history, ready: self.now }),
            Settlement::Dead(_, _) => self.dead.extend(event),
        }
        // Published, and not yet acked.
        self.crashes()
    }

    fn offer(&self, event: usize) -> Offer {
        let mut offer = self.events[event].clone();
        if self.without == Without::OwnTime {
            offer.at = Some(self.now);
        }
        offer
    }

    /// Changes the record, as the only step in which nobody else is between reading and writing.
    fn update<T>(&mut self, is_durable: bool, change: impl FnOnce(&mut Record) -> T) -> T {
        let told = change(&mut self.memory);
        if (is_durable || self.workers.len() > 1) && self.without != Without::Durability {
            self.disk = self.memory.clone();
        }
        told
    }

    fn merge(&mut self, message: &Message) -> Result<Stage, Crash> {
        let history = &message.history;
        let Some(event) = message.event else {
            let at = self.now;
            if self.without != Without::Tombstone {
                self.update(true, |record| record.erase(at, at));
            }
            self.erased = self.erased.max(Some(at));
            return Ok(Stage::Settle(Settlement::Done));
        };
        if let Some(at) = too_early(history, &self.schedule, self.now) {
            return Ok(Stage::Settle(self.decided(&Course::TooEarly(at), None, history, None)));
        }
        let (offer, lateness, now) = (self.offer(event), self.lateness(), self.now);
        let id = self.random.below(usize::MAX) as u64;
        let mut record = self.memory.clone();
        if record.has_erased(offer.at) {
            return Ok(Stage::Settle(Settlement::Done));
        }
        record.merge(&offer, now, &Mapped::default());
        let newest = match self.without {
            Without::Records => own(&offer),
            _ if history.is_repair => match record.repair(&offer, now, lateness) {
                Some(newest) => newest,
                None => return Ok(Stage::Settle(self.decided(&Course::Repaired, None, history, None))),
            },
            _ => record.newest(&offer),
        };
        // Who begins after an erasure may send nothing of before.
        self.was_brought_back |= self.erased.is_some() && newest.values().any(|newest| newest.at <= self.erased);
        record.about_to_send(id, newest.clone(), now, lateness);
        self.crashes()?;
        if self.without != Without::CommitFirst {
            self.update(self.without != Without::NoteFirst, |known| *known = record);
            self.crashes()?;
        }
        Ok(Stage::Ask(Request { id, begun: now, newest, is_repair_due: false, resends: 0 }))
    }

    /// Takes note of an answer, and looks whether the record moved on.
    fn note(&mut self, message: &Message, request: Request, outcome: Outcome) -> Result<Stage, Crash> {
        let Message { event, history, .. } = message;
        let Request { id, begun, newest, resends, .. } = request;
        let (offer, lateness, now) = (self.offer(event.unwrap()), self.lateness(), self.now);
        let is_lent = newest.values().any(|newest| newest.at != offer.at || newest.event != offer.event);
        let next = self.random.below(usize::MAX) as u64;
        let without = self.without;
        let sent = Sent::of(outcome, is_lent);
        let changed = |record: &mut Record| {
            if without == Without::CommitFirst {
                record.merge(&offer, now, &Mapped::default());
                record.about_to_send(id, newest.clone(), begun, lateness);
            }
            let is_due = record.answered(id, &offer, sent, now, lateness);
            if history.is_repair && sent == Sent::Accepted {
                record.repaired(begun, &newest, lateness);
            }
            let moved_on = if sent == Sent::Accepted { record.moved_on(&newest) } else { None };
            let moved_on = moved_on.filter(|_| !matches!(without, Without::Look | Without::Records));
            if let Some(newest) = &moved_on {
                record.about_to_send(next, newest.clone(), now, lateness);
            }
            (is_due, moved_on)
        };
        let before = self.memory.clone();
        let (is_due, moved_on) = self.update(false, changed);
        // Nobody waits until it is durable, unless something hangs on it.
        if is_due || moved_on.is_some() || history.is_repair || self.memory.refusals() != before.refusals() {
            self.update(true, |_| ());
        }
        self.crashes()?;
        let is_repair_due = request.is_repair_due || is_due;
        if let (Some(newest), true) = (&moved_on, resends < RESENDS) {
            let newest = newest.clone();
            return Ok(Stage::Ask(Request { id: next, begun: now, newest, is_repair_due, resends: resends + 1 }));
        }
        if moved_on.is_some() || (resends > 0 && sent != Sent::Accepted) {
            return Ok(Stage::Settle(self.decided(&Course::Held, None, history, None)));
        }
        let repair = is_repair_due && !history.is_repair && self.without != Without::Repairs;
        let repair_at = repair.then(|| self.now + lateness);
        let attempt = Attempt { at: begun, result: outcome, status: None, ms: 1 };
        let answer = Answer { outcome, ..Answer::unavailable("faulty".to_owned()) };
        let course = Course::of(answer, false, is_lent);
        Ok(Stage::Settle(self.decided(&course, Some(attempt), history, repair_at)))
    }

    fn decided(
        &self,
        course: &Course,
        attempt: Option<Attempt>,
        history: &History,
        repair_at: Option<Timestamp>,
    ) -> Settlement {
        let verdict = verdict::decide(course, history, &self.schedule, self.now);
        verdict::settlement(&verdict, course, attempt, history.clone(), &self.schedule, repair_at)
    }

    /// One request: executed or not, now or late, answered or not, or cut off by a crash.
    fn ask(&mut self, newest: &Values) -> Result<Outcome, Crash> {
        let values: BTreeMap<Arc<str>, Choice> =
            newest.iter().map(|(property, newest)| (property.clone(), newest.choice.clone())).collect();
        let latest = usize::try_from((self.schedule.longest() + TIMEOUT).as_secs()).unwrap();
        let fault = if self.faults { self.random.below(100) } else { 100 };
        let lately = self.now + Duration::from_secs(1 + self.random.below(latest) as u64);
        let taken = self.now + Duration::from_millis(self.random.below(3_000) as u64);
        match fault {
            // Executed at once, and the answer is lost.
            0..6 => {
                self.profile.extend(values);
                self.pass(taken);
                Ok(Outcome::Unavailable)
            }
            // Not answered in time, and executed later.
            6..14 => {
                self.late.push((lately, values));
                self.pass(self.now + TIMEOUT);
                Ok(Outcome::Unavailable)
            }
            14..20 => Ok(Outcome::Unavailable),
            20..23 => Ok(Outcome::Throttled),
            23..25 => Ok(Outcome::Rejected),
            25..28 => Ok(Outcome::Refused),
            // The worker dies; what it sent may still be executed.
            28..31 => {
                self.late.push((lately, values));
                Err(Crash)
            }
            _ => {
                self.pass(taken);
                self.profile.extend(values);
                Ok(Outcome::Accepted)
            }
        }
    }

    /// The newest choice of each property, of all events.
    fn expected(&self) -> BTreeMap<Arc<str>, Choice> {
        let mut newest = Values::new();
        for (property, offered) in self.events.iter().flat_map(own) {
            let is_newer = newest.get(&property).is_none_or(|known| offered.compare(known) == Ordering::Greater);
            if is_newer {
                newest.insert(property, offered);
            }
        }
        newest.into_iter().map(|(property, newest)| (property, newest.choice.clone())).collect()
    }
}

/// What an event itself says.
fn own(offer: &Offer) -> Values {
    let newest = |choice: &Choice| Newest::offered(choice, offer);
    offer.choices.iter().map(|(property, choice)| (property.clone(), Arc::new(newest(choice)))).collect()
}

/// Whether the profile is right after everything, the dead letters replayed included.
fn is_right(seed: u64, workers: usize, without: Without) -> bool {
    let mut world = World::new(seed, workers, without);
    world.run();
    // The faults end; an operator replays what died, in any order.
    world.faults = false;
    let now = world.now;
    for event in std::mem::take(&mut world.dead) {
        let ready = now + Duration::from_secs(world.random.below(60) as u64);
        world.queue.push(Message { event: Some(event), history: History::default(), ready });
    }
    world.run();
    let end = world.late.iter().map(|(at, _)| *at).max().unwrap_or(world.now);
    world.pass(end);
    assert!(world.dead.is_empty());
    if world.erased.is_some() {
        // All events are older than the erasure: what was sent before it is at the gate for good.
        return !world.was_brought_back;
    }
    world.profile == world.expected()
}

fn wrong(schedules: u64, workers: usize, without: Without) -> Vec<u64> {
    (0..schedules).filter(|seed| !is_right(*seed, workers, without)).collect()
}

fn never_wrong(schedules: u64, workers: usize) {
    let wrong = wrong(schedules, workers, Without::Nothing);
    assert!(wrong.is_empty(), "{} of {schedules} schedules end wrong, the first with seed {}", wrong.len(), wrong[0]);
}

#[test]
fn in_a_hundred_thousand_schedules_the_newest_consent_wins() {
    never_wrong(100_000, 1);
}

#[test]
fn it_wins_with_two_workers_on_shared_records_and_with_three() {
    never_wrong(60_000, 2);
    never_wrong(40_000, 3);
}

#[test]
fn without_any_one_rule_it_does_not() {
    use Without::{CommitFirst, Durability, Look, NoteFirst, OwnTime, Records, Repairs, Tombstone};
    let alone = [Records, Durability, NoteFirst, Repairs, OwnTime, Tombstone].map(|without| (1, without));
    for (workers, without) in alone.into_iter().chain([Look, CommitFirst].map(|without| (2, without))) {
        let wrong = wrong(20_000, workers, without);
        note(&format!("{workers} at work without {without:?}: {} of 20,000 schedules end wrong", wrong.len()));
        assert!(!wrong.is_empty(), "without {without:?} nothing is wrong: the model does not see it");
    }
}
