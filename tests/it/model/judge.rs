//! What must be true after a schedule, whatever happened in it.

use super::scenario::{Event, Subject};
use consent_gate::mapping::{Choice, Slot};
use consent_gate::record::{Effect, Said, Values};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A request that waits longer than this in hand must be merged and read again.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(1);

/// What the gate executed last, by property.
pub type Profile = BTreeMap<String, (Slot, Arc<Said>)>;

/// What happened, as seen by an observer who sees everything.
#[derive(Default)]
pub struct Witness {
    /// What was merged durably: when, under which slots, and which event.
    merged: Vec<(Timestamp, Vec<Slot>, usize)>,
    /// Which events came to a turn while this slot was mapped, erased or not.
    came: Vec<(Slot, usize)>,
    /// The erasures that were carried out: when, and up to what time.
    erased: Vec<(Timestamp, Timestamp)>,
    /// The numbers of these erasures.
    erasures: Vec<u64>,
    /// The values that may be at the gate.
    left: Vec<(Slot, Arc<Said>)>,
    accepted: Vec<(Slot, Arc<Said>)>,
    /// Accepted values that a record may contain even though its worker died before it did anything else.
    noted: Vec<(Slot, Arc<Said>)>,
    /// Events that the gate refused permanently at least once.
    refused: Vec<usize>,
    pub wrong: Vec<String>,
}

impl Witness {
    pub fn merged(&mut self, now: Timestamp, slots: &[Slot], event: usize) {
        self.merged.push((now, slots.to_vec(), event));
    }

    /// A request was noted: from now on it cannot be known whether it was sent.
    pub fn noted(&mut self, values: &Values) {
        self.left.extend(values.iter().map(|(slot, said)| (slot.clone(), Arc::clone(said))));
    }

    pub fn came(&mut self, slots: &[Slot], event: usize) {
        self.came.extend(slots.iter().map(|slot| (slot.clone(), event)));
    }

    pub fn erased(&mut self, now: Timestamp, until: Timestamp) {
        self.erased.push((now, until));
    }

    /// An erasure was carried out; a repeated one must not move the mark.
    pub fn erased_by(&mut self, number: u64, (before, after): (Option<Timestamp>, Option<Timestamp>), now: Timestamp) {
        if self.erasures.contains(&number) && before != after {
            self.wrong.push(format!("an erasure that came again moved the mark from {before:?} to {after:?}"));
        }
        self.erasures.push(number);
        self.erased.extend(after.map(|until| (now, until)));
    }

    /// A request is sent whose record was last read at `begun`.
    pub fn asked(&mut self, (begun, now): (Timestamp, Timestamp), is_repair: bool, values: &Values, events: &[Event]) {
        if now.duration_since(begun) > LONGEST_WAIT {
            self.wrong.push(format!("sent what was not looked at since {begun}"));
        }
        for (slot, said) in values {
            for (_, slots, event) in self.merged.iter().filter(|(at, ..)| *at < begun) {
                let offered = offered(&events[*event], slot);
                let is_older = offered.as_ref().is_some_and(|offered| {
                    // What was said about a slot that was not mapped was not recorded. A withdrawal of what the gate
                    // may have as granted is sent nevertheless. An accepted withdrawal may be put back in place of
                    // an older grant, in that case and where the newer value was refused or may not be the newest.
                    let may_be_put_back = || self.is_accepted_withdrawal(slot, said);
                    if slots.contains(slot) {
                        let is_in_its_way = || {
                            self.is_below_refused(slot, offered, events) || self.may_be_outdated(slot, offered, events)
                        };
                        !(said.covers(offered) || is_in_its_way() && may_be_put_back())
                    } else {
                        is_later(offered, said) && !may_be_put_back() && !self.takes_back(slot, said)
                    }
                });
                if is_older && !self.is_erased(offered.as_ref(), |done| done <= begun) {
                    self.wrong.push(format!("{slot}: sent {said:?} after e{event} was merged"));
                }
            }
            let is_granted = |(left, grant): &(Slot, Arc<Said>)| {
                left.property() == slot.property() && grant.grant().is_some_and(|grant| grant.at <= said.latest().at)
            };
            // Sent once more, if the effect of its first acceptance was lost in a crash.
            let is_again = |(left, known): &(Slot, Arc<Said>)| left == slot && known == said;
            let may_be_needed = |left: &(Slot, Arc<Said>)| is_granted(left) || is_again(left);
            let is_allowed = is_repair || said.grant().is_none() && self.left.iter().any(may_be_needed);
            if self.is_erased(Some(said), |done| done < begun) && !is_allowed {
                self.wrong.push(format!("{slot}: sent {said:?} after it was erased"));
            }
        }
        self.noted(values);
    }

