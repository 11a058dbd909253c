//! What becomes of an event, case by case. Whole series of attempts are in `tests/it/verdicts.rs`.

use super::*;
use crate::schedule::{OnOutage, Retry};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// Four delays of 10 to 40 seconds, in a window of 300.
fn schedule() -> Schedule {
    let delays = [10, 20, 30, 40].map(Duration::from_secs).to_vec();
    let retry = Retry { delays, window: Duration::from_secs(300), on_outage: OnOutage::DeadLetter };
    Schedule::new(&retry, Duration::from_secs(10)).unwrap()
}

fn answer(outcome: Outcome) -> Answer {
    Answer { outcome, status: Some(503), said: Some("said".to_owned()), ..Answer::unavailable("status 503".to_owned()) }
}

fn attempt(outcome: Outcome) -> Attempt {
    Attempt { at: at(0), result: outcome, status: Some(503), ms: 5 }
}

fn defect() -> Defect {
    Defect::expected("user", "an object", "a list")
}

#[test]
fn while_the_gate_is_down_its_failures_are_no_events_fault() {
    for outcome in Outcome::ALL.iter().copied() {
        let of = |is_down, carries_others| Processed::of(answer(outcome), is_down, carries_others);
        let usual = Processed::Answered(answer(outcome));
        let down = if outcome.blames_endpoint() { Processed::Outage(answer(outcome)) } else { usual.clone() };
        let is_refused = outcome == Outcome::Refused;
        let beside = if is_refused { Processed::RefusedForAnother(answer(outcome)) } else { usual.clone() };
        assert_eq!((of(false, false), of(true, false), of(false, true)), (usual, down, beside), "{outcome:?}");
    }
}

#[test]
fn what_was_answered_and_what_was_wrong_are_told() {
    for processed in [Processed::Answered, Processed::RefusedForAnother, Processed::Outage] {
        let processed = processed(answer(Outcome::Unavailable));
        assert_eq!(processed.answer(), Some(&answer(Outcome::Unavailable)));
        assert_eq!(processed.error().as_deref(), Some("unavailable: status 503"));
        assert_eq!(processed.said().as_deref(), Some("said"));
    }
    for processed in [Processed::Defective(defect()), Processed::TooLarge(defect())] {
        assert_eq!(processed.error(), Some(defect().to_string()));
        assert_eq!((processed.answer(), processed.said()), (None, None));
    }
    assert_eq!(Processed::Held.error(), None);
}

#[test]
fn each_code_is_told_once() {
    let skips: Vec<&str> = Skip::ALL.iter().map(|skip| Verdict::Skipped(*skip).code()).collect();
    let expected = "pending event_deleted user_deleted erased other_organization other_regulation unwanted_type \
        no_identifier";
    assert_eq!(skips.join(" "), expected);
    let mut deaths: Vec<&str> = DeadReason::ALL.iter().map(|death| Verdict::DeadLetter(*death).code()).collect();
    deaths.sort_unstable();
    let expected = "attempts_exhausted crashed future_dated misconfigured not_the_gate older_than_retention panicked \
        refused rejected retry_after_beyond_window too_large undecodable unexpected_status";
    assert_eq!(deaths.join(" "), expected);
}

#[test]
fn a_verdict_has_its_label_and_its_word() {
    let next = NextAttempt { attempts: 1, delay: Duration::ZERO, not_before: None };
    for (verdict, outcome, word) in [
        (Verdict::Delivered, Some("delivered"), "delivered"),
        (Verdict::Skipped(Skip::Erased), Some("skipped"), "skipped"),
        (Verdict::DeadLetter(DeadReason::Refused), Some("dead_lettered"), "dead_lettered"),
        (Verdict::Retry(next), None, "retry"),
        (Verdict::Hold(Duration::ZERO), None, "hold"),
    ] {
        assert_eq!((verdict.outcome(), verdict.word()), (outcome, word));
    }
}

#[test]
fn a_pause_decides_only_where_it_is_longer_than_the_delay() {
    let after = |seconds| {
        let retry_after = Some(Duration::from_secs(seconds));
        let processed = Processed::Answered(Answer { retry_after, ..answer(Outcome::Throttled) });
        decide(&processed, &History::default(), &schedule(), at(0))
    };
    let next =
        |delay, not_before| Verdict::Retry(NextAttempt { attempts: 1, delay: Duration::from_secs(delay), not_before });
    assert_eq!(after(9), next(10, None));
    assert_eq!(after(10), next(10, None));
    assert_eq!(after(20), next(20, Some(at(20))));
    assert_eq!(after(300), next(40, Some(at(300))));
    assert_eq!(after(301), Verdict::DeadLetter(DeadReason::RetryAfterBeyondWindow));
}

