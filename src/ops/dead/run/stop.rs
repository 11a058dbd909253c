//! Why a replay was stopped early.

use crate::broker;
use std::fmt;
use std::time::Duration;

/// Why a replay was stopped early.
#[derive(Debug)]
pub enum Stop {
    Interrupted,
    /// How many first attempts failed, and of how many.
    TooMany(usize, usize),
    /// The worker reported nothing for this long.
    Silence(Duration),
    /// The gate is down or paused: the worker has held what was sent for this long.
    Held(Duration),
    Broker(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Interrupted => f.write_str("interrupted"),
            Stop::TooMany(failed, of) => write!(f, "{failed} of {of} first attempts failed"),
            Stop::Silence(time) => write!(
                f,
                "no verdict for {time:?}; does a worker run, and is its gate up (consent-gate check --connect)?"
            ),
            Stop::Held(time) => {
                write!(f, "the worker has held what was sent for {time:?}; the gate is down or asks for a pause")
            }
            Stop::Broker(why) => f.write_str(why),
        }
    }
}

pub(super) fn broken(error: broker::Error) -> Stop {
    Stop::Broker(error.to_string())
}