    /// An answer was noted.
    pub fn answered(&mut self, effect: Effect, subject: Subject, values: &Values) {
        match (effect, subject) {
            (Effect::Accepted, _) => {
                self.noted.extend(values.iter().map(|(slot, said)| (slot.clone(), Arc::clone(said))));
            }
            (Effect::Refused, Subject::Event(event)) => self.refused.push(event),
            _ => {}
        }
    }

    pub fn accepted(&mut self, values: &Values) {
        self.accepted.extend(values.iter().map(|(slot, said)| (slot.clone(), Arc::clone(said))));
    }

    /// Whether something as new was refused permanently, and so blocks what came before it.
    fn is_below_refused(&self, slot: &Slot, said: &Said, events: &[Event]) -> bool {
        let mut refused = self.refused.iter().filter_map(|event| offered(&events[*event], slot));
        refused.any(|refused| refused.covers(said))
    }

    fn is_accepted_withdrawal(&self, slot: &Slot, said: &Said) -> bool {
        said.grant().is_none() && self.noted.iter().any(|(noted, known)| noted == slot && said.covers(known))
    }

    /// Whether it is a withdrawal of what the gate may have as granted.
    fn takes_back(&self, slot: &Slot, said: &Said) -> bool {
        let mut granted = self.left.iter().filter(|(left, _)| left.property() == slot.property());
        let is_before = |grant: &Said| grant.grant().is_some_and(|grant| grant.at <= said.latest().at);
        said.grant().is_none() && granted.any(|(_, grant)| is_before(grant))
    }

    /// Whether something newer may have been said while this slot was not mapped.
    fn may_be_outdated(&self, slot: &Slot, said: &Said, events: &[Event]) -> bool {
        self.merged.iter().any(|(_, slots, event)| {
            let latest = events[*event].at.max(events[*event].withdrawn_at);
            !slots.contains(slot) && latest >= said.latest().at
        })
    }

    fn is_erased(&self, said: Option<&Said>, when: impl Fn(Timestamp) -> bool) -> bool {
        let at = said.and_then(|said| said.latest().at);
        self.erased.iter().any(|(done, until)| when(*done) && at <= Some(*until))
    }

    /// Judges the profile once everything is quiet. `dead` are messages whose fate an operator decides;
    /// `has_dead_repair` tells whether one of them was to repair what a late request had overwritten.
    pub fn judge(
        &mut self,
        profile: &Profile,
        slots: &[Slot],
        events: &[Event],
        dead: &[Subject],
        has_dead_repair: bool,
    ) {
        let is_dead = |event: &usize| dead.contains(&Subject::Event(*event));
        if !has_dead_repair {
            let until = self.erased.iter().map(|(_, until)| *until).max();
            // A slot that is no longer mapped cannot be repaired, and a grant of an erased person must not
            // be.
            let is_left = |said: &Said| said.grant().is_none() || until.is_none() || said.latest().at > until;
            for (slot, said) in self.accepted.iter().filter(|(slot, said)| slots.contains(slot) && is_left(said)) {
                let now = profile.get(slot.property());
                // The same value from another path is just as good.
                let kept = now.is_some_and(|(now_slot, now)| {
                    let is_newer = || !is_later(said, now) || said.choice() == now.choice();
                    if now_slot == slot { now.joined(said).choice() == now.choice() } else { is_newer() }
                });
                let waits = |(came, event): &(Slot, usize)| {
                    came == slot
                        && is_dead(event)
                        && offered(&events[*event], slot).is_some_and(|dead| !said.covers(&dead))
                };
                // Nor does a grant that may have been withdrawn since.
                let is_uncertain = said.grant().is_some() && self.may_be_outdated(slot, said, events);
                // A value that the gate accepted later replaces it, from any path, even after an erasure.
                let is_superseded = || {
                    let mut others = self.accepted.iter().filter(|(own, _)| own.property() == slot.property());
                    others.any(|(own, later)| if own == slot { !said.covers(later) } else { is_later(later, said) })
                };
                // A newer event that is a dead letter is not repaired by an older one.
                if !kept && !is_uncertain && !is_superseded() && !self.came.iter().any(waits) {
                    self.wrong.push(format!("{slot}: {said:?} was accepted and is gone: {now:?}"));
                }
            }
        }
        for slot in slots.iter().filter(|_| !has_dead_repair) {
            let now = profile.get(slot.property());
            let wrong = self.newest_is_not_there(slot, now, events, &is_dead);
            self.wrong.extend(wrong);
            let Some((now_slot, now)) = now.filter(|(now_slot, _)| slots.contains(now_slot)) else { continue };
            let wrong = self.was_not_taken_back(now_slot, now, events, &is_dead);
            self.wrong.extend(wrong);
        }
    }