#[test]
fn the_last_attempt_and_one_that_cannot_be_counted_end_the_series() {
    let after = |attempts, is_uncountable| {
        let history = History { attempts, is_uncountable, ..History::default() };
        decide(&Processed::Answered(answer(Outcome::Unavailable)), &history, &schedule(), at(0))
    };
    let exhausted = Verdict::DeadLetter(DeadReason::AttemptsExhausted);
    assert_eq!(
        (after(4, false), after(u32::MAX, false), after(0, true)),
        (exhausted.clone(), exhausted.clone(), exhausted)
    );
    assert!(matches!(after(3, false), Verdict::Retry(NextAttempt { attempts: 4, .. })));
}

#[test]
fn what_is_published_says_what_was_learned() {
    let failed = Processed::Answered(answer(Outcome::Unavailable));
    let history = History { attempts: 1, not_before: Some(at(7)), is_repair: true, ..History::default() };
    let settle = |verdict: &Verdict, processed: &Processed, attempt, history: &History, repair| {
        settlement(verdict, processed, attempt, history.clone(), repair)
    };
    let next = NextAttempt { attempts: 2, delay: Duration::from_secs(20), not_before: Some(at(20)) };
    let made = attempt(Outcome::Unavailable);
    let told = history.with(made.clone(), failed.error(), failed.said());
    let expected = History { not_before: Some(at(20)), ..told.clone() };
    let parked = settle(&Verdict::Retry(next), &failed, Some(made.clone()), &history, None);
    assert_eq!(parked, Settlement::Park(Duration::from_secs(20), expected));
    assert!(told.is_repair && told.last_error.is_some() && told.attempts == 2);

    let dead = Verdict::DeadLetter(DeadReason::AttemptsExhausted);
    assert_eq!(
        settle(&dead, &failed, Some(made), &history, None),
        Settlement::Dead(DeadReason::AttemptsExhausted, told)
    );
    // Without an attempt the history stays, and so does its last error, unless there is a new one.
    let undecodable = Verdict::DeadLetter(DeadReason::Undecodable);
    let with_error = History { last_error: Some(defect().to_string()), ..history.clone() };
    let dead = settle(&undecodable, &Processed::Defective(defect()), None, &history, None);
    assert_eq!(dead, Settlement::Dead(DeadReason::Undecodable, with_error.clone()));
    let crashed = Verdict::DeadLetter(DeadReason::Crashed);
    let dead = settle(&crashed, &Processed::Crashed, None, &with_error, None);
    assert_eq!(dead, Settlement::Dead(DeadReason::Crashed, with_error));

    let held = settle(&Verdict::Hold(Duration::from_secs(10)), &Processed::Held, None, &history, None);
    assert_eq!(held, Settlement::Park(Duration::from_secs(10), history.clone()));
    // A repair begins anew, but for what the publisher's headers leave no room for.
    let crowded = History { is_uncountable: true, ..history };
    let repair = History { is_repair: true, is_uncountable: true, not_before: Some(at(60)), ..History::default() };
    let accepted = Processed::Answered(answer(Outcome::Accepted));
    let due = Repair { at: at(60), delay: Duration::from_secs(40) };
    let parked = settle(&Verdict::Delivered, &accepted, None, &crowded, Some(due));
    assert_eq!(parked, Settlement::Park(Duration::from_secs(40), repair));
    assert_eq!(settle(&Verdict::Delivered, &accepted, None, &crowded, None), Settlement::Done);
}

#[test]
fn a_time_that_this_worker_may_have_written_is_waited_for() {
    let waits = |not_before| {
        let history = History { not_before, ..History::default() };
        too_early(&history, &schedule(), at(0))
    };
    for (second, is_waited_for) in [(-1, false), (0, false), (1, true), (299, true), (300, true), (301, false)] {
        assert_eq!(waits(Some(at(second))), is_waited_for.then(|| at(second)), "{second}");
    }
    assert_eq!(waits(None), None);
}
