//! What is mapped, and what was when a record heard of an event (pure).

use super::{Record, Version};
use crate::bytes::number;
use crate::mapping::Slot;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The mappings of a document, beside those of other documents under which events were merged: the
/// same integration's earlier ones, and those that other workers have.
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

    /// The same with what other documents mapped.
    #[must_use]
    pub fn beside(mut self, others: &BTreeMap<u64, Vec<Slot>>) -> Mapped {
        for (set, slots) in others {
            self.learn(*set, slots.iter().cloned());
        }
        self
    }

    /// The number of this set of mappings.
    #[must_use]
    pub fn own(&self) -> u64 {
        self.own
    }

    /// Each mapping.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// Learns another set. One that nobody knows any more mapped nothing.
    pub fn learn(&mut self, set: u64, slots: impl IntoIterator<Item = Slot>) {
        self.others.insert(set, slots.into_iter().collect());
    }

    /// A set of mappings under which an event of a person was merged, and of which nothing is known.
    #[must_use]
    pub fn unknown(&self, record: &Record) -> Option<u64> {
        record.sets().find(|set| *set != self.own && !self.others.contains_key(set))
    }

    /// The newest event that was merged while this was not mapped: what it said of it nobody noted.
    pub(super) fn missed<'r>(&self, slot: &Slot, record: &'r Record) -> Option<&'r Version> {
        let is_mapped = |set: &u64| *set == self.own || self.others.get(set).is_some_and(|slots| slots.contains(slot));
        record.heard.iter().filter(|(set, _)| !is_mapped(set)).map(|(_, heard)| heard).max()
    }
}
