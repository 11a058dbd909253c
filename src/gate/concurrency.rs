//! Finds the number of parallel requests at which a gate serves most (pure).
//!
//! The measure is throughput. While more parallel requests bring more served answers a second, the limit
//! rises; once they only make each answer slower, or bring refusals, it falls. Every step is compared only
//! with the one before it, so a slow gate is judged no worse than a fast one, one that slows down gets fewer
//! requests, and it does not matter how it refuses.

use std::time::Duration;
use tokio::time::Instant;

/// The limit at which a search begins.
const START: usize = 16;
/// One step up is this fraction of the limit (1/4), and one step down is the way back (1/5).
const UP: usize = 4;
const DOWN: usize = 5;
/// A step up is worth it if it brings this share of the gain that a gate with free capacity would show.
const WORTH: f64 = 0.35;
/// A measurement takes this many answers for each parallel request, at least this many in all, and at least
/// this long.
const ANSWERS_EACH: usize = 4;
const FEWEST_ANSWERS: usize = 64;
const SHORTEST: Duration = Duration::from_millis(100);
/// The share of these answers that must have come while somebody waited for a permit: a limit that is never
/// reached limits nothing.
const MOSTLY: f64 = 0.9;
/// If a step up was not worth it and at least this share of the answers were refusals, the limit stays below
/// that step for this many measurements: each try beyond it costs events an attempt.
const REFUSALS: f64 = 0.1;
const REMEMBERED: u32 = 100;
/// At a bound, throughput may sink to this share before a lower limit is tried.
const SUNK: f64 = 0.7;

/// A search for the best limit.
#[derive(Clone, Debug)]
pub(super) struct Concurrency {
    most: usize,
    limit: usize,
    /// Steps double the limit until the first one that was not worth it.
    is_starting: bool,
    before: Option<Measured>,
    window: Window,
    /// The limit at which refusals began, and for how many more measurements that is remembered.
    refusals: Option<(usize, u32)>,
}

/// What was measured at a limit.
#[derive(Clone, Copy, Debug)]
struct Measured {
    limit: usize,
    /// Answers a second that served a request, minus those that did not: each of these costs an attempt.
    score: f64,
    refused: f64,
}

/// A measurement in progress.
#[derive(Clone, Debug, Default)]
struct Window {
    /// How many answers still belong to the limit before.
    stale: usize,
    since: Option<Instant>,
    answers: usize,
    served: usize,
    full: usize,
}

impl Concurrency {
    /// A search that never goes beyond `most`.
    pub(super) fn new(most: usize) -> Concurrency {
        let limit = most.min(START);
        let window = Window { stale: limit, ..Window::default() };
        Concurrency { most, limit, is_starting: true, before: None, window, refusals: None }
    }

    /// How many requests may be under way.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes note of an answer: whether it served the request (as opposed to showing that the gate cannot),
    /// and whether somebody was waiting for a permit. Returns whether the limit has changed.
    pub(super) fn answered(&mut self, is_served: bool, is_full: bool, now: Instant) -> bool {
        let window = &mut self.window;
        if window.stale > 0 {
            window.stale -= 1;
            return false;
        }
        let since = *window.since.get_or_insert(now);
        window.answers += 1;
        window.served += usize::from(is_served);
        window.full += usize::from(is_full);
        let elapsed = now.saturating_duration_since(since);
        let is_long = window.answers >= self.limit * ANSWERS_EACH && elapsed >= SHORTEST;
        // If most are refused, there is nothing more to learn.
        let is_clear = is_long || window.served * 2 <= window.answers;
        if window.answers < FEWEST_ANSWERS || !is_clear {
            return false;
        }
        let Window { answers, served, full, .. } = std::mem::take(window);
        if (full as f64) < answers as f64 * MOSTLY {
            self.before = None;
            return false;
        }
        let refused = 1.0 - served as f64 / answers as f64;
        let score = (answers as f64 * (1.0 - 2.0 * refused) / elapsed.as_secs_f64()).max(0.0);
        let limit = self.next(Measured { limit: self.limit, score, refused });
        let was = std::mem::replace(&mut self.limit, limit);
        self.window.stale = if limit == was { 0 } else { limit.max(was) };
        limit != was
    }

