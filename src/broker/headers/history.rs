//! What the worker writes into the headers about the attempts so far, and reads again.

use super::names::{
    ATTEMPTS, DIED, FIRST_ATTEMPT, FIRST_DIED, HISTORY, LAST_ANSWER, LAST_ERROR, NOT_BEFORE, REASON, REPAIR,
    kept_headers,
};
use super::values::{MAX_HEADERS, ROOM, integer, short_text, table_size, text};
use crate::gate::Outcome;
use crate::verdict::history::{Attempt, History, last};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

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

    /// The worker's own headers, the most important first: those that no longer fit are left out.
    pub(super) fn headers(
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
