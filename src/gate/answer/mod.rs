//! What a reply of the gate means (pure).

use super::body;
use reqwest::header::HeaderMap;
use serde_json::Value;
use std::borrow::Cow;
use std::time::Duration;
use strum::VariantArray;

/// The classes of answers; the labels of `attempts_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum Outcome {
    /// 2xx, and the gate's own answer does not contradict it.
    Accepted,
    /// 2xx whose envelope says `IsSuccess: false` or contains an error.
    Rejected,
    /// 400, 413, 414, 415, 422: this request will never be accepted.
    Refused,
    /// 2xx, or a status of [`Outcome::Refused`], with a body that the gate would not send: a firewall, a
    /// proxy or a login page answers in its place.
    NotTheGate,
    /// 401, 403, 404, 407, 3xx: the integration is wrong, not the event.
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
    pub const ALL: &'static [Outcome] = Outcome::VARIANTS;

    /// Whether the fault lies with the endpoint or the integration, not with this event.
    #[must_use]
    pub fn blames_endpoint(self) -> bool {
        match self {
            Outcome::Unavailable | Outcome::Throttled | Outcome::Misconfigured | Outcome::NotTheGate => true,
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
            Outcome::NotTheGate => "not_the_gate",
            Outcome::Misconfigured => "misconfigured",
            Outcome::Unavailable => "unavailable",
            Outcome::Throttled => "throttled",
            Outcome::UnexpectedStatus => "unexpected_status",
        }
    }
}

/// The result of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub outcome: Outcome,
    /// The HTTP status, when there was one.
    pub status: Option<u16>,
    /// What is wrong, in the worker's own words; of the server's text nothing but numbers.
    pub error: Option<String>,
    /// What the server said, with every value that was sent removed.
    pub said: Option<String>,
    /// How long a pause the gate asks for.
    pub retry_after: Option<Duration>,
    /// From sending to the end of the answer.
    pub duration: Duration,
    /// The request was sent twice: the first one was not answered, and may have been executed.
    pub was_resent: bool,
}

impl Answer {
    /// No answer at all.
    #[must_use]
    pub fn unavailable(error: String) -> Answer {
        Answer { error: Some(error), ..Answer::of(Outcome::Unavailable) }
    }

    /// An answer of which nothing but its class is known.
    #[must_use]
    pub fn of(outcome: Outcome) -> Answer {
        Answer {
            outcome,
            status: None,
            error: None,
            said: None,
            retry_after: None,
            duration: Duration::ZERO,
            was_resent: false,
        }
    }

    /// The class of the answer and what is wrong, for people.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        self.error.as_deref().map(|error| format!("{}: {error}", self.outcome.label()))
    }
}

/// How Selligent executes a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// At once; a wrong gate or a missing permission shows in the answer.
    #[default]
    Sync,
    /// Queued: the answer says only that it was queued, and the order of execution is up to Selligent.
    Async,
}

/// How an answer is recognized as the gate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Belief {
    /// By the vendor's envelope, or by an empty body where the gate may send one.
    #[default]
    Envelope,
    /// By its status alone: for an installation that answers 2xx with another body.
    Status,
}

/// How an endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Manner {
    pub mode: Mode,
    pub belief: Belief,
}

/// An answer as received; at most `MAX_ANSWER` bytes of the body and one more.
#[derive(Clone, Copy, Debug)]
pub struct HttpReply<'r> {
    pub status: u16,
    pub headers: &'r HeaderMap,
    pub body: &'r [u8],
}

/// Headers by which a firewall says that it answers itself and challenges the client.
const CHALLENGES: [&str; 3] = ["x-amzn-waf-action", "cf-mitigated", "x-vercel-mitigated"];

/// Classifies an answer. `redact` removes values and secrets from what the server said.
#[must_use]
pub fn classify(reply: HttpReply<'_>, manner: Manner, redact: &dyn Fn(&str) -> String) -> Answer {
    let status = reply.status;
    let content = Content::read(&reply);
    let stranger = content.stranger(status, manner);
    let outcome = match status {
        _ if is_told_by_body(status) && stranger.is_some() => Outcome::NotTheGate,
        200..=299 if manner.belief == Belief::Envelope && content.contradicts() => Outcome::Rejected,
        200..=299 => Outcome::Accepted,
        400 | 413 | 414 | 415 | 422 => Outcome::Refused,
        401 | 403 | 404 | 407 | 300..=399 => Outcome::Misconfigured,
        408 | 425 | 500..=599 => Outcome::Unavailable,
        429 => Outcome::Throttled,
        _ => Outcome::UnexpectedStatus,
    };
    if outcome == Outcome::Accepted {
        return Answer { status: Some(status), ..Answer::of(outcome) };
    }
    let code = content.code().map(|code| format!(", code {code}")).unwrap_or_default();
    let stranger = stranger.map(|what| format!(", not the gate's answer: {what}")).unwrap_or_default();
    let error = Some(format!("status {status}{code}{stranger}"));
    let said = content.said().map(|said| redact(&said)).filter(|said| !said.is_empty());
    // `Gate::read` adds `retry_after`.
    Answer { error, said, status: Some(status), ..Answer::of(outcome) }
}

/// Whether the body is needed to tell who answered: the other statuses mean the same, whoever sends them.
#[must_use]
pub fn is_told_by_body(status: u16) -> bool {
    matches!(status, 200..=299 | 400 | 413 | 414 | 415 | 422)
}

