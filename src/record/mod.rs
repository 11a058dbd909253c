//! Step 4: the newest consent wins.
//!
//! A record keeps, for one person under one integration, the newest choice of each property and path, with
//! its version. What is sent is what the record says is newest, so even a late retry sends the current
//! values. All decisions about records are in `rules` (pure); stores only keep them.

pub mod address;
pub mod codec;
pub mod control_socket;
pub mod copy;
mod embedded;
mod group_commit;
mod kept;
mod keys;
mod mapped;
mod notes;
mod place;
mod postgres;
mod records;
mod rules;
pub mod sequencer;
mod store;
mod suspect;
mod suspects;
mod turn;
mod value;
mod writer;

pub use mapped::Mapped;
pub use place::{Backend, Claim, Failed, RecordsSettings};
pub use records::Records;
pub use rules::{
    Around, Ask, Begun, Effect, Erasure, SentRequest, ToSend, TurnEnd, Write, begin, end, erase, execution_horizon,
    forgotten_until,
};
pub use suspect::{Suspect, SuspectNote};
pub use suspects::{Note, SuspectState};
pub use turn::{Answered, Taken, Turn, Verified};
pub use value::{Chosen, Said, Version};

use crate::mapping::{Choice, Slot};
use jiff::{SignedDuration, Timestamp};
use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one event says about its person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The time from which its grants and texts count; an undated event is older than every dated one.
    pub at: Option<Timestamp>,
    /// The time from which its withdrawals count: later than the other if an update does not say what it
    /// changed.
    pub withdrawn_at: Option<Timestamp>,
    /// The event's id.
    pub event: Option<Arc<str>>,
    /// The choices, in the mappings' order.
    pub choices: Vec<(Slot, Choice)>,
}

impl Offer {
    /// The version of its withdrawals, or of everything else in it.
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
    /// The gate refused it permanently: it is neither sent with other events nor replaced by an older value.
    #[serde(rename = "r", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_refused: bool,
    /// When the gate first accepted it.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Timestamp>,
    /// While it is not accepted: the value that the gate has instead, as far as is known.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    before: Option<Arc<Said>>,
    /// While it is not accepted: the newest grant in a request that was never answered. The gate may have it for
    /// good.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    unanswered: Option<Box<Version>>,
}

impl Newest {
    fn new(said: Said, before: Option<Arc<Said>>) -> Newest {
        Newest { said: Arc::new(said), is_refused: false, accepted: None, before, unanswered: None }
    }

    /// The value of this property at the gate, as far as is known.
    fn at_gate(&self) -> Option<&Arc<Said>> {
        if self.accepted.is_some() { Some(&self.said) } else { self.before.as_ref() }
    }

    /// Since when the contact is opted in at the gate, or may be.
    fn granted(&self) -> impl Iterator<Item = &Version> {
        self.at_gate().and_then(|said| said.grant()).into_iter().chain(self.unanswered.as_deref())
    }
}

/// The newest values of some properties.
pub type Values = LiteMap<Slot, Arc<Said>>;

/// A request whose outcome is not known, or that is no longer known to be harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Doubt {
    /// When it was about to be sent.
    #[serde(rename = "t")]
    at: Timestamp,
    /// What it carried.
    #[serde(rename = "s", serialize_with = "crate::text::json::object")]
    carried: Values,
    /// A repair of it is scheduled.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    is_parked: bool,
}

/// Older values that the gate accepted although newer ones were known. Whichever of them the gate has now,
/// the newer ones must still be sent to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owed {
    /// When the gate had accepted them. Only a request that was sent later repairs this.
    #[serde(rename = "t")]
    at: Timestamp,
    #[serde(rename = "s", serialize_with = "crate::text::json::object")]
    carried: Values,
}

/// What is kept about an erased person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Everything up to this time was erased.
    #[serde(rename = "t")]
    at: Timestamp,
    /// By property, since when the contact was opted in at the gate when the person was erased: a later
    /// withdrawal must still reach the gate.
    #[serde(
        rename = "g",
        default,
        skip_serializing_if = "LiteMap::is_empty",
        serialize_with = "crate::text::json::object"
    )]
    granted: LiteMap<Arc<str>, Version>,
    /// Erasures without a time, each with the time at which it first arrived.
    #[serde(rename = "m", default, skip_serializing_if = "Vec::is_empty")]
    messages: Vec<(u64, Timestamp)>,
}

/// The current state of one person under one integration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(
        rename = "v",
        default,
        skip_serializing_if = "LiteMap::is_empty",
        serialize_with = "crate::text::json::object"
    )]
    values: LiteMap<Slot, Newest>,
    /// By set of mappings, the newest event that was merged under it: what that event said about properties
    /// that were not mapped was not recorded.
    #[serde(
        rename = "h",
        default,
        skip_serializing_if = "LiteMap::is_empty",
        serialize_with = "crate::text::json::object"
    )]
    newest_events: LiteMap<u64, Version>,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    mark: Option<Mark>,
    /// Requests that the gate may still execute.
    #[serde(
        rename = "d",
        default,
        skip_serializing_if = "LiteMap::is_empty",
        serialize_with = "crate::text::json::object"
    )]
    doubts: LiteMap<u64, Doubt>,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    owed: Option<Owed>,
    /// When an event was last merged into it; the retention counts from here.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    merged: Option<Timestamp>,
}

/// What a store knows about a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    pub record: Option<Record>,
    /// The time up to which persons who are not on record may have been forgotten.
    pub swept: Option<Timestamp>,
    /// The mappings in force when events of this person were merged.
    pub mapped: BTreeMap<u64, Vec<Slot>>,
}

impl Record {
    /// Whether nothing is known, and nothing was erased.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.mark.is_none()
    }

    /// The newest of each property and path. Erased values, which are kept until no late request can restore
    /// them at the gate, are left out.
    pub fn values(&self) -> impl Iterator<Item = (&Slot, &Newest)> {
        self.values.iter().filter(|(_, newest)| !self.has_erased(newest.said.latest().at))
    }

    /// Whether the gate accepted all of these.
    #[must_use]
    pub fn has_accepted(&self, values: &Values) -> bool {
        values.keys().all(|slot| self.values.get(slot).is_some_and(|newest| newest.accepted.is_some()))
    }

    /// The time up to which everything was erased.
    #[must_use]
    pub fn erased(&self) -> Option<Timestamp> {
        self.mark.as_ref().map(|mark| mark.at)
    }

    /// When an event was last merged into it.
    #[must_use]
    pub fn merged(&self) -> Option<Timestamp> {
        self.merged
    }

    /// The sets of mappings under which events were merged.
    fn sets(&self) -> impl Iterator<Item = u64> {
        self.newest_events.keys().copied()
    }

    /// Whether everything said at this time was erased.
    fn has_erased(&self, at: Option<Timestamp>) -> bool {
        self.erased().is_some_and(|erased| at <= Some(erased))
    }

    /// Whether nothing was merged into it for longer than the retention.
    #[must_use]
    pub fn is_older_than(&self, retention: SignedDuration, now: Timestamp) -> bool {
        self.merged.is_none_or(|merged| now.duration_since(merged) > retention)
    }
}

#[cfg(test)]
mod tests;
