//! What was last seen of an integration.

use crate::metrics::QUEUES;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// What was last seen of an integration, whichever document serves it.
#[derive(Debug, Default)]
pub struct Seen {
    /// When the last event arrived, in seconds since the epoch; 0 for none.
    pub(super) heard: AtomicI64,
    pub(super) waiting: [AtomicU32; QUEUES.len()],
}

impl Seen {
    /// When the last event arrived, in seconds since the epoch; 0 for none.
    #[must_use]
    pub fn heard(&self) -> i64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// How many messages waited at the last look, in the order of [`QUEUES`].
    #[must_use]
    pub fn waiting(&self) -> [u32; QUEUES.len()] {
        self.waiting.each_ref().map(|waiting| waiting.load(Ordering::Relaxed))
    }
}
