//! Properties and headers as JSON and back, without loss (pure).
//!
//! Each header is a pair of its AMQP type and its value. Floats are written as their bits, and bytes that are not
//! text as hexadecimal digits.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Map, Value, json};

/// Why a value cannot have been exported.
pub type Wrong = String;

/// Encodes one header's value.
pub fn encode(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(on) => json!(["bool", on]),
        AMQPValue::ShortShortInt(number) => json!(["i8", number]),
        AMQPValue::ShortShortUInt(number) => json!(["u8", number]),
        AMQPValue::ShortInt(number) => json!(["i16", number]),
        AMQPValue::ShortUInt(number) => json!(["u16", number]),
        AMQPValue::LongInt(number) => json!(["i32", number]),
        AMQPValue::LongUInt(number) => json!(["u32", number]),
        AMQPValue::LongLongInt(number) => json!(["i64", number]),
        AMQPValue::Float(number) => json!(["f32", number.to_bits()]),
        AMQPValue::Double(number) => json!(["f64", number.to_bits()]),
        AMQPValue::DecimalValue(decimal) => json!(["decimal", [u64::from(decimal.scale), u64::from(decimal.value)]]),
        AMQPValue::ShortString(text) => json!(["short", text.as_str()]),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => json!(["text", text]),
            Err(_) => json!(["text_hex", hex::encode(text.as_bytes())]),
        },
        AMQPValue::FieldArray(values) => json!(["array", values.as_slice().iter().map(encode).collect::<Vec<_>>()]),
        AMQPValue::Timestamp(seconds) => json!(["timestamp", seconds]),
        AMQPValue::FieldTable(table) => json!(["table", encode_table(table)]),
        AMQPValue::ByteArray(bytes) => json!(["bytes", hex::encode(bytes.as_slice())]),
        AMQPValue::Void => json!(["void", null]),
    }
}

fn encode_table(table: &FieldTable) -> Value {
    table.inner().iter().map(|(key, value)| (key.to_string(), encode(value))).collect()
}

/// Decodes one header's value.
///
/// # Errors
/// It is not what [`encode`] writes.
pub fn decode(value: &Value) -> Result<AMQPValue, Wrong> {
    let (tag, value) = match value.as_array().map(Vec::as_slice) {
        Some([Value::String(tag), value]) => (tag.as_str(), value),
        _ => return Err("a header is not a pair of type and value".to_owned()),
    };
    let wrong = || format!("a header is not of type {tag}");
    let text = || value.as_str().ok_or_else(wrong);
    Ok(match tag {
        "bool" => AMQPValue::Boolean(value.as_bool().ok_or_else(wrong)?),
        "i8" => AMQPValue::ShortShortInt(signed(value).ok_or_else(wrong)?),
        "u8" => AMQPValue::ShortShortUInt(unsigned(value).ok_or_else(wrong)?),
        "i16" => AMQPValue::ShortInt(signed(value).ok_or_else(wrong)?),
        "u16" => AMQPValue::ShortUInt(unsigned(value).ok_or_else(wrong)?),
        "i32" => AMQPValue::LongInt(signed(value).ok_or_else(wrong)?),
        "u32" => AMQPValue::LongUInt(unsigned(value).ok_or_else(wrong)?),
        "i64" => AMQPValue::LongLongInt(signed(value).ok_or_else(wrong)?),
        "f32" => AMQPValue::Float(f32::from_bits(unsigned(value).ok_or_else(wrong)?)),
        "f64" => AMQPValue::Double(f64::from_bits(unsigned(value).ok_or_else(wrong)?)),
        "decimal" => decimal(value).ok_or_else(wrong)?,
        "short" => AMQPValue::ShortString(short(text()?)?),
        "text" => AMQPValue::LongString(text()?.into()),
        "text_hex" => AMQPValue::LongString(LongString::from(unhex(text()?)?)),
        "array" => {
            let values = value.as_array().ok_or_else(wrong)?;
            AMQPValue::FieldArray(FieldArray::from(values.iter().map(decode).collect::<Result<Vec<_>, _>>()?))
        }
        "timestamp" => AMQPValue::Timestamp(unsigned(value).ok_or_else(wrong)?),
        "table" => AMQPValue::FieldTable(decode_table(value)?),
        "bytes" => AMQPValue::ByteArray(ByteArray::from(unhex(text()?)?)),
        "void" => AMQPValue::Void,
        other => return Err(format!("a header has the unknown type {other}")),
    })
}

fn decode_table(value: &Value) -> Result<FieldTable, Wrong> {
    let entries = value.as_object().ok_or("headers are not a table")?;
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(short(key)?, decode(value)?);
    }
    Ok(table)
}

fn signed<T: TryFrom<i64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_i64()?).ok()
}

fn unsigned<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

fn decimal(value: &Value) -> Option<AMQPValue> {
    let [scale, value] = value.as_array()?.as_slice() else { return None };
    Some(AMQPValue::DecimalValue(DecimalValue { scale: unsigned(scale)?, value: unsigned(value)? }))
}

fn short(text: &str) -> Result<ShortString, Wrong> {
    ShortString::try_new(text).map_err(|_| "a text of over 255 bytes where none may be".to_owned())
}

