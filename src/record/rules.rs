//! How an event's turn with its person's record begins and ends, and what an erasure leaves (pure).
//!
//! The worker, the dry run of a replay and the model of the whole system all decide by these rules.

use super::{Doubt, Mapped, Mark, Newest, Offer, Owed, Record, Said, Values, Version};
use crate::filter::MAX_AHEAD;
use crate::gate::Outcome;
use crate::integration::Integration;
use crate::mapping::{Choice, Names, Selection, Slot};
use jiff::{SignedDuration, Timestamp};
use litemap::LiteMap;
use std::borrow::Cow;
use std::sync::Arc;

/// A repair that did not come for this long was given up.
const LONGEST_REPAIR: SignedDuration = SignedDuration::from_hours(24);
/// The most doubts that are kept for one person; beyond that the oldest are joined.
const MOST_DOUBTS: usize = 16;
/// The ids of doubts that were joined: of different values, and of the same values. A request's id is a
/// random number of 64 bits.
const MIXED: u64 = 0;
const JOINED: std::ops::RangeInclusive<u64> = 1..=MOST_DOUBTS as u64;
/// The most sets of mappings for which a record knows the newest event under each, and the most erasures without a
/// time that it remembers. Beyond that, the oldest sets are taken together, and the oldest erasures are forgotten.
const MOST_HEARD: usize = 16;
const MOST_MESSAGES: usize = 16;
/// The number of a set that mapped nothing.
const UNMAPPED: u64 = 0;
/// How late a request may be beyond the longest delay and its timeout, because of clocks and queues.
const MARGIN: SignedDuration = SignedDuration::from_secs(5);

/// For how long a request may still be executed after it was sent: until the longest delay after its timeout, and no
/// longer (`docs/behaviour.md` says so). A repair follows after this time.
#[must_use]
pub fn execution_horizon(integration: &Integration) -> SignedDuration {
    let longest = integration.schedule.longest().saturating_add(integration.limits.timeout);
    SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX).saturating_add(MARGIN)
}

/// How durable a change of a record must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Nothing,
    /// The change is visible at once; nobody waits until it is durable.
    Later,
    /// The change counts only once it is durable.
    Durable,
}

/// What is known besides a record.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// By the store's clock.
    pub now: Timestamp,
    /// For how long a request may still be executed after it was sent.
    pub execution_horizon: SignedDuration,
    /// How long a person is remembered if no event about them comes.
    pub retention: SignedDuration,
    /// For persons who are not on record, what was heard up to this time may have been forgotten.
    pub swept: Option<Timestamp>,
    pub mapped: &'a Mapped,
}

/// An event whose turn it is.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Names its request.
    pub id: u64,
    pub offer: &'a Offer,
    /// It was delivered already; its person's newest values are to be sent once more.
    pub is_repair: bool,
}

/// How an event's turn begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The person was erased after this event.
    Erased,
    /// Nobody can know whether this is the newest: it is older than what is remembered.
    TooOld,
    /// A repair that is not needed any more.
    Needless,
    Send(ToSend),
}

/// What an event's request carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToSend {
    pub newest: Values,
    /// How many of the event's choices are outdated.
    pub outdated: usize,
    /// The slots that are left out, since nobody can know their newest values.
    pub unknown: Vec<Slot>,
}

/// Begins the turn of an event: merges it, and notes that its request may be executed from now on.
pub fn begin(known: &mut Option<Record>, ask: Ask<'_>, around: &Around<'_>) -> (Begun, Write) {
    let Ask { id, offer, is_repair } = ask;
    if is_repair {
        let Some(record) = known else { return (Begun::Needless, Write::Nothing) };
        let Some(newest) = record.repair(offer, around) else {
            record.let_go(around.now, around.execution_horizon);
            return (Begun::Needless, Write::Later);
        };
        record.about_to_send(id, &newest, around);
        return (Begun::Send(ToSend { newest, ..ToSend::default() }), Write::Durable);
    }
    if known.is_none() && is_too_old(offer, around) {
        return (Begun::TooOld, Write::Nothing);
    }
    let record = known.get_or_insert_default();
    let mut to_send = ToSend::default();
    if let Some(passing) = record.passing(offer, around) {
        to_send.outdated = record.merge(&passing, around);
        (to_send.newest, to_send.unknown) = record.newest(&passing, around.mapped);
    } else if record.owing(around.mapped).next().is_none() {
        // If the event waited in hand, its request was noted before; it is not sent now.
        let was_noted = record.doubts.remove(&id).is_some();
        return (Begun::Erased, if was_noted { Write::Later } else { Write::Nothing });
    }
    // If a value of the event's own was refused before, nothing else is sent in its place.
    for (slot, said) in record.owing(around.mapped) {
        to_send.newest.try_insert(slot, said);
    }
    record.about_to_send(id, &to_send.newest, around);
    (Begun::Send(to_send), Write::Durable)
}

