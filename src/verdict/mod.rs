//! Step 6: what becomes of an event (pure, exhaustive).
//!
//! Each time that an event was handled ends in exactly one verdict. Events that are skipped and dead letters have a
//! code that operators and metrics use.

pub mod history;

use crate::event::Defect;
use crate::gate::redact::MAX_CHARS;
use crate::gate::{Answer, Outcome};
use crate::schedule::Schedule;
use history::{Attempt, History};
use jiff::Timestamp;
use std::time::Duration;
use strum::VariantArray;

/// Why an event is not for this integration's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum Skip {
    Pending,
    EventDeleted,
    UserDeleted,
    Erased,
    OtherOrganization,
    OtherRegulation,
    UnwantedType,
    NoIdentifier,
}

impl Skip {
    /// All reasons.
    pub const ALL: &'static [Skip] = Skip::VARIANTS;

    /// The reason's code in metrics and logs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Skip::Pending => "pending",
            Skip::EventDeleted => "event_deleted",
            Skip::UserDeleted => "user_deleted",
            Skip::Erased => "erased",
            Skip::OtherOrganization => "other_organization",
            Skip::OtherRegulation => "other_regulation",
            Skip::UnwantedType => "unwanted_type",
            Skip::NoIdentifier => "no_identifier",
        }
    }
}

/// Why an event is in the dead-letter queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum DeadReason {
    Undecodable,
    TooLarge,
    Panicked,
    FutureDated,
    Crashed,
    Refused,
    OlderThanRetention,
    AttemptsExhausted,
    NotTheGate,
    Misconfigured,
    Rejected,
    UnexpectedStatus,
    RetryAfterBeyondWindow,
}

impl DeadReason {
    /// All reasons; the labels of `dead_lettered_total`.
    pub const ALL: &'static [DeadReason] = DeadReason::VARIANTS;

    /// The reason's code in metrics, logs and the letter's `consent-gate-reason`.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            DeadReason::Undecodable => "undecodable",
            DeadReason::TooLarge => "too_large",
            DeadReason::Panicked => "panicked",
            DeadReason::FutureDated => "future_dated",
            DeadReason::Crashed => "crashed",
            DeadReason::Refused => "refused",
            DeadReason::OlderThanRetention => "older_than_retention",
            DeadReason::AttemptsExhausted => "attempts_exhausted",
            DeadReason::NotTheGate => "not_the_gate",
            DeadReason::Misconfigured => "misconfigured",
            DeadReason::Rejected => "rejected",
            DeadReason::UnexpectedStatus => "unexpected_status",
            DeadReason::RetryAfterBeyondWindow => "retry_after_beyond_window",
        }
    }
}

/// What must be published, and confirmed by the broker, before the original is acked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Nothing: the event is finished.
    Done,
    /// The same message, to the queue of this delay.
    Park(Duration, History),
    /// The same message, directly to the retry queue, where its count of returns begins anew.
    Recount(History),
    /// The same message as a dead letter, with the reason's code.
    Dead(DeadReason, History),
}

/// How far one delivery got: the result of steps 2 to 5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Processed {
    /// Not for this gate.
    NotWanted(Skip),
    /// Cannot be understood.
    Defective(Defect),
    /// Larger than [`crate::event::MAX_BODY`], compressed or not; not decoded.
    TooLarge(Defect),
    /// Handling it panicked.
    Panicked,
    /// Dated more than [`crate::integration::filter::MAX_AHEAD`] ahead.
    FutureDated,
    /// Older than what the records still remember, of a person who is not on record: whether it is the newest
    /// cannot be known.
    OlderThanRetention,
    /// It came back so often that it must be what crashes the process.
    Crashed,
    /// Not to be sent before this: the gate asked for a pause, or a repair is not due yet.
    TooEarly(Timestamp),
    /// The gate is down or paused, or too many or too long waits are ahead of it.
    Held,
    /// A repair that is no longer needed.
    NeedlessRepair,
    /// The gate was asked.
    Answered(Answer),
    /// The gate refused a request that also carried the newer values of another event, whose verdict is still
    /// to come.
    RefusedForAnother(Answer),
    /// The gate was asked and failed, and is known to be down: this is no event's fault.
    Outage(Answer),
}

