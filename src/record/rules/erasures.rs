//! What an erasure removes and leaves, and what passes it (pure).

use super::Around;
use super::newest::raise;
use crate::mapping::{Choice, Names, SelectedIds, Slot};
use crate::record::{Mark, Newest, Offer, Owed, Record, Said, Values, Version};
use jiff::Timestamp;
use std::borrow::Cow;

/// The most erasures without a time that a record remembers; beyond that the oldest are forgotten.
const MOST_MESSAGES: usize = 16;

impl Mark {
    /// The time of an erasure that names none: that of its first receipt.
    pub(super) fn first_receipt(&mut self, message: u64, published: Timestamp) -> Timestamp {
        if let Some((_, at)) = self.messages.iter().find(|(known, _)| *known == message) {
            return *at;
        }
        if self.messages.len() >= MOST_MESSAGES {
            self.messages.remove(0);
        }
        self.messages.push((message, published));
        published
    }

    /// Notes that the contact is opted in at the gate.
    pub(super) fn grant(&mut self, slot: &Slot, version: &Version) {
        raise(&mut self.granted, slot.property().into(), version.clone());
    }

    /// Whether the contact was opted in when this was said, or before.
    pub(super) fn is_granted_before(&self, slot: &Slot, version: &Version) -> bool {
        self.granted.get(slot.property()).is_some_and(|granted| granted.at <= version.at)
    }

    /// Whether it was this very event that opted the contact in.
    pub(super) fn is_granted_by(&self, slot: &Slot, version: &Version) -> bool {
        version.event.is_some() && self.granted.get(slot.property()) == Some(version)
    }

    /// Notes what the gate has now.
    pub(super) fn accepted(&mut self, slot: &Slot, said: &Said) {
        let Some(granted) = self.granted.get(slot.property()) else { return };
        if said.latest().at >= granted.at {
            self.granted.remove(slot.property());
        }
    }
}

impl Record {
    /// What an erasure lets pass of an event: all of it if it is later; else a withdrawal of what the gate still has as
    /// granted, and nothing else. `None` if nothing passes.
    pub(super) fn passing<'o>(&self, offer: &'o Offer, around: &Around<'_>) -> Option<Cow<'o, Offer>> {
        let Some(mark) = &self.mark else { return Some(Cow::Borrowed(offer)) };
        let is_later = |at: Option<Timestamp>| at > Some(mark.at);
        if is_later(offer.at.min(offer.withdrawn_at)) {
            return Some(Cow::Borrowed(offer));
        }
        let choices: Vec<(Slot, Choice)> = offer
            .choices
            .iter()
            .filter_map(|(slot, choice)| {
                // What is not later in a selection is left out when it is merged.
                if is_later(Said::offered(choice, offer).latest().at) {
                    return Some((slot.clone(), choice.clone()));
                }
                let withdrawal = withdrawal(choice)?;
                let said = Said::offered(&withdrawal, offer);
                let takes_back = |known: &Newest| {
                    known.said.grant().is_none() || known.said.joined(&said).choice() != known.said.choice()
                };
                let known = self.values.get(slot);
                let passes = known.is_none_or(takes_back)
                    && mark.is_granted_before(slot, said.latest())
                    && !(is_granting(choice) && mark.is_granted_by(slot, said.latest()));
                // What was accepted may be spoiled, and its repair may be lost in a crash.
                let covers = |known: &Newest| known.accepted.is_some() && said.covers(&known.said);
                let is_in_danger = || known.is_some_and(covers) && self.is_in_danger(slot, around);
                (passes || is_in_danger()).then(|| (slot.clone(), withdrawal))
            })
            .collect();
        let is_left = !choices.is_empty() || offer.choices.is_empty() && is_later(offer.latest());
        is_left.then(|| Cow::Owned(Offer { choices, ..offer.clone() }))
    }

    pub(super) fn is_erased_grant(&self, said: &Said) -> bool {
        said.grant().is_some() && self.has_erased(said.latest().at)
    }

    /// Drops what was erased and is not needed by a note any more.
    pub(super) fn drop_erased(&mut self, now: Timestamp) {
        let Record { values, doubts, owed, mark, .. } = self;
        let Some(Mark { at, .. }) = mark else { return };
        if let Some(Owed { carried, .. }) = owed {
            let is_owed = |newest: &Newest| newest.said.grant().is_none() || newest.said.latest().at > Some(*at);
            carried.retain(|slot, _| {
                values.iter().any(|(own, newest)| own.property() == slot.property() && is_owed(newest))
            });
        }
        owed.take_if(|owed| owed.carried.is_empty());
        let is_needed = |slot: &Slot| {
            let carried = doubts.values().map(|doubt| &doubt.carried).chain(owed.iter().map(|owed| &owed.carried));
            carried.flat_map(Values::keys).any(|sent| sent.property() == slot.property())
        };
        let left = std::mem::take(values).into_iter();
        *values = left
            .filter_map(|(slot, newest)| {
                let left = newest.after(*at, is_needed(&slot), now)?;
                Some((slot, left))
            })
            .collect();
    }
}

impl Newest {
    /// What is left of it after an erasure: all of it while a note needs it, except a grant that the gate never
    /// accepted. That is not sent to it any more, and what the gate has in its place counts.
    pub(super) fn after(self, erased: Timestamp, is_needed: bool, now: Timestamp) -> Option<Newest> {
        if self.said.latest().at > Some(erased) {
            return match self.said.after(erased) {
                Some(left) if left != *self.said && !is_needed => Some(Newest::new(left, self.at_gate().cloned())),
                _ => Some(self),
            };
        }
        if !is_needed {
            return None;
        }
        if !self.is_new_grant() {
            return Some(self);
        }
        let said = self.before.filter(|before| before.grant().is_none())?;
        Some(Newest { said, is_refused: false, accepted: Some(now), before: None, unanswered: None })
    }
}

/// Whether it is a selection that names what is granted.
fn is_granting(choice: &Choice) -> bool {
    matches!(choice, Choice::Selection(SelectedIds { names: Names::Grants, ids }) if !ids.is_empty())
}

/// The part of a choice that takes a consent back. For a selection, that is all of it: which of its ids the gate has
/// is not kept beyond an erasure.
fn withdrawal(choice: &Choice) -> Option<Choice> {
    match choice {
        Choice::Switch(false) => Some(Choice::Switch(false)),
        Choice::Switch(true) | Choice::Text(_) => None,
        Choice::Selection(SelectedIds { names: Names::Grants, .. }) => {
            Some(Choice::Selection(SelectedIds { ids: Vec::new(), names: Names::Grants }))
        }
        Choice::Selection(SelectedIds { ids, .. }) => (!ids.is_empty()).then(|| choice.clone()),
    }
}
