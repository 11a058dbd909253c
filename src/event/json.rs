//! The JSON of a message: strings are borrowed from its bytes wherever they contain no escape, and numbers
//! keep their digits. A string that cannot be read (a lone surrogate, bytes that are not UTF-8, an unescaped
//! control character) damages only its own field, not the message.

use litemap::LiteMap;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Number;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The initial capacity for the fields of an object.
const USUAL_FIELDS: usize = 8;

/// The field name under which `serde_json` passes a number with all its digits.
const NUMBER: &str = "$serde_json::private::Number";

/// The prefix of a text that replaces an unreadable one.
const DAMAGED: &str = "\0damaged\0";

/// The field that holds the customer's own fields, with any names.
pub const METADATA: &str = "metadata";

/// An object's fields; of two with the same name the last one.
pub type Object<'b> = LiteMap<Cow<'b, str>, Json<'b>>;

/// A value within a message.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Json<'b> {
    Null,
    Bool(bool),
    Number(Number),
    String(Cow<'b, str>),
    Array(Vec<Json<'b>>),
    #[serde(serialize_with = "crate::text::json::object")]
    Object(Object<'b>),
    /// A value that nobody reads, as written.
    Unread(Unread<'b>),
    /// A text that cannot be read: its bytes as characters, for comparisons only.
    Damaged(String),
}

/// A value that is only compared.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
pub struct Unread<'b>(&'b RawValue);

impl PartialEq for Unread<'_> {
    fn eq(&self, other: &Unread<'_>) -> bool {
        let (own, theirs) = (self.0.get(), other.0.get());
        let read = |written| read(str::as_bytes(written), &[]).ok();
        own == theirs || read(own).is_some_and(|own| Some(own) == read(theirs))
    }
}

/// Reads JSON. Fields with the names in `unread` are kept as written, except within `metadata`.
///
/// # Errors
/// It is not JSON, or it is nested too deep.
pub fn read<'b>(written: &'b [u8], unread: &[&str]) -> serde_json::Result<Json<'b>> {
    let seed = JsonSeed { unread, is_mended: false };
    // Checked once for the whole, and not for each text in it.
    match str::from_utf8(written) {
        Ok(text) => read_by(serde_json::Deserializer::from_str(text), seed),
        Err(_) => read_by(serde_json::Deserializer::from_slice(written), seed),
    }
}

fn read_by<'b, R: serde_json::de::Read<'b>>(
    mut deserializer: serde_json::Deserializer<R>,
    seed: JsonSeed<'_>,
) -> serde_json::Result<Json<'b>> {
    let json = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(json)
}

/// The same, but all texts are copied, and no field is left unread.
///
/// # Errors
/// As [`read`].
pub fn copy(written: &[u8]) -> serde_json::Result<Json<'static>> {
    copied(written, false)
}

/// The same for JSON with some unreadable texts. `None` if anything else is wrong.
#[must_use]
pub fn copy_damaged(written: &[u8]) -> Option<Json<'static>> {
    copied(&mended(written)?, true).ok()
}

fn copied(written: &[u8], is_mended: bool) -> serde_json::Result<Json<'static>> {
    read_by(serde_json::Deserializer::from_reader(written), JsonSeed { unread: &[], is_mended })
}

/// Replaces each text that cannot be read by a marked one; `None` if there is none.
fn mended(written: &[u8]) -> Option<Vec<u8>> {
    let (mut mended, mut rest, mut is_damaged) = (Vec::with_capacity(written.len()), written, false);
    while let Some((begin, end)) = next_text(rest) {
        let text = rest.get(begin..end)?;
        mended.extend_from_slice(rest.get(..begin)?);
        if serde_json::from_slice::<Text>(text).is_ok() {
            mended.extend_from_slice(text);
        } else {
            is_damaged = true;
            let bytes = text.iter().map(|byte| char::from(*byte));
            let marked: String = DAMAGED.chars().chain(bytes).collect();
            mended.extend_from_slice(serde_json::Value::String(marked).to_string().as_bytes());
        }
        rest = rest.get(end..)?;
    }
    mended.extend_from_slice(rest);
    is_damaged.then_some(mended)
}

/// Where the next string begins and ends, its quotes included.
fn next_text(written: &[u8]) -> Option<(usize, usize)> {
    let begin = written.iter().position(|byte| *byte == b'"')?;
    let mut is_escaped = false;
    let length = written.get(begin + 1..)?.iter().position(|byte| {
        let is_end = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    })?;
    Some((begin, begin + length + 2))
}