impl Processed {
    /// Classifies an answer: while the gate `is_down`, its failures are no event's fault, and a refusal of a
    /// request that `carries_others` does not concern this event alone.
    #[must_use]
    pub fn of(answer: Answer, is_down: bool, carries_others: bool) -> Processed {
        match answer.outcome {
            outcome if is_down && outcome.blames_endpoint() => Processed::Outage(answer),
            Outcome::Refused if carries_others => Processed::RefusedForAnother(answer),
            _ => Processed::Answered(answer),
        }
    }

    /// The gate's answer, if it was asked.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Processed::Answered(answer) | Processed::RefusedForAnother(answer) | Processed::Outage(answer) => {
                Some(answer)
            }
            _ => None,
        }
    }

    /// The error for an operator: names of fields and types, or the answer's class, status and code.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        match self {
            Processed::Defective(defect) | Processed::TooLarge(defect) => {
                Some(defect.to_string().chars().take(MAX_CHARS).collect())
            }
            Processed::FutureDated => Some("dated more than five minutes ahead of the worker's clock".to_owned()),
            Processed::OlderThanRetention => Some(
                "no record of the person, and not dated within [records] retention: something newer may have been \
                 forgotten"
                    .to_owned(),
            ),
            _ => self.answer().and_then(Answer::told),
        }
    }

    /// The text of the answer, redacted; it may still be about a person.
    #[must_use]
    pub fn said(&self) -> Option<String> {
        self.answer().and_then(|answer| answer.said.clone())
    }
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    Skipped(Skip),
    /// Another attempt follows.
    Retry(NextAttempt),
    /// It waits in the queue of this delay without spending an attempt.
    Hold(Duration),
    DeadLetter(DeadReason),
}

/// When the next attempt follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextAttempt {
    /// Attempts made so far.
    pub attempts: u32,
    /// The delay of the queue in which it waits first.
    pub delay: Duration,
    /// The gate asked for no request before this.
    pub not_before: Option<Timestamp>,
}

/// The word for an event for which another attempt follows.
const RETRY: &str = "retry";
/// The word for an event that waits without spending an attempt.
pub const HOLD: &str = "hold";

impl Verdict {
    /// The label of `events_total`; `None` while the event is not finished.
    #[must_use]
    pub fn outcome(&self) -> Option<&'static str> {
        match self {
            Verdict::Delivered => Some("delivered"),
            Verdict::Skipped(_) => Some("skipped"),
            Verdict::DeadLetter(_) => Some("dead_lettered"),
            Verdict::Retry(_) | Verdict::Hold(_) => None,
        }
    }

    /// The outcome, also for events that are not finished.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.outcome().unwrap_or(match self {
            Verdict::Hold(_) => HOLD,
            _ => RETRY,
        })
    }

    /// The reason's code; empty for events that are delivered or not finished.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Verdict::Delivered | Verdict::Retry(_) | Verdict::Hold(_) => "",
            Verdict::Skipped(skip) => skip.code(),
            Verdict::DeadLetter(death) => death.code(),
        }
    }
}

