//! Properties of the verdicts: whole series of attempts, with the history that travels in headers.

use consent_gate::broker::headers::for_publish;
use consent_gate::gate::{Answer, Outcome};
use consent_gate::schedule::{OnOutage, Retry, Schedule};
use consent_gate::verdict::history::{Attempt, History};
use consent_gate::verdict::{DeadReason, Processed, Verdict, decide, too_early};
use jiff::Timestamp;
use lapin::BasicProperties;
use proptest::prelude::*;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

fn outcome() -> impl Strategy<Value = Outcome> {
    proptest::sample::select(Outcome::ALL.to_vec())
}

fn failing() -> impl Strategy<Value = Outcome> {
    outcome().prop_filter("fails and may pass", |outcome| !matches!(outcome, Outcome::Accepted | Outcome::Refused))
}

fn schedule() -> impl Strategy<Value = Schedule> {
    proptest::collection::vec(1_u64..40, 1..=9).prop_map(|seconds| {
        let delays: Vec<Duration> = seconds.into_iter().map(Duration::from_secs).collect();
        let window = delays.iter().sum::<Duration>() + TIMEOUT * 10;
        Schedule::new(&Retry { delays, window, on_outage: OnOutage::DeadLetter }, TIMEOUT).unwrap()
    })
}

/// One attempt at the gate, and what happens before it.
#[derive(Clone, Debug)]
struct Visit {
    outcome: Outcome,
    takes: Duration,
    retry_after: Option<Duration>,
    /// How many times the event is held before it gets there.
    holds: u8,
}

fn visit(outcome: impl Strategy<Value = Outcome>, retry_after: bool) -> impl Strategy<Value = Visit> {
    let asked = proptest::option::of((0_u64..1_000).prop_map(Duration::from_secs));
    (outcome, 0_u64..10_000, asked, 0_u8..3).prop_map(move |(outcome, ms, asked, holds)| Visit {
        outcome,
        takes: Duration::from_millis(ms),
        retry_after: asked.filter(|_| retry_after),
        holds,
    })
}

fn visits(outcome: impl Strategy<Value = Outcome>, retry_after: bool) -> impl Strategy<Value = Vec<Visit>> {
    proptest::collection::vec(visit(outcome, retry_after), 10)
}

/// How a series went.
#[derive(Debug, Default)]
struct Series {
    attempts: u32,
    /// The time from the first attempt to the end, without the time in which it was held.
    took: Duration,
    /// The waits between one answer and the next attempt.
    waits: Vec<Duration>,
    end: Option<Verdict>,
}

/// Only the headers are kept between two deliveries.
fn through_the_broker(history: &History) -> History {
    History::read(&for_publish(&BasicProperties::default(), history, None))
}

fn run(schedule: &Schedule, visits: &[Visit]) -> Series {
    let mut now = Timestamp::UNIX_EPOCH;
    let mut history = History::default();
    let mut series = Series::default();
    let mut answered = None;
    for visit in visits {
        for _ in 0..visit.holds {
            let Verdict::Hold(delay) = decide(&Processed::Held, &history, schedule, now) else { panic!("not held") };
            now += delay;
            history = through_the_broker(&history);
        }
        let mut legs = 0;
        while let Some(at) = too_early(&history, schedule, now) {
            let Verdict::Hold(leg) = decide(&Processed::TooEarly(at), &history, schedule, now) else {
                panic!("not held")
            };
            now += leg;
            history = through_the_broker(&history);
            legs += 1;
            assert!(legs < 2_000, "it never gets there");
        }
        let at = now;
        series.waits.extend(answered.map(|answered| Duration::try_from(at.duration_since(answered)).unwrap()));
        now += visit.takes;
        series.attempts += 1;
        series.took += visit.takes;
        let answer = Answer {
            outcome: visit.outcome,
            retry_after: visit.retry_after,
            duration: visit.takes,
            ..Answer::unavailable("down".to_owned())
        };
        let verdict = decide(&Processed::Answered(answer), &history, schedule, now);
        let Verdict::Retry(retry) = &verdict else {
            series.end = Some(verdict);
            return series;
        };
        assert_eq!(retry.attempts, series.attempts);
        answered = Some(now);
        now += retry.delay;
        series.took += retry.delay;
        let attempt = Attempt { at, result: visit.outcome, status: None, ms: 1 };
        history = History { not_before: retry.not_before, ..history.with(attempt, None, None) };
        history = through_the_broker(&history);
    }
    series
}

