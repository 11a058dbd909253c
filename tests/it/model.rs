//! A model of the whole under everything that can go wrong, without real time: a broker that
//! reorders and delivers twice, a gate that fails, loses answers and executes late, a worker that
//! crashes at every step. The decisions are the real ones: merge, verdict, settlement.
//!
//! In the end each property of the profile must be the newest of all events, always; and without
//! any one of the rules it must not, or the model would prove nothing.

use super::harness::{Random, note};
use consent_gate::broker::headers::{Attempt, History};
use consent_gate::broker::outbox::Settlement;
use consent_gate::gate::{Answer, Outcome};
use consent_gate::mapping::Choice;
use consent_gate::record::{Mapped, Newest, Offer, Record, Sent};
use consent_gate::schedule::Schedule;
use consent_gate::verdict::{self, Course, too_early};
use jiff::{SignedDuration, Timestamp};
use std::cmp::Ordering;
use std::collections::BTreeMap;
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
}

/// The shares, in a hundred, of what goes wrong.
const CRASH: usize = 4;
const TWICE: usize = 15;

#[derive(Clone, Debug)]
struct Message {
    event: usize,
    history: History,
    ready: Timestamp,
}

struct World {
    without: Without,
    random: Random,
    now: Timestamp,
    schedule: Schedule,
    events: Vec<Offer>,
    queue: Vec<Message>,
    dead: Vec<usize>,
    /// What is on the disk, and what the process has written since.
    disk: Record,
    memory: Record,
    profile: BTreeMap<String, Choice>,
    late: Vec<(Timestamp, BTreeMap<String, Choice>)>,
    faults: bool,
    requests: u64,
}

/// The process died: what it had in memory is gone, what it had in hand comes back.
struct Crash;

fn second(seconds: usize) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).unwrap()).unwrap()
}

impl World {
    fn new(seed: u64, without: Without) -> World {
        let mut random = Random::new(seed);
        let count = 2 + random.below(5);
        let events: Vec<Offer> = (0..count)
            .map(|n| {
                let named = PROPERTIES.iter().filter(|_| random.percent(70)).copied().collect::<Vec<_>>();
                Offer {
                    // Ties occur.
                    at: (!random.percent(5)).then(|| second(random.below(6) * 20)),
                    event: Some(format!("e{n}")),
                    choices: named
                        .into_iter()
                        .map(|property| (property.to_owned(), Choice::Switch(random.percent(50))))
                        .collect(),
                }
            })
            .collect();
        let mut queue = Vec::new();
        for event in 0..count {
            for _ in 0..=usize::from(random.percent(TWICE)) {
                let ready = second(random.below(200));
                queue.push(Message { event, history: History::default(), ready });
            }
        }
        World {
            without,
            random,
            now: second(0),
            schedule: Schedule::default(),
            events,
            queue,
            dead: Vec::new(),
            disk: Record::default(),
            memory: Record::default(),
            profile: BTreeMap::new(),
            late: Vec::new(),
            faults: true,
            requests: 0,
        }
    }

    fn lateness(&self) -> SignedDuration {
        SignedDuration::try_from(self.schedule.longest() + TIMEOUT).unwrap() + SignedDuration::from_secs(5)
    }

