//! What is mapped now, and what was mapped when events were merged into a record (pure).

use super::{Record, Version};
use crate::bytes::number;
use crate::mapping::Slot;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The mappings of a document, together with those of other documents under which events were merged: earlier
/// ones of the same integration, and those of other workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    own: u64,
    slots: BTreeSet<Slot>,
    others: BTreeMap<u64, BTreeSet<Slot>>,
}

impl Mapped {
    /// The mappings of a document.
    #[must_use]
    pub fn new(slots: impl IntoIterator<Item = Slot>) -> Mapped {
        let slots: BTreeSet<Slot> = slots.into_iter().collect();
        let mut hash = Sha256::new();
        for slot in &slots {
            hash.update(slot.as_text());
            hash.update([0]);
        }
        Mapped { own: number(&hash.finalize()), slots, others: BTreeMap::new() }
    }

    /// The same, together with what other documents mapped.
    #[must_use]
    pub fn beside(mut self, others: &BTreeMap<u64, Vec<Slot>>) -> Mapped {
        for (set, slots) in others {
            self.learn(*set, slots.iter().cloned());
        }
        self
    }

    /// The number that identifies this set of mappings.
    #[must_use]
    pub fn own(&self) -> u64 {
        self.own
    }

    /// Each mapping.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// Learns another set. A set that is no longer known counts as empty.
    pub fn learn(&mut self, set: u64, slots: impl IntoIterator<Item = Slot>) {
        self.others.insert(set, slots.into_iter().collect());
    }

    /// A set of mappings under which an event of a person was merged, but which is not known here.
    #[must_use]
    pub fn unknown(&self, record: &Record) -> Option<u64> {
        record.sets().find(|set| *set != self.own && !self.others.contains_key(set))
    }

    /// The newest event that was merged while this slot was not mapped: what it said about the slot was not
    /// recorded.
    pub(super) fn missed<'r>(&self, slot: &Slot, record: &'r Record) -> Option<&'r Version> {
        let is_mapped = |set: &u64| *set == self.own || self.others.get(set).is_some_and(|slots| slots.contains(slot));
        record.newest_events.iter().filter(|(set, _)| !is_mapped(set)).map(|(_, newest)| newest).max()
    }
}
