//! Whether the gate may be asked now (pure: the clock is an argument).
//!
//! Two things make the gate unusable. A `Retry-After` pauses it for a known time. With `on_outage = "hold"`, a run
//! of failures opens the breaker until a probe is answered: a single request from time to time shows whether the
//! endpoint is back. Waiting for the gate spends no attempts.

use super::{Answer, Outcome, Pass};
use crate::schedule::OnOutage;
use std::time::Duration;
use tokio::time::Instant;

/// This many consecutive failures, of any events, are an outage.
pub const RUN: u32 = 10;
/// The pause before the first probe; doubled after each probe that fails.
const FIRST_PROBE: Duration = Duration::from_secs(5);
/// The longest pause between two probes.
const LONGEST_PROBE: Duration = Duration::from_secs(30);

/// Whether the gate may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It may be asked.
    Closed,
    /// It asked for a pause.
    Paused { until: Instant },
    /// It is down; the next probe is sent at that time.
    Open { probe_at: Instant },
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Paused(Duration),
    Opened,
    /// A probe failed; the next one follows after this time.
    ProbeFailed(Duration),
    Closed,
}

/// Remembers what the last answers showed.
#[derive(Clone, Debug)]
pub struct Breaker {
    on_outage: OnOutage,
    longest_pause: Duration,
    failures: u32,
    paused_until: Option<Instant>,
    open: Option<Open>,
    is_misconfigured: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    probe_at: Instant,
    pause: Duration,
}

impl Breaker {
    /// A closed breaker. No pause is longer than `longest_pause`, however long the gate asks for: after that
    /// time it is asked again.
    #[must_use]
    pub fn new(on_outage: OnOutage, longest_pause: Duration) -> Breaker {
        Breaker { on_outage, longest_pause, failures: 0, paused_until: None, open: None, is_misconfigured: None }
    }

    /// Takes over the state of the same gate's former breaker after a reload: what the answers showed still
    /// holds. If it was open, a probe is due at once, to see whether the new document fixes it.
    pub fn follow(&mut self, former: &Breaker, now: Instant) {
        self.failures = former.failures;
        self.paused_until = former.paused_until.map(|until| until.min(now + self.longest_pause));
        self.is_misconfigured = former.is_misconfigured;
        let is_open = former.open.is_some() && self.on_outage == OnOutage::Hold;
        self.open = is_open.then_some(Open { probe_at: now, pause: FIRST_PROBE });
    }

    /// Whether the gate may be asked.
    #[must_use]
    pub fn state(&self, now: Instant) -> BreakerState {
        match (self.open, self.paused_until.filter(|until| *until > now)) {
            (Some(open), paused) => {
                BreakerState::Open { probe_at: paused.map_or(open.probe_at, |at| at.max(open.probe_at)) }
            }
            (None, Some(until)) => BreakerState::Paused { until },
            (None, None) => BreakerState::Closed,
        }
    }

    /// Whether the gate refuses the integration, as its last answer shows; `None` before the first one. An
    /// improper answer shows nothing about that.
    #[must_use]
    pub fn is_misconfigured(&self) -> Option<bool> {
        self.is_misconfigured
    }