fn death_of(outcome: Outcome) -> Option<DeadReason> {
    match outcome {
        Outcome::Accepted => None,
        Outcome::Refused => Some(DeadReason::Refused),
        Outcome::Unavailable | Outcome::Throttled => Some(DeadReason::AttemptsExhausted),
        Outcome::Misconfigured => Some(DeadReason::Misconfigured),
        Outcome::Rejected => Some(DeadReason::Rejected),
        Outcome::UnexpectedStatus => Some(DeadReason::UnexpectedStatus),
        Outcome::NotTheGate => Some(DeadReason::NotTheGate),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_more_attempts_than_the_schedule_has(schedule in schedule(), visits in visits(outcome(), true)) {
        let series = run(&schedule, &visits);
        prop_assert!(series.attempts <= schedule.attempts());
        prop_assert!(series.end.is_some(), "every series ends");
    }

    #[test]
    fn never_fewer_for_an_endpoint_that_is_down(schedule in schedule(), visits in visits(failing(), false)) {
        let series = run(&schedule, &visits);
        prop_assert_eq!(series.attempts, schedule.attempts());
        let last = visits[series.attempts as usize - 1].outcome;
        prop_assert_eq!(series.end, death_of(last).map(Verdict::DeadLetter), "the last failure names the reason");
    }

    #[test]
    fn the_whole_series_fits_into_the_window_but_for_holds(schedule in schedule(), visits in visits(failing(), false)) {
        prop_assert!(run(&schedule, &visits).took <= schedule.window());
    }

    #[test]
    fn an_early_end_has_one_of_the_listed_reasons(schedule in schedule(), visits in visits(outcome(), true)) {
        let series = run(&schedule, &visits);
        if series.attempts < schedule.attempts() {
            let last = &visits[series.attempts as usize - 1];
            let expected = match last.outcome {
                Outcome::Accepted => Verdict::Delivered,
                Outcome::Refused => Verdict::DeadLetter(DeadReason::Refused),
                _ => {
                    prop_assert!(last.retry_after.is_some_and(|asked| asked > schedule.window()));
                    Verdict::DeadLetter(DeadReason::RetryAfterBeyondWindow)
                }
            };
            prop_assert_eq!(series.end, Some(expected));
        }
    }

    #[test]
    fn a_retry_after_is_kept_and_no_delay_shortened(schedule in schedule(), visits in visits(failing(), true)) {
        let series = run(&schedule, &visits);
        for (index, waited) in series.waits.iter().enumerate() {
            let step = u32::try_from(index + 1).unwrap();
            let asked = visits[index].retry_after.unwrap_or_default();
            let least = schedule.delay_after(step).max(asked);
            prop_assert!(*waited >= least, "waited {waited:?} of {least:?}");
            let is_held = visits[index + 1].holds > 0;
            prop_assert!(is_held || *waited <= least + schedule.shortest(), "waited {waited:?} for {least:?}");
        }
    }

    #[test]
    fn a_forged_or_damaged_history_never_makes_more_attempts(
        schedule in schedule(),
        attempts in any::<u32>(),
        ahead in any::<i64>(),
        outcome in failing(),
    ) {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let not_before = Timestamp::from_millisecond(now.as_millisecond().saturating_add(ahead)).ok();
        let forged = through_the_broker(&History { attempts, not_before, ..History::default() });
        if let Some(at) = too_early(&forged, &schedule, now) {
            let left = Duration::try_from(at.duration_since(now)).unwrap();
            prop_assert!(left <= schedule.window(), "nobody waits for longer than the window");
        }
        let answer = Answer { outcome, ..Answer::unavailable(String::new()) };
        match decide(&Processed::Answered(answer), &forged, &schedule, now) {
            Verdict::Retry(retry) => prop_assert!(retry.attempts > attempts && retry.attempts < schedule.attempts()),
            verdict => prop_assert_eq!(Some(verdict), death_of(outcome).map(Verdict::DeadLetter)),
        }
    }
}
