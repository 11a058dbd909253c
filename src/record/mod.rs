//! Step 4: the newest consent wins.
//!
//! A record keeps, for one person under one integration, the newest choice of each property and
//! path, with its version. What is sent is the record's newest, so a late retry carries today's
//! truth. All that is decided about records is in `rules` (pure); stores only keep them.

pub mod address;
pub mod codec;
pub mod control_socket;
pub mod copy;
mod embedded;
mod group_commit;
mod keys;
mod mapped;
mod place;
mod postgres;
mod records;
mod rules;
mod store;
mod suspects;
mod turn;
mod value;

pub use mapped::Mapped;
pub use place::{Backend, Claim, Failed, Settings};
pub use records::Records;
pub use rules::{
    Around, Ask, Begun, Ended, Erasure, Request, Sent, ToSend, Write, begin, end, erase, execution_horizon,
    forgotten_until,
};
pub use suspects::{Known, Note, Noted, Suspect};
pub use turn::{Answered, Taken, Turn, Verified};
pub use value::{Chosen, Said, Version};

use crate::mapping::{Choice, Slot};
use jiff::{SignedDuration, Timestamp};
use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one event says of its person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Since when its grants and texts count; an undated event is older than every dated one.
    pub at: Option<Timestamp>,
    /// Since when its withdrawals do: later, where an update does not tell what it changed.
    pub withdrawn_at: Option<Timestamp>,
    /// The event's id.
    pub event: Option<Arc<str>>,
    /// What was chosen, in the mappings' order.
    pub choices: Vec<(Slot, Choice)>,
}

impl Offer {
    /// The version of its withdrawals, or of everything else.
    #[must_use]
    pub fn version(&self, is_withdrawal: bool) -> Version {
        let at = if is_withdrawal { self.withdrawn_at } else { self.at };
        Version { at, event: self.event.clone() }
    }

    /// The later of its two times.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        self.at.max(self.withdrawn_at)
    }
}

/// The newest known choice of one property on one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    #[serde(rename = "s")]
    pub said: Arc<Said>,
    /// The gate refused it for good: it is neither lent to other events nor replaced by an older.
    #[serde(rename = "r", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_refused: bool,
    /// When the gate first accepted it.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Timestamp>,
    /// While it is not accepted: what the gate has in its place, as far as is known.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    before: Option<Arc<Said>>,
}

impl Newest {
    fn new(said: Said, before: Option<Arc<Said>>) -> Newest {
        Newest { said: Arc::new(said), is_refused: false, accepted: None, before }
    }

    /// What the gate has of this property, as far as is known.
    fn at_gate(&self) -> Option<&Arc<Said>> {
        if self.accepted.is_some() { Some(&self.said) } else { self.before.as_ref() }
    }
}

/// The newest of each of some properties.
pub type Values = LiteMap<Slot, Arc<Said>>;

/// A request whose outcome is not known, or not known to be harmless any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Doubt {
    /// When it was about to be sent.
    #[serde(rename = "t")]
    at: Timestamp,
    /// What it carried.
    #[serde(rename = "s", serialize_with = "crate::json::object")]
    sent: Values,
    /// A repair of it is on its way.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    is_parked: bool,
}

/// Older values that the gate accepted although newer ones were known: whichever it has, the newer
/// are owed to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owed {
    /// When it had accepted them. Only what was sent later makes it good.
    #[serde(rename = "t")]
    at: Timestamp,
    #[serde(rename = "s", serialize_with = "crate::json::object")]
    sent: Values,
}

/// What remains of an erased person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Everything up to then was erased.
    #[serde(rename = "t")]
    at: Timestamp,
    /// By property, since when the contact was opted in at the gate when it was erased: a later
    /// withdrawal must still reach it.
    #[serde(rename = "g", default, skip_serializing_if = "LiteMap::is_empty", serialize_with = "crate::json::object")]
    granted: LiteMap<Arc<str>, Version>,
    /// Erasures that name no time, and the time at which they first came.
    #[serde(rename = "m", default, skip_serializing_if = "Vec::is_empty")]
    messages: Vec<(u64, Timestamp)>,
}

/// What was last decided for one person under one integration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(rename = "v", default, skip_serializing_if = "LiteMap::is_empty", serialize_with = "crate::json::object")]
    values: LiteMap<Slot, Newest>,
    /// By set of mappings, the newest event that was merged under it: what it said of properties
    /// that were not mapped then nobody noted.
    #[serde(rename = "h", default, skip_serializing_if = "LiteMap::is_empty", serialize_with = "crate::json::object")]
    heard: LiteMap<u64, Version>,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    mark: Option<Mark>,
    /// Requests that the gate may still execute.
    #[serde(rename = "d", default, skip_serializing_if = "LiteMap::is_empty", serialize_with = "crate::json::object")]
    doubts: LiteMap<u64, Doubt>,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    owed: Option<Owed>,
    /// When it was last merged into; retention counts from here.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    merged: Option<Timestamp>,
}

/// What a store knows of a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    pub record: Option<Record>,
    /// Up to when persons may have been forgotten who are not on record.
    pub swept: Option<Timestamp>,
    /// What was mapped when events of this person were merged.
    pub mapped: BTreeMap<u64, Vec<Slot>>,
}

impl Record {
    /// Whether nothing is known, and nothing was erased.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.mark.is_none()
    }

    /// The newest of each property and path. What was erased, and is kept until no late request can
    /// put it back, is not told.
    pub fn values(&self) -> impl Iterator<Item = (&Slot, &Newest)> {
        self.values.iter().filter(|(_, newest)| !self.has_erased(newest.said.latest().at))
    }

    /// Whether the gate accepted all of these.
    #[must_use]
    pub fn has_accepted(&self, values: &Values) -> bool {
        values.keys().all(|slot| self.values.get(slot).is_some_and(|newest| newest.accepted.is_some()))
    }

    /// Until when everything was erased.
    #[must_use]
    pub fn erased(&self) -> Option<Timestamp> {
        self.mark.as_ref().map(|mark| mark.at)
    }

    /// When it was last merged into.
    #[must_use]
    pub fn merged(&self) -> Option<Timestamp> {
        self.merged
    }

    /// The sets of mappings under which events were merged.
    fn sets(&self) -> impl Iterator<Item = u64> {
        self.heard.keys().copied()
    }

    /// Whether everything that was said then was erased.
    fn has_erased(&self, at: Option<Timestamp>) -> bool {
        self.erased().is_some_and(|erased| at <= Some(erased))
    }

    /// Whether nothing was merged into it for so long.
    #[must_use]
    pub fn is_older_than(&self, retention: SignedDuration, now: Timestamp) -> bool {
        self.merged.is_none_or(|merged| now.duration_since(merged) > retention)
    }
}

#[cfg(test)]
mod tests;
