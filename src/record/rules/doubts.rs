//! Notes of requests that the gate may still execute, and which values they would spoil (pure).

use super::Around;
use crate::mapping::Slot;
use crate::record::{Doubt, Mapped, Record, Said, Values};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;

/// A repair that did not come for this long was given up.
pub(super) const LONGEST_REPAIR: SignedDuration = SignedDuration::from_hours(24);
/// The most doubts that are kept for one person; beyond that the oldest are joined.
const MOST_DOUBTS: usize = 16;
/// The ids of doubts that were joined: of different values, and of the same values. A request's id is a
/// random number of 64 bits.
const MIXED: u64 = 0;
const JOINED: std::ops::RangeInclusive<u64> = 1..=MOST_DOUBTS as u64;

/// For how long the note of a request is kept: also after it can be executed, as long as a request that was begun
/// before may wait for its answer. The gate may have executed it after that one.
pub(super) fn kept(execution_horizon: SignedDuration) -> SignedDuration {
    execution_horizon.saturating_add(execution_horizon)
}

impl Doubt {
    /// Whether it is no older than this at that time, or a repair for it is on its way.
    fn stands(&self, at: Timestamp, longest: SignedDuration) -> bool {
        at.duration_since(self.at) <= if self.is_parked { LONGEST_REPAIR } else { longest }
    }

    /// Joins another doubt into this one: keeps the older value of each property, and the later time.
    fn join(&mut self, other: Doubt) {
        take_older(&mut self.carried, other.carried);
        self.at = self.at.max(other.at);
        self.is_parked |= other.is_parked;
    }
}

impl Record {
    /// Notes, before it is sent, that a request may be executed.
    pub(super) fn about_to_send(&mut self, id: u64, carried: &Values, around: &Around<'_>) {
        self.doubts.remove(&id);
        self.let_go(around.now, kept(around.execution_horizon));
        if carried.is_empty() {
            return;
        }
        while self.doubts.len() >= MOST_DOUBTS && self.join_two() {}
        self.doubts.insert(id, Doubt { at: around.now, carried: carried.clone(), is_parked: false });
    }

    /// Joins two doubts, if there are two: two that carried the same values, else the oldest into the one that collects
    /// different values ([`MIXED`]). That one stands for as long as anything is joined into it, so everything that can
    /// be joined otherwise is. No answer to a request removes what was joined with it.
    fn join_two(&mut self) -> bool {
        let mut others: Vec<(u64, Timestamp)> =
            self.doubts.iter().filter(|(id, _)| **id != MIXED).map(|(id, doubt)| (*id, doubt.at)).collect();
        others.sort_by_key(|(_, at)| *at);
        let carried = |id: u64| self.doubts.get(&id).map(|doubt| &doubt.carried);
        let same = others.iter().enumerate().find_map(|(index, (one, _))| {
            let mut later = others.iter().skip(index + 1);
            let (other, _) = later.find(|(other, _)| carried(*other) == carried(*one))?;
            let into = [*one, *other].into_iter().find(|id| JOINED.contains(id));
            Some((vec![*one, *other], into.or_else(|| JOINED.into_iter().find(|id| !self.doubts.contains_key(id)))?))
        });
        let Some((joining, into)) = same.or_else(|| others.first().map(|(oldest, _)| (vec![*oldest], MIXED))) else {
            return false;
        };
        for id in joining.into_iter().filter(|id| *id != into) {
            let Some(doubt) = self.doubts.remove(&id) else { continue };
            match self.doubts.get_mut(&into) {
                Some(joined) => joined.join(doubt),
                None => drop(self.doubts.insert(into, doubt)),
            }
        }
        true
    }

