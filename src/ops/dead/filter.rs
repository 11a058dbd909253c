//! Which letters a command is about (pure).

use super::letter::Letter;
use crate::cli::LetterSelection;
use crate::config::parse_duration;
use crate::event::TYPES;
use crate::record::sequencer::person;
use crate::text::suggest::did_you_mean;
use crate::verdict::DeadReason;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// The word for a reason or status that a letter does not have.
const NONE: &str = "none";
/// The word for types that Didomi does not document.
const OTHER: &str = "other";

/// The conditions on a letter; an empty list accepts every letter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    reasons: Vec<Option<&'static str>>,
    statuses: Vec<Option<u16>>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    kinds: Vec<&'static str>,
    event_ids: Vec<String>,
    persons: BTreeSet<String>,
    attempts: Option<RangeInclusive<u32>>,
    /// The most letters that are taken.
    pub limit: Option<u32>,
}

/// A filter during one pass over the letters, which counts towards the limit.
pub struct Taking<'f> {
    filter: &'f LetterFilter,
    taken: u32,
}

impl LetterFilter {
    /// Reads the options; durations count back from `now`.
    ///
    /// # Errors
    /// Every invalid value, with what is valid.
    pub fn new(selection: &LetterSelection, now: Timestamp) -> Result<LetterFilter, Vec<String>> {
        let mut problems = Vec::new();
        let mut read = |option: &str, result: Result<(), String>| {
            problems.extend(result.err().map(|why| format!("--{option}: {why}")));
        };
        let mut filter = LetterFilter {
            event_ids: selection.event_id.clone(),
            persons: selection.identifier.iter().map(|identifier| person(identifier).into_owned()).collect(),
            ..LetterFilter::default()
        };
        for word in &selection.reason {
            read("reason", reason(word).map(|reason| filter.reasons.push(reason)));
        }
        for word in &selection.status {
            read("status", status(word).map(|status| filter.statuses.push(status)));
        }
        for word in &selection.kind {
            read("type", kind(word).map(|kind| filter.kinds.push(kind)));
        }
        if let Some(word) = &selection.since {
            read("since", time(word, now).map(|at| filter.since = Some(at)));
        }
        if let Some(word) = &selection.until {
            read("until", time(word, now).map(|at| filter.until = Some(at)));
        }
        if let Some(word) = &selection.older_than {
            let until = parse_duration(word).and_then(|age| before(now, age));
            read(
                "older-than",
                until.map(|at| filter.until = filter.until.map_or(Some(at), |other| Some(at.min(other)))),
            );
        }
        if let Some(word) = &selection.attempts {
            read("attempts", range(word).map(|range| filter.attempts = Some(range)));
        }
        if let Some(word) = &selection.limit {
            read("limit", count(word).map(|count| filter.limit = Some(count)));
        }
        if problems.is_empty() { Ok(filter) } else { Err(problems) }
    }

    /// All letters of these persons.
    pub fn persons(identifiers: &[&str]) -> LetterFilter {
        LetterFilter {
            persons: identifiers.iter().map(|own| person(own).into_owned()).collect(),
            ..LetterFilter::default()
        }
    }

    /// Whether it takes every letter.
    pub fn is_all(&self) -> bool {
        *self == LetterFilter::default()
    }

    /// Checks, after a command counted the letters that it takes, that there are some if events are named.
    ///
    /// # Errors
    /// There are none: most likely an id is misspelled.
    pub fn found(&self, letters: u32) -> Result<(), String> {
        if letters > 0 || self.event_ids.is_empty() {
            return Ok(());
        }
        Err("no letter has such an event id and also matches the other filters; dead list shows the letters that exist"
            .to_owned())
    }

    /// The conditions, for people, without naming anybody: persons and events are only counted.
    pub fn scope(&self) -> String {
        let words = |name: &str, words: Vec<String>| (!words.is_empty()).then(|| format!("{name} {}", words.join(",")));
        let or_none = |word: Option<String>| word.unwrap_or_else(|| NONE.to_owned());
        let number = |count: usize| (count > 0).then(|| count.to_string()).into_iter().collect();
        let one = |word: Option<String>| word.into_iter().collect();
        let parts = [
            words("reason", self.reasons.iter().map(|code| or_none(code.map(str::to_owned))).collect()),
            words("status", self.statuses.iter().map(|code| or_none(code.map(|code| code.to_string()))).collect()),
            words("since", one(self.since.map(|at| at.to_string()))),
            words("until", one(self.until.map(|at| at.to_string()))),
            words("type", self.kinds.iter().map(|kind| (*kind).to_owned()).collect()),
            words("events", number(self.event_ids.len())),
            words("persons", number(self.persons.len())),
            words("attempts", one(self.attempts.as_ref().map(|range| format!("{range:?}")))),
            words("limit", one(self.limit.map(|limit| limit.to_string()))),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { "all".to_owned() } else { parts.join("; ") }
    }

    /// Begins a pass over the letters.
    pub fn taking(&self) -> Taking<'_> {
        Taking { filter: self, taken: 0 }
    }

