//! What a rule does to a request that it picked: whether it is executed, and how it ends.

use std::time::Duration;

use crate::answer::Answer;

/// Whether and when a request under a fault is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    Never,
    /// After the latency, before the answer.
    InTurn,
    /// This long after receipt, on its own.
    Late(Duration),
}

/// What the client gets to see.
#[derive(Debug, Clone)]
pub enum Ending {
    Answer(Answer),
    /// Nothing, until the client leaves.
    Silence,
    Reset,
}

impl Ending {
    /// The status of the answer, if there is one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answer(answer) => Some(answer.status.as_u16()),
            Self::Silence | Self::Reset => None,
        }
    }
}

/// What happens to a request that a rule picked.
#[derive(Debug)]
pub struct Effect {
    pub latency: Duration,
    pub execution: Execution,
    pub ending: Ending,
}

impl Effect {
    /// Whether it applies before the caller is known, as a quota or a broken network does.
    pub fn is_early(&self) -> bool {
        self.execution == Execution::Never && matches!(self.ending.status(), None | Some(429 | 503))
    }
}
