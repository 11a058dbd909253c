//! Reports: what became of a message that named a queue to be told in.
//!
//! They are for whoever watches a replay. Nothing in them is personal, nothing waits for them, and
//! one that nobody takes is dropped.

use serde::{Deserialize, Serialize};

/// Only queues that begin so are reported to: a message must not choose where else we publish.
pub const PREFIX: &str = "consent-gate.report.";
/// The outcome of an event that another attempt follows.
pub const RETRY: &str = "retry";
/// The outcome of an event that waits and spends no attempt.
pub const HOLD: &str = "hold";

/// What became of one message, once its verdict was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// As in `events_total`, else [`RETRY`] or [`HOLD`].
    pub outcome: String,
    /// The reason's code; empty for events that are delivered or go on.
    pub code: String,
    /// The first 12 hex digits of its body's SHA-256.
    pub body: String,
    /// Attempts made so far.
    pub attempt: u32,
    /// The class of the gate's answer, when it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Its HTTP status, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}
