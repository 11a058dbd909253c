//! One rule of `/faults`: which requests it picks, and what happens to them.
//!
//! Selectors: `integration`, `identifier`, `share` (0 to 1), `times` (at most this many requests).
//! What happens, in any combination that makes sense:
//!
//! | key | effect |
//! |---|---|
//! | `latency_ms` | waits before executing, and so before answering; not executed if the client leaves meanwhile |
//! | `status` | answers with this status and an envelope, without executing |
//! | `is_success`, `error` | what the envelope of that status says; `false` and a plain text by default |
//! | `body`, `headers` | the raw body in place of the envelope; more headers. Without `status` the request is executed and answered 200 |
//! | `in_place` | something else answers in the gate's place, without executing: `firewall` (200 and a page), `challenge` (202, empty, with its header), `login` (200 and a page), `proxy` (413 and a page) |
//! | `hang` | never answers, never executes |
//! | `reset` | resets the connection without executing |
//! | `lose_answer` | executes, then resets the connection |
//! | `execute_after_ms` | executes this long after receipt, whether or not the client waits; never answers, or answers `status` at once (after `latency_ms`) |
//!
//! A rule that makes no sense as written is refused, and the error names the key.

mod keys;

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::effect::Effect;
use crate::rule::keys::Keys;

/// A rule that was read and makes sense.
#[derive(Debug)]
pub struct Rule {
    /// The integration's name, which exists.
    pub integration: Option<String>,
    pub identifier: Option<String>,
    /// From 0 to 1.
    pub share: f64,
    pub times: Option<u64>,
    pub effect: Arc<Effect>,
    /// The rule as it was written.
    pub written: Map<String, Value>,
}

impl Rule {
    /// Reads a rule; the error names the key that is wrong.
    pub fn parse(value: Value, integrations: &[String]) -> Result<Self, String> {
        let Value::Object(written) = value else {
            return Err("a rule must be an object".to_owned());
        };
        let mut keys = Keys::new(&written)?;
        let integration: Option<String> = keys.take("integration")?;
        if let Some(name) = &integration
            && !integrations.contains(name)
        {
            return Err(format!("integration: there is no `{name}`; there are {}", integrations.join(", ")));
        }
        let share = keys.take("share")?.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&share) {
            return Err("share: must be from 0 to 1".to_owned());
        }
        let times = keys.take("times")?;
        if times == Some(0) {
            return Err("times: must be 1 or more".to_owned());
        }
        Ok(Self {
            integration,
            identifier: keys.take("identifier")?,
            share,
            times,
            effect: Arc::new(keys.take_effect()?),
            written,
        })
    }
}

#[cfg(test)]
mod tests;
