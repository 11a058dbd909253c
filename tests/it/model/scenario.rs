//! What happens in one schedule: the events, when their messages arrive, and what goes wrong.

use crate::harness::Random;
use consent_gate::mapping::{Choice, Names, SelectedIds, Slot};
use consent_gate::record::Offer;
use jiff::Timestamp;
use std::sync::Arc;

/// The paths that an event can contain. The last one is a multiple choice.
pub const PATHS: [&str; 4] = ["a", "b", "c", "topics"];

/// The mappings of the documents that an integration can have: property and path.
const DOCUMENTS: [&[(&str, &str)]; 4] = [
    &[("NEWS", "a"), ("SMS", "b"), ("TOPICS", "topics")],
    // One mapping more.
    &[("NEWS", "a"), ("SMS", "b"), ("TOPICS", "topics"), ("MORE", "c")],
    // One mapping corrected.
    &[("NEWS", "c"), ("SMS", "b"), ("TOPICS", "topics")],
    // One mapping less.
    &[("NEWS", "a"), ("TOPICS", "topics")],
];

/// The slots of a document.
pub fn document(index: usize) -> impl Iterator<Item = Slot> {
    DOCUMENTS[index].iter().map(|(property, path)| Slot::new(property, path))
}

pub fn second(seconds: usize) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).unwrap()).unwrap()
}

/// What a person chose, path by path.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: Arc<str>,
    pub at: Option<Timestamp>,
    /// Later than `at` for an update that does not say what it changed.
    pub withdrawn_at: Option<Timestamp>,
    pub choices: Vec<(&'static str, Choice)>,
}

impl Event {
    /// What it says about a slot.
    pub fn choice(&self, slot: &Slot) -> Option<&Choice> {
        self.choices.iter().find(|(path, _)| *path == slot.path()).map(|(_, choice)| choice)
    }

    /// What it says about these slots.
    pub fn offer(&self, slots: impl IntoIterator<Item = Slot>) -> Offer {
        let said = |slot: Slot| self.choice(&slot).cloned().map(|choice| (slot, choice));
        let choices = slots.into_iter().filter_map(said).collect();
        Offer { at: self.at, withdrawn_at: self.withdrawn_at, event: Some(Arc::clone(&self.id)), choices }
    }
}

/// What a message contains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Subject {
    Event(usize),
    /// Erases everything up to this time; without a time, up to its first receipt.
    Erasure(u64, Option<Timestamp>),
}

/// The records are restored to an older state, and later to the right one.
#[derive(Clone, Copy, Debug)]
pub struct Restored {
    pub state_of: Timestamp,
    pub at: Timestamp,
    pub mended: Timestamp,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub workers: usize,
    pub events: Vec<Event>,
    /// The messages, and when they arrive.
    pub messages: Vec<(Subject, Timestamp)>,
    /// When the documents change, and to which.
    pub documents: Vec<(Timestamp, usize)>,
    /// How many requests in a hundred are not answered.
    pub unanswered: usize,
    /// How far each worker's clock is ahead, in seconds, and how late it reads a changed document.
    pub ahead: Vec<usize>,
    pub restored: Option<Restored>,
    /// At this time persons without an event for an hour are forgotten; from then on all are remembered for a
    /// year.
    pub swept: Option<Timestamp>,
}

