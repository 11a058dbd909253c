//! Repairs, and what the gate is owed after it accepted something older late (pure).

use super::Around;
use super::doubts::{is_spoiled, take_older};
use crate::mapping::Slot;
use crate::record::{Mapped, Offer, Owed, Record, Said, Values};
use jiff::Timestamp;
use std::sync::Arc;

impl Record {
    /// What to send to repair what a late request may have spoiled, in addition to what the event names. For an erased
    /// person, only what may be spoiled.
    pub(super) fn repair(&self, offer: &Offer, around: &Around<'_>) -> Option<Values> {
        if self.spoiling(around).next().is_none() && self.owing(around.mapped).next().is_none() {
            return None;
        }
        let (mut values, _) = self.newest(offer, around.mapped);
        values.retain(|_, said| !self.has_erased(said.latest().at));
        values.extend(self.standing(around).flat_map(|(_, doubt)| self.spoiled_by(doubt, around.mapped)));
        values.extend(self.owing(around.mapped));
        Some(values)
    }

    /// What is owed to the gate: the newest values of the properties of which it accepted older values late, unless it
    /// refuses them. A grant is not owed once its person was erased.
    pub(super) fn owing<'r>(&'r self, mapped: &'r Mapped) -> impl Iterator<Item = (Slot, Arc<Said>)> + 'r {
        let late = self.owed.iter().flat_map(|owed| owed.carried.keys());
        let newest = late.flat_map(move |slot| self.of_property(slot, mapped));
        let is_newest = |slot: &Slot, said: &Said| self.values.get(slot).is_some_and(|newest| *newest.said == *said);
        newest.filter(move |(slot, said)| is_newest(slot, said) && !self.is_erased_grant(said))
    }

    /// Notes which of the values that the gate accepted are older than the newest ones, on any path: nobody can know
    /// whether it accepted them before or after those. The newest may be refused now, and accepted at their next turn.
    pub(super) fn owe(&mut self, carried: &Values, now: Timestamp) {
        let is_late = |(slot, sent): &(&Slot, &Arc<Said>)| {
            let known = self.values.iter().filter(|(known, _)| known.property() == slot.property());
            // From another path, the same value is as good.
            let mut other = known.filter(|(known, newest)| known == slot || newest.said.choice() != sent.choice());
            other.any(|(known, newest)| is_spoiled(known, &newest.said, slot, sent))
        };
        let late: Vec<_> =
            carried.iter().filter(is_late).map(|(slot, sent)| (slot.clone(), Arc::clone(sent))).collect();
        if late.is_empty() {
            return;
        }
        let owed = self.owed.get_or_insert_with(|| Owed { at: now, carried: Values::new() });
        owed.at = owed.at.max(now);
        take_older(&mut owed.carried, late);
    }

    /// After the gate accepted the newest values in a request that was begun later, those are no longer owed.
    pub(super) fn made_good(&mut self, begun: Timestamp, carried: &Values, mapped: &Mapped) {
        let Some(mut owed) = self.owed.take_if(|owed| begun >= owed.at) else { return };
        owed.carried.retain(|slot, _| {
            let mut newest = self.of_property(slot, mapped).peekable();
            newest.peek().is_none() || newest.any(|(slot, _)| !carried.contains_key(&slot))
        });
        self.owed = Some(owed).filter(|owed| !owed.carried.is_empty());
    }
}
