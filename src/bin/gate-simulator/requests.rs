//! Requests that came in and what became of them: counters, and the latest requests one by one.
//!
//! A request is counted when its outcome is known, so the total is always the sum of the outcomes.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::outcome::Outcome;

/// One request to the gate.
pub struct Entry {
    /// When it was received.
    pub at: Timestamp,
    /// When it was executed, if it was.
    pub executed_at: Option<Timestamp>,
    pub integration: Option<usize>,
    pub outcome: Outcome,
    /// The status of the answer; `None` if no answer is given.
    pub status: Option<u16>,
    pub identifier: Option<String>,
    pub properties: BTreeMap<String, String>,
    pub traceparent: Option<String>,
}

#[derive(Default)]
struct Count {
    total: u64,
    executed: u64,
}

/// Counters and the latest entries, in the order in which outcomes became known.
pub struct Requests {
    names: Vec<String>,
    keep: usize,
    by_integration: Vec<Count>,
    outcomes: [u64; Outcome::ALL.len()],
    recent: VecDeque<Entry>,
}

impl Requests {
    pub fn new(names: Vec<String>, keep: usize) -> Self {
        Self {
            by_integration: names.iter().map(|_| Count::default()).collect(),
            names,
            keep,
            outcomes: Default::default(),
            recent: VecDeque::new(),
        }
    }

    pub fn record(&mut self, entry: Entry) {
        self.outcomes[entry.outcome as usize] += 1;
        if let Some(integration) = entry.integration {
            let count = &mut self.by_integration[integration];
            count.total += 1;
            count.executed += u64::from(entry.outcome == Outcome::Accepted);
        }
        if self.recent.len() >= self.keep {
            self.recent.pop_front();
        }
        if self.keep > 0 {
            self.recent.push_back(entry);
        }
    }

    pub fn reset(&mut self) {
        *self = Self::new(std::mem::take(&mut self.names), self.keep);
    }

    /// Everything, with the latest `limit` entries, oldest first.
    pub fn show(&self, limit: usize) -> Map<String, Value> {
        let outcomes: Map<String, Value> = Outcome::ALL
            .iter()
            .zip(self.outcomes)
            .map(|(outcome, count)| (outcome.word().to_owned(), count.into()))
            .collect();
        let by_integration: Map<String, Value> = self
            .names
            .iter()
            .zip(&self.by_integration)
            .map(|(name, count)| {
                let shown = json!({"total": count.total, "executed": count.executed});
                (name.clone(), shown)
            })
            .collect();
        let left_out = self.recent.len().saturating_sub(limit);
        let recent: Vec<Value> = self.recent.iter().skip(left_out).map(|entry| self.show_entry(entry)).collect();
        Map::from_iter([
            ("total".to_owned(), self.outcomes.iter().sum::<u64>().into()),
            ("executed".to_owned(), self.outcomes[Outcome::Accepted as usize].into()),
            ("outcomes".to_owned(), outcomes.into()),
            ("by_integration".to_owned(), by_integration.into()),
            ("recent".to_owned(), recent.into()),
        ])
    }

    fn show_entry(&self, entry: &Entry) -> Value {
        json!({
            "at": millis(entry.at),
            "executed_at": entry.executed_at.map(millis),
            "integration": entry.integration.map(|place| &self.names[place]),
            "outcome": entry.outcome.word(),
            "status": entry.status,
            "identifier": entry.identifier,
            "properties": entry.properties,
            "traceparent": entry.traceparent,
        })
    }
}

/// RFC 3339 in UTC, with milliseconds.
fn millis(at: Timestamp) -> String {
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(outcome: Outcome, integration: Option<usize>, identifier: &str) -> Entry {
        Entry {
            at: Timestamp::UNIX_EPOCH,
            executed_at: None,
            integration,
            outcome,
            status: Some(outcome.status()),
            identifier: Some(identifier.to_owned()),
            properties: BTreeMap::new(),
            traceparent: None,
        }
    }

    #[test]
    fn totals_add_up_and_the_list_keeps_the_latest() {
        let mut requests = Requests::new(vec!["shop".to_owned()], 2);
        requests.record(entry(Outcome::BadSignature, None, "a"));
        requests.record(entry(Outcome::Accepted, Some(0), "b"));
        requests.record(entry(Outcome::Fault, Some(0), "c"));
        let shown = Value::from(requests.show(usize::MAX));
        assert_eq!(shown["total"], 3);
        assert_eq!(shown["executed"], 1);
        assert_eq!(shown["outcomes"]["bad_signature"], 1);
        assert_eq!(shown["outcomes"]["malformed"], 0);
        assert_eq!(shown["outcomes"].as_object().unwrap().len(), Outcome::ALL.len());
        assert_eq!(shown["by_integration"], json!({"shop": {"total": 2, "executed": 1}}));
        assert_eq!(shown["recent"][0]["identifier"], "b");
        assert_eq!(shown["recent"][1]["at"], "1970-01-01T00:00:00.000Z");
        assert_eq!(shown["recent"].as_array().unwrap().len(), 2);
        assert_eq!(requests.show(1)["recent"][0]["identifier"], "c");
        requests.reset();
        assert_eq!(requests.show(9)["total"], 0);
        assert_eq!(requests.show(9)["recent"], json!([]));
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_to_be_kept() {
        let mut requests = Requests::new(vec!["shop".to_owned()], 0);
        requests.record(entry(Outcome::Accepted, Some(0), "a"));
        assert_eq!(requests.show(9)["recent"], json!([]));
        assert_eq!(requests.show(9)["total"], 1);
    }
}
