//! What a reply of the gate means (pure).

use serde_json::Value;
use std::borrow::Cow;
use std::time::Duration;

/// The classes of answers; the labels of `attempts_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx, not contradicted by the envelope.
    Accepted,
    /// 2xx whose envelope says `IsSuccess: false` or names an error.
    Rejected,
    /// 400, 413, 414, 415, 422: this request will never pass.
    Refused,
    /// 401, 403, 404, 3xx: the integration is wrong, not the event.
    Misconfigured,
    /// No connection, DNS, TLS, timeout, 408, 425, 5xx.
    Unavailable,
    /// 429.
    Throttled,
    /// Any other status.
    UnexpectedStatus,
}

impl Outcome {
    /// All classes.
    pub const ALL: [Outcome; 7] = [
        Outcome::Accepted,
        Outcome::Rejected,
        Outcome::Refused,
        Outcome::Misconfigured,
        Outcome::Unavailable,
        Outcome::Throttled,
        Outcome::UnexpectedStatus,
    ];

    /// Whether it is the endpoint or the integration that does not work, and not this event.
    #[must_use]
    pub fn blames_endpoint(self) -> bool {
        match self {
            Outcome::Unavailable | Outcome::Throttled | Outcome::Misconfigured => true,
            Outcome::Accepted | Outcome::Rejected | Outcome::Refused | Outcome::UnexpectedStatus => false,
        }
    }

    /// The label in metrics, headers and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Accepted => "accepted",
            Outcome::Rejected => "rejected",
            Outcome::Refused => "refused",
            Outcome::Misconfigured => "misconfigured",
            Outcome::Unavailable => "unavailable",
            Outcome::Throttled => "throttled",
            Outcome::UnexpectedStatus => "unexpected_status",
        }
    }
}

/// One attempt's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub outcome: Outcome,
    /// The HTTP status, when there was one.
    pub status: Option<u16>,
    /// What the gate or the connection said, without any value that was sent.
    pub error: Option<String>,
    /// How long the gate asks to be left alone.
    pub retry_after: Option<Duration>,
    /// From sending to the end of the answer.
    pub duration: Duration,
    /// The request left twice: nobody answered the first one, and it may have been executed.
    pub was_resent: bool,
}

impl Answer {
    /// No answer at all.
    #[must_use]
    pub fn unavailable(error: String) -> Answer {
        Answer {
            outcome: Outcome::Unavailable,
            status: None,
            error: Some(error),
            retry_after: None,
            duration: Duration::ZERO,
            was_resent: false,
        }
    }
}

/// Classifies a status and the (bounded) body that came with it. What the gate says in it is made
/// fit to keep by `redact`.
#[must_use]
pub fn classify(status: u16, body: &[u8], redact: &dyn Fn(&str) -> String) -> Answer {
    let envelope = Envelope::read(body);
    let outcome = match status {
        200..=299 if body.len() > super::MAX_ANSWER || envelope.contradicts => Outcome::Rejected,
        200..=299 => Outcome::Accepted,
        400 | 413 | 414 | 415 | 422 => Outcome::Refused,
        401 | 403 | 404 | 300..=399 => Outcome::Misconfigured,
        408 | 425 | 500..=599 => Outcome::Unavailable,
        429 => Outcome::Throttled,
        _ => Outcome::UnexpectedStatus,
    };
    let said = match outcome {
        Outcome::Accepted => None,
        Outcome::Rejected if body.len() > super::MAX_ANSWER => Some("an answer of more than 64 KiB".to_owned()),
        _ => Some(envelope.error.map_or_else(|| format!("status {status}"), |said| redact(&said))),
    };
    Answer { outcome, error: said, status: Some(status), ..Answer::unavailable(String::new()) }
}

/// The vendor's `{IsSuccess, Error, Result}`, keys in any case. A body that is no such object
/// says nothing: an empty or non-JSON 2xx counts as success.
#[derive(Default)]
struct Envelope {
    contradicts: bool,
    error: Option<String>,
}