    /// A grant at the gate must not have been withdrawn since, whoever was erased.
    fn was_not_taken_back(
        &self,
        slot: &Slot,
        now: &Said,
        events: &[Event],
        is_dead: &dyn Fn(&usize) -> bool,
    ) -> Option<String> {
        let granted = now.grant()?;
        let came = || {
            let came = self.came.iter().filter(|(came, _)| came == slot);
            came.filter_map(|(_, event)| Some((offered(&events[*event], slot)?, is_dead(event))))
        };
        let is_withdrawal = |said: &Said| match said.choice() {
            Choice::Selection(selection) => selection.ids.is_empty(),
            choice => choice.is_withdrawal(),
        };
        // A later choice replaces it: a grant, or an event that is a dead letter.
        let is_outdated = |withdrawn: &Said| {
            came().any(|(said, is_dead)| {
                is_dead && said.covers(withdrawn) || said.grant().is_some() && !withdrawn.covers(&said)
            })
        };
        let withdrawn = came().filter(|(said, is_dead)| !is_dead && is_withdrawal(said)).map(|(said, _)| said);
        let mut withdrawn = withdrawn.filter(|said| said.latest().at >= granted.at && !now.covers(said));
        let withdrawn = withdrawn.find(|withdrawn| !is_outdated(withdrawn))?;
        Some(format!("{slot}: still {now:?} although {withdrawn:?}"))
    }

    /// Of everything that was merged under a slot and not erased, the newest must be at the gate, unless it
    /// was never accepted and is a dead letter, or it cannot be known to be the newest.
    fn newest_is_not_there(
        &self,
        slot: &Slot,
        now: Option<&(Slot, Arc<Said>)>,
        events: &[Event],
        is_dead: &dyn Fn(&usize) -> bool,
    ) -> Option<String> {
        let until = self.erased.iter().map(|(_, until)| *until).max();
        let left =
            |event: &usize| offered(&events[*event], slot).filter(|said| said.latest().at > until || until.is_none());
        let merged = || self.merged.iter().filter(|(_, slots, _)| slots.contains(slot)).map(|(.., event)| event);
        let mut newest: Option<Said> = None;
        for said in merged().filter_map(left) {
            match &mut newest {
                Some(newest) => newest.join(&said),
                None => newest = Some(said),
            }
        }
        let newest = newest?;
        if let Some(until) = until
            && matches!(newest, Said::Selection(_))
            && merged().any(|event| events[*event].at.min(events[*event].withdrawn_at) <= Some(until))
        {
            return None; // partly erased: judged by what is sent and by what was accepted
        }
        let is_of = |event: &usize| events[*event].id == *newest.latest().event.as_ref().unwrap();
        let waits = merged().any(|event| is_dead(event) && (is_of(event) || matches!(newest, Said::Selection(_))));
        let was_accepted = self.accepted.iter().any(|(accepted, said)| accepted == slot && **said == newest);
        let may_be_outdated = self.may_be_outdated(slot, &newest, events);
        // From another path, the same value does as well: only its text may be the former document's.
        let is_as_good = |now: &Said| !is_later(&newest, now) || now.choice() == newest.choice();
        let is_there =
            now.is_some_and(|(now_slot, now)| if now_slot == slot { **now == newest } else { is_as_good(now) });
        let is_excused = may_be_outdated || waits && !was_accepted;
        (!is_there && !is_excused).then(|| format!("{slot}: {newest:?} is the newest, and the gate has {now:?}"))
    }
}

fn offered(event: &Event, slot: &Slot) -> Option<Said> {
    event.choice(slot).map(|choice| Said::offered(choice, &event.offer([])))
}

/// Whether one value is later than another, on any path.
fn is_later(said: &Said, than: &Said) -> bool {
    said.latest().at > than.latest().at
}