/// The time up to which persons may be forgotten of whom nothing was heard for the retention: their events may have
/// been dated some minutes ahead.
#[must_use]
pub fn forgotten_until(retention: SignedDuration, now: Timestamp) -> Timestamp {
    let heard_until = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
    heard_until.checked_add(MAX_AHEAD).unwrap_or(heard_until)
}

/// A record without what was erased and is not needed by any note any more; `None` if nothing changes.
#[must_use]
pub fn lapse(record: &Record, now: Timestamp) -> Option<Record> {
    record.mark.as_ref()?;
    let mut lapsed = record.clone();
    // This is longer than any request is late; notes are kept for twice as long.
    lapsed.let_go(now, LONGEST_REPAIR / 2);
    (lapsed != *record).then_some(lapsed)
}

/// Whether an event of a person who is not on record may be older than what was known.
fn is_too_old(offer: &Offer, around: &Around<'_>) -> bool {
    let is_swept = around.swept.is_some_and(|swept| offer.latest() <= Some(swept));
    is_swept || offer.latest().is_some_and(|at| around.now.duration_since(at) > around.retention)
}

/// What a definite or indefinite answer means for the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Accepted,
    /// Permanently: it will never pass as it was.
    Refused,
    /// Definitely not executed, or executed without effect.
    Failed,
    /// It may still be executed.
    Unknown,
}

impl Sent {
    /// What an answer proves. An answer from a gate that is down proves nothing: the system behind it may still
    /// execute the request. A 429 proves that it was not executed. A refusal of a request that carried other events'
    /// values says nothing about any one of them.
    #[must_use]
    pub fn of(outcome: Outcome, carries_others: bool) -> Sent {
        match outcome {
            Outcome::Accepted => Sent::Accepted,
            Outcome::Refused if !carries_others => Sent::Refused,
            Outcome::Refused | Outcome::Rejected | Outcome::Throttled | Outcome::Misconfigured => Sent::Failed,
            Outcome::Unavailable | Outcome::UnexpectedStatus | Outcome::NotTheGate => Sent::Unknown,
        }
    }
}

/// A request that was answered, or was not.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub carried: &'a Values,
    /// When it was noted.
    pub begun: Timestamp,
    pub sent: Sent,
    /// It was sent twice: what is known of the second copy says nothing about the first.
    pub was_resent: bool,
    /// The ids of the first copy, and of the request that follows if the record's newest values changed meanwhile.
    pub first: u64,
    pub next: u64,
}

/// How an event's turn ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// An older request may still be executed, and would spoil what was accepted.
    pub is_repair_due: bool,
    /// Something else became the newest meanwhile: it is to be sent, too.
    pub superseded: Option<Values>,
}

/// Ends the turn of an event: takes note of the answer, and checks whether the record's newest values changed
/// meanwhile.
pub fn end(known: &mut Option<Record>, ask: Ask<'_>, request: &Request<'_>, around: &Around<'_>) -> (Ended, Write) {
    let Request { carried, sent, begun, .. } = *request;
    let Some(record) = known.as_mut().filter(|_| sent != Sent::Unknown) else {
        return (Ended::default(), Write::Nothing);
    };
    let doubt = record.doubts.remove(&ask.id);
    if request.was_resent && !carried.is_empty() {
        let doubt = doubt.unwrap_or_else(|| Doubt { at: begun, sent: carried.clone(), is_parked: false });
        record.doubts.insert(request.first, doubt);
    }
    let before = (record.refusals(), record.mark.clone());
    record.answered(ask.offer, carried, sent, around.now);
    if sent == Sent::Accepted {
        record.made_good(begun, carried, around.mapped);
        // Before anything is dropped: what is owed is needed, even if the person was erased meanwhile.
        record.owe(carried, around.now);
    }
    record.let_go(around.now, around.execution_horizon);
    let mut ended = Ended::default();
    if sent == Sent::Accepted {
        if ask.is_repair {
            record.repaired(begun, carried, around);
        }
        // That a repair is on its way already proves nothing: a crash may have lost it before it was parked.
        ended.superseded = record.superseded(carried, around.mapped);
        let is_owing = ended.superseded.is_none() && record.owing(around.mapped).next().is_some();
        // What could be executed after this request was begun may have been executed after it.
        ended.is_repair_due = record.park_repair(&Around { now: begun, ..*around }) || is_owing;
    }
    if let Some(newest) = &ended.superseded {
        record.about_to_send(request.next, newest, around);
    }
    let is_changed = before != (record.refusals(), record.mark.clone());
    let must_last = ended.is_repair_due || ask.is_repair || ended.superseded.is_some() || is_changed;
    // An acceptance that is lost in a crash costs at most an extra request, so nobody waits for it.
    (ended, if must_last { Write::Durable } else { Write::Later })
}

