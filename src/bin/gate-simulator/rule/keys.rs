//! The keys of a rule: which exist, which can be combined, and what effect they have together.

use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::answer::Answer;
use crate::effect::{Effect, Ending, Execution};

/// The error in a fault's envelope if the rule gives none.
const PLAIN_ERROR: &str = "a fault was asked for";

/// For a key, the other keys that it cannot be combined with.
const CONTRADICTIONS: [(&str, &[&str]); 5] = [
    (
        "in_place",
        &["status", "is_success", "error", "body", "headers", "hang", "reset", "lose_answer", "execute_after_ms"],
    ),
    (
        "hang",
        &["latency_ms", "status", "is_success", "error", "body", "headers", "reset", "lose_answer", "execute_after_ms"],
    ),
    ("reset", &["status", "is_success", "error", "body", "headers", "lose_answer", "execute_after_ms"]),
    ("lose_answer", &["status", "is_success", "error", "body", "headers", "execute_after_ms"]),
    ("body", &["is_success", "error"]),
];

/// Keys that mean something only together with `status`.
const OF_A_STATUS: [&str; 2] = ["is_success", "error"];

/// Keys that belong to an answer, which a late execution gives only together with `status`.
const OF_AN_ANSWER: [&str; 3] = ["latency_ms", "body", "headers"];

/// Keys that say which requests a rule picks.
const SELECTORS: [&str; 4] = ["integration", "identifier", "share", "times"];

/// Keys of which at least one is needed.
const EFFECTS: [&str; 9] =
    ["latency_ms", "status", "body", "headers", "in_place", "hang", "reset", "lose_answer", "execute_after_ms"];

/// The keys of a rule that were not read yet.
pub struct Keys(Map<String, Value>);

impl Keys {
    /// The keys of a rule, if all are known and can be combined; `null` counts as absent.
    pub fn new(written: &Map<String, Value>) -> Result<Self, String> {
        let known = [&SELECTORS[..], &EFFECTS, &OF_A_STATUS].concat();
        if let Some(key) = written.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(format!("{key}: unknown key; known are {}", known.join(", ")));
        }
        let given = written.iter().filter(|(_, value)| !value.is_null());
        let keys = Self(given.map(|(key, value)| (key.clone(), value.clone())).collect());
        keys.check_company()?;
        Ok(keys)
    }

    /// Whether a key is present and not a flag that is `false`.
    fn has(&self, key: &str) -> bool {
        let flag = matches!(key, "hang" | "reset" | "lose_answer");
        self.0.get(key).is_some_and(|value| !(flag && value == &Value::Bool(false)))
    }

    fn check_company(&self) -> Result<(), String> {
        for (key, others) in CONTRADICTIONS {
            if self.has(key)
                && let Some(other) = others.iter().find(|other| self.has(other))
            {
                return Err(format!("{other}: contradicts {key}; keep one of them"));
            }
        }
        let alone = |keys: &[&'static str]| keys.iter().copied().find(|key| self.has(key));
        if !self.has("status") {
            if let Some(key) = alone(&OF_A_STATUS) {
                return Err(format!("{key}: needs a status"));
            }
            if self.has("execute_after_ms")
                && let Some(key) = alone(&OF_AN_ANSWER)
            {
                return Err(format!("{key}: needs a status beside execute_after_ms, which gives no answer of its own"));
            }
        }
        Ok(())
    }

    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        let value = self.0.remove(key);
        value.map(|value| serde_json::from_value(value).map_err(|error| format!("{key}: {error}"))).transpose()
    }

    fn take_flag(&mut self, key: &str) -> Result<bool, String> {
        Ok(self.take(key)?.unwrap_or(false))
    }

    pub fn take_effect(&mut self) -> Result<Effect, String> {
        if !EFFECTS.iter().any(|key| self.has(key)) {
            return Err(format!("nothing happens; give one of {}", EFFECTS.join(", ")));
        }
        let latency = self.take("latency_ms")?.map(Duration::from_millis);
        let late = self.take("execute_after_ms")?.map(Duration::from_millis);
        let (hang, reset) = (self.take_flag("hang")?, self.take_flag("reset")?);
        let lose_answer = self.take_flag("lose_answer")?;
        let has_status = self.has("status");
        let stranger = self.take::<String>("in_place")?.map(|who| Answer::stranger(&who)).transpose()?;
        let is_struck = hang || reset || has_status || stranger.is_some();
        let answer = self.take_answer()?;
        let answer = stranger.unwrap_or(answer);
        let execution = match late {
            Some(delay) => Execution::Late(delay),
            None if is_struck => Execution::Never,
            None => Execution::InTurn,
        };
        let ending = if reset || lose_answer {
            Ending::Reset
        } else if hang || (late.is_some() && !has_status) {
            Ending::Silence
        } else {
            Ending::Answer(answer)
        };
        Ok(Effect { latency: latency.unwrap_or_default(), execution, ending })
    }

    fn take_answer(&mut self) -> Result<Answer, String> {
        let status = self.take::<u16>("status")?;
        if status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Err("status: must be from 200 to 599".to_owned());
        }
        let code = StatusCode::from_u16(status.unwrap_or(200)).map_err(|e| format!("status: {e}"))?;
        let body: Option<String> = self.take("body")?;
        let is_success = self.take("is_success")?.unwrap_or(false);
        let error: Option<String> = self.take("error")?;
        let plain_error = (!is_success).then_some(PLAIN_ERROR);
        let mut answer = match body {
            Some(body) => Answer::raw(code, Bytes::from(body)),
            None if status.is_none() => Answer::success(),
            None => Answer::envelope(code, is_success, error.as_deref().or(plain_error)),
        };
        let headers: Map<String, Value> = self.take("headers")?.unwrap_or_default();
        for (name, value) in &headers {
            let (name, value) = header(name, value).map_err(|error| format!("headers: {error}"))?;
            answer = answer.with(name, value);
        }
        Ok(answer)
    }
}

/// A header of an answer; a number counts as its text.
fn header(name: &str, value: &Value) -> Result<(HeaderName, HeaderValue), String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err(format!("{name} must be a string")),
    };
    let value = HeaderValue::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
    let name: HeaderName = name.parse().map_err(|error| format!("{name}: {error}"))?;
    if [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION].contains(&name) {
        return Err(format!("{name} belongs to the connection and cannot be set"));
    }
    Ok((name, value))
}