impl Json<'_> {
    /// A field of an object; null if there is none.
    #[must_use]
    pub fn field(&self, key: &str) -> &Json<'_> {
        match self {
            Json::Object(fields) => fields.get(key).unwrap_or(&Json::Null),
            _ => &Json::Null,
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// Its type, for people.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "true or false",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "a list",
            Json::Object(_) => "an object",
            Json::Unread(_) => "what was not read",
            Json::Damaged(_) => "a damaged text (a lone surrogate, a control character, or not UTF-8)",
        }
    }

    /// Whether it, or anything in it, is a text that cannot be read.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        match self {
            Json::Damaged(_) => true,
            Json::Array(items) => items.iter().any(Json::is_damaged),
            Json::Object(fields) => fields.iter().any(|(key, value)| key.starts_with(DAMAGED) || value.is_damaged()),
            Json::Unread(unread) => read(unread.0.get().as_bytes(), &[]).is_err(),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => false,
        }
    }

    /// An identifier of somebody or something: a text, or the digits of a whole number.
    #[must_use]
    pub fn as_name(&self) -> Option<&str> {
        match self {
            Json::Number(number) => Some(number.as_str()).filter(|digits| !digits.contains(['.', 'e', 'E'])),
            other => other.as_str(),
        }
    }
}

/// As JSON, without spaces.
impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// A text that is borrowed if possible.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'b>(#[serde(borrow)] Cow<'b, str>);

#[derive(Clone, Copy)]
struct JsonSeed<'u> {
    unread: &'u [&'u str],
    /// Texts that cannot be read have been replaced by marked ones.
    is_mended: bool,
}

