//! The headers that travel with a message which the worker publishes on (pure).
//!
//! The publisher's own properties and headers keep their values, but for those that the broker
//! would act on: they belong to the first publication, and obeyed again they lose, copy or jam
//! messages. Headers of ours are believed from nobody and written anew.

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};

/// The prefix of our own headers.
const PREFIX: &str = "consent-gate-";
/// The one of ours that is believed: the queue to which verdicts are reported.
const REPORT_TO: &str = "consent-gate-report-to";
/// What the broker writes when a message is returned or dead-lettered. A copied `x-death` makes
/// it see a cycle.
const BROKERS_PREFIXES: [&str; 4] = ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count"];
/// Sender-selected routing: obeyed again, a dead letter would be copied into other queues.
const ROUTING: [&str; 2] = ["CC", "BCC"];
/// All headers together may not pass this, in bytes: a frame too large kills the connection.
const MAX_HEADERS: usize = 64 * 1024;
/// `delivery_mode` of a message that survives the broker's restart.
const PERSISTENT: u8 = 2;

/// One attempt, as it is told in `consent-gate-history`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it began.
    pub at: Timestamp,
    /// The class of the answer.
    pub result: &'static str,
    /// The HTTP status, when there was one.
    pub status: Option<u16>,
    /// How long it took, in milliseconds.
    pub ms: i64,
}

/// What a dead letter says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obituary {
    pub reason: &'static str,
    /// Already redacted.
    pub last_error: Option<String>,
    pub attempts: Vec<Attempt>,
}

/// The properties with which a message is published on as a dead letter.
#[must_use]
pub fn for_dead_letter(received: &BasicProperties, obituary: &Obituary) -> BasicProperties {
    let kept = kept_headers(received.headers().as_ref());
    let headers = ours(obituary).into_iter().fold(kept, |mut headers, (key, value)| {
        if table_size(&headers) + 1 + key.len() + value_size(&value) <= MAX_HEADERS {
            headers.insert(key.into(), value);
        }
        headers
    });
    publishable(received, headers)
}

/// Ours, the most telling first: whatever does not fit any more is left out.
fn ours(obituary: &Obituary) -> Vec<(&'static str, AMQPValue)> {
    let count = i64::try_from(obituary.attempts.len()).unwrap_or(i64::MAX);
    let mut headers = vec![
        ("consent-gate-reason", AMQPValue::LongString(obituary.reason.into())),
        ("consent-gate-attempts", AMQPValue::LongLongInt(count)),
    ];
    if let Some(first) = obituary.attempts.first() {
        headers.push(("consent-gate-first-attempt-ms", AMQPValue::LongLongInt(first.at.as_millisecond())));
    }
    if let Some(error) = &obituary.last_error {
        headers.push(("consent-gate-last-error", AMQPValue::LongString(error.as_str().into())));
    }
    let history: Vec<AMQPValue> = obituary.attempts.iter().map(entry).collect();
    headers.push(("consent-gate-history", AMQPValue::FieldArray(FieldArray::from(history))));
    headers
}

fn entry(attempt: &Attempt) -> AMQPValue {
    let mut table = FieldTable::default();
    table.insert("at".into(), AMQPValue::LongLongInt(attempt.at.as_millisecond()));
    table.insert("result".into(), AMQPValue::LongString(attempt.result.into()));
    if let Some(status) = attempt.status {
        table.insert("status".into(), AMQPValue::LongLongInt(i64::from(status)));
    }
    table.insert("ms".into(), AMQPValue::LongLongInt(attempt.ms));
    AMQPValue::FieldTable(table)
}

fn kept_headers(received: Option<&FieldTable>) -> FieldTable {
    let mut kept = FieldTable::default();
    for (key, value) in received.into_iter().flat_map(FieldTable::inner) {
        let name = key.as_str();
        let brokers = BROKERS_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || ROUTING.contains(&name);
        if !brokers && (!name.starts_with(PREFIX) || name == REPORT_TO) {
            kept.insert(key.clone(), value.clone());
        }
    }
    kept
}

/// Keeps the publisher's properties, but for two. With `expiration` the letter would vanish from
/// the queue where an operator should find it; `user_id` must name whoever publishes, so the
/// broker would refuse somebody else's and close the channel.
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

    fn obituary() -> Obituary {
        let attempt = Attempt { at: Timestamp::UNIX_EPOCH, result: "unavailable", status: Some(503), ms: 12 };
        Obituary { reason: "attempts_exhausted", last_error: Some("down".to_owned()), attempts: vec![attempt] }
    }

    fn published(headers: FieldTable) -> BasicProperties {
        for_dead_letter(&BasicProperties::default().with_headers(headers), &obituary())
    }

    fn keys(properties: &BasicProperties) -> Vec<String> {
        properties.headers().iter().flat_map(FieldTable::inner).map(|(key, _)| key.to_string()).collect()
    }

    #[test]
    fn what_the_broker_would_obey_again_does_not_travel_on() {
        let mut headers = FieldTable::default();
        for key in ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC", "BCC"] {
            headers.insert(key.into(), AMQPValue::Boolean(true));
        }
        headers.insert("tenant".into(), AMQPValue::Boolean(true));
        let received = BasicProperties::default()
            .with_headers(headers)
            .with_expiration("1000".into())
            .with_user_id("bus".into())
            .with_message_id("m-1".into())
            .with_delivery_mode(1);
        let properties = for_dead_letter(&received, &obituary());
        let foreign: Vec<String> = keys(&properties).into_iter().filter(|key| !key.starts_with(PREFIX)).collect();
        assert_eq!(foreign, ["tenant"]);
        assert_eq!(properties.expiration(), &None);
        assert_eq!(properties.user_id(), &None);
        assert_eq!(properties.message_id(), &Some("m-1".into()));
        assert_eq!(properties.delivery_mode(), &Some(2));
    }

    #[test]
    fn our_own_headers_are_believed_from_nobody() {
        let mut headers = FieldTable::default();
        headers.insert("consent-gate-attempts".into(), AMQPValue::LongString("many".into()));
        headers.insert("consent-gate-not-before-ms".into(), AMQPValue::LongLongInt(1));
        headers.insert(REPORT_TO.into(), AMQPValue::LongString("consent-gate.report.x".into()));
        let properties = published(headers);
        let table = properties.headers().clone().unwrap_or_default();
        assert_eq!(table.inner().get("consent-gate-attempts"), Some(&AMQPValue::LongLongInt(1)));
        assert!(!table.inner().contains_key("consent-gate-not-before-ms"));
        assert!(table.inner().contains_key(REPORT_TO));
    }

    #[test]
    fn the_history_gives_way_before_the_frame_grows_too_large() {
        let mut headers = FieldTable::default();
        headers.insert("big".into(), AMQPValue::LongString("x".repeat(MAX_HEADERS - 150).into()));
        let keys = keys(&published(headers));
        assert!(keys.contains(&"consent-gate-reason".to_owned()), "{keys:?}");
        assert!(!keys.contains(&"consent-gate-history".to_owned()), "{keys:?}");
    }

    #[test]
    fn huge_headers_of_a_publisher_are_kept_and_ours_left_out() {
        let mut headers = FieldTable::default();
        headers.insert("big".into(), AMQPValue::LongString("x".repeat(2 * MAX_HEADERS).into()));
        assert_eq!(keys(&published(headers)), ["big"]);
    }
}
