//! Reports: what became of a message that named a queue for them.
//!
//! They are for an operator who watches a replay. Nothing in them is personal, nothing waits for them, and a
//! report that nobody takes is dropped.

use serde::{Deserialize, Serialize};

/// Reports go only to queues with this prefix: a message must not choose where else the worker publishes.
pub const PREFIX: &str = "consent-gate.report.";

/// What became of one message, once its verdict was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`Verdict::word`](crate::verdict::Verdict::word).
    pub outcome: String,
    /// The reason's code; empty for events that are delivered or not finished yet.
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