/// An erasure that was received.
#[derive(Clone, Copy, Debug)]
pub struct Erasure {
    /// Up to when everything is to be erased, if anything says so.
    pub at: Option<Timestamp>,
    /// When it was published, or first came.
    pub published: Timestamp,
    /// Names the message.
    pub message: u64,
}

/// Erases a person: removes everything up to an instant, and leaves a mark that it was erased. Returns whether
/// anything was known.
pub fn erase(
    known: &mut Option<Record>,
    erasure: Erasure,
    now: Timestamp,
    execution_horizon: SignedDuration,
) -> (bool, Write) {
    let was_known = known.as_ref().is_some_and(|record| !record.is_empty());
    let record = known.get_or_insert_default();
    let Erasure { at, published, message } = erasure;
    let mut mark = record.mark.take().unwrap_or(Mark { at: Timestamp::MIN, granted: LiteMap::new(), messages: vec![] });
    let at = at.unwrap_or_else(|| mark.first_receipt(message, published));
    mark.at = mark.at.max(at);
    for (slot, newest) in &record.values {
        newest.granted().filter(|grant| grant.at <= Some(at)).for_each(|version| mark.grant(slot, version));
    }
    // Including those that lapsed: they were never answered either.
    for doubt in record.doubts.values() {
        for (slot, sent) in doubt.sent.iter().filter(|(_, sent)| sent.latest().at <= Some(at)) {
            let is_made_good = |newest: &Newest| {
                newest.accepted.is_some() && newest.said.grant().is_none() && newest.said.covers(sent)
            };
            if let (Some(version), false) = (sent.grant(), record.values.get(slot).is_some_and(is_made_good)) {
                mark.grant(slot, version);
            }
        }
    }
    for (slot, sent) in record.owed.iter().flat_map(|owed| &owed.sent) {
        if let Some(version) = sent.grant().filter(|grant| grant.at <= Some(at)) {
            mark.grant(slot, version);
        }
    }
    record.mark = Some(mark);
    record.merged = record.merged.max(Some(now));
    record.let_go(now, execution_horizon);
    (was_known, Write::Durable)
}

impl Mark {
    /// The time of an erasure that names none: that of its first receipt.
    fn first_receipt(&mut self, message: u64, published: Timestamp) -> Timestamp {
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
    fn grant(&mut self, slot: &Slot, version: &Version) {
        raise(&mut self.granted, slot.property().into(), version.clone());
    }

    /// Whether the contact was opted in when this was said, or before.
    fn is_granted_before(&self, slot: &Slot, version: &Version) -> bool {
        self.granted.get(slot.property()).is_some_and(|granted| granted.at <= version.at)
    }

    /// Notes what the gate has now.
    fn accepted(&mut self, slot: &Slot, said: &Said) {
        let Some(granted) = self.granted.get(slot.property()) else { return };
        if said.latest().at >= granted.at {
            self.granted.remove(slot.property());
        }
    }
}

impl Doubt {
    /// Whether the gate may still execute it at that time, or a repair for it is on its way.
    fn stands(&self, at: Timestamp, execution_horizon: SignedDuration) -> bool {
        at.duration_since(self.at) <= if self.is_parked { LONGEST_REPAIR } else { execution_horizon }
    }

    /// Whether its note is needed: also after it can be executed, as long as a request that was begun before may wait
    /// for its answer. The gate may have executed it after that one.
    fn is_needed(&self, now: Timestamp, execution_horizon: SignedDuration) -> bool {
        self.stands(now, execution_horizon.saturating_add(execution_horizon))
    }

