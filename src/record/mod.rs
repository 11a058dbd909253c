//! Step 4: the newest consent wins (pure).
//!
//! A record keeps, for one person under one integration, the newest choice of each property and
//! its version. Versions are totally ordered and hold no time of arrival, so any order and number
//! of deliveries of the same events gives the same record: merging is commutative, associative and
//! idempotent. What is sent is the record's newest, so a late retry carries today's truth.

pub mod address;
pub mod compact;
pub mod desk;
mod embedded;
mod place;
mod postgres;
mod rounds;
mod store;
mod suspects;

pub use place::{Claim, Failed, Place, Settings};
pub use store::{Answered, Noted, Records, Suspect, Taken, Turn, lateness};
pub use suspects::{Known, Note};

use crate::gate::Outcome;
use crate::mapping::Choice;
use jiff::{SignedDuration, Timestamp};
use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one event says of its person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// When the choices changed; an undated event is older than every dated one.
    pub at: Option<Timestamp>,
    /// The event's id.
    pub event: Option<Arc<str>>,
    /// Property and choice, in the mappings' order.
    pub choices: Vec<(Arc<str>, Choice)>,
}

/// The newest known choice of one property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    #[serde(rename = "c")]
    pub choice: Choice,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Arc<str>>,
    /// The gate refused it for good: it is neither lent to other events nor replaced by an older.
    #[serde(rename = "r", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_refused: bool,
    /// When the gate first accepted it.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Timestamp>,
}

impl Newest {
    /// What an event says of one property.
    #[must_use]
    pub fn offered(choice: &Choice, offer: &Offer) -> Newest {
        let (choice, event) = (choice.clone(), offer.event.clone());
        Newest { choice, at: offer.at, event, is_refused: false, accepted: None }
    }

    /// The order of versions: time; then withdrawal after grant; then event id, none being lowest;
    /// then the choice itself.
    fn version(&self) -> (Option<Timestamp>, bool, Option<&str>, &Choice) {
        (self.at, self.choice.is_withdrawal(), self.event.as_deref(), &self.choice)
    }

    /// Compares versions; equal only for the same choice of the same event (events without an id are
    /// the same when they are of one time).
    #[must_use]
    pub fn compare(&self, other: &Newest) -> Ordering {
        self.version().cmp(&other.version())
    }

    /// Whether it is what this event itself said.
    fn is_of(&self, offer: &Offer) -> bool {
        self.at == offer.at && self.event == offer.event
    }
}

/// The newest choice of each of some properties.
pub type Values = LiteMap<Arc<str>, Arc<Newest>>;

/// A request whose outcome is not known, or not known to be harmless any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// When it was about to be sent.
    #[serde(rename = "t")]
    pub at: Timestamp,
    /// What it carried.
    #[serde(rename = "s", serialize_with = "crate::json::object")]
    pub sent: Values,
    /// A repair of it is on its way.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_parked: bool,
}

/// Since when each property is mapped, where that is known; the others always were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapped(BTreeMap<Arc<str>, Timestamp>);

impl Mapped {
    /// Takes the properties that appeared later than the records began.
    #[must_use]
    pub fn new(since: BTreeMap<Arc<str>, Timestamp>) -> Mapped {
        Mapped(since)
    }
}

/// What was last decided for one person under one integration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(rename = "v", default, skip_serializing_if = "LiteMap::is_empty", serialize_with = "crate::json::object")]
    values: Values,
    /// The time of the newest event that was ever merged.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    newest: Option<Timestamp>,
    /// The same of those that were merged before the latest mapping appeared: what they said of its
    /// property nobody noted.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    newest_before_mapping: Option<Timestamp>,
    /// Everything up to then was erased.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    erased: Option<Timestamp>,
    /// Requests that the gate may still execute.
    #[serde(rename = "d", default, skip_serializing_if = "LiteMap::is_empty", serialize_with = "crate::json::object")]
    doubts: LiteMap<u64, Doubt>,
    /// When it was last merged into; retention counts from here.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    merged: Option<Timestamp>,
}

/// What a definite or indefinite answer means for the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Accepted,
    /// For good: it will never pass as it was.
    Refused,
    /// Definitely not executed, or executed without effect.
    Failed,
    /// It may still be executed.
    Unknown,
}

