//! One customer's integration, compiled and checked: everything the worker needs to serve it.

pub mod filter;

use crate::gate::{Endpoint, Gate, Limits};
use crate::mapping::Mappings;
use crate::schedule::{OnOutage, Schedule};
use filter::Filter;
use serde::{Deserialize, Serialize};
use std::fmt;

/// An integration's name, which its queues carry: `[a-z0-9][a-z0-9_-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// What a name may be, for people.
    pub fn new(name: &str) -> Result<Name, String> {
        let rest_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        let first_allowed = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if first_allowed && name.len() <= 63 && name.chars().all(rest_allowed) {
            return Ok(Name(name.to_owned()));
        }
        Err(format!(
            "\"{}\" cannot name an integration; use lower-case letters, digits, _ and -, beginning with a letter or digit, at most 63",
            crate::text::shown::quoted(name)
        ))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A compiled integration document.
#[derive(Clone, Debug, PartialEq)]
pub struct Integration {
    pub name: Name,
    /// Under which name its records are kept: its own, or the one that it had before it was renamed.
    pub records: Name,
    pub endpoint: Endpoint,
    pub mappings: Mappings,
    pub filter: Filter,
    /// Binding keys of its own; `None` for those of `[source]`.
    pub binding_keys: Option<Vec<String>>,
    pub limits: Limits,
    pub schedule: Schedule,
    pub on_outage: OnOutage,
}

impl Integration {
    /// A client for its gate; nothing is sent.
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub fn gate(&self) -> anyhow::Result<Gate> {
        Gate::new(self.endpoint.clone(), self.limits.clone(), &self.schedule, self.on_outage)
    }
}
