//! What the facts of a delivery need to know about it.

use crate::gate::Lane;
use crate::plan::EventSummary;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::fmt;

/// One delivery, as far as its facts need it.
#[derive(Clone, Debug)]
pub struct Receipt<'b> {
    /// When the delivery was received.
    pub at: Timestamp,
    /// Whether it is a first delivery, or was tried or held before.
    pub lane: Lane,
    /// Identifies the body if the event has no id.
    pub body: Fingerprint<'b>,
    /// The trace of which it is a part, as `traceparent`.
    pub trace: Option<String>,
    pub summary: EventSummary,
}

/// Identifies a body without revealing its content: displayed as the first 12 hex digits of its SHA-256,
/// which is computed only when it is displayed.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprint<'b>(pub &'b [u8]);

impl fmt::Display for Fingerprint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&Sha256::digest(self.0)[..6]))
    }
}