impl Sent {
    /// What an answer proves. One that came from a gate that is down proves nothing: what stands
    /// behind it may still execute the request; a 429 proves that it was not executed. A refusal of
    /// a request that carried other events' values says nothing of any one of them.
    #[must_use]
    pub fn of(outcome: Outcome, is_lent: bool) -> Sent {
        match outcome {
            Outcome::Accepted => Sent::Accepted,
            Outcome::Refused if !is_lent => Sent::Refused,
            Outcome::Refused | Outcome::Rejected | Outcome::Throttled | Outcome::Misconfigured => Sent::Failed,
            Outcome::Unavailable | Outcome::UnexpectedStatus | Outcome::NotTheGate => Sent::Unknown,
        }
    }
}

/// A repair that did not come for so long was given up.
const LONGEST_REPAIR: SignedDuration = SignedDuration::from_hours(24);
/// The most doubts kept of one person; beyond that the oldest are forgotten.
const MOST_DOUBTS: usize = 16;

impl Record {
    /// Whether everything that this event says was erased.
    #[must_use]
    pub fn has_erased(&self, at: Option<Timestamp>) -> bool {
        self.erased.is_some_and(|erased| at.is_none_or(|at| at <= erased))
    }

    /// Merges an event's choices; per property the newer version stays. What came before a property
    /// was mapped was never noted, so an old event does not set it against a newer one that may have
    /// named it. Gives how many choices were outdated.
    pub fn merge(&mut self, offer: &Offer, now: Timestamp, mapped: &Mapped) -> usize {
        let latest_mapping = mapped.0.values().max();
        if self.merged.is_some_and(|merged| latest_mapping.is_some_and(|latest| merged < *latest)) {
            self.newest_before_mapping = self.newest;
        }
        let mut outdated = 0;
        for (property, choice) in &offer.choices {
            let offered = Arc::new(Newest::offered(choice, offer));
            match self.values.get_mut(property) {
                Some(known) if offered.compare(known) == Ordering::Greater => *known = offered,
                Some(known) => outdated += usize::from(offered.compare(known) == Ordering::Less),
                None if mapped.0.contains_key(property) && self.newest_before_mapping > offer.at => outdated += 1,
                None => drop(self.values.insert(property.clone(), offered)),
            }
        }
        self.newest = self.newest.max(offer.at);
        self.merged = self.merged.max(Some(now));
        outdated
    }

    /// What to send for these properties: the newest choice of each, without those that the gate
    /// refused for good unless they are this event's own.
    #[must_use]
    pub fn newest(&self, offer: &Offer) -> Values {
        let named = offer.choices.iter().filter_map(|(property, _)| Some((property, self.values.get(property)?)));
        let lent = named.filter(|(_, newest)| !newest.is_refused || newest.is_of(offer));
        lent.map(|(property, newest)| (Arc::clone(property), Arc::clone(newest))).collect()
    }

    /// What to send to make good what a late request may have spoiled: the newest of everything
    /// that it carried, beside what the event names.
    #[must_use]
    pub fn repair(&self, offer: &Offer, now: Timestamp, lateness: SignedDuration) -> Option<Values> {
        let mut values = self.newest(offer);
        let mut is_needed = false;
        for doubt in self.doubts.values().filter(|doubt| doubt.stands(now, lateness)) {
            is_needed |= is_spoiling(&self.values, &doubt.sent);
            let carried = doubt.sent.keys().filter_map(|property| Some((property, self.values.get(property)?)));
            values.extend(carried.filter(|(_, n)| !n.is_refused).map(|(property, n)| (property.clone(), n.clone())));
        }
        is_needed.then_some(values)
    }

    /// Notes, before it is sent, that a request may be executed.
    pub fn about_to_send(&mut self, id: u64, sent: Values, now: Timestamp, lateness: SignedDuration) {
        self.doubts.retain(|_, doubt| doubt.stands(now, lateness));
        while self.doubts.len() >= MOST_DOUBTS {
            let oldest = self.doubts.iter().min_by_key(|(_, doubt)| doubt.at).map(|(id, _)| *id);
            oldest.and_then(|id| self.doubts.remove(&id));
        }
        self.doubts.insert(id, Doubt { at: now, sent, is_parked: false });
    }

    /// Notes that a request left twice: whatever is answered to the second copy, the first one may
    /// still be executed, and stays in doubt under an id of its own.
    pub fn sent_twice(&mut self, id: u64, first: u64) {
        if let Some(doubt) = self.doubts.get(&id).cloned() {
            self.doubts.insert(first, doubt);
        }
    }

