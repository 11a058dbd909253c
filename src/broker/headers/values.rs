//! The values of headers: how they are read, and how many bytes they take.

use crate::gate::redact::MAX_CHARS;
use lapin::types::{AMQPValue, FieldTable, LongString};

/// The most that all headers together may take, in bytes: a frame that is too large kills the connection.
pub(super) const MAX_HEADERS: usize = 64 * 1024;
/// What the worker's own headers need at least, in bytes: without room for the count of attempts an event
/// would be retried forever.
pub(super) const ROOM: usize = 1024;

/// An integer of any type.
pub(in crate::broker) fn integer(value: &AMQPValue) -> Option<i64> {
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

pub(super) fn short_text(value: Option<&AMQPValue>) -> Option<String> {
    value.and_then(text).map(|text| text.chars().take(MAX_CHARS).collect())
}

pub(super) fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// Bytes of a table on the wire, its length prefix included.
pub(super) fn table_size(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(key, value)| 1 + key.as_str().len() + value_size(value)).sum::<usize>()
}

/// Bytes of a value on the wire, its type tag included; never less than it takes.
pub(super) fn value_size(value: &AMQPValue) -> usize {
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

    #[test]
    fn numbers_of_every_type_are_integers_and_texts_are_of_two_types() {
        for value in [
            AMQPValue::ShortShortInt(7),
            AMQPValue::ShortShortUInt(7),
            AMQPValue::ShortInt(7),
            AMQPValue::ShortUInt(7),
            AMQPValue::LongInt(7),
            AMQPValue::LongUInt(7),
            AMQPValue::LongLongInt(7),
        ] {
            assert_eq!((integer(&value), text(&value)), (Some(7), None), "{value:?}");
        }
        for value in [AMQPValue::LongString("7".into()), AMQPValue::ShortString("7".into())] {
            assert_eq!((integer(&value), text(&value)), (None, Some("7")), "{value:?}");
        }
    }

    #[test]
    fn each_type_takes_its_bytes_on_the_wire() {
        let mut table = FieldTable::default();
        table.insert("abc".into(), AMQPValue::LongString("12345".into()));
        for (value, bytes) in [
            (AMQPValue::LongString("12345".into()), 1 + 4 + 5),
            (AMQPValue::ShortString("12345".into()), 1 + 1 + 5),
            (AMQPValue::ByteArray(vec![1, 2, 3].into()), 1 + 4 + 3),
            (AMQPValue::FieldArray(vec![AMQPValue::LongLongInt(1); 3].into()), 1 + 4 + 3 * 9),
            (AMQPValue::FieldTable(table), 1 + 4 + (1 + 3) + (1 + 4 + 5)),
            (AMQPValue::Timestamp(1), 1 + 8),
        ] {
            assert_eq!(value_size(&value), bytes, "{value:?}");
        }
    }
}
