//! What the facts of a delivery need to know about it.

use crate::broker::report::Report;
use crate::gate::{Lane, Outcome};
use crate::plan::EventSummary;
use crate::verdict::Verdict;
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

impl Receipt<'_> {
    /// The report of a verdict, for an operator who watches a replay.
    #[must_use]
    pub fn report(&self, verdict: &Verdict, attempt: u32, answer: Option<(Outcome, Option<u16>)>) -> Report {
        let (outcome, code) = (verdict.word().to_owned(), verdict.code().to_owned());
        let (result, status) = answer.unzip();
        let result = result.map(|result| result.label().to_owned());
        Report { outcome, code, body: self.body.to_string(), attempt, result, status: status.flatten() }
    }
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
