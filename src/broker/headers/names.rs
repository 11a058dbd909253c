//! The names of headers: which are the worker's own, which the broker's, and which stay with a message.

use super::values::{integer, text};
use crate::broker::report;
use lapin::types::{AMQPValue, FieldTable};

/// The prefix of the worker's own headers.
pub(super) const PREFIX: &str = "consent-gate-";
pub(super) const ATTEMPTS: &str = "consent-gate-attempts";
pub(super) const FIRST_ATTEMPT: &str = "consent-gate-first-attempt-ms";
pub(super) const NOT_BEFORE: &str = "consent-gate-not-before-ms";
pub(super) const REASON: &str = "consent-gate-reason";
pub(super) const LAST_ERROR: &str = "consent-gate-last-error";
/// What was answered to the last attempt: shown only on request.
pub(super) const LAST_ANSWER: &str = "consent-gate-last-answer";
pub(super) const HISTORY: &str = "consent-gate-history";
pub(super) const REPAIR: &str = "consent-gate-repair";
/// When a dead letter became one.
pub(super) const DIED: &str = "consent-gate-died-ms";
/// When it died for the first time, however often it was replayed since.
pub(super) const FIRST_DIED: &str = "consent-gate-first-died-ms";
/// The queue to which verdicts are reported: a header of the worker's own that is passed on whoever wrote it.
pub(super) const REPORT_TO: &str = "consent-gate-report-to";
/// W3C Trace Context.
pub(super) const TRACEPARENT: &str = "traceparent";
/// What the broker writes when a message is returned or dead-lettered. A copied `x-death` makes it see a
/// cycle.
const BROKERS_PREFIXES: [&str; 5] = [DEATH, "x-first-death-", "x-last-death-", DELIVERY_COUNT, ACQUIRED_COUNT];
/// When, why and from which queue a message was dead-lettered.
pub(super) const DEATH: &str = "x-death";
/// How often a message was returned.
pub const DELIVERY_COUNT: &str = "x-delivery-count";
/// How often it was delivered, from 4.3 on.
const ACQUIRED_COUNT: &str = "x-acquired-count";
/// Sender-selected routing: if it were obeyed again, a dead letter would be copied into other queues.
const ROUTING: [&str; 2] = ["CC", "BCC"];

/// The queue for reports, if it is one to which reports may be sent.
pub(super) fn obeyed(report_to: &AMQPValue) -> Option<&str> {
    // The length of a queue's name is one byte.
    text(report_to).filter(|queue| queue.starts_with(report::PREFIX) && u8::try_from(queue.len()).is_ok())
}

/// Whether a header is one that the worker writes, not only one with its prefix.
#[must_use]
pub fn is_own(name: &str) -> bool {
    [ATTEMPTS, FIRST_ATTEMPT, NOT_BEFORE, REASON, LAST_ERROR, LAST_ANSWER, HISTORY, REPAIR, DIED, FIRST_DIED, REPORT_TO]
        .contains(&name)
}

/// Whether a header is the worker's own and its value cannot be about a person, whoever wrote it.
#[must_use]
pub fn is_impersonal(name: &str, value: &AMQPValue) -> bool {
    match name {
        ATTEMPTS | FIRST_ATTEMPT | NOT_BEFORE | DIED | FIRST_DIED => integer(value).is_some(),
        REPAIR => matches!(value, AMQPValue::Boolean(_)),
        LAST_ERROR => text(value).is_some(),
        REPORT_TO => obeyed(value).is_some(),
        _ => false,
    }
}

/// Whether a header changes each time the letter is looked at.
#[must_use]
pub fn is_count(name: &str) -> bool {
    name == DELIVERY_COUNT || name == ACQUIRED_COUNT
}

/// Whether the broker wrote a header, or would obey it.
#[must_use]
pub fn is_brokers(name: &str) -> bool {
    BROKERS_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || ROUTING.contains(&name)
}

pub(super) fn kept_headers(received: Option<&FieldTable>) -> FieldTable {
    let mut kept = FieldTable::default();
    for (key, value) in received.into_iter().flat_map(FieldTable::inner) {
        let name = key.as_str();
        let is_obeyed = || [REPORT_TO, FIRST_DIED].contains(&name) && is_impersonal(name, value);
        if !is_brokers(name) && (!name.starts_with(PREFIX) || is_obeyed()) {
            kept.insert(key.clone(), value.clone());
        }
    }
    kept
}
