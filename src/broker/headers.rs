//! The headers of a message that the worker publishes (pure).
//!
//! The publisher's own properties and headers keep their values, except those that the broker would act on:
//! they belong to the first publication, and would lose, copy or block messages if they were obeyed again.
//! The worker's own headers are believed only in messages from the retry queue, whatever their integer types,
//! and are written anew each time.

use super::report;
use crate::gate::{Outcome, redact::MAX_CHARS};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use std::fmt;

/// The prefix of the worker's own headers.
const PREFIX: &str = "consent-gate-";
const ATTEMPTS: &str = "consent-gate-attempts";
const FIRST_ATTEMPT: &str = "consent-gate-first-attempt-ms";
const NOT_BEFORE: &str = "consent-gate-not-before-ms";
const REASON: &str = "consent-gate-reason";
const LAST_ERROR: &str = "consent-gate-last-error";
/// What was answered to the last attempt: shown only on request.
const LAST_ANSWER: &str = "consent-gate-last-answer";
const HISTORY: &str = "consent-gate-history";
const REPAIR: &str = "consent-gate-repair";
/// When a dead letter became one.
const DIED: &str = "consent-gate-died-ms";
/// When it died for the first time, however often it was replayed since.
const FIRST_DIED: &str = "consent-gate-first-died-ms";
/// The queue to which verdicts are reported: a header of the worker's own that is passed on whoever wrote it.
const REPORT_TO: &str = "consent-gate-report-to";
/// W3C Trace Context.
const TRACEPARENT: &str = "traceparent";
/// What the broker writes when a message is returned or dead-lettered. A copied `x-death` makes it see a
/// cycle.
const BROKERS_PREFIXES: [&str; 5] = [DEATH, "x-first-death-", "x-last-death-", DELIVERY_COUNT, ACQUIRED_COUNT];
/// When, why and from which queue a message was dead-lettered.
const DEATH: &str = "x-death";
/// How often a message was returned.
pub const DELIVERY_COUNT: &str = "x-delivery-count";
/// How often it was delivered, from 4.3 on.
const ACQUIRED_COUNT: &str = "x-acquired-count";
/// Sender-selected routing: if it were obeyed again, a dead letter would be copied into other queues.
const ROUTING: [&str; 2] = ["CC", "BCC"];
/// The most that all headers together may take, in bytes: a frame that is too large kills the connection.
const MAX_HEADERS: usize = 64 * 1024;
/// What the worker's own headers need at least, in bytes: without room for the count of attempts an event
/// would be retried forever.
const ROOM: usize = 1024;
/// How many attempts the history keeps: the last ones.
const MAX_ENTRIES: usize = 10;
/// `delivery_mode` of a message that survives the broker's restart.
pub(super) const PERSISTENT: u8 = 2;

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
    /// The history of a message from any queue but the retry queue: it has none.
    #[must_use]
    pub fn none(properties: &BasicProperties) -> History {
        // Only headers that will be passed on count; the usual message is too small for a closer look.
        let is_large = |headers: &FieldTable| table_size(headers) + ROOM > MAX_HEADERS;
        let received = properties.headers().as_ref();
        let is_uncountable = received.is_some_and(is_large) && is_large(&kept_headers(received));
        History { is_uncountable, ..History::default() }
    }

    /// Reads what the worker wrote. A header that is missing or makes no sense counts as never written: a
    /// message that was put into the retry queue by hand begins with no attempts.
    #[must_use]
    pub fn read(properties: &BasicProperties) -> History {
        let Some(headers) = properties.headers() else { return History::default() };
        let get = |name: &str| headers.inner().get(name);
        let integer = |name| get(name).and_then(integer);
        let time = |name| integer(name).and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let attempts = integer(ATTEMPTS).map_or(0, |count| u32::try_from(count.max(0)).unwrap_or(u32::MAX));
        History {
            attempts,
            is_repair: get(REPAIR) == Some(&AMQPValue::Boolean(true)),
            first_attempt: time(FIRST_ATTEMPT),
            not_before: time(NOT_BEFORE),
            last_error: short_text(get(LAST_ERROR)),
            last_answer: short_text(get(LAST_ANSWER)),
            entries: match get(HISTORY) {
                Some(AMQPValue::FieldArray(entries)) => {
                    last(entries.as_slice().iter().filter_map(read_entry).collect())
                }
                _ => Vec::new(),
            },
            ..History::none(properties)
        }
    }

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

    /// The worker's own headers, the most important first: those that no longer fit are left out.
    fn headers(
        &self,
        death: Option<(&'static str, Timestamp)>,
        first_died: Option<Timestamp>,
    ) -> Vec<(&'static str, AMQPValue)> {
        let time = |name, at: Option<Timestamp>| Some((name, AMQPValue::LongLongInt(at?.as_millisecond())));
        let entries: Vec<AMQPValue> = self.entries.iter().map(write_entry).collect();
        let optional = [
            death.map(|(reason, _)| (REASON, AMQPValue::LongString(reason.into()))),
            time(DIED, death.map(|(_, at)| at)),
            time(FIRST_DIED, death.and_then(|(_, at)| first_died.is_none().then_some(at))),
            Some((ATTEMPTS, AMQPValue::LongLongInt(self.attempts.into()))),
            self.is_repair.then_some((REPAIR, AMQPValue::Boolean(true))),
            time(NOT_BEFORE, self.not_before),
            time(FIRST_ATTEMPT, self.first_attempt),
            self.last_error.as_deref().map(|error| (LAST_ERROR, AMQPValue::LongString(error.into()))),
            (!entries.is_empty()).then(|| (HISTORY, AMQPValue::FieldArray(FieldArray::from(entries)))),
            self.last_answer.as_deref().map(|answer| (LAST_ANSWER, AMQPValue::LongString(answer.into()))),
        ];
        optional.into_iter().flatten().collect()
    }
}

