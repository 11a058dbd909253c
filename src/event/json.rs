//! JSON as a message has it: texts stay in its bytes wherever nothing in them is escaped, and
//! numbers keep their digits.

use litemap::LiteMap;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Number;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Room for so many fields of an object is made at once.
const USUAL_FIELDS: usize = 8;

/// By this name of a field `serde_json` hands over a number with all its digits.
const NUMBER: &str = "$serde_json::private::Number";

/// The customer's own fields, whatever their names.
pub const METADATA: &str = "metadata";

/// An object's fields; of two with one name the last.
pub type Fields<'b> = LiteMap<Cow<'b, str>, Json<'b>>;

/// A value within a message.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Json<'b> {
    Null,
    Bool(bool),
    Number(Number),
    String(Cow<'b, str>),
    Array(Vec<Json<'b>>),
    #[serde(serialize_with = "crate::json::object")]
    Object(Fields<'b>),
    /// What nobody reads, as it is written.
    Unread(Unread<'b>),
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

/// Reads JSON. Objects' fields of the `unread` names stay as they are written, but for those within
/// `metadata`.
///
/// # Errors
/// It is none, or nested too deep.
pub fn read<'b>(written: &'b [u8], unread: &[&str]) -> serde_json::Result<Json<'b>> {
    let mut deserializer = serde_json::Deserializer::from_slice(written);
    let json = Reader { unread }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(json)
}

impl Json<'_> {
    /// A field of an object; null where there is none.
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

    /// What it is, for people.
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
        }
    }
}

/// As JSON, without spaces.
impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// A text that is borrowed where it can be.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'b>(#[serde(borrow)] Cow<'b, str>);

#[derive(Clone, Copy)]
struct Reader<'u> {
    unread: &'u [&'u str],
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
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
        Ok(Json::String(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json<'de>, A::Error> {
        let Some(Text(first)) = object.next_key()? else { return Ok(Json::Object(Fields::new())) };
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
                object.next_value_seed(if key == METADATA { Reader { unread: &[] } } else { self })?
            };
            fields.push((key, value));
            next = object.next_key()?;
        }
        Ok(Json::Object(sorted(fields)))
    }
}

/// All at once: one by one, a message with many fields would be sorted in quadratic time.
fn sorted<'b>(mut fields: Vec<(Cow<'b, str>, Json<'b>)>) -> Fields<'b> {
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields.dedup_by(|later, earlier| {
        let is_same = later.0 == earlier.0;
        if is_same {
            std::mem::swap(later, earlier);
        }
        is_same
    });
    Fields::from_sorted_store_unchecked(fields)
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

    proptest::proptest! {
        #[test]
        fn it_reads_what_serde_json_reads(body in r#"[\[\]{}",:0-9a-c.e\\u +-]{0,40}|(\{"[ab]":([0-9]{1,30}|"[a-z]{0,3}"|\[true,null\]|\{"c":-1.50e3\})(,"[ab]":false){0,2}\})"#) {
            let ours = read(body.as_bytes(), &[]).ok().map(|json| json.to_string());
            let theirs = serde_json::from_str::<serde_json::Value>(&body).ok().map(|json| json.to_string());
            proptest::prop_assert_eq!(ours, theirs);
        }
    }
}
