//! What is known of an event's attempts so far (pure). It travels in the message's headers:
//! `broker/headers/history.rs` writes and reads it.

use crate::gate::Outcome;
use jiff::Timestamp;

/// How many attempts the history keeps: the last ones.
pub const MAX_ENTRIES: usize = 10;

/// One attempt, as written in `consent-gate-history`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it began.
    pub at: Timestamp,
    /// The class of the answer.
    pub result: Outcome,
    /// The HTTP status, when there was one.
    pub status: Option<u16>,
    /// How long it took, in milliseconds.
    pub ms: i64,
}

/// What the headers of a message say about its past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Attempts made so far.
    pub attempts: u32,
    /// When the first of them began.
    pub first_attempt: Option<Timestamp>,
    /// Not to be sent before this: the gate asked for a pause (`Retry-After`), or a repair is not due yet.
    pub not_before: Option<Timestamp>,
    /// Why the last attempt failed, in the worker's own words.
    pub last_error: Option<String>,
    /// What was answered to it, already redacted; what is left may still be about a person.
    pub last_answer: Option<String>,
    /// The last attempts, oldest first.
    pub entries: Vec<Attempt>,
    /// The event was delivered; its person's newest values are to be sent once more.
    pub is_repair: bool,
    /// The publisher's own headers leave no room to count attempts in.
    pub is_uncountable: bool,
}

impl History {
    /// The same history with one more attempt at its end.
    #[must_use]
    pub fn with(&self, attempt: Attempt, error: Option<String>, answer: Option<String>) -> History {
        let entries = self.entries.iter().cloned().chain([attempt.clone()]).collect();
        History {
            attempts: self.attempts.saturating_add(1),
            first_attempt: self.first_attempt.or(Some(attempt.at)),
            not_before: None,
            last_error: error,
            last_answer: answer,
            entries: last(entries),
            is_repair: self.is_repair,
            is_uncountable: self.is_uncountable,
        }
    }
}

/// The last attempts of a series.
#[must_use]
pub fn last(mut entries: Vec<Attempt>) -> Vec<Attempt> {
    entries.drain(..entries.len().saturating_sub(MAX_ENTRIES));
    entries
}