impl Envelope {
    fn read(body: &[u8]) -> Envelope {
        let Ok(Value::Object(fields)) = serde_json::from_str(&decoded(body)) else { return Envelope::default() };
        let get = |name: &str| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let failed = match get("IsSuccess") {
            Some(Value::Bool(success)) => !success,
            Some(Value::String(text)) => text.eq_ignore_ascii_case("false"),
            _ => false,
        };
        let error = match get("Error") {
            Some(Value::Array(items)) if items.is_empty() => None,
            Some(Value::Object(fields)) if fields.is_empty() => None,
            Some(Value::Number(number)) if number.as_f64() == Some(0.0) => None,
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => Some(other.to_string()),
        };
        Envelope { contradicts: failed || error.is_some(), error }
    }
}

/// The body as text, whatever byte order mark or UTF-16 the vendor's server writes it with: an
/// envelope that is not recognized would count as success.
fn decoded(body: &[u8]) -> Cow<'_, str> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        Cow::Owned(String::from_utf16_lossy(&units))
    };
    match body {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [b'{', 0, ..] => utf16(body, u16::from_le_bytes),
        [0, b'{', ..] => utf16(body, u16::from_be_bytes),
        _ => String::from_utf8_lossy(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(status: u16, body: &[u8]) -> Answer {
        super::classify(status, body, &str::to_owned)
    }

    #[test]
    fn every_status_has_its_class() {
        let classes = |statuses: &[u16], outcome| {
            for status in statuses {
                assert_eq!(classify(*status, b"").outcome, outcome, "{status}");
            }
        };
        classes(&[200, 201, 202, 204], Outcome::Accepted);
        classes(&[400, 413, 414, 415, 422], Outcome::Refused);
        classes(&[301, 302, 307, 401, 403, 404], Outcome::Misconfigured);
        classes(&[408, 425, 500, 502, 503, 504, 599], Outcome::Unavailable);
        classes(&[429], Outcome::Throttled);
        classes(&[402, 405, 406, 409, 410, 418, 451, 600, 999], Outcome::UnexpectedStatus);
    }

    #[test]
    fn the_envelope_can_contradict_a_2xx_in_any_case() {
        for body in [
            r#"{"IsSuccess":false,"Error":null}"#,
            r#"{"issuccess":"False"}"#,
            r#"{"IsSuccess":true,"Error":"no such field"}"#,
            r#"{"ERROR":{"code":7}}"#,
        ] {
            assert_eq!(classify(200, body.as_bytes()).outcome, Outcome::Rejected, "{body}");
        }
        for body in
            ["", "OK", "[]", r#"{"IsSuccess":true,"Error":"","Result":1}"#, r#"{"isSuccess":true,"error":null}"#]
        {
            assert_eq!(classify(200, body.as_bytes()).outcome, Outcome::Accepted, "{body}");
        }
    }

    #[test]
    fn an_envelope_in_another_encoding_still_contradicts() {
        let text = r#"{"IsSuccess":false,"Error":"no such gate"}"#;
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for body in [
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            [b"\xff\xfe", little.as_slice()].concat(),
            [b"\xfe\xff", big.as_slice()].concat(),
            little,
            big,
        ] {
            let answer = classify(200, &body);
            assert_eq!((answer.outcome, answer.error.as_deref()), (Outcome::Rejected, Some("no such gate")));
        }
    }

    #[test]
    fn an_empty_error_of_any_type_is_none() {
        for error in ["null", "\"\"", "\" \"", "{}", "[]", "0", "false"] {
            let body = format!("{{\"IsSuccess\":true,\"Error\":{error}}}");
            assert_eq!(classify(200, body.as_bytes()).outcome, Outcome::Accepted, "{error}");
        }
    }

    #[test]
    fn an_endless_answer_is_no_acceptance() {
        let body = vec![b' '; super::super::MAX_ANSWER + 1];
        assert_eq!(classify(200, &body).outcome, Outcome::Rejected);
    }
}