    /// The limit to try next.
    fn next(&mut self, now: Measured) -> usize {
        let before = self.before.replace(now);
        let rises = match before {
            _ if now.score == 0.0 => false,
            None => true,
            Some(before) if before.limit == now.limit => {
                // At a bound: the result is compared with what was reached there before.
                let has_sunk = now.score < before.score * SUNK;
                self.before = Some(if has_sunk { now } else { before });
                now.limit == 1 || !has_sunk
            }
            Some(before) => {
                let gain = (now.score / before.score).ln();
                gain / (now.limit as f64 / before.limit as f64).ln() >= WORTH
            }
        };
        self.is_starting &= rises;
        self.refusals = match self.refusals {
            _ if !rises && now.refused >= REFUSALS => Some((now.limit, REMEMBERED)),
            Some((limit, left @ 1..)) => Some((limit, left - 1)),
            _ => None,
        };
        let most = self.refusals.map_or(self.most, |(limit, _)| limit.saturating_sub(1).clamp(1, self.most));
        let next = match (rises, self.is_starting) {
            (true, true) => now.limit * 2,
            (true, false) => now.limit + (now.limit / UP).max(1),
            (false, _) if now.score == 0.0 => now.limit / 2,
            (false, _) => now.limit - (now.limit / DOWN).max(1),
        };
        next.clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    /// A simulated gate: given the number of requests under way (this one included) and the time in seconds,
    /// how long an answer takes, in seconds, or a refusal that takes as long.
    type Gate = fn(usize, f64) -> Result<f64, f64>;

    /// The result of a run.
    struct Run {
        served: usize,
        refused: usize,
        limit: usize,
    }

    /// Runs a gate for some seconds with an endless backlog; `fixed` uses a fixed limit instead of a search.
    fn run(gate: Gate, most: usize, seconds: f64, fixed: bool) -> Run {
        let mut search = Concurrency::new(most);
        let (start, mut now, mut seed) = (Instant::now(), 0.0, 1_u64);
        let mut under_way: BinaryHeap<Reverse<(Duration, bool)>> = BinaryHeap::new();
        let (mut served, mut refused) = (0, 0);
        while now < seconds {
            let limit = if fixed { most } else { search.limit() };
            while under_way.len() < limit {
                // Durations vary by a tenth, the same in every run.
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let varied = 0.9 + 0.2 * ((seed >> 40) as f64 / (1_u64 << 24) as f64);
                let (took, is_served) = match gate(under_way.len() + 1, now) {
                    Ok(took) => (took, true),
                    Err(took) => (took, false),
                };
                under_way.push(Reverse((Duration::from_secs_f64(now + took * varied), is_served)));
            }
            let Some(Reverse((at, is_served))) = under_way.pop() else { break };
            now = at.as_secs_f64();
            served += usize::from(is_served);
            refused += usize::from(!is_served);
            search.answered(is_served, true, start + at);
        }
        Run { served, refused, limit: search.limit() }
    }

    const HAS_ROOM: Gate = |_, _| Ok(0.05);

    const HAS_A_KNEE_AT_TEN: Gate = |under_way, _| Ok(0.05 * (under_way as f64 / 10.0).max(1.0));

    const REFUSES_BEYOND_TEN: Gate = |under_way, _| if under_way > 10 { Err(0.001) } else { Ok(0.05) };

    const CHOKES_BEYOND_TEN: Gate = |under_way, _| Ok(0.05 * (under_way as f64 / 10.0).max(1.0).powi(2));

    #[test]
    fn a_gate_with_room_is_asked_as_much_as_may_be() {
        let found = run(HAS_ROOM, 64, 30.0, false);
        assert_eq!(found.limit, 64);
        let most = run(HAS_ROOM, 64, 30.0, true);
        assert!(found.served as f64 > 0.95 * most.served as f64, "{} of {}", found.served, most.served);
    }

    #[test]
    fn a_gate_with_a_knee_is_asked_about_as_much_as_it_takes() {
        let found = run(HAS_A_KNEE_AT_TEN, 256, 120.0, false);
        assert!((6..=20).contains(&found.limit), "{}", found.limit);
        let most = run(HAS_A_KNEE_AT_TEN, 256, 120.0, true);
        assert!(found.served as f64 > 0.9 * most.served as f64, "{} of {}", found.served, most.served);
    }

    #[test]
    fn a_gate_that_refuses_is_asked_less_until_it_hardly_does() {
        let (found, most) = (run(REFUSES_BEYOND_TEN, 64, 120.0, false), run(REFUSES_BEYOND_TEN, 64, 120.0, true));
        assert!(found.refused as f64 * 20.0 < found.served as f64, "{} beside {}", found.refused, found.served);
        assert!(found.refused as f64 * 10.0 < most.refused as f64, "{} against {}", found.refused, most.refused);
        assert!(found.served as f64 > 0.8 * most.served as f64, "{} of {}", found.served, most.served);
    }

    #[test]
    fn a_gate_that_chokes_serves_more_than_at_any_limit_that_is_too_high() {
        let (found, most) = (run(CHOKES_BEYOND_TEN, 64, 120.0, false), run(CHOKES_BEYOND_TEN, 64, 120.0, true));
        assert!(found.served > most.served * 3, "{} against {}", found.served, most.served);
    }

    #[test]
    fn what_a_gate_became_is_found_as_well() {
        let slows_down: Gate =
            |under_way, now| if now < 60.0 { HAS_ROOM(1, now) } else { HAS_A_KNEE_AT_TEN(under_way, now) };
        assert!(run(slows_down, 64, 180.0, false).limit <= 20);
        let recovers: Gate =
            |under_way, now| if now < 60.0 { HAS_A_KNEE_AT_TEN(under_way, now) } else { HAS_ROOM(1, now) };
        assert!(run(recovers, 64, 120.0, false).limit >= 50);
    }

    #[test]
    fn faults_that_have_nothing_to_do_with_load_slow_nothing_down() {
        let one_in_five: Gate = |_, now| if (now * 1e4).rem_euclid(5.0) < 1.0 { Err(0.05) } else { Ok(0.05) };
        assert!(run(one_in_five, 64, 60.0, false).limit >= 50);
    }

    #[test]
    fn a_gate_that_serves_nothing_is_asked_one_by_one() {
        assert_eq!(run(|_, _| Err(0.05), 64, 120.0, false).limit, 1);
    }

    #[test]
    fn a_limit_that_nobody_reaches_stays() {
        let (mut search, start) = (Concurrency::new(64), Instant::now());
        for ms in 0..5_000 {
            assert!(!search.answered(true, false, start + Duration::from_millis(ms)));
        }
        assert_eq!(search.limit(), START);
    }
}