    /// Whether a letter meets the conditions, regardless of the limit.
    pub fn matches(&self, letter: &Letter<'_>) -> bool {
        let any = |list_is_empty: bool, found: bool| list_is_empty || found;
        let is_in_time =
            |at: Timestamp| self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until);
        let is_timed = self.since.is_some() || self.until.is_some();
        any(self.reasons.is_empty(), self.reasons.contains(&letter.reason.map(DeadReason::code)))
            && any(self.statuses.is_empty(), self.statuses.contains(&letter.status()))
            && any(!is_timed, letter.died.is_some_and(is_in_time))
            && self.attempts.as_ref().is_none_or(|range| range.contains(&letter.history.attempts))
            && (self.kinds.is_empty() || letter.event().is_some_and(|event| self.kinds.contains(&event.kind().name())))
            && (self.event_ids.is_empty() || self.names_event(letter))
            && (self.persons.is_empty()
                || letter.identifier().is_some_and(|identifier| self.persons.contains(&*person(&identifier))))
    }

    fn names_event(&self, letter: &Letter<'_>) -> bool {
        let id = letter.event().and_then(|event| event.id().ok().flatten());
        id.is_some_and(|id| self.event_ids.iter().any(|wanted| wanted.eq_ignore_ascii_case(id)))
    }
}

impl Taking<'_> {
    /// Whether the next letter meets the conditions and is within the limit.
    pub fn takes(&mut self, letter: &Letter<'_>) -> bool {
        let takes = self.filter.limit.is_none_or(|limit| self.taken < limit) && self.filter.matches(letter);
        self.taken += u32::from(takes);
        takes
    }
}

fn reason(word: &str) -> Result<Option<&'static str>, String> {
    let codes = || DeadReason::ALL.iter().copied().map(DeadReason::code);
    match codes().find(|code| *code == word) {
        Some(code) => Ok(Some(code)),
        None if word == NONE => Ok(None),
        None => {
            let meant = did_you_mean(word, codes().chain([NONE]));
            let all = codes().collect::<Vec<_>>().join(", ");
            Err(format!("no reason \"{word}\"{meant}; there are {all}, none"))
        }
    }
}

fn status(word: &str) -> Result<Option<u16>, String> {
    if word == NONE {
        return Ok(None);
    }
    let status = word.parse().ok().filter(|status| (100..1_000).contains(status));
    status.map(Some).ok_or_else(|| format!("\"{word}\" is not an HTTP status; write one such as 503, or none"))
}

fn kind(word: &str) -> Result<&'static str, String> {
    let types = || TYPES.into_iter().chain([OTHER]);
    types().find(|kind| *kind == word).ok_or_else(|| {
        let meant = did_you_mean(word, types());
        format!("no type \"{word}\"{meant}; there are {}", types().collect::<Vec<_>>().join(", "))
    })
}

fn time(word: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(at) = word.parse() {
        return Ok(at);
    }
    let form = "write an RFC 3339 time such as 2026-03-01T09:00:00Z, or how long ago, such as 2h";
    parse_duration(word).map_err(|_| format!("\"{word}\" is not a time; {form}")).and_then(|ago| before(now, ago))
}

fn before(now: Timestamp, ago: std::time::Duration) -> Result<Timestamp, String> {
    let ago = SignedDuration::try_from(ago).unwrap_or(SignedDuration::MAX);
    now.checked_sub(ago).map_err(|_| "is too long ago; write less".to_owned())
}

fn range(word: &str) -> Result<RangeInclusive<u32>, String> {
    let bad = || format!("\"{word}\" is not a number of attempts; write 5, 1..3 or 3..");
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
    match word.split_once("..") {
        None => number(word).map(|count| count..=count),
        Some((from, "")) => number(from).map(|from| from..=u32::MAX),
        Some((from, to)) => Ok(number(from)?..=number(to)?),
    }
}

/// Reads a number of letters.
pub fn count(word: &str) -> Result<u32, String> {
    word.parse().map_err(|_| format!("\"{word}\" is not a number of letters; write one such as 100"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn every_value_that_cannot_be_meant_is_told_at_once() {
        let word = |text: &str| Some(text.to_owned());
        let selection = LetterSelection {
            reason: vec!["refusd".to_owned(), "none".to_owned()],
            status: vec!["5xx".to_owned()],
            since: word("yesterday"),
            until: word("99999999999999d"),
            older_than: word("30"),
            kind: vec!["event.create".to_owned()],
            attempts: word("many"),
            limit: word("-1"),
            ..LetterSelection::default()
        };
        let problems = LetterFilter::new(&selection, now()).unwrap_err();
        assert_eq!(problems.len(), 8, "{problems:#?}");
        for (option, part) in [("reason", "did you mean refused?"), ("type", "did you mean event.created?")] {
            assert!(problems.iter().any(|text| text.contains(option) && text.contains(part)), "{problems:#?}");
        }
    }

    #[test]
    fn a_scope_names_nobody() {
        let selection = LetterSelection {
            reason: vec!["refused".to_owned(), "none".to_owned()],
            status: vec!["503".to_owned()],
            event_id: vec!["jane@example.com".to_owned()],
            identifier: vec!["jane@example.com".to_owned(), "joe".to_owned()],
            since: Some("2h".to_owned()),
            attempts: Some("1..3".to_owned()),
            limit: Some("10".to_owned()),
            ..LetterSelection::default()
        };
        let scope = LetterFilter::new(&selection, now()).unwrap().scope();
        let expected = "reason refused,none; status 503; since 2026-03-01T10:00:00Z; events 1; persons 2; attempts 1..=3; limit 10";
        assert_eq!(scope, expected);
        assert_eq!(LetterFilter::default().scope(), "all");
    }

    #[test]
    fn times_are_absolute_or_ago() {
        assert_eq!(time("2h", now()).unwrap().to_string(), "2026-03-01T10:00:00Z");
        assert_eq!(time("2026-02-01T00:00:00+01:00", now()).unwrap().to_string(), "2026-01-31T23:00:00Z");
        assert_eq!(range("3..").unwrap(), 3..=u32::MAX);
        assert_eq!(range("1..3").unwrap(), 1..=3);
        assert_eq!(range("5").unwrap(), 5..=5);
    }
}
