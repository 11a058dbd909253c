//! The body of a trigger: `{"Gate": string, "GateInput": {name: string, …}}` and nothing else.
//!
//! Strict on purpose: no other keys, no key twice, no values but strings, no array in place of
//! an object. What a lenient server would let pass should be noticed here.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// A body of the right shape.
#[derive(Debug)]
pub struct Trigger {
    pub gate: String,
    pub input: BTreeMap<String, String>,
}

impl Trigger {
    /// Reads a body; the error is a sentence for the client's author.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
}

impl<'de> Deserialize<'de> for Trigger {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TriggerVisitor)
    }
}

struct TriggerVisitor;

impl<'de> Visitor<'de> for TriggerVisitor {
    type Value = Trigger;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object with `Gate` and `GateInput`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Trigger, A::Error> {
        let mut gate: Option<String> = None;
        let mut input: Option<GateInput> = None;
        while let Some(key) = map.next_key::<String>()? {
            let repeated = match key.as_str() {
                "Gate" => gate.replace(value(&mut map, &key)?).is_some(),
                "GateInput" => input.replace(value(&mut map, &key)?).is_some(),
                _ => return Err(A::Error::custom(format!("unknown key `{key}`"))),
            };
            if repeated {
                return Err(A::Error::custom(format!("`{key}` is there twice")));
            }
        }
        let gate = gate.ok_or_else(|| A::Error::missing_field("Gate"))?;
        let GateInput(input) = input.ok_or_else(|| A::Error::missing_field("GateInput"))?;
        Ok(Trigger { gate, input })
    }
}

struct GateInput(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for GateInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = GateInput;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object whose values are strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GateInput, A::Error> {
        let mut input = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let text: String = value(&mut map, &name)?;
            if input.contains_key(&name) {
                return Err(A::Error::custom(format!("`{name}` is there twice")));
            }
            input.insert(name, text);
        }
        Ok(GateInput(input))
    }
}

/// The next value; if it has the wrong type, the error names its key.
fn value<'de, A: MapAccess<'de>, T: Deserialize<'de>>(map: &mut A, key: &str) -> Result<T, A::Error> {
    map.next_value().map_err(|error| A::Error::custom(format!("`{key}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_body_is_read() {
        let body = br#" {"Gate":"didomi","GateInput":{"MAIL":"jane@example.com","OPTIN":"1"}} "#;
        let trigger = Trigger::parse(body).unwrap();
        assert_eq!(trigger.gate, "didomi");
        assert_eq!(trigger.input["MAIL"], "jane@example.com");
        assert_eq!(trigger.input["OPTIN"], "1");
    }

    #[test]
    fn escapes_are_undone() {
        let body = br#"{"GateInput":{"A\u0042":"\"\u00e9\n"},"Gate":"g"}"#;
        assert_eq!(Trigger::parse(body).unwrap().input["AB"], "\"é\n");
    }

    #[test]
    fn every_other_shape_is_refused_by_name() {
        for (body, word) in [
            ("", "EOF"),
            ("null", "null"),
            (r#""text""#, "string"),
            (r#"["didomi",{"MAIL":"a"}]"#, "sequence"),
            (r#"{"Gate":"g"}"#, "GateInput"),
            (r#"{"GateInput":{}}"#, "Gate"),
            (r#"{"gate":"g","GateInput":{}}"#, "unknown key `gate`"),
            (r#"{"Gate":"g","GateInput":{},"Id":"1"}"#, "unknown key `Id`"),
            (r#"{"Gate":"g","Gate":"g","GateInput":{}}"#, "`Gate` is there twice"),
            (r#"{"Gate":"g","GateInput":{},"GateInput":{}}"#, "`GateInput` is there twice"),
            (r#"{"Gate":"g","GateInput":{"A":"1","A":"1"}}"#, "`A` is there twice"),
            (r#"{"Gate":null,"GateInput":{}}"#, "`Gate`"),
            (r#"{"Gate":1,"GateInput":{}}"#, "`Gate`"),
            (r#"{"Gate":"g","GateInput":null}"#, "`GateInput`"),
            (r#"{"Gate":"g","GateInput":[]}"#, "`GateInput`"),
            (r#"{"Gate":"g","GateInput":[{"Key":"A","Value":"1"}]}"#, "`GateInput`"),
            (r#"{"Gate":"g","GateInput":{"A":1}}"#, "`A`"),
            (r#"{"Gate":"g","GateInput":{"A":true}}"#, "`A`"),
            (r#"{"Gate":"g","GateInput":{"A":null}}"#, "`A`"),
            (r#"{"Gate":"g","GateInput":{"A":{}}}"#, "`A`"),
            (r#"{"Gate":"g","GateInput":{}}{}"#, "trailing"),
            (r#"{"Gate":"g","GateInput":{},}"#, "trailing comma"),
            (r#"{"Gate":"g","GateInput":{"A":"1""#, "EOF"),
        ] {
            let error = Trigger::parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{body}: {error}");
        }
        assert!(Trigger::parse(b"{\"Gate\":\"\xff\",\"GateInput\":{}}").is_err());
        assert!(Trigger::parse(b"\xef\xbb\xbf{\"Gate\":\"g\",\"GateInput\":{}}").is_err());
    }
}
