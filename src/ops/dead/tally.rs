//! What became of the letters of a replay, according to the worker's reports (pure).
//!
//! Reports can be lost, and can come twice: a letter counts once for each time it was sent.

use crate::broker::report::Report;
use crate::verdict::HOLD;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// How many of the latest first attempts the share of failures is computed from.
const WINDOW: usize = 200;

/// How many letters with one body were sent, tried and ended.
#[derive(Clone, Copy, Debug, Default)]
struct LetterProgress {
    sent: u16,
    tried: u16,
    ended: u16,
}

/// The letters of one replay.
#[derive(Debug, Default)]
pub struct Tally {
    /// By the first 12 hex digits of the body's SHA-256.
    letters: HashMap<u64, LetterProgress>,
    /// For each of the latest first attempts, whether it failed.
    latest: VecDeque<bool>,
    sent: u32,
    tried: u32,
    pub delivered: u32,
    /// By reason.
    pub skipped: BTreeMap<String, u32>,
    /// By reason.
    pub dead: BTreeMap<String, u32>,
    /// First attempts that failed, by what became of them.
    pub failures: BTreeMap<String, u32>,
    /// Reports of letters that wait because the gate is down or paused.
    pub holds: u32,
    /// All reports about its letters.
    pub reported: u32,
}

impl Tally {
    /// A letter is about to be sent.
    pub fn send(&mut self, body: &str) {
        self.sent += 1;
        self.letters.entry(key(body)).or_default().sent += 1;
    }

    /// A letter could not be sent after all.
    pub fn unsend(&mut self, body: &str) {
        self.sent -= 1;
        if let Some(told) = self.letters.get_mut(&key(body)) {
            told.sent -= 1;
        }
    }

    /// Takes note of a report by the worker.
    pub fn hear(&mut self, report: &Report) {
        let Some(told) = self.letters.get_mut(&key(&report.body)) else { return };
        self.reported += 1;
        let is_end = matches!(report.outcome.as_str(), "delivered" | "skipped" | "dead_lettered");
        let is_first = report.attempt <= 1 && report.outcome != HOLD;
        self.holds += u32::from(report.outcome == HOLD);
        if is_end && told.ended < told.sent {
            told.ended += 1;
            match report.outcome.as_str() {
                "delivered" => self.delivered += 1,
                "skipped" => *self.skipped.entry(report.code.clone()).or_default() += 1,
                _ => *self.dead.entry(report.code.clone()).or_default() += 1,
            }
        }
        // The report of a first attempt may be lost; a letter that ended was tried all the same.
        if (is_first && told.tried < told.sent) || told.tried < told.ended {
            told.tried += 1;
            self.tried += 1;
            let has_failed = !matches!(report.outcome.as_str(), "delivered" | "skipped");
            if has_failed {
                *self.failures.entry(failure(report)).or_default() += 1;
            }
            self.latest.push_back(has_failed);
            if self.latest.len() > WINDOW {
                self.latest.pop_front();
            }
        }
    }

    /// How many were sent.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// How many were sent without anything being known of their first attempt.
    pub fn unreported(&self) -> u32 {
        self.sent.saturating_sub(self.tried)
    }

    /// How many have not ended yet.
    pub fn open(&self) -> u32 {
        self.sent.saturating_sub(self.ended())
    }

    /// How many are dead again.
    pub fn dead_again(&self) -> u32 {
        self.dead.values().sum()
    }

    fn ended(&self) -> u32 {
        self.delivered + self.skipped.values().sum::<u32>() + self.dead_again()
    }

    /// How many of the latest first attempts failed, and of how many, if that is more than `share` of at least
    /// `least` attempts.
    pub fn too_many(&self, share: f64, least: usize) -> Option<(usize, usize)> {
        let failed = self.latest.iter().filter(|failed| **failed).count();
        let is_enough = self.latest.len() >= least.clamp(1, WINDOW);
        let is_above = failed as f64 > share * self.latest.len() as f64;
        (is_enough && is_above).then_some((failed, self.latest.len()))
    }
}

/// Result and status of an attempt that failed; the reason if the gate was not asked.
fn failure(report: &Report) -> String {
    let what = report.result.as_deref().unwrap_or(&report.code);
    match (what, report.status) {
        ("", None) => "with no reason given".to_owned(),
        (what, None) => what.to_owned(),
        (what, Some(status)) => format!("{what} with status {status}"),
    }
}

fn key(body: &str) -> u64 {
    u64::from_str_radix(body, 16).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(body: &str, outcome: &str, code: &str, attempt: u32) -> Report {
        let (outcome, code, body) = (outcome.to_owned(), code.to_owned(), body.to_owned());
        Report { outcome, code, body, attempt, result: None, status: None }
    }

    #[test]
    fn failures_are_told_by_result_and_status() {
        let mut tally = Tally::default();
        let refused = |body| Report {
            result: Some("misconfigured".to_owned()),
            status: Some(401),
            ..report(body, "retry", "", 1)
        };
        for body in ["a", "b", "c", "d"] {
            tally.send(body);
        }
        for told in [refused("a"), refused("b"), report("c", "dead_lettered", "undecodable", 0)] {
            tally.hear(&told);
        }
        tally.hear(&report("d", "delivered", "", 1));
        let told: Vec<(&str, u32)> = tally.failures.iter().map(|(why, count)| (why.as_str(), *count)).collect();
        assert_eq!(told, [("misconfigured with status 401", 2), ("undecodable", 1)]);
    }

    #[test]
    fn each_letter_counts_once_for_each_time_it_was_sent() {
        let mut tally = Tally::default();
        for body in ["a", "b", "b", "c", "d"] {
            tally.send(body);
        }
        tally.unsend("d");
        assert_eq!((tally.sent(), tally.unreported(), tally.open()), (4, 4, 4));
        tally.hear(&report("a", "retry", "", 1));
        tally.hear(&report("a", "delivered", "", 2));
        tally.hear(&report("a", "delivered", "", 2));
        tally.hear(&report("b", "dead_lettered", "refused", 1));
        tally.hear(&report("c", "hold", "", 0));
        tally.hear(&report("f", "delivered", "", 1));
        assert_eq!((tally.unreported(), tally.open(), tally.delivered, tally.holds), (2, 2, 1, 1));
        tally.hear(&report("b", "skipped", "erased", 0));
        tally.hear(&report("c", "delivered", "", 3));
        assert_eq!((tally.unreported(), tally.open(), tally.dead_again()), (0, 0, 1));
    }

    #[test]
    fn too_many_failures_are_noticed_among_the_latest() {
        let mut tally = Tally::default();
        for n in 0..300_u32 {
            let body = format!("{n:x}");
            tally.send(&body);
            tally.hear(&report(&body, if n < 8 { "delivered" } else { "retry" }, "", 1));
            let expected = if n < 10 { None } else { Some(()) };
            assert_eq!(tally.too_many(0.2, 10).map(|_| ()), expected, "{n}");
        }
        assert_eq!(tally.too_many(0.2, 10), Some((200, 200)));
        assert_eq!(tally.too_many(1.0, 10), None);
    }
}