/// The trace that a publisher began, from its `traceparent` header (W3C): passed on to the gate unchanged, if
/// it is well-formed.
#[must_use]
pub fn traceparent(properties: &BasicProperties) -> Option<String> {
    let value = properties.headers().as_ref()?.inner().get(TRACEPARENT)?;
    let written = text(value)?;
    let lengths: Vec<usize> = written.split('-').map(str::len).collect();
    let is_digit = |byte: u8| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (lengths == [2, 32, 16, 2] && written.bytes().all(is_digit)).then(|| written.to_owned())
}

fn last(mut entries: Vec<Attempt>) -> Vec<Attempt> {
    entries.drain(..entries.len().saturating_sub(MAX_ENTRIES));
    entries
}

/// The properties with which a message is published again. `death` is for a dead letter only: the reason's
/// code, and when it died.
#[must_use]
pub fn for_publish(
    received: &BasicProperties,
    history: &History,
    death: Option<(&'static str, Timestamp)>,
) -> BasicProperties {
    let kept = kept_headers(received.headers().as_ref());
    let headers = history.headers(death, first_died(received)).into_iter().fold(kept, |mut headers, (key, value)| {
        if table_size(&headers) + 1 + key.len() + value_size(&value) <= MAX_HEADERS {
            headers.insert(key.into(), value);
        }
        headers
    });
    publishable(received, headers)
}

/// When a message that an operator replayed died for the first time. This dates an erasure that has no other
/// date: an erasure that is replayed a week later erases nothing of that week. Believed from any queue:
/// anyone who can publish there could as well set the `timestamp`, which is treated the same.
#[must_use]
pub fn first_died(properties: &BasicProperties) -> Option<Timestamp> {
    let ms = integer(properties.headers().as_ref()?.inner().get(FIRST_DIED)?)?;
    Timestamp::from_millisecond(ms).ok()
}

/// The properties with which a dead letter is replayed: as if it had never been tried, with its verdicts
/// reported to a queue.
#[must_use]
pub fn for_replay(received: &BasicProperties, report_to: &str) -> BasicProperties {
    let properties = for_publish(received, &History::default(), None);
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(REPORT_TO.into(), AMQPValue::LongString(report_to.into()));
    properties.with_headers(headers)
}

/// The properties with which an exported dead letter is put back into its queue: the worker's own headers
/// stay, those that the broker would obey again do not.
#[must_use]
pub fn for_return(exported: &BasicProperties) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (key, value) in exported.headers().iter().flat_map(FieldTable::inner) {
        if !is_brokers(key.as_str()) {
            headers.insert(key.clone(), value.clone());
        }
    }
    publishable(exported, headers)
}

/// The queue to which a message asks for its verdicts to be reported, if that queue is allowed.
#[must_use]
pub fn report_to(properties: &BasicProperties) -> Option<&str> {
    obeyed(properties.headers().as_ref()?.inner().get(REPORT_TO)?)
}

