//! Spans as OTLP's JSON: `ExportTraceServiceRequest` of OpenTelemetry's protocol, version 1. Pure.

use super::{AttributeValue, FinishedSpan, SpanKind};
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

/// `SPAN_KIND_CLIENT` and `SPAN_KIND_CONSUMER`.
const CLIENT: u8 = 3;
const CONSUMER: u8 = 5;
/// `STATUS_CODE_UNSET` and `STATUS_CODE_ERROR`.
const UNSET: u8 = 0;
const ERROR: u8 = 2;

/// The body of one export.
#[must_use]
pub fn request(batch: &[FinishedSpan]) -> serde_json::Value {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [("service.name", "consent-gate".into()), ("service.version", version.into())];
    json!({ "resourceSpans": [{
        "resource": { "attributes": attributes(&resource) },
        "scopeSpans": [{
            "scope": { "name": "consent-gate", "version": version },
            "spans": batch.iter().map(span).collect::<Vec<_>>(),
        }],
    }] })
}

fn span(ended: &FinishedSpan) -> serde_json::Value {
    let FinishedSpan { span, ending, at } = ended;
    json!({
        "traceId": span.trace,
        "spanId": span.id,
        "parentSpanId": span.parent.as_deref().unwrap_or_default(),
        "flags": 1,
        "name": ending.name,
        "kind": match ending.kind { SpanKind::Client => CLIENT, SpanKind::Consumer => CONSUMER },
        "startTimeUnixNano": nanoseconds(span.began),
        "endTimeUnixNano": nanoseconds(*at),
        "attributes": attributes(&ending.attributes),
        "status": { "code": if ending.is_error { ERROR } else { UNSET } },
    })
}

fn attributes(attributes: &[(&str, AttributeValue)]) -> Vec<serde_json::Value> {
    let value = |value: &AttributeValue| match value {
        AttributeValue::Text(text) => json!({ "stringValue": text }),
        AttributeValue::Number(number) => json!({ "intValue": number.to_string() }),
    };
    attributes.iter().map(|(key, own)| json!({ "key": key, "value": value(own) })).collect()
}

/// Nanoseconds since 1970. Numbers of 64 bits are strings in this format.
fn nanoseconds(at: SystemTime) -> String {
    // A clock before 1970 is wrong anyway.
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}
