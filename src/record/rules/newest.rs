//! The newest values: how an event is merged, what of them is sent, and what an answer says about them (pure).

use super::{Around, Effect};
use crate::mapping::Slot;
use crate::record::{Mapped, Newest, Offer, Record, Said, Values, Version};
use jiff::Timestamp;
use litemap::LiteMap;
use std::sync::Arc;

/// The most sets of mappings for which a record knows the newest event under each; beyond that the oldest are taken
/// together.
const MOST_SETS: usize = 16;
/// The number of a set that mapped nothing.
const UNMAPPED: u64 = 0;

impl Record {
    /// Merges an event's choices; per property and path the newer version stays. Returns how many choices were
    /// outdated.
    pub(super) fn merge(&mut self, offer: &Offer, around: &Around<'_>) -> usize {
        let (mut outdated, erased) = (0, self.erased());
        for (slot, choice) in &offer.choices {
            let offered = Said::offered(choice, offer);
            // A withdrawal that passes although it is not later passes as a whole.
            let offered = erased.and_then(|erased| offered.after(erased)).unwrap_or(offered);
            let Some(known) = self.values.get_mut(slot) else {
                self.values.insert(slot.clone(), Newest::new(offered, None));
                continue;
            };
            let joined = known.said.joined(&offered);
            outdated += usize::from(joined != offered);
            if joined != *known.said {
                *known = known.replaced_by(joined);
            }
        }
        self.note_newest_event(offer, around.mapped.own());
        self.merged = self.merged.max(Some(around.now));
        outdated
    }

    fn note_newest_event(&mut self, offer: &Offer, set: u64) {
        let version = Version { at: offer.latest(), event: offer.event.clone() };
        raise(&mut self.newest_events, set, version);
        while self.newest_events.len() > MOST_SETS {
            let others = self.newest_events.iter().filter(|(other, _)| **other != set && **other != UNMAPPED);
            let Some(oldest) = others.min_by_key(|(_, newest)| *newest).map(|(other, _)| *other) else { return };
            if let Some(newest) = self.newest_events.remove(&oldest) {
                raise(&mut self.newest_events, UNMAPPED, newest);
            }
        }
    }

    /// What to send for the properties of an event: the newest value of each, without those that the gate refused for
    /// good unless they are this event's own; and the slots whose newest values cannot be known.
    pub(super) fn newest(&self, offer: &Offer, mapped: &Mapped) -> (Values, Vec<Slot>) {
        let (mut values, mut unknown) = (Values::new(), Vec::new());
        for (slot, _) in &offer.choices {
            let Some(newest) = self.values.get(slot) else { continue };
            if newest.is_refused && !newest.said.is_of(offer) {
                continue;
            }
            if self.may_be_sent(slot, newest, mapped) {
                values.insert(slot.clone(), Arc::clone(&newest.said));
            } else {
                unknown.push(slot.clone());
            }
        }
        (values, unknown)
    }

    /// Whether it is the newest value for certain, or takes back what the gate may have as granted.
    fn may_be_sent(&self, slot: &Slot, newest: &Newest, mapped: &Mapped) -> bool {
        self.is_known(slot, newest, mapped) || self.takes_back(slot, newest)
    }

    /// Whether nothing that was not recorded can be newer.
    fn is_known(&self, slot: &Slot, newest: &Newest, mapped: &Mapped) -> bool {
        mapped.missed(slot, self).is_none_or(|missed| !newest.said.may_be_outdated_by(missed))
    }

    /// Whether this takes back what the gate may have as granted on its path: that must not stay, even if something
    /// newer may have been said.
    pub(super) fn takes_back(&self, slot: &Slot, newest: &Newest) -> bool {
        let is_grant = |said: &Arc<Said>| said.grant().is_some();
        let was_granted = || newest.granted().next().is_some();
        let may_be_executed = || self.doubts.values().any(|doubt| doubt.carried.get(slot).is_some_and(is_grant));
        let was_erased = || self.mark.as_ref().is_some_and(|mark| mark.is_granted_before(slot, newest.said.latest()));
        (was_granted() || may_be_executed() || was_erased()) && self.is_last_withdrawal(slot, &newest.said)
    }

