//! Whether events still come, and whether any of them is for the gate (pure: the clock is an argument).
//!
//! A typo in a document or in a binding silently costs every consent: nothing fails, since skipping is a verdict
//! and receiving no event is not a fault. So events that are skipped in a row are counted, and a day without an
//! event is noticed, and so is a property for which no event has a value.

use crate::verdict::{DeadReason, Skip, Verdict};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;

/// After this many skipped events in a row, everything counts as skipped, once nothing else came for [`LONG_ROW`].
/// Most events on a bus may be about guests or for somebody else, so a number alone says little.
const ROW: u32 = 100;
const LONG_ROW: SignedDuration = SignedDuration::from_hours(1);
/// After this many, everything counts as skipped, however fast they came.
const WHATEVER_THE_TIME: u32 = 1_000;
/// After this many events for the gate, a property that had no value in any of them may have a misspelt path.
const WITHOUT_VALUE: u32 = 1_000;
/// How long a silence, without any event, has to last before it is reported.
const SILENCE: SignedDuration = SignedDuration::from_hours(24);
/// This long after consuming began, events that waited at the broker have arrived.
const ARRIVED: SignedDuration = SignedDuration::from_mins(1);

/// The reasons for skipping that a typo in a document or at the publisher causes, too. The others are normal,
/// however often they occur.
const DOUBTFUL: [Skip; 4] = [Skip::OtherOrganization, Skip::OtherRegulation, Skip::UnwantedType, Skip::NoIdentifier];

/// The events that were skipped since the last one that was for the gate.
#[derive(Debug, Default)]
pub struct SkippedInARow {
    since: Option<Timestamp>,
    /// How many for each reason of [`DOUBTFUL`].
    skipped: [u32; DOUBTFUL.len()],
    is_everything: bool,
}

/// Everything is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipping {
    /// How many in a row.
    pub events: u32,
    /// Why most of them were.
    pub reason: Skip,
}

impl SkippedInARow {
    /// Takes note of a verdict. When everything counts as skipped after it, returns that, once.
    pub fn settled(&mut self, verdict: &Verdict, now: Timestamp) -> Option<Skipping> {
        match verdict {
            Verdict::Skipped(skip) => self.skipped(*skip, now),
            Verdict::DeadLetter(
                DeadReason::Undecodable
                | DeadReason::TooLarge
                | DeadReason::Panicked
                | DeadReason::FutureDated
                | DeadReason::Crashed,
            ) => None, // the filter did not see it
            Verdict::Delivered
            | Verdict::Retry(_)
            | Verdict::Hold(_)
            | Verdict::DeadLetter(
                DeadReason::Refused
                | DeadReason::OlderThanRetention
                | DeadReason::AttemptsExhausted
                | DeadReason::NotTheGate
                | DeadReason::Misconfigured
                | DeadReason::Rejected
                | DeadReason::UnexpectedStatus
                | DeadReason::RetryAfterBeyondWindow,
            ) => {
                *self = SkippedInARow::default();
                None
            }
        }
    }

    fn skipped(&mut self, skip: Skip, now: Timestamp) -> Option<Skipping> {
        let index = DOUBTFUL.iter().position(|doubtful| *doubtful == skip)?;
        self.skipped[index] = self.skipped[index].saturating_add(1);
        let since = *self.since.get_or_insert(now);
        let events = self.skipped.iter().fold(0, |sum: u32, count| sum.saturating_add(*count));
        let is_long = events >= ROW && now.duration_since(since) >= LONG_ROW;
        if self.is_everything || !(is_long || events >= WHATEVER_THE_TIME) {
            return None;
        }
        self.is_everything = true;
        let most = DOUBTFUL.iter().zip(self.skipped).max_by_key(|(_, count)| *count);
        most.map(|(reason, _)| Skipping { events, reason: *reason })
    }

    /// Whether everything is skipped.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.is_everything
    }
}