impl<'de> DeserializeSeed<'de> for JsonSeed<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonSeed<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, on: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(on))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::String(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(match text.strip_prefix(DAMAGED).filter(|_| self.is_mended) {
            Some(bytes) => Json::Damaged(bytes.to_owned()),
            None => Json::String(Cow::Owned(text.to_owned())),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json<'de>, A::Error> {
        let Some(Text(first)) = object.next_key()? else { return Ok(Json::Object(Object::new())) };
        if first == NUMBER {
            let digits: String = object.next_value()?;
            return digits.parse().map(Json::Number).map_err(Error::custom);
        }
        let mut fields = Vec::with_capacity(USUAL_FIELDS);
        let mut next = Some(Text(first));
        while let Some(Text(key)) = next {
            let value = if self.unread.contains(&&*key) {
                Json::Unread(Unread(object.next_value()?))
            } else {
                object.next_value_seed(if key == METADATA { JsonSeed { unread: &[], ..self } } else { self })?
            };
            fields.push((key, value));
            next = object.next_key()?;
        }
        Ok(Json::Object(sorted(fields)))
    }
}

/// Sorted all at once: inserted one by one, many fields would take quadratic time.
fn sorted<'b>(mut fields: Vec<(Cow<'b, str>, Json<'b>)>) -> Object<'b> {
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields.dedup_by(|later, earlier| {
        let is_same = later.0 == earlier.0;
        if is_same {
            std::mem::swap(later, earlier);
        }
        is_same
    });
    Object::from_sorted_store_unchecked(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits_and_texts_stay_where_they_are() {
        let body = r#"{"b":[0,1.10,-0,123456789012345678901234567890],"a":"plain","e":"\u00e9","0":{}}"#;
        let json = read(body.as_bytes(), &[]).unwrap();
        assert_eq!(json.to_string(), r#"{"0":{},"a":"plain","b":[0,1.10,-0,123456789012345678901234567890],"e":"é"}"#);
        assert!(matches!(json.field("a"), Json::String(Cow::Borrowed("plain"))));
        assert_eq!(json.field("e").as_str(), Some("é"));
        assert_eq!(json.field("a").field("b"), &Json::Null);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for body in ["", "{", "[1,]", "{\"a\":1,}", "nul", "\"\\q\"", "01", "{\"a\" 1}", "[1] 2"] {
            assert!(read(body.as_bytes(), &[]).is_err(), "{body}");
        }
        let deep = "[".repeat(100_000);
        assert!(read(deep.as_bytes(), &[]).is_err());
    }

    #[test]
    fn what_nobody_reads_stays_as_it_is_written_and_is_compared_by_what_it_says() {
        let body = r#"{"a":{"vendors":{"x":[1, 2]}},"metadata":{"vendors":{"x":1}},"vendors":[ ]}"#;
        let json = read(body.as_bytes(), &["vendors"]).unwrap();
        assert_eq!(json.to_string(), r#"{"a":{"vendors":{"x":[1, 2]}},"metadata":{"vendors":{"x":1}},"vendors":[ ]}"#);
        assert_eq!(json.field("metadata").field("vendors").field("x").to_string(), "1");
        let unread = |written: &'static str| Unread(serde_json::from_str(written).unwrap());
        assert_eq!(unread(r#"{"b":1,"a":[]}"#), unread(r#"{ "a": [], "b": 1 }"#));
        assert_ne!(unread(r#"{"b":1}"#), unread(r#"{"b":2}"#));
        assert_ne!(unread(r#""\ud800""#), unread(r#""\ud801""#), "what cannot be read is not the same");
        assert!(read(br#"{"vendors":[1,}"#, &["vendors"]).is_err());
    }

    #[test]
    fn a_text_that_cannot_be_read_is_the_damage_of_its_own_field() {
        let body = b"{\"a\":\"caf\\ud83d\",\"b\":[\"\xff\",\"plain \\\"\\\\\"],\"c\":\"two\nlines\",\"\\ud83d\":1,\"d\":{\"e\":\"\\q\"},\"f\":\"\xc3\xa9\"}";
        assert!(read(body, &[]).is_err());
        let json = copy_damaged(body).unwrap();
        for field in ["a", "b", "c", "d"] {
            assert!(json.field(field).is_damaged(), "{field}");
        }
        assert!(matches!(json.field("b"), Json::Array(items) if items[1].as_str() == Some("plain \"\\")));
        assert_eq!((json.field("f").as_str(), json.field("a").as_str()), (Some("é"), None));
        assert_ne!(copy_damaged(br#"{"a":"\ud83d"}"#), copy_damaged(br#"{"a":"\ud83e"}"#));
        assert_eq!(copy_damaged(br#"{"a":"\ud83d"}"#), copy_damaged(br#"{ "a" : "\ud83d" }"#));
        let unread = read(br#"{"vendors":["\ud83d"]}"#, &["vendors"]).unwrap();
        assert!(unread.is_damaged());
        let forged = r#"{"a":"\u0000damaged\u0000"}"#;
        assert!(!copy(forged.as_bytes()).unwrap().is_damaged(), "a text that says so is a text");
    }

    #[test]
    fn damaged_texts_mend_nothing_else() {
        for body in [&b"{\"a\":\"\xff\""[..], b"{\"a\":\"\xff\",}", b"\"\xff\" 1", b"{\"\xff}", b"{}", b"[\"\\\"]"] {
            assert_eq!(copy_damaged(body), None, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn whole_numbers_are_names_digit_by_digit() {
        let name = |written: &'static str| read(written.as_bytes(), &[]).unwrap().as_name().map(str::to_owned);
        for digits in ["0", "9007199254740993", "123456789012345678901234567890", "-5"] {
            assert_eq!(name(digits).as_deref(), Some(digits));
        }
        assert_eq!(["1.0", "1e3", "1E3", "true", "null", "[]"].map(name), [const { None }; 6]);
        assert_eq!(name("\"a\"").as_deref(), Some("a"));
    }

    proptest::proptest! {
        #[test]
        fn no_damage_panics(body in proptest::collection::vec(proptest::sample::select(b"\"\\{}[]:,u d8\xff\x01a1".to_vec()), 0..60)) {
            let _ = copy_damaged(&body);
        }

        #[test]
        fn it_reads_what_serde_json_reads(body in r#"[\[\]{}",:0-9a-c.e\\u +-]{0,40}|(\{"[ab]":([0-9]{1,30}|"[a-z]{0,3}"|\[true,null\]|\{"c":-1.50e3\})(,"[ab]":false){0,2}\})"#) {
            let ours = read(body.as_bytes(), &[]).ok().map(|json| json.to_string());
            let theirs = serde_json::from_str::<serde_json::Value>(&body).ok().map(|json| json.to_string());
            proptest::prop_assert_eq!(ours, theirs);
        }
    }
}