/// The queue for reports, if it is one to which reports may be sent.
fn obeyed(report_to: &AMQPValue) -> Option<&str> {
    // The length of a queue's name is one byte.
    text(report_to).filter(|queue| queue.starts_with(report::PREFIX) && u8::try_from(queue.len()).is_ok())
}

/// The content encoding of a message's body, as the message declares it.
#[must_use]
pub fn encoding(properties: &BasicProperties) -> Option<&str> {
    properties.content_encoding().as_ref().map(ShortString::as_str)
}

/// A dead letter's reason, as written by whatever made it a dead letter.
#[must_use]
pub fn reason(properties: &BasicProperties) -> Option<&str> {
    text(properties.headers().as_ref()?.inner().get(REASON)?)
}

/// Why and from which queue the broker itself last moved a message, in the broker's words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moved {
    /// `expired`, `delivery_limit`, `maxlen` or `rejected`.
    pub reason: String,
    /// The queue in which it was.
    pub queue: String,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, from {}", self.reason, self.queue)
    }
}

/// What the broker wrote when it moved a message, if it did. Only for reading: in a message that is published
/// again the broker would see a cycle.
#[must_use]
pub fn moved(properties: &BasicProperties) -> Option<Moved> {
    let AMQPValue::FieldArray(deaths) = properties.headers().as_ref()?.inner().get(DEATH)? else { return None };
    // The latest comes first.
    let AMQPValue::FieldTable(latest) = deaths.as_slice().first()? else { return None };
    let told = |name: &str| latest.inner().get(name).and_then(text).map(|told| told.chars().take(MAX_CHARS).collect());
    Some(Moved { reason: told("reason")?, queue: told("queue")? })
}

/// How often a message was returned to its queue, by the broker's count.
#[must_use]
pub fn returns(properties: &BasicProperties) -> i64 {
    let count = properties.headers().as_ref().and_then(|headers| integer(headers.inner().get(DELIVERY_COUNT)?));
    count.unwrap_or_default()
}

/// When a letter died: by its own header, else the end of its last attempt, else its publisher's timestamp.
#[must_use]
pub fn died(properties: &BasicProperties, history: &History) -> Option<Timestamp> {
    let headers = properties.headers().as_ref();
    let own = headers.and_then(|headers| integer(headers.inner().get(DIED)?));
    let tried = history.entries.last().map(|last| last.at.as_millisecond().saturating_add(last.ms.max(0)));
    let published = || i64::try_from((*properties.timestamp())?).ok()?.checked_mul(1_000);
    Timestamp::from_millisecond(own.or(tried).or_else(published)?).ok()
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

fn write_entry(attempt: &Attempt) -> AMQPValue {
    let mut table = FieldTable::default();
    table.insert("at".into(), AMQPValue::LongLongInt(attempt.at.as_millisecond()));
    table.insert("result".into(), AMQPValue::LongString(attempt.result.label().into()));
    if let Some(status) = attempt.status {
        table.insert("status".into(), AMQPValue::LongLongInt(i64::from(status)));
    }
    table.insert("ms".into(), AMQPValue::LongLongInt(attempt.ms));
    AMQPValue::FieldTable(table)
}

fn read_entry(value: &AMQPValue) -> Option<Attempt> {
    let AMQPValue::FieldTable(table) = value else { return None };
    let get = |name: &str| table.inner().get(name);
    let result = text(get("result")?)?;
    Some(Attempt {
        at: Timestamp::from_millisecond(integer(get("at")?)?).ok()?,
        result: Outcome::ALL.iter().copied().find(|outcome| outcome.label() == result)?,
        status: get("status").and_then(integer).and_then(|status| u16::try_from(status).ok()),
        ms: get("ms").and_then(integer)?,
    })
}

/// An integer of any type.
pub(super) fn integer(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(number) => i64::from(*number),
        AMQPValue::ShortShortUInt(number) => i64::from(*number),
        AMQPValue::ShortInt(number) => i64::from(*number),
        AMQPValue::ShortUInt(number) => i64::from(*number),
        AMQPValue::LongInt(number) => i64::from(*number),
        AMQPValue::LongUInt(number) => i64::from(*number),
        AMQPValue::LongLongInt(number) => *number,
        _ => return None,
    })
}

fn short_text(value: Option<&AMQPValue>) -> Option<String> {
    value.and_then(text).map(|text| text.chars().take(MAX_CHARS).collect())
}

fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

fn kept_headers(received: Option<&FieldTable>) -> FieldTable {
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

/// Keeps the publisher's properties, except two. With `expiration` the letter would vanish from the queue in
/// which an operator should find it; `user_id` must be that of the publishing connection, so the broker would
/// refuse somebody else's and close the channel.
fn publishable(received: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut properties = BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT);
    let copy = |value: &Option<ShortString>| value.clone();
    if let Some(value) = copy(received.content_type()) {
        properties = properties.with_content_type(value);
    }
    if let Some(value) = copy(received.content_encoding()) {
        properties = properties.with_content_encoding(value);
    }
    if let Some(value) = *received.priority() {
        properties = properties.with_priority(value);
    }
    if let Some(value) = copy(received.correlation_id()) {
        properties = properties.with_correlation_id(value);
    }
    if let Some(value) = copy(received.reply_to()) {
        properties = properties.with_reply_to(value);
    }
    if let Some(value) = copy(received.message_id()) {
        properties = properties.with_message_id(value);
    }
    if let Some(value) = *received.timestamp() {
        properties = properties.with_timestamp(value);
    }
    if let Some(value) = copy(received.kind()) {
        properties = properties.with_type(value);
    }
    if let Some(value) = copy(received.app_id()) {
        properties = properties.with_app_id(value);
    }
    properties
}

/// Bytes of a table on the wire, its length prefix included.
fn table_size(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(key, value)| 1 + key.as_str().len() + value_size(value)).sum::<usize>()
}