/// Encodes those properties that a letter has.
pub fn encode_properties(properties: &BasicProperties) -> Value {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let headers = properties.headers().as_ref().filter(|headers| !headers.inner().is_empty());
    let all = [
        ("content_type", json!(text(properties.content_type()))),
        ("content_encoding", json!(text(properties.content_encoding()))),
        // To the broker, no headers and an empty table are the same.
        ("headers", json!(headers.map(encode_table))),
        ("delivery_mode", json!(properties.delivery_mode())),
        ("priority", json!(properties.priority())),
        ("correlation_id", json!(text(properties.correlation_id()))),
        ("reply_to", json!(text(properties.reply_to()))),
        ("expiration", json!(text(properties.expiration()))),
        ("message_id", json!(text(properties.message_id()))),
        ("timestamp", json!(properties.timestamp())),
        ("type", json!(text(properties.kind()))),
        ("user_id", json!(text(properties.user_id()))),
        ("app_id", json!(text(properties.app_id()))),
        ("cluster_id", json!(text(properties.cluster_id()))),
    ];
    let present = all.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(present.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// Decodes a letter's properties.
///
/// # Errors
/// They are not what [`encode_properties`] writes.
pub fn decode_properties(value: &Value) -> Result<BasicProperties, Wrong> {
    let mut properties = BasicProperties::default();
    for (name, value) in value.as_object().ok_or("properties are not a table")? {
        let wrong = || format!("{name} has a wrong type");
        let text = || short(value.as_str().ok_or_else(wrong)?);
        properties = match name.as_str() {
            "content_type" => properties.with_content_type(text()?),
            "content_encoding" => properties.with_content_encoding(text()?),
            "headers" => properties.with_headers(decode_table(value)?),
            "delivery_mode" => properties.with_delivery_mode(unsigned(value).ok_or_else(wrong)?),
            "priority" => properties.with_priority(unsigned(value).ok_or_else(wrong)?),
            "correlation_id" => properties.with_correlation_id(text()?),
            "reply_to" => properties.with_reply_to(text()?),
            "expiration" => properties.with_expiration(text()?),
            "message_id" => properties.with_message_id(text()?),
            "timestamp" => properties.with_timestamp(unsigned(value).ok_or_else(wrong)?),
            "type" => properties.with_type(text()?),
            "user_id" => properties.with_user_id(text()?),
            "app_id" => properties.with_app_id(text()?),
            "cluster_id" => properties.with_cluster_id(text()?),
            other => return Err(format!("there is no property {other}")),
        };
    }
    Ok(properties)
}

/// Decodes hexadecimal digits.
///
/// # Errors
/// The text does not consist of pairs of hexadecimal digits.
pub fn unhex(text: &str) -> Result<Vec<u8>, Wrong> {
    hex::decode(text).map_err(|_| "bytes are not hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_type() -> FieldTable {
        let mut table = FieldTable::default();
        let values = [
            AMQPValue::Boolean(true),
            AMQPValue::ShortShortInt(i8::MIN),
            AMQPValue::ShortShortUInt(u8::MAX),
            AMQPValue::ShortInt(i16::MIN),
            AMQPValue::ShortUInt(u16::MAX),
            AMQPValue::LongInt(i32::MIN),
            AMQPValue::LongUInt(u32::MAX),
            AMQPValue::LongLongInt(i64::MIN),
            AMQPValue::Float(f32::INFINITY),
            AMQPValue::Double(0.1),
            AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 }),
            AMQPValue::ShortString("short".into()),
            AMQPValue::LongString("\u{0}\u{1f600}\n".into()),
            AMQPValue::LongString(vec![0xff, 0x00].into()),
            AMQPValue::FieldArray(vec![AMQPValue::Void, AMQPValue::Boolean(false)].into()),
            AMQPValue::Timestamp(u64::MAX),
            AMQPValue::FieldTable(FieldTable::default()),
            AMQPValue::ByteArray(vec![1, 254].into()),
            AMQPValue::Void,
        ];
        for (index, value) in values.into_iter().enumerate() {
            table.insert(format!("h{index}").into(), value);
        }
        table
    }

    #[test]
    fn every_type_of_header_and_every_property_comes_back() {
        let properties = BasicProperties::default()
            .with_headers(every_type())
            .with_content_type("application/json".into())
            .with_content_encoding("gzip".into())
            .with_delivery_mode(1)
            .with_priority(255)
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_expiration("60000".into())
            .with_message_id("m".into())
            .with_timestamp(u64::MAX)
            .with_type("t".into())
            .with_user_id("u".into())
            .with_app_id("a".into())
            .with_cluster_id("l".into());
        let text = encode_properties(&properties).to_string();
        assert_eq!(decode_properties(&serde_json::from_str(&text).unwrap()), Ok(properties));
        assert_eq!(decode_properties(&json!({})), Ok(BasicProperties::default()));
    }

    #[test]
    fn what_was_never_exported_is_refused() {
        for wrong in [
            json!([]),
            json!({ "priority": 256 }),
            json!({ "message_id": "x".repeat(256) }),
            json!({ "colour": "red" }),
            json!({ "headers": { "h": 1 } }),
            json!({ "headers": { "h": ["i8", 128] } }),
            json!({ "headers": { "h": ["i9", 1] } }),
            json!({ "headers": { "h": ["bytes", "0"] } }),
            json!({ "headers": { "h": ["bytes", "+f"] } }),
        ] {
            assert!(decode_properties(&wrong).is_err(), "{wrong}");
        }
    }
}