impl Scenario {
    pub fn new(seed: u64, workers: usize) -> Scenario {
        let mut random = Random::new(seed.wrapping_mul(4).wrapping_add(workers as u64));
        let is_storm = random.percent(6);
        let count = if is_storm { 20 + random.below(10) } else { 2 + random.below(5) };
        // In a storm each event contains little, so that requests differ.
        let named = if is_storm { 20 } else { 60 };
        let events: Vec<Event> = (0..count).map(|number| event(&mut random, number, named)).collect();
        let swept = random.percent(6).then(|| second(3 * 3_600));
        let mut messages = Vec::new();
        for number in 0..count {
            for _ in 0..=usize::from(random.percent(15)) {
                // Several at the same time, so that workers collide.
                let soon = if workers > 1 { random.below(4) * 50 } else { random.below(200) };
                let soon = if is_storm { random.below(60) } else { soon };
                let late = swept.filter(|_| random.percent(40)).map(|_| second(3 * 3_600 + 10 + random.below(60)));
                messages.push((Subject::Event(number), late.unwrap_or_else(|| second(soon))));
            }
        }
        let erasures = if random.percent(15) { 1 + random.below(2) } else { 0 };
        for number in 0..erasures {
            let erasure = Subject::Erasure(number as u64, random.percent(50).then(|| second(random.below(150))));
            messages.push((erasure, second(random.below(250))));
            if random.percent(30) {
                messages.push((erasure, second(random.below(3_000))));
            }
        }
        let mut documents = vec![(second(0), random.below(2))];
        if random.percent(25) {
            documents.push((second(20 + random.below(200)), random.below(DOCUMENTS.len())));
            if random.percent(30) {
                documents.push((second(250 + random.below(100)), random.below(DOCUMENTS.len())));
            }
        }
        let restored = random.percent(5).then(|| {
            let at = 70 + random.below(200);
            Restored { state_of: second(random.below(at - 65)), at: second(at), mended: second(at + 400) }
        });
        let unanswered = if is_storm { 60 } else { 17 };
        let ahead = (0..workers).map(|_| if random.percent(30) { random.below(60) } else { 0 }).collect();
        Scenario { seed, workers, events, messages, documents, unanswered, ahead, restored, swept }
    }

    /// The slots that were mapped from some time on to the end. A slot that was not mapped for a while cannot
    /// be repaired meanwhile: only what is sent of it is judged.
    pub fn lasting(&self) -> impl Iterator<Item = Slot> {
        let is_mapped = |index: usize, slot: &Slot| document(index).any(|mapped| mapped == *slot);
        let (_, last) = self.documents[self.documents.len() - 1];
        document(last).filter(move |slot| {
            let since = self.documents.iter().skip_while(|(_, index)| !is_mapped(*index, slot));
            since.into_iter().all(|(_, index)| is_mapped(*index, slot))
        })
    }

    /// All scenarios with one thing less than this one.
    pub fn simpler(&self) -> Vec<Scenario> {
        let mut simpler = Vec::new();
        let mut with = |change: &dyn Fn(&mut Scenario)| {
            let mut scenario = self.clone();
            change(&mut scenario);
            simpler.push(scenario);
        };
        for index in 0..self.messages.len() {
            with(&|scenario| _ = scenario.messages.remove(index));
        }
        for event in 0..self.events.len() {
            for choice in 0..self.events[event].choices.len() {
                with(&|scenario| drop(scenario.events[event].choices.remove(choice)));
            }
        }
        for index in 1..self.documents.len() {
            with(&|scenario| _ = scenario.documents.remove(index));
        }
        for index in 0..self.ahead.len() {
            if self.ahead[index] > 0 {
                with(&|scenario| scenario.ahead[index] = 0);
            }
        }
        if self.restored.is_some() {
            with(&|scenario| scenario.restored = None);
        }
        if self.swept.is_some() {
            with(&|scenario| scenario.swept = None);
        }
        if self.unanswered > 0 {
            with(&|scenario| scenario.unanswered = 0);
        }
        simpler
    }
}

fn event(random: &mut Random, number: usize, named: usize) -> Event {
    let mut choices = Vec::new();
    for path in PATHS {
        if path == "topics" {
            if random.percent(25) {
                let ids = ["x", "y"].into_iter().filter(|_| random.percent(50)).map(Arc::from).collect();
                choices.push((path, Choice::Selection(SelectedIds { ids, names: Names::Grants })));
            }
        } else if random.percent(named) {
            choices.push((path, Choice::Switch(random.percent(50))));
        }
    }
    // Ties occur.
    let at = (!random.percent(5)).then(|| random.below(6) * 20);
    let withdrawn_at = at.map(|at| if random.percent(10) { at + random.below(4) * 20 } else { at });
    let id = format!("e{number}").into();
    Event { id, at: at.map(second), withdrawn_at: withdrawn_at.map(second), choices }
}