    /// What can be sent again of a property, on the paths on which it is mapped now: the newest value or, if the gate
    /// refused that for good or nobody can know whether it is the newest, the withdrawal that it accepted before. A
    /// grant that the gate never accepted is not sent to it after its person was erased.
    pub(super) fn of_property<'r>(
        &'r self,
        slot: &'r Slot,
        mapped: &'r Mapped,
    ) -> impl Iterator<Item = (Slot, Arc<Said>)> + 'r {
        let own = mapped.slots().filter(|own| own.property() == slot.property());
        let known = own.filter_map(|own| self.values.get(own).map(|newest| (own, newest)));
        let sendable = known.filter_map(move |(own, newest)| {
            let is_kept = !self.has_erased(newest.said.latest().at) || !newest.is_new_grant();
            let is_accepted = || newest.accepted.is_some() && self.is_last_withdrawal(own, &newest.said);
            if !newest.is_refused && is_kept && (self.may_be_sent(own, newest, mapped) || is_accepted()) {
                return Some((own, &newest.said));
            }
            newest.before.as_ref().filter(|before| self.is_last_withdrawal(own, before)).map(|before| (own, before))
        });
        sendable.map(|(own, said)| (own.clone(), Arc::clone(said)))
    }

    /// Whether this takes a consent back, and nothing later is known of its property on another path, unless it is
    /// the same: once the gate accepted it, an older grant must not stay in its place, even if something newer may
    /// have been said.
    fn is_last_withdrawal(&self, slot: &Slot, said: &Said) -> bool {
        let is_other = |other: &Slot| other != slot && other.property() == slot.property();
        let mut others = self.values.iter().filter(|(other, _)| is_other(other));
        let is_before = |other: &Said| other.latest().at <= said.latest().at || other.choice() == said.choice();
        said.grant().is_none() && others.all(|(_, other)| is_before(&other.said))
    }

    /// The newest values of what was sent, if any of them changed since. Values that the gate refused for good are not
    /// sent again.
    pub(super) fn superseded(&self, sent: &Values, mapped: &Mapped) -> Option<Values> {
        let known = || {
            let known = sent.iter().filter_map(|(slot, sent)| Some((slot, sent, self.values.get(slot)?)));
            let known = known.filter(|(_, _, newest)| !newest.is_refused && !self.is_erased_grant(&newest.said));
            known.filter(|(slot, _, newest)| self.may_be_sent(slot, newest, mapped))
        };
        let has_moved = known().any(|(_, sent, newest)| !sent.covers(&newest.said));
        has_moved.then(|| known().map(|(slot, _, newest)| (slot.clone(), Arc::clone(&newest.said))).collect())
    }

    /// Takes note of what became of the values that a request carried.
    pub(super) fn answered(&mut self, offer: &Offer, carried: &Values, effect: Effect, now: Timestamp) {
        for (slot, said) in carried {
            let is_accepted = effect == Effect::Accepted;
            if let (Some(mark), true) = (&mut self.mark, is_accepted) {
                mark.accepted(slot, said);
                if let (Some(version), true) = (said.grant(), said.latest().at <= Some(mark.at)) {
                    mark.grant(slot, version);
                }
            }
            let Some(newest) = self.values.get_mut(slot) else { continue };
            if newest.said != *said {
                if is_accepted && newest.accepted.is_none() {
                    newest.before = Some(Arc::clone(said));
                    newest.unanswered = None;
                }
                continue;
            }
            match effect {
                Effect::Accepted => {
                    newest.is_refused = false;
                    newest.accepted.get_or_insert(now);
                    newest.before = None;
                    newest.unanswered = None;
                }
                // The gate has what it accepted once, whatever it says about another delivery.
                Effect::Refused if said.is_of(offer) && newest.accepted.is_none() => newest.is_refused = true,
                Effect::Refused | Effect::Failed | Effect::Unknown => {}
            }
        }
    }

    /// How many values the gate refused for good.
    pub(super) fn refusals(&self) -> usize {
        self.values.values().filter(|newest| newest.is_refused).count()
    }
}

impl Newest {
    /// What is known once something newer was said. If that is the same value, the gate accepted it already, whatever
    /// it says about the next request.
    fn replaced_by(&self, said: Said) -> Newest {
        let accepted = self.accepted.filter(|_| said.choice() == self.said.choice());
        let before = self.at_gate().filter(|_| accepted.is_none()).cloned();
        let unanswered = self.unanswered.clone().filter(|_| accepted.is_none());
        Newest { accepted, unanswered, ..Newest::new(said, before) }
    }

    /// Whether it is a grant that the gate never accepted.
    pub(super) fn is_new_grant(&self) -> bool {
        self.accepted.is_none() && self.said.grant().is_some()
    }
}

/// Keeps the greater of two versions under a key: the one that is known and another.
pub(super) fn raise<K: Ord>(known: &mut LiteMap<K, Version>, key: K, version: Version) {
    match known.get_mut(&key) {
        Some(known) if *known < version => *known = version,
        Some(_) => {}
        None => drop(known.insert(key, version)),
    }
}
