//! Series of the metrics: those that change with every event, and the labels of all.

use crate::gate::Outcome;
use crate::observe::audit::AuditedAction;
use crate::observe::metrics::{Labels, Metrics};
use crate::schedule::MAX_DELAYS;
use crate::verdict::{DeadReason, Skip};
use prometheus::{Histogram, IntCounter};

/// The series that change with every event: looking them up by their labels costs more than incrementing
/// them.
#[derive(Clone, Debug)]
pub(super) struct Each {
    pub(super) stale_values: IntCounter,
    pub(super) unknown_values: IntCounter,
    pub(super) gate_request_seconds: Histogram,
    pub(super) attempts: [(Outcome, IntCounter); Outcome::ALL.len()],
    pub(super) first: Histogram,
    pub(super) retry: Histogram,
}

impl Each {
    pub(super) fn of(integration: &str, metrics: &Metrics) -> Each {
        let one = [integration];
        let latency = |path| metrics.consent_latency_seconds.with_label_values(&[integration, path]);
        Each {
            stale_values: metrics.stale_values.with_label_values(&one),
            unknown_values: metrics.unknown_values.with_label_values(&one),
            gate_request_seconds: metrics.gate_request_seconds.with_label_values(&one),
            attempts: std::array::from_fn(|index| {
                let outcome = Outcome::ALL[index];
                (outcome, metrics.attempts.with_label_values(&[integration, outcome.label()]))
            }),
            first: latency("first"),
            retry: latency("retry"),
        }
    }
}

/// The closed label sets of the metrics; `delays` is the length of the longest schedule.
#[must_use]
pub fn labels(delays: usize) -> Labels {
    let delays = delays.min(MAX_DELAYS);
    Labels {
        outcomes: vec!["delivered", "skipped", "dead_lettered"],
        skips: Skip::ALL.iter().map(|skip| skip.code()).collect(),
        deaths: DeadReason::ALL.iter().map(|death| death.code()).collect(),
        results: Outcome::ALL.iter().map(|outcome| outcome.label()).collect(),
        commands: AuditedAction::ALL.iter().map(|command| command.code()).collect(),
        steps: (1..=delays).map(|step| step.to_string()).chain(["hold".to_owned()]).collect(),
    }
}
