//! When a failed event is tried again: `[retry]` (pure).

use std::time::Duration;

/// What to do while a gate is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOutage {
    /// Every event spends its attempts and becomes a dead letter.
    #[default]
    DeadLetter,
    /// Consuming stops, and no event spends an attempt, until a probe is answered.
    Hold,
}

/// The settings of `[retry]`, not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The delay before each further attempt.
    pub delays: Vec<Duration>,
    /// The time into which the whole series must fit, and the longest `Retry-After` that is honoured.
    pub window: Duration,
    pub on_outage: OnOutage,
}

impl Default for Retry {
    fn default() -> Retry {
        let delays = [10, 30, 60, 120].map(Duration::from_secs).to_vec();
        Retry { delays, window: Duration::from_secs(300), on_outage: OnOutage::default() }
    }
}

/// The most delays that a schedule may have; the steps in metrics are a closed set.
pub const MAX_DELAYS: usize = 9;
/// The longest message TTL, in milliseconds: 32 bits at the broker.
const MAX_DELAY_MS: u128 = u32::MAX as u128;

/// A checked series of attempts, the first included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    delays: Vec<Duration>,
    window: Duration,
    shortest: Duration,
}

impl Schedule {
    /// Checks that the whole series fits into its window when every attempt takes `timeout`.
    ///
    /// # Errors
    /// What does not fit, and what would.
    pub fn new(retry: &Retry, timeout: Duration) -> Result<Schedule, String> {
        let Retry { delays, window, .. } = retry;
        let Some(shortest) = delays.iter().min().copied().filter(|_| delays.len() <= MAX_DELAYS) else {
            return Err(format!("takes 1 to {MAX_DELAYS} delays"));
        };
        let too_long = |duration: &Duration| duration.as_millis() > MAX_DELAY_MS;
        if shortest.is_zero() || delays.iter().any(too_long) || too_long(window) {
            return Err("takes delays from 1ms to 49d, and a window of 49d at most".to_owned());
        }
        let attempts = delays.len() + 1;
        let waiting: Duration = delays.iter().sum();
        let timeouts = timeout.saturating_mul(u32::try_from(attempts).unwrap_or(u32::MAX));
        let whole = waiting.saturating_add(timeouts);
        if whole > *window {
            return Err(format!(
                "{attempts} attempts cannot fit into the window: {waiting:?} of delays and {attempts} timeouts of {timeout:?} are {whole:?}, more than {window:?}; shorten retry.delays or gate.timeout, or lengthen retry.window"
            ));
        }
        Ok(Schedule { delays: delays.clone(), window: *window, shortest })
    }

    /// How many attempts a publication gets, the first included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        u32::try_from(self.delays.len() + 1).unwrap_or(u32::MAX)
    }

    /// The delay after this many attempts; beyond the schedule's end, the last delay.
    #[must_use]
    pub fn delay_after(&self, attempts: u32) -> Duration {
        let step = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
        self.delays.get(step).or(self.delays.last()).copied().unwrap_or(self.shortest)
    }

    /// The time into which the series fits, and the longest `Retry-After` that is honoured.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// The shortest delay: that of an event that waits without spending an attempt.
    #[must_use]
    pub fn shortest(&self) -> Duration {
        self.shortest
    }

    /// The longest delay.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.delays.iter().max().copied().unwrap_or(self.shortest)
    }

    /// The next delay if `left` is still to be waited: the longest that does not exceed it, else the
    /// shortest.
    #[must_use]
    pub fn delay_within(&self, left: Duration) -> Duration {
        self.delays.iter().copied().filter(|delay| *delay <= left).max().unwrap_or(self.shortest)
    }

    /// Every distinct delay, in order: each has a queue of its own.
    #[must_use]
    pub fn distinct(&self) -> Vec<Duration> {
        let mut delays = self.delays.clone();
        delays.sort_unstable();
        delays.dedup();
        delays
    }
}

impl Default for Schedule {
    fn default() -> Schedule {
        let Retry { delays, window, .. } = Retry::default();
        let shortest = delays.iter().min().copied().unwrap_or(window);
        Schedule { delays, window, shortest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn seconds(delays: &[u64], window: u64) -> Result<Schedule, String> {
        let delays = delays.iter().copied().map(Duration::from_secs).collect();
        let retry = Retry { delays, window: Duration::from_secs(window), on_outage: OnOutage::default() };
        Schedule::new(&retry, TIMEOUT)
    }

    #[test]
    fn the_default_is_five_attempts_in_five_minutes() {
        let schedule = Schedule::new(&Retry::default(), TIMEOUT).unwrap();
        assert_eq!(schedule, Schedule::default());
        assert_eq!(schedule.attempts(), 5);
        let delays: Vec<u64> = (1..=4).map(|made| schedule.delay_after(made).as_secs()).collect();
        assert_eq!(delays, [10, 30, 60, 120]);
        assert_eq!(schedule.window(), Duration::from_secs(300));
        assert_eq!([schedule.shortest(), schedule.longest()].map(|delay| delay.as_secs()), [10, 120]);
    }

    #[test]
    fn a_series_that_cannot_fit_is_refused_with_the_sum() {
        assert!(seconds(&[10, 30, 60, 120], 270).is_ok());
        let why = seconds(&[10, 30, 60, 120], 269).unwrap_err();
        for part in ["220s", "5 timeouts of 10s", "270s", "269s", "retry.window"] {
            assert!(why.contains(part), "{why}");
        }
        assert!(seconds(&[], 300).is_err());
        assert!(seconds(&[1; 10], 300).is_err());
        assert!(seconds(&[1; 9], 300).is_ok());
        assert!(seconds(&[0], 300).is_err());
        assert!(seconds(&[u64::from(u32::MAX)], u64::MAX).unwrap_err().contains("49d"));
    }

    #[test]
    fn delays_may_repeat_and_need_not_grow() {
        let schedule = seconds(&[30, 10, 30], 300).unwrap();
        assert_eq!(schedule.distinct(), [10, 30].map(Duration::from_secs));
        assert_eq!(schedule.shortest(), Duration::from_secs(10));
        assert_eq!(schedule.delay_after(3), Duration::from_secs(30));
        assert_eq!(schedule.delay_after(0), Duration::from_secs(30));
        assert_eq!(schedule.delay_after(u32::MAX), Duration::from_secs(30));
    }

    #[test]
    fn a_long_wait_goes_by_the_longest_leg_that_does_not_pass_it() {
        let schedule = Schedule::default();
        let leg = |seconds| schedule.delay_within(Duration::from_secs(seconds)).as_secs();
        assert_eq!([leg(45), leg(15), leg(5), leg(0), leg(130), leg(100_000)], [30, 10, 10, 10, 120, 120]);
    }
}