/// Bytes of a value on the wire, its type tag included; never less than it takes.
fn value_size(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::LongString(text) => 4 + LongString::as_bytes(text).len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(value_size).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_size(table),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(ms: i64) -> Attempt {
        Attempt { at: Timestamp::UNIX_EPOCH, result: Outcome::Unavailable, status: Some(503), ms }
    }

    fn history() -> History {
        History::default().with(attempt(12), Some("down".to_owned()), Some("try later".to_owned()))
    }

    fn received(headers: FieldTable) -> BasicProperties {
        BasicProperties::default().with_headers(headers)
    }

    fn letter(headers: FieldTable) -> BasicProperties {
        for_publish(&received(headers), &history(), Some(("attempts_exhausted", Timestamp::UNIX_EPOCH)))
    }

    fn keys(properties: &BasicProperties) -> Vec<String> {
        properties.headers().iter().flat_map(FieldTable::inner).map(|(key, _)| key.to_string()).collect()
    }

    fn table(entries: Vec<(&str, AMQPValue)>) -> FieldTable {
        let mut table = FieldTable::default();
        for (key, value) in entries {
            table.insert(key.into(), value);
        }
        table
    }

    #[test]
    fn what_the_broker_would_obey_again_does_not_travel_on() {
        let mut headers = FieldTable::default();
        for key in ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC", "BCC"] {
            headers.insert(key.into(), AMQPValue::Boolean(true));
        }
        headers.insert("tenant".into(), AMQPValue::Boolean(true));
        let received = received(headers)
            .with_expiration("1000".into())
            .with_user_id("bus".into())
            .with_message_id("m-1".into())
            .with_delivery_mode(1);
        let properties = for_publish(&received, &history(), None);
        let foreign: Vec<String> = keys(&properties).into_iter().filter(|key| !key.starts_with(PREFIX)).collect();
        assert_eq!(foreign, ["tenant"]);
        assert_eq!(properties.expiration(), &None);
        assert_eq!(properties.user_id(), &None);
        assert_eq!(properties.message_id(), &Some("m-1".into()));
        assert_eq!(properties.delivery_mode(), &Some(2));
    }

    #[test]
    fn our_own_headers_are_written_anew() {
        let properties = letter(table(vec![
            (ATTEMPTS, AMQPValue::LongString("many".into())),
            (NOT_BEFORE, AMQPValue::LongLongInt(1)),
            (REPORT_TO, AMQPValue::LongString("consent-gate.report.x".into())),
        ]));
        let table = properties.headers().clone().unwrap_or_default();
        assert_eq!(table.inner().get(ATTEMPTS), Some(&AMQPValue::LongLongInt(1)));
        assert!(!table.inner().contains_key(NOT_BEFORE));
        assert!(table.inner().contains_key(REPORT_TO));
    }

    #[test]
    fn a_trace_is_passed_on_only_if_it_is_one() {
        let read = |text: &str| traceparent(&received(table(vec![(TRACEPARENT, AMQPValue::LongString(text.into()))])));
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(read(trace).as_deref(), Some(trace));
        for wrong in ["", "jane@example.com", &trace.to_uppercase(), &trace[1..], &format!("{trace}-x")] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let mut history = history();
        for ms in 0..20 {
            history = history.with(attempt(ms), None, None);
        }
        assert_eq!((history.attempts, history.entries.len()), (21, MAX_ENTRIES));
        assert_eq!(history.entries.last(), Some(&attempt(19)));
        history.not_before = Some(Timestamp::UNIX_EPOCH);
        history.is_repair = true;
        assert_eq!(History::read(&for_publish(&BasicProperties::default(), &history, None)), history);
    }

    #[test]
    fn a_history_that_cannot_be_meant_counts_as_never_written() {
        let read = |value| History::read(&received(table(vec![(ATTEMPTS, value)]))).attempts;
        assert_eq!(read(AMQPValue::ShortShortUInt(3)), 3);
        assert_eq!(read(AMQPValue::LongInt(3)), 3);
        assert_eq!(read(AMQPValue::LongInt(-3)), 0);
        assert_eq!(read(AMQPValue::LongLongInt(i64::MAX)), u32::MAX);
        for value in [AMQPValue::LongString("3".into()), AMQPValue::Void, AMQPValue::Double(3.0)] {
            assert_eq!(read(value), 0);
        }
        let entries = vec![
            AMQPValue::LongString("503".into()),
            AMQPValue::FieldTable(table(vec![("result", AMQPValue::LongString("jane@example.com".into()))])),
        ];
        let forged = History::read(&received(table(vec![
            (NOT_BEFORE, AMQPValue::LongLongInt(i64::MAX)),
            (FIRST_ATTEMPT, AMQPValue::Boolean(true)),
            (LAST_ERROR, AMQPValue::LongString("x".repeat(10_000).into())),
            (HISTORY, AMQPValue::FieldArray(entries.into())),
        ])));
        let last_error = Some("x".repeat(MAX_CHARS));
        assert_eq!(forged, History { last_error, ..History::default() });
    }

    #[test]
    fn the_history_gives_way_before_the_frame_grows_too_large() {
        let keys = keys(&letter(table(vec![("big", AMQPValue::LongString("x".repeat(MAX_HEADERS - 210).into()))])));
        assert!(keys.contains(&REASON.to_owned()) && keys.contains(&ATTEMPTS.to_owned()), "{keys:?}");
        assert!(!keys.contains(&HISTORY.to_owned()), "{keys:?}");
    }

    #[test]
    fn a_replayed_letter_begins_anew_and_is_watched() {
        let letter = letter(table(vec![("tenant", AMQPValue::Boolean(true))]));
        assert_eq!((reason(&letter), report_to(&letter)), (Some("attempts_exhausted"), None));
        assert_eq!(died(&letter, &History::default()), Some(Timestamp::UNIX_EPOCH));
        let replayed = for_replay(&letter, "consent-gate.report.1");
        assert_eq!(keys(&replayed), [ATTEMPTS, FIRST_DIED, REPORT_TO, "tenant"]);
        let again = for_publish(&replayed, &history(), Some(("crashed", Timestamp::MAX)));
        assert_eq!(
            died(&again, &History::default()),
            Timestamp::from_millisecond(Timestamp::MAX.as_millisecond()).ok()
        );
        assert_eq!(first_died(&again), Some(Timestamp::UNIX_EPOCH));
        assert_eq!(report_to(&replayed), Some("consent-gate.report.1"));
        assert_eq!(report_to(&for_replay(&letter, "consent-gate.acme.dead")), None);
        assert_eq!(keys(&for_return(&letter)), keys(&letter));
    }

    #[test]
    fn huge_headers_of_a_publisher_are_kept_and_ours_left_out() {
        let headers = |size: usize| table(vec![("big", AMQPValue::LongString("x".repeat(size).into()))]);
        assert_eq!(keys(&letter(headers(2 * MAX_HEADERS))), ["big"]);
        assert!(History::none(&received(headers(MAX_HEADERS - ROOM))).is_uncountable);
        assert!(!History::none(&received(headers(MAX_HEADERS - 2 * ROOM))).is_uncountable);
    }
}
