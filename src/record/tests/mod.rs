//! Tests of the rules, one by one and as properties: one person, and what the tests do with their record.

mod doubts;
mod erased_grants;
mod erasures;
mod mappings;
mod newest;
mod owed;
mod properties;
mod turns;

use super::*;
use crate::mapping::{Names, SelectedIds};

const LATENESS: SignedDuration = SignedDuration::from_secs(135);
const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn slot(property: &str) -> Slot {
    Slot::new(property, &format!("consents_purposes_{property}_enabled"))
}

fn mapped() -> Mapped {
    Mapped::new(["news", "partners", "other"].map(slot))
}

fn of(second: i64, event: &str, choices: Vec<(Slot, Choice)>) -> Offer {
    Offer { at: Some(at(second)), withdrawn_at: Some(at(second)), event: Some(event.into()), choices }
}

fn offer(second: i64, event: &str, choices: &[(&str, bool)]) -> Offer {
    of(second, event, choices.iter().map(|(id, on)| (slot(id), Choice::Switch(*on))).collect())
}

fn topics(second: i64, event: &str, ids: &[&str]) -> Offer {
    let ids = ids.iter().map(|id| (*id).into()).collect();
    of(second, event, vec![(slot("topics"), Choice::Selection(SelectedIds { ids, names: Names::Grants }))])
}

/// One person's record, and what the tests do with it.
#[derive(Clone)]
struct Person {
    known: Option<Record>,
    mapped: Mapped,
    swept: Option<Timestamp>,
    ids: u64,
}

/// How a turn ended.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Erased,
    TooOld,
    Needless,
    /// The values that were sent, as texts, and whether a repair is due.
    Sent(Vec<(String, String)>, bool),
}

impl Person {
    fn new() -> Person {
        Person { known: None, mapped: mapped(), swept: None, ids: 100 }
    }

    fn around(&self, now: i64) -> Around<'_> {
        Around { now: at(now), execution_horizon: LATENESS, retention: YEAR, swept: self.swept, mapped: &self.mapped }
    }

    fn begin(&mut self, id: u64, offer: &Offer, is_repair: bool, now: i64) -> Begun {
        let mut known = self.known.take();
        let (begun, write) = begin(&mut known, Ask { id, offer, is_repair }, &self.around(now));
        self.known = known;
        assert!(write == Write::Durable || !matches!(begun, Begun::Send(_)), "noted before it is sent");
        begun
    }

    fn end(
        &mut self,
        id: u64,
        offer: &Offer,
        (is_repair, carried): (bool, &Values),
        effect: Effect,
        times: [i64; 2],
    ) -> TurnEnd {
        self.end_and_write(id, offer, (is_repair, carried), effect, times).0
    }

    fn end_and_write(
        &mut self,
        id: u64,
        offer: &Offer,
        (is_repair, carried): (bool, &Values),
        effect: Effect,
        [begun, now]: [i64; 2],
    ) -> (TurnEnd, Write) {
        let mut known = self.known.take();
        let request =
            SentRequest { carried, begun: at(begun), effect, was_resent: false, first: id + 500, next: id + 700 };
        let ended = end(&mut known, Ask { id, offer, is_repair }, &request, &self.around(now));
        self.known = known;
        ended
    }

    /// One whole turn, or how it ended early.
    fn turn_of(&mut self, offer: &Offer, is_repair: bool, effect: Effect, now: i64) -> Turn {
        self.ids += 1;
        let id = self.ids;
        match self.begin(id, offer, is_repair, now) {
            Begun::Erased => Turn::Erased,
            Begun::TooOld => Turn::TooOld,
            Begun::Needless => Turn::Needless,
            Begun::Send(ToSend { newest, .. }) => {
                let ended = self.end(id, offer, (is_repair, &newest), effect, [now, now]);
                assert_eq!(ended.superseded, None);
                Turn::Sent(texts(&newest), ended.is_repair_due)
            }
        }
    }

    fn turn(&mut self, offer: &Offer, effect: Effect, now: i64) -> Turn {
        self.turn_of(offer, false, effect, now)
    }

    /// One whole turn at a worker with other mappings, which this worker then learns.
    fn turn_elsewhere(&mut self, theirs: &Mapped, offer: &Offer, effect: Effect, now: i64) {
        let own = std::mem::replace(&mut self.mapped, theirs.clone());
        self.turn(offer, effect, now);
        self.mapped = own;
        self.mapped.learn(theirs.own(), theirs.slots().cloned());
    }

    fn erase(&mut self, second: Option<i64>, message: u64, now: i64) -> bool {
        let erasure = Erasure { at: second.map(at), published: at(now), message };
        erase(&mut self.known, erasure, at(now), LATENESS).0
    }

    fn record(&self) -> &Record {
        self.known.as_ref().unwrap()
    }
}

fn texts(values: &Values) -> Vec<(String, String)> {
    values.iter().map(|(slot, said)| (slot.property().to_owned(), said.choice().to_string())).collect()
}

fn sends(values: &[(&str, &str)]) -> Turn {
    Turn::Sent(values.iter().map(|(property, text)| ((*property).to_owned(), (*text).to_owned())).collect(), false)
}

fn sends_and_repairs(values: &[(&str, &str)]) -> Turn {
    match sends(values) {
        Turn::Sent(values, _) => Turn::Sent(values, true),
        other => other,
    }
}
