//! How long to wait before the next try to connect.

use std::time::Duration;
use tokio_retry::strategy::{ExponentialBackoff, FixedInterval, jitter};

/// The longest pause between two tries to connect to the broker.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest pause between two tries to open the records: a standby takes over within seconds.
const LONGEST_FOR_RECORDS: Duration = Duration::from_secs(2);
/// The longest pause, in milliseconds, after each of the first connections that were lost.
const QUICK_MS: u64 = 100;
/// How many pauses are this short: the broker gives up on a message that kills connections at its 21st
/// return, and until then the messages beside it wait.
const QUICK: usize = 25;
/// After a connection that lasted this long, the count of losses begins again.
const GOOD_WHILE: Duration = Duration::from_secs(30);
/// After this many consecutive lost connections, a message may be the cause.
const LOSSES: u32 = 2;

type Durations = Box<dyn Iterator<Item = Duration> + Send>;

/// The pauses of one integration; they grow while its tries fail.
pub(super) struct Pauses {
    after_failure: Durations,
    after_loss: Durations,
    losses: u32,
}

impl Pauses {
    pub(super) fn new() -> Pauses {
        Pauses { after_failure: after_failure(), after_loss: after_loss(), losses: 0 }
    }

    /// The broker can be reached.
    pub(super) fn connected(&mut self) {
        self.after_failure = after_failure();
    }

    /// Whether so many connections were lost in a row that a message may be the cause.
    pub(super) fn is_careful(&self) -> bool {
        self.losses >= LOSSES
    }

    /// The pause after a connection that lasted this long.
    pub(super) fn after_loss(&mut self, lasted: Duration) -> Duration {
        self.losses += 1;
        if lasted > GOOD_WHILE {
            self.after_loss = after_loss();
            self.losses = 1;
        }
        self.after_loss.next().unwrap_or(LONGEST)
    }

    /// The pause after the broker could not be used.
    pub(super) fn after_failure(&mut self) -> Duration {
        self.after_failure.next().unwrap_or(LONGEST)
    }

    /// The pause after the records could not be used.
    pub(super) fn without_records(&mut self) -> Duration {
        self.after_failure().min(LONGEST_FOR_RECORDS)
    }
}

/// While the broker is down.
fn after_failure() -> Durations {
    Box::new(ExponentialBackoff::from_millis(2).factor(125).max_delay(LONGEST).map(jitter))
}

/// While connections are lost although the broker is up.
fn after_loss() -> Durations {
    Box::new(FixedInterval::from_millis(QUICK_MS).take(QUICK).map(jitter).chain(after_failure()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_tries_fail_and_begin_again_after_a_good_while() {
        let mut pauses = Pauses::new();
        let failures: Vec<Duration> = (0..20).map(|_| pauses.after_failure()).collect();
        assert!(failures[0] <= Duration::from_millis(250) && failures.iter().all(|pause| *pause <= LONGEST));
        assert!(pauses.without_records() <= LONGEST_FOR_RECORDS);
        pauses.connected();
        assert!(pauses.after_failure() <= Duration::from_millis(250));
        let quick = Duration::from_millis(QUICK_MS);
        assert!((0..QUICK).all(|_| pauses.after_loss(Duration::ZERO) <= quick));
        assert!(pauses.is_careful());
        assert!((0..20).map(|_| pauses.after_loss(Duration::ZERO)).any(|pause| pause > quick));
        assert!(pauses.after_loss(GOOD_WHILE * 2) <= quick && !pauses.is_careful());
    }
}
