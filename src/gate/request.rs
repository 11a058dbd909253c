//! The body of a trigger: the gate's name and the properties, in the mappings' order.

use hyper::body::Bytes;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::sync::Arc;

/// A gate request, ready to be sent as often as needed; signing happens at each attempt.
#[derive(Clone, Debug)]
pub struct GateRequest {
    body: Bytes,
    properties: Vec<(Arc<str>, Arc<str>)>,
    trace: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Trigger<'a> {
    gate: &'a str,
    gate_input: GateInput<'a>,
}

struct GateInput<'a>(&'a [(Arc<str>, Arc<str>)]);

impl Serialize for GateInput<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl GateRequest {
    /// A trigger of `gate` with properties as texts.
    #[must_use]
    pub fn new(gate: &str, properties: Vec<(Arc<str>, Arc<str>)>) -> GateRequest {
        let trigger = Trigger { gate, gate_input: GateInput(&properties) };
        // Strings and a map with string keys always serialize.
        let body = serde_json::to_vec(&trigger).unwrap_or_default();
        GateRequest { body: body.into(), properties, trace: None }
    }

    /// The same request as a part of a trace.
    #[must_use]
    pub fn traced(self, trace: Option<String>) -> GateRequest {
        GateRequest { trace, ..self }
    }

    /// The trace that it is a part of, as a `traceparent` value.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        self.trace.as_deref()
    }

    /// The JSON that is sent; cheap to clone.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The names of the properties that are sent.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.properties.iter().map(|(name, _)| &**name)
    }

    /// Every value that is sent, for redaction.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.properties.iter().map(|(_, value)| &**value)
    }
}
