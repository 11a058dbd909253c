//! The headers of a message that the worker publishes (pure).
//!
//! The publisher's own properties and headers keep their values, except those that the broker would act on:
//! they belong to the first publication, and would lose, copy or block messages if they were obeyed again.
//! The worker's own headers are believed only in messages from the retry queue, whatever their integer types,
//! and are written anew each time.

mod history;
mod names;
mod values;

pub use names::{DELIVERY_COUNT, is_brokers, is_count, is_impersonal, is_own};
pub(super) use values::integer;

use crate::gate::redact::MAX_CHARS;
use crate::verdict::history::History;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use names::{DEATH, DIED, FIRST_DIED, REASON, REPORT_TO, TRACEPARENT, kept_headers, obeyed};
use std::fmt;
use values::{MAX_HEADERS, table_size, text, value_size};

/// `delivery_mode` of a message that survives the broker's restart.
pub(super) const PERSISTENT: u8 = 2;

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

#[cfg(test)]
mod tests;