/// How long nothing has come.
#[derive(Debug)]
pub struct Silence {
    begun: Timestamp,
    told: Option<Timestamp>,
}

impl Silence {
    /// Counts from now, when the worker begins: nothing can have come before.
    #[must_use]
    pub fn new(now: Timestamp) -> Silence {
        Silence { begun: now, told: None }
    }

    /// Called while the queues are consumed, which they have been since `consuming`. Returns once for each silence
    /// since when it lasts.
    pub fn look(&mut self, last: Option<Timestamp>, consuming: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let since = last.map_or(self.begun, |last| last.max(self.begun));
        let is_silent = now.duration_since(since) >= SILENCE && now.duration_since(consuming) >= ARRIVED;
        if !is_silent || self.told == Some(since) {
            return None;
        }
        self.told = Some(since);
        Some(since)
    }
}

/// The properties for which no event has had a value so far.
#[derive(Debug)]
pub struct WithoutValue {
    properties: Vec<Arc<str>>,
    events: u32,
    is_told: bool,
}

impl WithoutValue {
    /// No event has had a value for any of these so far.
    pub fn new(properties: impl IntoIterator<Item = Arc<str>>) -> WithoutValue {
        WithoutValue { properties: properties.into_iter().collect(), events: 0, is_told: false }
    }

    /// Takes note of an event that is for the gate. Returns once, after a thousand of them, the properties
    /// for which none had a value.
    pub fn came(&mut self, has_value: impl Fn(&str) -> bool) -> Option<Vec<Arc<str>>> {
        if self.properties.is_empty() {
            return None;
        }
        self.properties.retain(|property| !has_value(property));
        self.events = self.events.saturating_add(1);
        if self.is_told || self.events < WITHOUT_VALUE {
            return None;
        }
        self.is_told = true;
        (!self.properties.is_empty()).then(|| self.properties.clone())
    }