    /// Joins another doubt into this one: keeps the older value of each property, and the later time.
    fn join(&mut self, other: Doubt) {
        take_older(&mut self.sent, other.sent);
        self.at = self.at.max(other.at);
        self.is_parked |= other.is_parked;
    }
}

impl Record {
    /// What an erasure lets pass of an event: all of it if it is later; else a withdrawal of what the gate still has as
    /// granted, and nothing else. `None` if nothing passes.
    fn passing<'o>(&self, offer: &'o Offer, around: &Around<'_>) -> Option<Cow<'o, Offer>> {
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
                let passes = known.is_none_or(takes_back) && mark.is_granted_before(slot, said.latest());
                // What was accepted may be spoiled, and its repair may be lost in a crash.
                let covers = |known: &Newest| known.accepted.is_some() && said.covers(&known.said);
                let is_in_danger = || known.is_some_and(covers) && self.is_in_danger(slot, around);
                (passes || is_in_danger()).then(|| (slot.clone(), withdrawal))
            })
            .collect();
        let is_left = !choices.is_empty() || offer.choices.is_empty() && is_later(offer.latest());
        is_left.then(|| Cow::Owned(Offer { choices, ..offer.clone() }))
    }

    /// Merges an event's choices; per property and path the newer version stays. Returns how many choices were
    /// outdated.
    fn merge(&mut self, offer: &Offer, around: &Around<'_>) -> usize {
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
        self.hear(offer, around.mapped.own());
        self.merged = self.merged.max(Some(around.now));
        outdated
    }

    fn hear(&mut self, offer: &Offer, set: u64) {
        let version = Version { at: offer.latest(), event: offer.event.clone() };
        raise(&mut self.heard, set, version);
        while self.heard.len() > MOST_HEARD {
            let others = self.heard.iter().filter(|(other, _)| **other != set && **other != UNMAPPED);
            let Some(oldest) = others.min_by_key(|(_, heard)| *heard).map(|(other, _)| *other) else { return };
            if let Some(heard) = self.heard.remove(&oldest) {
                raise(&mut self.heard, UNMAPPED, heard);
            }
        }
    }

    /// What to send for the properties of an event: the newest value of each, without those that the gate refused for
    /// good unless they are this event's own; and the slots whose newest values cannot be known.
    fn newest(&self, offer: &Offer, mapped: &Mapped) -> (Values, Vec<Slot>) {
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
    fn takes_back(&self, slot: &Slot, newest: &Newest) -> bool {
        let is_grant = |said: &Arc<Said>| said.grant().is_some();
        let was_granted = || newest.granted().next().is_some();
        let may_be_executed = || self.doubts.values().any(|doubt| doubt.sent.get(slot).is_some_and(is_grant));
        let was_erased = || self.mark.as_ref().is_some_and(|mark| mark.is_granted_before(slot, newest.said.latest()));
        (was_granted() || may_be_executed() || was_erased()) && self.is_last_withdrawal(slot, &newest.said)
    }

    /// What to send to repair what a late request may have spoiled, in addition to what the event names. For an erased
    /// person, only what may be spoiled.
    fn repair(&self, offer: &Offer, around: &Around<'_>) -> Option<Values> {
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
    fn owing<'r>(&'r self, mapped: &'r Mapped) -> impl Iterator<Item = (Slot, Arc<Said>)> + 'r {
        let late = self.owed.iter().flat_map(|owed| owed.sent.keys());
        let newest = late.flat_map(move |slot| self.of_property(slot, mapped));
        let is_newest = |slot: &Slot, said: &Said| self.values.get(slot).is_some_and(|newest| *newest.said == *said);
        newest.filter(move |(slot, said)| is_newest(slot, said) && !self.is_erased_grant(said))
    }

    fn is_erased_grant(&self, said: &Said) -> bool {
        said.grant().is_some() && self.has_erased(said.latest().at)
    }

    /// Notes which of the values that the gate accepted are older than the newest ones, on any path: nobody can know
    /// whether it accepted them before or after those. The newest may be refused now, and accepted at their next turn.
    fn owe(&mut self, carried: &Values, now: Timestamp) {
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
        let owed = self.owed.get_or_insert_with(|| Owed { at: now, sent: Values::new() });
        owed.at = owed.at.max(now);
        take_older(&mut owed.sent, late);
    }

    /// After the gate accepted the newest values in a request that was begun later, those are no longer owed.
    fn made_good(&mut self, begun: Timestamp, carried: &Values, mapped: &Mapped) {
        let Some(mut owed) = self.owed.take_if(|owed| begun >= owed.at) else { return };
        owed.sent.retain(|slot, _| {
            let mut newest = self.of_property(slot, mapped).peekable();
            newest.peek().is_none() || newest.any(|(slot, _)| !carried.contains_key(&slot))
        });
        self.owed = Some(owed).filter(|owed| !owed.sent.is_empty());
    }

    /// What can be sent again of a property, on the paths on which it is mapped now: the newest value or, if the gate
    /// refused that for good or nobody can know whether it is the newest, the withdrawal that it accepted before. A
    /// grant that the gate never accepted is not sent to it after its person was erased.
    fn of_property<'r>(&'r self, slot: &'r Slot, mapped: &'r Mapped) -> impl Iterator<Item = (Slot, Arc<Said>)> + 'r {
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

    /// Notes, before it is sent, that a request may be executed.
    fn about_to_send(&mut self, id: u64, sent: &Values, around: &Around<'_>) {
        self.doubts.remove(&id);
        self.let_go(around.now, around.execution_horizon);
        if sent.is_empty() {
            return;
        }
        while self.doubts.len() >= MOST_DOUBTS && self.join_two() {}
        self.doubts.insert(id, Doubt { at: around.now, sent: sent.clone(), is_parked: false });
    }

    /// Joins two doubts, if there are two: two that carried the same values, else the oldest into the one that collects
    /// different values ([`MIXED`]). That one stands for as long as anything is joined into it, so everything that can
    /// be joined otherwise is. No answer to a request removes what was joined with it.
    fn join_two(&mut self) -> bool {
        let mut others: Vec<(u64, Timestamp)> =
            self.doubts.iter().filter(|(id, _)| **id != MIXED).map(|(id, doubt)| (*id, doubt.at)).collect();
        others.sort_by_key(|(_, at)| *at);
        let carried = |id: u64| self.doubts.get(&id).map(|doubt| &doubt.sent);
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

    /// Takes note of what became of the values that a request carried.
    fn answered(&mut self, offer: &Offer, carried: &Values, sent: Sent, now: Timestamp) {
        for (slot, said) in carried {
            let is_accepted = sent == Sent::Accepted;
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
            match sent {
                Sent::Accepted => {
                    newest.is_refused = false;
                    newest.accepted.get_or_insert(now);
                    newest.before = None;
                    newest.unanswered = None;
                }
                // The gate has what it accepted once, whatever it says about another delivery.
                Sent::Refused if said.is_of(offer) && newest.accepted.is_none() => newest.is_refused = true,
                Sent::Refused | Sent::Failed | Sent::Unknown => {}
            }
        }
    }

    /// Requests that may still be executed, or whose repair is on its way.
    fn standing<'r>(&'r self, around: &'r Around<'_>) -> impl Iterator<Item = (&'r u64, &'r Doubt)> {
        self.doubts.iter().filter(|(_, doubt)| doubt.stands(around.now, around.execution_horizon))
    }

    /// Those of the standing requests that make a repair due.
    fn spoiling<'r>(&'r self, around: &'r Around<'_>) -> impl Iterator<Item = (&'r u64, &'r Doubt)> {
        self.standing(around).filter(|(_, doubt)| self.spoiled_by(doubt, around.mapped).next().is_some())
    }

    /// What can be sent again if a request that is executed late would put older values back.
    fn spoiled_by<'r>(&'r self, doubt: &'r Doubt, mapped: &'r Mapped) -> impl Iterator<Item = (Slot, Arc<Said>)> + 'r {
        doubt.sent.iter().flat_map(move |(slot, sent)| {
            self.of_property(slot, mapped).filter(move |(own, said)| is_spoiled(own, said, slot, sent))
        })
    }

    /// Whether a request that is executed late would put an older value of this slot back.
    fn is_in_danger(&self, slot: &Slot, around: &Around<'_>) -> bool {
        let mut spoiled = self.standing(around).flat_map(|(_, doubt)| self.spoiled_by(doubt, around.mapped));
        spoiled.any(|(spoiled, _)| spoiled.property() == slot.property())
    }

    /// Notes that a repair follows, if one is due.
    fn park_repair(&mut self, around: &Around<'_>) -> bool {
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
    fn repaired(&mut self, begun: Timestamp, carried: &Values, around: &Around<'_>) {
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
        for (slot, sent) in dropped.iter().flat_map(|doubt| &doubt.sent) {
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

    /// The newest values of what was sent, if any of them changed since. Values that the gate refused for good are not
    /// sent again.
    fn superseded(&self, sent: &Values, mapped: &Mapped) -> Option<Values> {
        let known = || {
            let known = sent.iter().filter_map(|(slot, sent)| Some((slot, sent, self.values.get(slot)?)));
            let known = known.filter(|(_, _, newest)| !newest.is_refused && !self.is_erased_grant(&newest.said));
            known.filter(|(slot, _, newest)| self.may_be_sent(slot, newest, mapped))
        };
        let has_moved = known().any(|(_, sent, newest)| !sent.covers(&newest.said));
        has_moved.then(|| known().map(|(slot, _, newest)| (slot.clone(), Arc::clone(&newest.said))).collect())
    }

    /// How many values the gate refused for good.
    fn refusals(&self) -> usize {
        self.values.values().filter(|newest| newest.is_refused).count()
    }

    /// Drops notes that lapsed, and what was erased and is not needed by a note any more.
    fn let_go(&mut self, now: Timestamp, execution_horizon: SignedDuration) {
        let lapsed = self.doubts.iter().filter(|(_, doubt)| !doubt.is_needed(now, execution_horizon));
        let lapsed: Vec<u64> = lapsed.map(|(id, _)| *id).collect();
        self.drop_doubts(&lapsed);
        let Record { values, doubts, owed, mark, .. } = self;
        let Some(Mark { at, .. }) = mark else { return };
        if let Some(Owed { sent, .. }) = owed {
            let is_owed = |newest: &Newest| newest.said.grant().is_none() || newest.said.latest().at > Some(*at);
            sent.retain(|slot, _| {
                values.iter().any(|(own, newest)| own.property() == slot.property() && is_owed(newest))
            });
        }
        owed.take_if(|owed| owed.sent.is_empty());
        let is_needed = |slot: &Slot| {
            let carried = doubts.values().map(|doubt| &doubt.sent).chain(owed.iter().map(|owed| &owed.sent));
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
    /// What is known once something newer was said. If that is the same value, the gate accepted it already, whatever
    /// it says about the next request.
    fn replaced_by(&self, said: Said) -> Newest {
        let accepted = self.accepted.filter(|_| said.choice() == self.said.choice());
        let before = self.at_gate().filter(|_| accepted.is_none()).cloned();
        let unanswered = self.unanswered.clone().filter(|_| accepted.is_none());
        Newest { accepted, unanswered, ..Newest::new(said, before) }
    }

    /// Whether it is a grant that the gate never accepted.
    fn is_new_grant(&self) -> bool {
        self.accepted.is_none() && self.said.grant().is_some()
    }

    /// What is left of it after an erasure: all of it while a note needs it, except a grant that the gate never
    /// accepted. That is not sent to it any more, and what the gate has in its place counts.
    fn after(self, erased: Timestamp, is_needed: bool, now: Timestamp) -> Option<Newest> {
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

/// Whether what is known of a property is newer than what was sent, perhaps from another path.
fn is_spoiled(known: &Slot, said: &Said, slot: &Slot, sent: &Said) -> bool {
    if known == slot { !sent.covers(said) } else { said.latest().at > sent.latest().at }
}

/// Takes values in; for each property the older one stays.
fn take_older(known: &mut Values, other: impl IntoIterator<Item = (Slot, Arc<Said>)>) {
    for (slot, sent) in other {
        match known.get_mut(&slot) {
            Some(known) if known.covers(&sent) => *known = sent,
            Some(_) => {}
            None => drop(known.insert(slot, sent)),
        }
    }
}

/// Keeps the greater of two versions under a key: the one that is known and another.
fn raise<K: Ord>(known: &mut LiteMap<K, Version>, key: K, version: Version) {
    match known.get_mut(&key) {
        Some(known) if *known < version => *known = version,
        Some(_) => {}
        None => drop(known.insert(key, version)),
    }
}

/// The part of a choice that takes a consent back. For a selection, that is all of it: which of its ids the gate has
/// is not kept beyond an erasure.
fn withdrawal(choice: &Choice) -> Option<Choice> {
    match choice {
        Choice::Switch(false) => Some(Choice::Switch(false)),
        Choice::Switch(true) | Choice::Text(_) => None,
        Choice::Selection(Selection { names: Names::Grants, .. }) => {
            Some(Choice::Selection(Selection { ids: Vec::new(), names: Names::Grants }))
        }
        Choice::Selection(Selection { ids, .. }) => (!ids.is_empty()).then(|| choice.clone()),
    }
}