/// Decides what becomes of an event.
#[must_use]
pub fn decide(processed: &Processed, history: &History, schedule: &Schedule, now: Timestamp) -> Verdict {
    match processed {
        Processed::NotWanted(skip) => Verdict::Skipped(*skip),
        Processed::Defective(_) => Verdict::DeadLetter(DeadReason::Undecodable),
        Processed::TooLarge(_) => Verdict::DeadLetter(DeadReason::TooLarge),
        Processed::Panicked => Verdict::DeadLetter(DeadReason::Panicked),
        Processed::FutureDated => Verdict::DeadLetter(DeadReason::FutureDated),
        Processed::OlderThanRetention => Verdict::DeadLetter(DeadReason::OlderThanRetention),
        Processed::Crashed => Verdict::DeadLetter(DeadReason::Crashed),
        Processed::NeedlessRepair => Verdict::Delivered,
        Processed::RefusedForAnother(answer) => again(answer, DeadReason::Refused, history, schedule, now),
        Processed::TooEarly(at) => {
            Verdict::Hold(schedule.delay_within(at.duration_since(now).try_into().unwrap_or_default()))
        }
        Processed::Held | Processed::Outage(_) => Verdict::Hold(schedule.shortest()),
        Processed::Answered(answer) => match answer.outcome {
            Outcome::Accepted => Verdict::Delivered,
            Outcome::Refused => Verdict::DeadLetter(DeadReason::Refused),
            Outcome::Unavailable | Outcome::Throttled => {
                again(answer, DeadReason::AttemptsExhausted, history, schedule, now)
            }
            Outcome::NotTheGate => again(answer, DeadReason::NotTheGate, history, schedule, now),
            Outcome::Misconfigured => again(answer, DeadReason::Misconfigured, history, schedule, now),
            Outcome::Rejected => again(answer, DeadReason::Rejected, history, schedule, now),
            Outcome::UnexpectedStatus => again(answer, DeadReason::UnexpectedStatus, history, schedule, now),
        },
    }
}

/// Another attempt, unless this was the last one.
fn again(answer: &Answer, death: DeadReason, history: &History, schedule: &Schedule, now: Timestamp) -> Verdict {
    let attempts = history.attempts.saturating_add(1);
    // Whatever the gate asks for: no attempt is left. Without room for its history, the next could not be counted.
    if attempts >= schedule.attempts() || history.is_uncountable {
        return Verdict::DeadLetter(death);
    }
    let delay = schedule.delay_after(attempts);
    match answer.retry_after {
        Some(wait) if wait > schedule.window() => Verdict::DeadLetter(DeadReason::RetryAfterBeyondWindow),
        Some(wait) if wait > delay => Verdict::Retry(NextAttempt {
            attempts,
            delay: schedule.delay_within(wait),
            not_before: now.checked_add(wait).ok(),
        }),
        _ => Verdict::Retry(NextAttempt { attempts, delay, not_before: None }),
    }
}

/// A person's newest values are to be sent once more, since an older request may still overwrite what was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// When the older request can no longer be executed.
    pub at: Timestamp,
    /// The delay of the queue in which the event waits for that.
    pub delay: Duration,
}

/// What must be at the broker before the event is acked. A `repair` counts after an acceptance only.
#[must_use]
pub fn settlement(
    verdict: &Verdict,
    processed: &Processed,
    attempt: Option<Attempt>,
    history: History,
    repair: Option<Repair>,
) -> Settlement {
    let told = |history: History| match attempt {
        Some(attempt) => history.with(attempt, processed.error(), processed.said()),
        None => History { last_error: processed.error().or(history.last_error.clone()), ..history },
    };
    match (verdict, repair) {
        (Verdict::Delivered, Some(Repair { at, delay })) => {
            let is_uncountable = history.is_uncountable;
            let repair = History { is_repair: true, is_uncountable, not_before: Some(at), ..History::default() };
            Settlement::Park(delay, repair)
        }
        (Verdict::Delivered | Verdict::Skipped(_), _) => Settlement::Done,
        (Verdict::Retry(next), _) => {
            Settlement::Park(next.delay, History { not_before: next.not_before, ..told(history) })
        }
        (Verdict::Hold(delay), _) => Settlement::Park(*delay, history),
        (Verdict::DeadLetter(death), _) => Settlement::Dead(*death, told(history)),
    }
}

/// The time before which an event must not be sent. A time further ahead than the window was never written by
/// this worker, or a clock jumped, so it is not believed.
#[must_use]
pub fn too_early(history: &History, schedule: &Schedule, now: Timestamp) -> Option<Timestamp> {
    history.not_before.filter(|at| {
        let left = at.duration_since(now);
        left.is_positive() && Duration::try_from(left).is_ok_and(|left| left <= schedule.window())
    })
}

#[cfg(test)]
mod tests;