    /// Requests that may still be executed, or whose repair is on its way.
    pub(super) fn standing<'r>(&'r self, around: &'r Around<'_>) -> impl Iterator<Item = (&'r u64, &'r Doubt)> {
        self.doubts.iter().filter(|(_, doubt)| doubt.stands(around.now, around.execution_horizon))
    }

    /// Those of the standing requests that make a repair due.
    pub(super) fn spoiling<'r>(&'r self, around: &'r Around<'_>) -> impl Iterator<Item = (&'r u64, &'r Doubt)> {
        self.standing(around).filter(|(_, doubt)| self.spoiled_by(doubt, around.mapped).next().is_some())
    }

    /// What can be sent again if a request that is executed late would put older values back.
    pub(super) fn spoiled_by<'r>(
        &'r self,
        doubt: &'r Doubt,
        mapped: &'r Mapped,
    ) -> impl Iterator<Item = (Slot, Arc<Said>)> + 'r {
        doubt.carried.iter().flat_map(move |(slot, sent)| {
            self.of_property(slot, mapped).filter(move |(own, said)| is_spoiled(own, said, slot, sent))
        })
    }

    /// Whether a request that is executed late would put an older value of this slot back.
    pub(super) fn is_in_danger(&self, slot: &Slot, around: &Around<'_>) -> bool {
        let mut spoiled = self.standing(around).flat_map(|(_, doubt)| self.spoiled_by(doubt, around.mapped));
        spoiled.any(|(spoiled, _)| spoiled.property() == slot.property())
    }

    /// Notes that a repair follows, if one is due.
    pub(super) fn park_repair(&mut self, around: &Around<'_>) -> bool {
        let spoiling: Vec<u64> = self.spoiling(around).map(|(id, _)| *id).collect();
        for id in &spoiling {
            if let Some(doubt) = self.doubts.get_mut(id) {
                doubt.is_parked = true;
            }
        }
        !spoiling.is_empty()
    }

    /// After a repair was accepted, requests that could only be executed before it was sent no longer spoil anything
    /// that the repair carried.
    pub(super) fn repaired(&mut self, begun: Timestamp, carried: &Values, around: &Around<'_>) {
        let made_good: Vec<u64> = self
            .doubts
            .iter()
            .filter(|(_, doubt)| begun.duration_since(doubt.at) >= around.execution_horizon)
            .filter(|(_, doubt)| self.spoiled_by(doubt, around.mapped).all(|(slot, _)| carried.contains_key(&slot)))
            .map(|(id, _)| *id)
            .collect();
        self.drop_doubts(&made_good);
    }

    /// Drops notes whose requests spoil nothing any more. A grant that was never answered may be at the gate
    /// for good, if nothing was accepted since: what the gate refuses for good repairs nothing.
    fn drop_doubts(&mut self, ids: &[u64]) {
        let dropped: Vec<Doubt> = ids.iter().filter_map(|id| self.doubts.remove(id)).collect();
        for (slot, sent) in dropped.iter().flat_map(|doubt| &doubt.carried) {
            let Some(newest) = self.values.get_mut(slot).filter(|newest| newest.accepted.is_none()) else {
                continue;
            };
            let is_older = newest.before.as_ref().is_none_or(|before| !before.covers(sent));
            let Some(grant) = sent.grant().filter(|_| is_older) else { continue };
            if newest.unanswered.as_ref().is_none_or(|unanswered| **unanswered < *grant) {
                newest.unanswered = Some(Box::new(grant.clone()));
            }
        }
    }

    /// Drops notes that lapsed, and what was erased and is not needed by a note any more.
    pub(super) fn let_go(&mut self, now: Timestamp, kept: SignedDuration) {
        let lapsed = self.doubts.iter().filter(|(_, doubt)| !doubt.stands(now, kept));
        let lapsed: Vec<u64> = lapsed.map(|(id, _)| *id).collect();
        self.drop_doubts(&lapsed);
        self.drop_erased(now);
    }
}

/// Whether what is known of a property is newer than what was sent, perhaps from another path.
pub(super) fn is_spoiled(known: &Slot, said: &Said, slot: &Slot, sent: &Said) -> bool {
    if known == slot { !sent.covers(said) } else { said.latest().at > sent.latest().at }
}

/// Takes values in; for each property the older one stays.
pub(super) fn take_older(known: &mut Values, other: impl IntoIterator<Item = (Slot, Arc<Said>)>) {
    for (slot, sent) in other {
        match known.get_mut(&slot) {
            Some(known) if known.covers(&sent) => *known = sent,
            Some(_) => {}
            None => drop(known.insert(slot, sent)),
        }
    }
}