/// The content of an answer.
#[derive(Debug, PartialEq)]
enum Content {
    /// A firewall's own answer, recognized by the header of this name.
    Challenge(&'static str),
    Empty,
    Envelope(Envelope),
    TooLong,
    /// Text that the gate would not send.
    Text(String),
    /// Compressed with an unknown coding, damaged, or not text.
    Unreadable,
}

impl Content {
    fn read(reply: &HttpReply<'_>) -> Content {
        if let Some(name) = CHALLENGES.into_iter().find(|name| reply.headers.contains_key(*name)) {
            return Content::Challenge(name);
        }
        let Some(body) = body::unpacked(reply.headers, reply.body) else { return Content::Unreadable };
        if body.is_empty() {
            return Content::Empty;
        }
        if body.len() > super::MAX_ANSWER || reply.body.len() > super::MAX_ANSWER {
            return Content::TooLong;
        }
        let Some(text) = decoded(&body) else { return Content::Unreadable };
        match Envelope::read(&text) {
            Some(envelope) => Content::Envelope(envelope),
            None => Content::Text(text.into_owned()),
        }
    }

    /// Why the gate would not answer this with that status; `None` if it may have.
    fn stranger(&self, status: u16, manner: Manner) -> Option<String> {
        if manner.belief == Belief::Status {
            return None;
        }
        let is_queued = status == 202 && manner.mode == Mode::Async;
        match self {
            Content::Empty if (200..=299).contains(&status) && !matches!(status, 200 | 204) && !is_queued => {
                Some("an empty body".to_owned())
            }
            Content::Envelope(_) | Content::Empty => None,
            Content::Challenge(name) => Some(format!("a challenge ({name})")),
            Content::TooLong => Some("over 64 KiB".to_owned()),
            Content::Text(text) if text.trim_start().starts_with('<') => Some("a page".to_owned()),
            Content::Text(_) => Some("no object with IsSuccess, Error or Result".to_owned()),
            Content::Unreadable => Some("nothing that can be read as text".to_owned()),
        }
    }

    fn contradicts(&self) -> bool {
        matches!(self, Content::Envelope(envelope) if envelope.contradicts)
    }

    fn code(&self) -> Option<u32> {
        match self {
            Content::Envelope(envelope) => envelope.code,
            _ => None,
        }
    }

    fn said(self) -> Option<String> {
        match self {
            Content::Envelope(envelope) => envelope.error,
            Content::Text(text) => Some(text),
            Content::Challenge(_) | Content::Empty | Content::TooLong | Content::Unreadable => None,
        }
    }
}

/// The vendor's `{IsSuccess, Error, Result}`, keys in any case.
#[derive(Debug, Default, PartialEq)]
struct Envelope {
    contradicts: bool,
    error: Option<String>,
    /// The gate's error code.
    code: Option<u32>,
}

impl Envelope {
    /// `None` if the text is not an object with one of the three keys.
    fn read(text: &str) -> Option<Envelope> {
        let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return None };
        let named = |name: &'static str| {
            fields.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        named("IsSuccess").chain(named("Error")).chain(named("Result")).next()?;
        let has_failed = named("IsSuccess").any(|value| match value {
            Value::Null => false,
            Value::Bool(success) => !success,
            Value::String(text) => !text.trim().eq_ignore_ascii_case("true") && text.trim() != "1",
            Value::Number(number) => number.as_f64() != Some(1.0),
            Value::Array(_) | Value::Object(_) => true,
        });
        let error = named("Error").find_map(|value| match value {
            Value::Array(items) if items.is_empty() => None,
            Value::Object(fields) if fields.is_empty() => None,
            Value::Number(number) if number.as_f64() == Some(0.0) => None,
            Value::Null | Value::Bool(false) => None,
            Value::String(text) if text.trim().is_empty() => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        });
        let code = named("ErrorCode").chain(named("Error")).find_map(code);
        Some(Envelope { contradicts: has_failed || error.is_some(), error, code })
    }
}

/// A number of at most five digits, alone or as an error's `Code`: a longer number may identify a person.
fn code(value: &Value) -> Option<u32> {
    let number = match value {
        Value::Object(fields) => fields.iter().find(|(key, _)| key.eq_ignore_ascii_case("code"))?.1,
        value => value,
    };
    number.as_u64().and_then(|code| u32::try_from(code).ok()).filter(|code| (1..100_000).contains(code))
}

/// The body as text, with any byte order mark and in UTF-8 or UTF-16, as the vendor's server may write it. In
/// an envelope, invalid UTF-8 is replaced, because its content matters; any other body must be valid text.
fn decoded(body: &[u8]) -> Option<Cow<'_, str>> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16(&units).ok().map(Cow::Owned)
    };
    let utf8 = |bytes| match std::str::from_utf8(bytes) {
        Ok(text) => Some(Cow::Borrowed(text)),
        Err(_) => Some(String::from_utf8_lossy(bytes)).filter(|text| text.trim_start().starts_with('{')),
    };
    match body {
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [b'{', 0, ..] => utf16(body, u16::from_le_bytes),
        [0, b'{', ..] => utf16(body, u16::from_be_bytes),
        _ => utf8(body),
    }
}

#[cfg(test)]
mod tests;
