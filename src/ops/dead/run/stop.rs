//! Why a replay was stopped early.

use crate::broker;
use std::time::Duration;

/// Why a replay was stopped early.
#[derive(Debug, thiserror::Error)]
pub enum StopReason {
    #[error("interrupted")]
    Interrupted,
    /// How many first attempts failed, and of how many.
    #[error("{0} of {1} first attempts failed")]
    TooMany(usize, usize),
    /// The worker reported nothing for this long.
    #[error("no verdict for {0:?}; does a worker run, and is its gate up (consent-gate check --connect)?")]
    Silence(Duration),
    /// The gate is down or paused: the worker has held what was sent for this long.
    #[error("the worker has held what was sent for {0:?}; the gate is down or asks for a pause")]
    Held(Duration),
    #[error("{0}")]
    Broker(String),
}

pub(super) fn broken(error: broker::Error) -> StopReason {
    StopReason::Broker(error.to_string())
}