    /// How many properties have had no value, once enough events have come to say so.
    #[must_use]
    pub fn count(&self) -> usize {
        if self.is_told { self.properties.len() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::NextAttempt;
    use std::time::Duration;

    const MINUTE: SignedDuration = SignedDuration::from_mins(1);

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    /// Skips `count` events for one reason; returns each report, and the number of the event that caused it.
    fn told(row: &mut SkippedInARow, skip: Skip, count: u32, from: i64, apart: SignedDuration) -> Vec<(u32, Skipping)> {
        let mut now = at(from);
        let mut told = Vec::new();
        for n in 1..=count {
            told.extend(row.settled(&Verdict::Skipped(skip), now).map(|skipping| (n, skipping)));
            now += apart;
        }
        told
    }

    #[test]
    fn a_row_that_lasts_is_told_once_with_the_reason_of_most() {
        let mut row = SkippedInARow::default();
        assert!(told(&mut row, Skip::NoIdentifier, 40, 0, MINUTE).is_empty());
        let told_of = told(&mut row, Skip::OtherRegulation, 500, 40, MINUTE);
        assert_eq!(told_of, [(60, Skipping { events: 100, reason: Skip::OtherRegulation })]);
        assert!(row.is_everything());
    }

    #[test]
    fn a_hundred_at_once_are_not_everything_until_an_hour_went_by() {
        let mut row = SkippedInARow::default();
        assert!(told(&mut row, Skip::UnwantedType, 999, 0, SignedDuration::ZERO).is_empty());
        assert!(!row.is_everything());
        assert!(told(&mut row, Skip::UnwantedType, 1, 59, MINUTE).len() == 1, "the thousandth, however fast");
        let mut row = SkippedInARow::default();
        told(&mut row, Skip::UnwantedType, 99, 0, SignedDuration::ZERO);
        assert_eq!(told(&mut row, Skip::UnwantedType, 2, 60, MINUTE).len(), 1, "an hour after the first");
    }

    #[test]
    fn reasons_that_are_usual_are_never_a_row_and_end_none() {
        for skip in Skip::ALL.iter().copied().filter(|skip| !DOUBTFUL.contains(skip)) {
            let mut row = SkippedInARow::default();
            assert!(told(&mut row, skip, 5_000, 0, MINUTE).is_empty(), "{skip:?}");
            told(&mut row, Skip::OtherOrganization, 99, 0, MINUTE);
            told(&mut row, skip, 1, 100, MINUTE);
            assert_eq!(told(&mut row, Skip::OtherOrganization, 1, 101, MINUTE).len(), 1, "{skip:?}");
        }
    }

    #[test]
    fn one_event_for_the_gate_ends_a_row_and_the_next_one_is_told_again() {
        let retry = Verdict::Retry(NextAttempt { attempts: 1, delay: Duration::ZERO, not_before: None });
        for verdict in
            [Verdict::Delivered, retry, Verdict::Hold(Duration::ZERO), Verdict::DeadLetter(DeadReason::Misconfigured)]
        {
            let mut row = SkippedInARow::default();
            assert_eq!(told(&mut row, Skip::NoIdentifier, 200, 0, MINUTE).len(), 1);
            row.settled(&verdict, at(200));
            assert!(!row.is_everything(), "{verdict:?}");
            assert_eq!(
                told(&mut row, Skip::NoIdentifier, 200, 201, MINUTE),
                [(100, Skipping { events: 100, reason: Skip::NoIdentifier })]
            );
        }
        let mut row = SkippedInARow::default();
        told(&mut row, Skip::NoIdentifier, 99, 0, MINUTE);
        row.settled(&Verdict::DeadLetter(DeadReason::Undecodable), at(99));
        assert_eq!(told(&mut row, Skip::NoIdentifier, 1, 100, MINUTE).len(), 1, "nobody knows whom it was for");
    }

    #[test]
    fn a_day_without_an_event_is_told_once_and_the_next_one_again() {
        let day = SILENCE.as_hours() * 60;
        let mut silence = Silence::new(at(0));
        assert_eq!(silence.look(None, at(0), at(day - 1)), None);
        assert_eq!(silence.look(None, at(0), at(day)), Some(at(0)));
        assert_eq!(silence.look(None, at(0), at(3 * day)), None, "once");
        let last = Some(at(3 * day));
        assert_eq!(silence.look(last, at(0), at(4 * day - 1)), None);
        assert_eq!(silence.look(last, at(0), at(4 * day)), Some(at(3 * day)));
    }

    #[test]
    fn a_property_without_a_value_is_told_once_after_many_events_and_no_longer_once_it_has_one() {
        let mut properties = WithoutValue::new(["NEWS", "SMS", "TYPO"].map(Arc::from));
        let mut told = Vec::new();
        for n in 1..=2 * WITHOUT_VALUE {
            assert_eq!(properties.count(), usize::from(n > WITHOUT_VALUE));
            let has_value = |property: &str| property == "NEWS" || property == "SMS" && n == 400;
            told.extend(properties.came(has_value).map(|without| (n, without)));
        }
        assert_eq!(told, [(WITHOUT_VALUE, vec![Arc::from("TYPO")])]);
        assert_eq!(properties.came(|_| true), None);
        assert_eq!(properties.count(), 0);
    }

    #[test]
    fn nobody_is_silent_who_has_only_just_begun_to_consume_or_was_served_by_another_document() {
        let day = SILENCE.as_hours() * 60;
        let mut silence = Silence::new(at(0));
        assert_eq!(silence.look(None, at(2 * day), at(2 * day)), None, "what waited is on its way");
        assert_eq!(silence.look(None, at(2 * day), at(2 * day + 1)), Some(at(0)));
        let mut silence = Silence::new(at(day));
        assert_eq!(silence.look(Some(at(1)), at(day), at(day + 60)), None);
    }
}