    /// Whether the last answers show an outage, also where events are not held during one.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.open.is_some() || self.failures >= RUN
    }

    /// Takes note of an answer.
    pub fn answered(&mut self, answer: &Answer, pass: Pass, now: Instant) -> Option<Change> {
        let outage = if answer.outcome.blames_endpoint() { self.failed(pass, now) } else { self.worked() };
        match answer.outcome {
            Outcome::Accepted | Outcome::Rejected | Outcome::Refused => self.is_misconfigured = Some(false),
            Outcome::Misconfigured => self.is_misconfigured = Some(true),
            Outcome::Unavailable | Outcome::Throttled | Outcome::NotTheGate | Outcome::UnexpectedStatus => {}
        }
        let pause = answer.retry_after.map(|wait| wait.min(self.longest_pause));
        let until = pause.map(|pause| now + pause);
        let is_longer = until > self.paused_until;
        if is_longer {
            self.paused_until = until;
        }
        outage.or(pause.filter(|_| is_longer).map(Change::Paused))
    }

    fn worked(&mut self) -> Option<Change> {
        self.failures = 0;
        self.open.take().map(|_| Change::Closed)
    }

    fn failed(&mut self, pass: Pass, now: Instant) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        if let Some(open) = &mut self.open {
            // Answers to requests that were under way when it opened say nothing new.
            if pass == Pass::Usual {
                return None;
            }
            open.pause = (open.pause * 2).min(LONGEST_PROBE);
            open.probe_at = now + open.pause;
            return Some(Change::ProbeFailed(open.pause));
        }
        if self.on_outage == OnOutage::DeadLetter || self.failures < RUN {
            return None;
        }
        self.open = Some(Open { probe_at: now + FIRST_PROBE, pause: FIRST_PROBE });
        Some(Change::Opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(outcome: Outcome) -> Answer {
        Answer::of(outcome)
    }

    fn down() -> Answer {
        answer(Outcome::Unavailable)
    }

    fn asks_for(seconds: u64) -> Answer {
        Answer { retry_after: Some(Duration::from_secs(seconds)), ..answer(Outcome::Throttled) }
    }

    fn breaker(on_outage: OnOutage) -> (Breaker, Instant) {
        (Breaker::new(on_outage, Duration::from_secs(300)), Instant::now())
    }

    fn open() -> (Breaker, Instant) {
        let (mut breaker, now) = breaker(OnOutage::Hold);
        for _ in 1..RUN {
            assert_eq!(breaker.answered(&down(), Pass::Usual, now), None);
        }
        assert_eq!(breaker.answered(&down(), Pass::Usual, now), Some(Change::Opened));
        (breaker, now)
    }

    #[test]
    fn another_document_goes_on_where_the_former_stood() {
        let (former, now) = open();
        let mut breaker = Breaker::new(OnOutage::Hold, Duration::from_secs(300));
        breaker.follow(&former, now);
        assert_eq!(breaker.state(now), BreakerState::Open { probe_at: now });
        assert_eq!(breaker.answered(&down(), Pass::Probe, now), Some(Change::ProbeFailed(2 * FIRST_PROBE)));
        assert_eq!(breaker.answered(&answer(Outcome::Misconfigured), Pass::Usual, now), None);
        let mut mended = Breaker::new(OnOutage::DeadLetter, Duration::from_secs(300));
        mended.follow(&breaker, now);
        assert_eq!((mended.state(now), mended.is_misconfigured()), (BreakerState::Closed, Some(true)));
        mended.answered(&answer(Outcome::Accepted), Pass::Usual, now);
        assert_eq!(mended.is_misconfigured(), Some(false));
    }

    #[test]
    fn a_run_of_failures_opens_it_only_where_that_is_wanted() {
        let (mut breaker, now) = breaker(OnOutage::DeadLetter);
        for _ in 0..10 * RUN {
            assert_eq!(breaker.answered(&down(), Pass::Usual, now), None);
        }
        assert_eq!(breaker.state(now), BreakerState::Closed);
        let (breaker, now) = open();
        assert_eq!(breaker.state(now), BreakerState::Open { probe_at: now + FIRST_PROBE });
    }

    #[test]
    fn one_event_that_always_fails_among_others_never_opens_it() {
        let (mut breaker, now) = breaker(OnOutage::Hold);
        for _ in 0..10 * RUN {
            assert_eq!(breaker.answered(&down(), Pass::Usual, now), None);
            assert_eq!(breaker.answered(&answer(Outcome::Accepted), Pass::Usual, now), None);
        }
    }

    #[test]
    fn probes_follow_at_growing_distances_until_one_is_answered() {
        let (mut breaker, opened) = open();
        assert_eq!(breaker.answered(&down(), Pass::Usual, opened), None, "a straggler");
        let mut now = opened;
        for seconds in [5, 10, 20, 30, 30] {
            assert_eq!(breaker.state(now), BreakerState::Open { probe_at: now + Duration::from_secs(seconds) });
            now += Duration::from_secs(seconds);
            let change = breaker.answered(&down(), Pass::Probe, now);
            assert!(matches!(change, Some(Change::ProbeFailed(_))), "{change:?}");
        }
        for outcome in [Outcome::Accepted, Outcome::Refused, Outcome::Rejected] {
            let (mut breaker, now) = open();
            assert_eq!(breaker.answered(&answer(outcome), Pass::Usual, now), Some(Change::Closed));
            assert_eq!(breaker.state(now), BreakerState::Closed);
        }
    }

    #[test]
    fn only_a_proper_answer_ends_a_refusal_of_the_integration() {
        let (mut breaker, now) = breaker(OnOutage::DeadLetter);
        breaker.answered(&down(), Pass::Usual, now);
        assert_eq!(breaker.is_misconfigured(), None, "no proper answer came yet");
        breaker.answered(&answer(Outcome::Misconfigured), Pass::Usual, now);
        for outcome in [Outcome::Unavailable, Outcome::Throttled, Outcome::NotTheGate, Outcome::UnexpectedStatus] {
            breaker.answered(&answer(outcome), Pass::Usual, now);
            assert_eq!(breaker.is_misconfigured(), Some(true));
        }
        for outcome in [Outcome::Accepted, Outcome::Rejected, Outcome::Refused] {
            breaker.answered(&answer(Outcome::Misconfigured), Pass::Usual, now);
            breaker.answered(&answer(outcome), Pass::Usual, now);
            assert_eq!(breaker.is_misconfigured(), Some(false));
        }
    }

    #[test]
    fn a_pause_lasts_as_long_as_was_asked_for_but_not_for_ever() {
        let (mut breaker, now) = breaker(OnOutage::DeadLetter);
        let change = breaker.answered(&asks_for(45), Pass::Usual, now);
        assert_eq!(change, Some(Change::Paused(Duration::from_secs(45))));
        assert_eq!(breaker.answered(&asks_for(10), Pass::Usual, now), None, "the longer one holds");
        let until = now + Duration::from_secs(45);
        assert_eq!(breaker.state(now), BreakerState::Paused { until });
        assert_eq!(breaker.state(until), BreakerState::Closed);
        breaker.answered(&Answer { retry_after: Some(Duration::MAX), ..down() }, Pass::Usual, now);
        assert_eq!(breaker.state(now), BreakerState::Paused { until: now + Duration::from_secs(300) });
    }

    #[test]
    fn a_probe_waits_for_the_end_of_a_pause() {
        let (mut breaker, now) = open();
        breaker.answered(&asks_for(60), Pass::Usual, now);
        assert_eq!(breaker.state(now), BreakerState::Open { probe_at: now + Duration::from_secs(60) });
    }
}