    fn crashes(&mut self) -> Result<(), Crash> {
        if self.faults && self.random.percent(CRASH) {
            self.memory = self.disk.clone();
            return Err(Crash);
        }
        Ok(())
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

    /// Lets everything run to its end.
    fn run(&mut self) {
        let mut steps = 0;
        while !self.queue.is_empty() {
            steps += 1;
            assert!(steps < 2_000, "it never ends");
            let earliest = self.queue.iter().map(|message| message.ready).min().unwrap();
            let until = self.now.max(earliest);
            self.pass(until);
            let ready: Vec<usize> = (0..self.queue.len()).filter(|n| self.queue[*n].ready <= self.now).collect();
            let chosen = ready[self.random.below(ready.len())];
            // Taken off only when it is acked.
            if let Ok(settlement) = self.handle(&self.queue[chosen].clone()) {
                self.settle(chosen, settlement);
            }
        }
    }

    fn settle(&mut self, chosen: usize, settlement: Settlement) {
        let Message { event, .. } = self.queue[chosen];
        match settlement {
            Settlement::Done => {}
            Settlement::Park(delay, history) => self.queue.push(Message { event, history, ready: self.now + delay }),
            Settlement::Anew(history) => self.queue.push(Message { event, history, ready: self.now }),
            Settlement::Dead(_, _) => self.dead.push(event),
        }
        if self.crashes().is_ok() {
            self.queue.remove(chosen);
        }
    }

    fn handle(&mut self, message: &Message) -> Result<Settlement, Crash> {
        let Message { event, history, .. } = message;
        if let Some(at) = too_early(history, &self.schedule, self.now) {
            return Ok(self.decided(&Course::TooEarly(at), None, history, None));
        }
        let mut offer = self.events[*event].clone();
        if self.without == Without::OwnTime {
            offer.at = Some(self.now);
        }
        let lateness = self.lateness();
        let mut record = self.memory.clone();
        record.merge(&offer, self.now, &Mapped::default());
        let newest = match self.without {
            Without::Records => own(&offer),
            _ if history.is_repair => match record.repair(&offer, self.now, lateness) {
                Some(newest) => newest,
                None => return Ok(self.decided(&Course::Repaired, None, history, None)),
            },
            _ => record.newest(&offer),
        };
        let id = self.random.below(usize::MAX) as u64;
        let begun = self.now;
        record.about_to_send(id, newest.clone(), begun, lateness);
        self.crashes()?;
        self.memory = record.clone();
        if self.without != Without::NoteFirst {
            self.commit();
            self.crashes()?;
        }
        let at = self.now;
        let is_lent = newest != own(&offer);
        let outcome = self.ask(&newest)?;
        self.commit();
        self.crashes()?;
        let sent = Sent::of(outcome, is_lent);
        let is_due = record.answered(id, &offer, sent, self.now, lateness);
        if history.is_repair && sent == Sent::Accepted {
            record.repaired(begun, lateness);
        }
        // Nobody waits until it is durable, unless a repair hangs on it.
        self.memory = record;
        if is_due {
            self.commit();
            self.crashes()?;
        }
        let repair = is_due && !history.is_repair && self.without != Without::Repairs;
        let repair_at = repair.then(|| self.now + lateness);
        let attempt = Attempt { at, result: outcome, status: None, ms: 1 };
        let answer = Answer { outcome, ..Answer::unavailable("faulty".to_owned()) };
        let course = Course::of(answer, false, is_lent);
        Ok(self.decided(&course, Some(attempt), history, repair_at))
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

    fn commit(&mut self) {
        if self.without != Without::Durability {
            self.disk = self.memory.clone();
        }
    }

    /// One request: executed or not, now or late, answered or not, or cut off by a crash.
    fn ask(&mut self, newest: &BTreeMap<String, Newest>) -> Result<Outcome, Crash> {
        self.requests += 1;
        let values: BTreeMap<String, Choice> =
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
                self.memory = self.disk.clone();
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
    fn expected(&self) -> BTreeMap<String, Choice> {
        let mut newest: BTreeMap<String, Newest> = BTreeMap::new();
        for (property, offered) in self.events.iter().flat_map(own) {
            let is_newer = newest.get(&property).is_none_or(|known| offered.compare(known) == Ordering::Greater);
            if is_newer {
                newest.insert(property, offered);
            }
        }
        newest.into_iter().map(|(property, newest)| (property, newest.choice)).collect()
    }
}

/// What an event itself says.
fn own(offer: &Offer) -> BTreeMap<String, Newest> {
    let newest = |choice: &Choice| Newest::offered(choice, offer);
    offer.choices.iter().map(|(property, choice)| (property.clone(), newest(choice))).collect()
}

/// Whether the profile is right after everything, the dead letters replayed included.
fn is_right(seed: u64, without: Without) -> bool {
    let mut world = World::new(seed, without);
    world.run();
    // The faults end; an operator replays what died, in any order.
    world.faults = false;
    let now = world.now;
    for event in std::mem::take(&mut world.dead) {
        let ready = now + Duration::from_secs(world.random.below(60) as u64);
        world.queue.push(Message { event, history: History::default(), ready });
    }
    world.run();
    let end = world.late.iter().map(|(at, _)| *at).max().unwrap_or(world.now);
    world.pass(end);
    assert!(world.dead.is_empty());
    world.profile == world.expected()
}

fn wrong(schedules: u64, without: Without) -> Vec<u64> {
    (0..schedules).filter(|seed| !is_right(*seed, without)).collect()
}

#[test]
fn in_a_hundred_thousand_schedules_the_newest_consent_wins() {
    let wrong = wrong(100_000, Without::Nothing);
    assert!(wrong.is_empty(), "{} of 100,000 schedules end wrong, the first with seed {}", wrong.len(), wrong[0]);
}

#[test]
fn without_any_one_rule_it_does_not() {
    for without in [Without::Records, Without::Durability, Without::NoteFirst, Without::Repairs, Without::OwnTime] {
        let wrong = wrong(20_000, without);
        note(&format!("without {without:?}: {} of 20,000 schedules end wrong", wrong.len()));
        assert!(!wrong.is_empty(), "without {without:?} nothing is wrong: the model does not see it");
    }
}
