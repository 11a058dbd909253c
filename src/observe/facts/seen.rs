//! What was last seen of an integration.

use crate::observe::metrics::QUEUES;
use jiff::Timestamp;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A publish or an ack that failed is tried again within this time: after it, nothing fails any more.
const LONGEST_UNSETTLED: Duration = Duration::from_secs(30);

/// What was last seen of an integration, whichever document serves it.
#[derive(Debug, Default)]
pub struct LastSeen {
    /// When the last event arrived, in seconds since the epoch; 0 for none.
    pub(super) last_event: AtomicI64,
    pub(super) waiting: [AtomicU32; QUEUES.len()],
    /// When a publish or an ack failed last, in seconds since the epoch; 0 for never.
    pub(super) unsettled: AtomicI64,
    /// How many messages left their queues without a command, and when the last did.
    pub(super) vanished: AtomicU64,
    pub(super) vanished_at: AtomicI64,
}

impl LastSeen {
    /// When the last event arrived, in seconds since the epoch; 0 for none.
    #[must_use]
    pub fn last_event(&self) -> i64 {
        self.last_event.load(Ordering::Relaxed)
    }

    /// How many messages waited at the last look, in the order of [`QUEUES`].
    #[must_use]
    pub fn waiting(&self) -> [u32; QUEUES.len()] {
        self.waiting.each_ref().map(|waiting| waiting.load(Ordering::Relaxed))
    }

    /// Whether what is published or acked fails at present.
    #[must_use]
    pub fn cannot_settle(&self, now: Timestamp) -> bool {
        let failed = self.unsettled.load(Ordering::Relaxed);
        now.as_second().saturating_sub(failed) < LONGEST_UNSETTLED.as_secs().cast_signed()
    }

    /// How many messages left their queues without a command, and when the last did.
    #[must_use]
    pub fn vanished(&self) -> Option<(u64, Timestamp)> {
        let messages = self.vanished.load(Ordering::Relaxed);
        let at = Timestamp::from_second(self.vanished_at.load(Ordering::Relaxed)).ok()?;
        (messages > 0).then_some((messages, at))
    }
}
