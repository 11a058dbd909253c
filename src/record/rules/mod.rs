//! How an event's turn with its person's record begins and ends, and what an erasure leaves (pure).
//!
//! The worker, the dry run of a replay and the model of the whole system all decide by these rules.

mod doubts;
mod erasures;
mod newest;
mod owed;

use super::{Doubt, Mapped, Mark, Newest, Offer, Record, Values};
use crate::gate::Outcome;
use crate::integration::Integration;
use crate::integration::filter::MAX_AHEAD;
use crate::mapping::Slot;
use doubts::{LONGEST_REPAIR, kept};
use jiff::{SignedDuration, Timestamp};
use litemap::LiteMap;

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
            record.let_go(around.now, kept(around.execution_horizon));
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
    match record.passing(offer, around) {
        Some(passing) => {
            to_send.outdated = record.merge(&passing, around);
            (to_send.newest, to_send.unknown) = record.newest(&passing, around.mapped);
        }
        // The person was erased, but the gate is owed something: only that is sent.
        None if record.owing(around.mapped).next().is_some() => {}
        None => {
            // If the event waited in hand, its request was noted before; it is not sent now.
            let was_noted = record.doubts.remove(&id).is_some();
            return (Begun::Erased, if was_noted { Write::Later } else { Write::Nothing });
        }
    }
    // What the event itself carries stays, also if the gate refused it before.
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
    // This is longer than any request is late.
    lapsed.let_go(now, LONGEST_REPAIR);
    (lapsed != *record).then_some(lapsed)
}

/// Whether an event of a person who is not on record may be older than what was known.
fn is_too_old(offer: &Offer, around: &Around<'_>) -> bool {
    let is_swept = around.swept.is_some_and(|swept| offer.latest() <= Some(swept));
    is_swept || offer.latest().is_some_and(|at| around.now.duration_since(at) > around.retention)
}

/// What an answer proves about the effect of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Accepted,
    /// Permanently: it will never pass as it was.
    Refused,
    /// Definitely not executed, or executed without effect.
    Failed,
    /// It may still be executed.
    Unknown,
}

impl Effect {
    /// What an answer proves. One that is not the gate's own, or says that something behind it failed, proves nothing:
    /// the request may still be executed. A 429 proves that it was not executed. A refusal of a request that carried
    /// other events' values says nothing about any one of them.
    #[must_use]
    pub fn of(outcome: Outcome, carries_others: bool) -> Effect {
        match outcome {
            Outcome::Accepted => Effect::Accepted,
            Outcome::Refused if !carries_others => Effect::Refused,
            Outcome::Refused | Outcome::Rejected | Outcome::Throttled | Outcome::Misconfigured => Effect::Failed,
            Outcome::Unavailable | Outcome::UnexpectedStatus | Outcome::NotTheGate => Effect::Unknown,
        }
    }
}

/// A request that was answered, or was not.
#[derive(Clone, Copy, Debug)]
pub struct SentRequest<'a> {
    pub carried: &'a Values,
    /// When it was noted.
    pub begun: Timestamp,
    pub effect: Effect,
    /// It was sent twice: what is known of the second copy says nothing about the first.
    pub was_resent: bool,
    /// The ids of the first copy, and of the request that follows if the record's newest values changed meanwhile.
    pub first: u64,
    pub next: u64,
}

/// How an event's turn ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TurnEnd {
    /// An older request may still be executed, and would spoil what was accepted.
    pub is_repair_due: bool,
    /// Something else became the newest meanwhile: it is to be sent, too.
    pub superseded: Option<Values>,
}

/// Ends the turn of an event: takes note of the answer, and checks whether the record's newest values changed
/// meanwhile.
pub fn end(
    known: &mut Option<Record>,
    ask: Ask<'_>,
    request: &SentRequest<'_>,
    around: &Around<'_>,
) -> (TurnEnd, Write) {
    let SentRequest { carried, effect, begun, .. } = *request;
    let Some(record) = known.as_mut().filter(|_| effect != Effect::Unknown) else {
        return (TurnEnd::default(), Write::Nothing);
    };
    let doubt = record.doubts.remove(&ask.id);
    if request.was_resent && !carried.is_empty() {
        let doubt = doubt.unwrap_or_else(|| Doubt { at: begun, carried: carried.clone(), is_parked: false });
        record.doubts.insert(request.first, doubt);
    }
    let before = (record.refusals(), record.mark.clone());
    record.answered(ask.offer, carried, effect, around.now);
    if effect == Effect::Accepted {
        record.made_good(begun, carried, around.mapped);
        // Before anything is dropped: what is owed is needed, even if the person was erased meanwhile.
        record.owe(carried, around.now);
    }
    record.let_go(around.now, kept(around.execution_horizon));
    let mut ended = TurnEnd::default();
    if effect == Effect::Accepted {
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
        for (slot, sent) in doubt.carried.iter().filter(|(_, sent)| sent.latest().at <= Some(at)) {
            let is_made_good = |newest: &Newest| {
                newest.accepted.is_some() && newest.said.grant().is_none() && newest.said.covers(sent)
            };
            if let (Some(version), false) = (sent.grant(), record.values.get(slot).is_some_and(is_made_good)) {
                mark.grant(slot, version);
            }
        }
    }
    for (slot, sent) in record.owed.iter().flat_map(|owed| &owed.carried) {
        if let Some(version) = sent.grant().filter(|grant| grant.at <= Some(at)) {
            mark.grant(slot, version);
        }
    }
    record.mark = Some(mark);
    record.merged = record.merged.max(Some(now));
    record.let_go(now, kept(execution_horizon));
    (was_known, Write::Durable)
}