    /// Takes note of what became of a request. Says whether an older one may still be executed
    /// after it and spoil what was accepted: then a repair is due. (That another one is on its way
    /// already proves nothing: a crash may have lost it before it was parked.)
    pub fn answered(&mut self, id: u64, offer: &Offer, sent: Sent, now: Timestamp, lateness: SignedDuration) -> bool {
        if sent == Sent::Unknown {
            return false;
        }
        let Some(Doubt { sent: carried, .. }) = self.doubts.remove(&id) else { return false };
        for (property, carried) in &carried {
            let Some(newest) = self.values.get_mut(property) else { continue };
            if newest.compare(carried) == Ordering::Equal {
                match sent {
                    Sent::Accepted if newest.is_refused || newest.accepted.is_none() => {
                        let newest = Arc::make_mut(newest);
                        newest.is_refused = false;
                        newest.accepted.get_or_insert(now);
                    }
                    Sent::Refused if newest.is_of(offer) => Arc::make_mut(newest).is_refused = true,
                    Sent::Accepted | Sent::Refused | Sent::Failed | Sent::Unknown => {}
                }
            }
        }
        if sent != Sent::Accepted {
            return false;
        }
        let Record { values, doubts, .. } = self;
        let mut is_due = false;
        for doubt in doubts.iter_mut().map(|(_, doubt)| doubt).filter(|doubt| doubt.stands(now, lateness)) {
            if is_spoiling(values, &doubt.sent) {
                doubt.is_parked = true;
                is_due = true;
            }
        }
        is_due
    }

    /// What has become the newest of the properties that were sent, if anything has. Values that the
    /// gate refused for good are not sent again.
    #[must_use]
    pub fn moved_on(&self, sent: &Values) -> Option<Values> {
        let known = || {
            let known = sent.iter().filter_map(|(property, sent)| Some((property, sent, self.values.get(property)?)));
            known.filter(|(_, _, newest)| !newest.is_refused)
        };
        let has_moved = known().any(|(_, sent, newest)| newest.compare(sent) == Ordering::Greater);
        has_moved.then(|| known().map(|(property, _, newest)| (Arc::clone(property), Arc::clone(newest))).collect())
    }

    /// Whether nothing is known, and nothing was erased.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.erased.is_none()
    }

    /// The newest choice of each property.
    pub fn values(&self) -> impl Iterator<Item = (&Arc<str>, &Newest)> {
        self.values.iter().map(|(property, newest)| (property, &**newest))
    }

    /// Until when everything was erased.
    #[must_use]
    pub fn erased(&self) -> Option<Timestamp> {
        self.erased
    }

    /// When it was last merged into.
    #[must_use]
    pub fn merged(&self) -> Option<Timestamp> {
        self.merged
    }

    /// How many values the gate refused for good.
    #[must_use]
    pub fn refusals(&self) -> usize {
        self.values.values().filter(|newest| newest.is_refused).count()
    }

    /// After a repair was accepted, what could only be executed before it was sent spoils nothing any
    /// more of what the repair carried.
    pub fn repaired(&mut self, begun: Timestamp, carried: &Values, lateness: SignedDuration) {
        let is_made_good = |doubt: &Doubt| doubt.sent.keys().all(|property| carried.contains_key(property));
        self.doubts.retain(|_, doubt| begun.duration_since(doubt.at) < lateness || !is_made_good(doubt));
    }

    /// Removes everything up to an instant and remembers that it was.
    pub fn erase(&mut self, at: Timestamp, now: Timestamp) {
        self.values.retain(|_, newest| newest.at > Some(at));
        self.doubts.clear();
        self.erased = self.erased.max(Some(at));
        self.merged = self.merged.max(Some(now));
    }

    /// Whether nothing was merged into it for so long.
    #[must_use]
    pub fn is_older_than(&self, retention: SignedDuration, now: Timestamp) -> bool {
        self.merged.is_none_or(|merged| now.duration_since(merged) > retention)
    }
}

impl Doubt {
    /// Whether the gate may still execute it, or a repair of it is on its way.
    fn stands(&self, now: Timestamp, lateness: SignedDuration) -> bool {
        now.duration_since(self.at) <= if self.is_parked { LONGEST_REPAIR } else { lateness }
    }
}

/// Whether a request that is executed late would put older values back.
fn is_spoiling(values: &Values, sent: &Values) -> bool {
    let is_outdated = |newest: &Newest, sent| newest.compare(sent) == Ordering::Greater;
    sent.iter().any(|(property, sent)| values.get(property).is_some_and(|newest| is_outdated(newest, sent)))
}

#[cfg(test)]
mod tests;
