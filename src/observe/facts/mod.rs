//! What happened: each fact is one function that both logs and counts, so that the log and the metrics cannot
//! disagree.

mod delivered;
mod queues;
mod seen;
mod series;

pub use delivered::{Fingerprint, Receipt};
pub use seen::LastSeen;
pub use series::labels;

use crate::broker;
use crate::broker::consumers::QueueKind;
use crate::gate::{Answer, Change, Lane, Outcome};
use crate::integration::Integration;
use crate::observe::arrivals::{Silence, SkippedInARow, WithoutValue};
use crate::observe::audit::Entry;
use crate::observe::metrics::{LATE_AFTER_SECONDS, Metrics};
use crate::observe::traces::{Span, SpanEnd, SpanKind, Tracer};
use crate::plan::EventSummary;
use crate::record;
use crate::verdict::{NextAttempt, Processed, Verdict};
use jiff::{SignedDuration, Timestamp};
use series::Each;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// The facts of one integration.
#[derive(Clone, Debug)]
pub struct Facts {
    integration: String,
    metrics: Metrics,
    each: Each,
    tracer: Tracer,
    seen: Arc<LastSeen>,
    row: Arc<Mutex<SkippedInARow>>,
    silence: Arc<Mutex<Silence>>,
    without_value: Arc<Mutex<WithoutValue>>,
}

impl Facts {
    /// The facts of one integration.
    #[must_use]
    pub fn of(integration: &Integration, metrics: &Metrics, tracer: &Tracer, seen: Arc<LastSeen>) -> Facts {
        let name = integration.name.to_string();
        let properties = integration.mappings.iter().map(|mapping| Arc::clone(&mapping.id));
        Facts {
            without_value: Arc::new(Mutex::new(WithoutValue::new(properties))),
            each: Each::of(&name, metrics),
            integration: name,
            metrics: metrics.clone(),
            tracer: tracer.clone(),
            seen,
            row: Arc::default(),
            silence: Arc::new(Mutex::new(Silence::new(Timestamp::now()))),
        }
    }

    /// An event arrived.
    pub fn arrived(&self, at: Timestamp) {
        self.seen.last_event.fetch_max(at.as_second(), Ordering::Relaxed);
    }

    /// The queues have been consumed since `consuming`; warns if no event has arrived for a day.
    pub fn listened(&self, consuming: Timestamp, now: Timestamp) {
        let last = Timestamp::from_second(self.seen.last_event()).ok();
        let told = self.silence.lock().unwrap_or_else(PoisonError::into_inner).look(last, consuming, now);
        let Some(since) = told else { return };
        tracing::warn!(
            integration = self.integration,
            %since,
            "no event has arrived for a day; is anybody publishing, and do exchange and binding keys match?"
        );
    }

    /// Whether every event in a long series was skipped.
    #[must_use]
    pub fn skips_everything(&self) -> bool {
        self.row.lock().unwrap_or_else(PoisonError::into_inner).is_everything()
    }

    /// An event is for the gate, with values for some properties. Warns once if one never had any.
    pub fn mapped(&self, has_value: impl Fn(&str) -> bool) {
        let told = self.without_value.lock().unwrap_or_else(PoisonError::into_inner).came(has_value);
        let Some(properties) = told else { return };
        tracing::warn!(
            integration = self.integration,
            properties = properties.join(", "),
            "no event so far had a value for these properties; is a path in the document misspelt?"
        );
    }

    /// How many properties have had no value in any of many events.
    #[must_use]
    pub fn properties_without_value(&self) -> usize {
        self.without_value.lock().unwrap_or_else(PoisonError::into_inner).count()
    }

    /// A delivery or a request begins, as a part of this trace.
    #[must_use]
    pub fn begun(&self, traceparent: Option<&str>) -> Option<Span> {
        self.tracer.begin(traceparent)
    }

    /// The gate answered one request, or did not.
    pub fn attempted(&self, answer: &Answer, span: Option<Span>) {
        let (name, result) = (self.integration.as_str(), answer.outcome.label());
        // Every request that was sent counts.
        let unanswered = answer.was_resent.then_some(Outcome::Unavailable);
        for outcome in unanswered.into_iter().chain([answer.outcome]) {
            self.each.attempts.iter().filter(|(each, _)| *each == outcome).for_each(|(_, attempts)| attempts.inc());
        }
        self.each.gate_request_seconds.observe(answer.duration.as_secs_f64());
        let duration_ms = answer.duration.as_millis();
        tracing::trace!(integration = name, result, status = answer.status, duration_ms, "gate answered");
        let Some(span) = span else { return };
        let mut attributes = vec![
            ("http.request.method", "POST".into()),
            ("consent_gate.integration", name.into()),
            ("consent_gate.result", result.into()),
        ];
        attributes.extend(answer.status.map(|status| ("http.response.status_code", u32::from(status).into())));
        let is_error = answer.outcome != Outcome::Accepted;
        self.tracer.end(span, SpanEnd { kind: SpanKind::Client, name: "gate request", attributes, is_error });
    }

    /// A delivery is no longer in hand: settled by a verdict, or left to the broker.
    pub fn handled(
        &self,
        span: Option<Span>,
        queue: QueueKind,
        attempts: u32,
        summary: &EventSummary,
        verdict: Option<&Verdict>,
    ) {
        let Some(span) = span else { return };
        let outcome = verdict.map_or("unsettled", Verdict::word);
        let mut attributes = vec![
            ("messaging.system", "rabbitmq".into()),
            ("messaging.operation.type", "process".into()),
            ("consent_gate.integration", self.integration.as_str().into()),
            ("consent_gate.queue", queue.label().into()),
            ("consent_gate.event_type", summary.kind.unwrap_or("unknown").into()),
            ("consent_gate.attempts", attempts.into()),
            ("consent_gate.outcome", outcome.into()),
        ];
        let reason = verdict.map(Verdict::code).filter(|code| !code.is_empty());
        attributes.extend(reason.map(|reason| ("consent_gate.reason", reason.into())));
        let is_error = !matches!(verdict, Some(Verdict::Delivered | Verdict::Skipped(_)));
        self.tracer.end(span, SpanEnd { kind: SpanKind::Consumer, name: "consent", attributes, is_error });
    }

    /// A verdict was carried out, and the broker was told.
    pub fn settled(&self, verdict: &Verdict, processed: &Processed, receipt: &Receipt<'_>, now: Timestamp) {
        let name = self.integration.as_str();
        if let Some(outcome) = verdict.outcome() {
            self.metrics.events.with_label_values(&[name, outcome]).inc();
        }
        self.judged(verdict, now);
        let EventSummary { kind, id, .. } = &receipt.summary;
        let (kind, event_id, body) = (kind.unwrap_or("unknown"), id.as_deref(), receipt.body);
        let trace_id = receipt.trace.as_deref().and_then(|trace| trace.split('-').nth(1));
        let status = processed.answer().and_then(|answer| answer.status);
        let result = processed.answer().map(|answer| answer.outcome.label());
        match verdict {
            Verdict::Delivered => {
                self.latency(receipt, now);
                tracing::debug!(integration = name, kind, event_id, trace_id, %body, "delivered");
            }
            Verdict::Skipped(skip) => {
                self.metrics.skipped.with_label_values(&[name, skip.code()]).inc();
                tracing::debug!(integration = name, kind, event_id, trace_id, %body, reason = skip.code(), "skipped");
            }
            Verdict::Retry(NextAttempt { attempts, delay, .. }) => {
                self.retried(&attempts.to_string());
                let (attempt, delay_ms) = (attempts, delay.as_millis());
                tracing::warn!(
                    integration = name,
                    kind,
                    event_id,
                    trace_id,
                    %body,
                    result,
                    status,
                    attempt,
                    delay_ms,
                    "attempt failed; another one follows"
                );
            }
            Verdict::Hold(delay) => {
                self.retried("hold");
                let delay_ms = delay.as_millis();
                tracing::debug!(integration = name, kind, event_id, trace_id, %body, result, status, delay_ms, "held");
            }
            Verdict::DeadLetter(death) => {
                self.metrics.dead_lettered.with_label_values(&[name, death.code()]).inc();
                let reason = death.code();
                tracing::warn!(
                    integration = name,
                    kind,
                    event_id,
                    trace_id,
                    %body,
                    reason,
                    result,
                    status,
                    "dead-lettered"
                );
            }
        }
    }

    /// Warns once if every event in a long series is skipped.
    fn judged(&self, verdict: &Verdict, now: Timestamp) {
        let told = self.row.lock().unwrap_or_else(PoisonError::into_inner).settled(verdict, now);
        let Some(skipping) = told else { return };
        tracing::warn!(
            integration = self.integration,
            events = skipping.events,
            reason = skipping.reason.code(),
            "every event in a long series was skipped, most of them for this reason; is there a typo in the document?"
        );
    }

    fn retried(&self, step: &str) {
        self.metrics.retries.with_label_values(&[self.integration.as_str(), step]).inc();
    }

    /// A message went to a delay queue.
    pub fn parked(&self) {
        self.metrics.parked.with_label_values(&[&self.integration]).inc();
    }

    /// A message came back from its delay queue.
    pub fn delay_ended(&self) {
        self.metrics.returned.with_label_values(&[&self.integration]).inc();
    }

    /// An event came back through no fault of its own; its count of returns begins anew.
    pub fn came_back(&self) {
        tracing::debug!(integration = self.integration, "came back; its returns are counted from the start again");
    }

    /// A repair ended, or will be tried again.
    pub fn repaired(&self, verdict: &Verdict, receipt: &Receipt<'_>) {
        let (name, body) = (self.integration.as_str(), receipt.body);
        match verdict {
            Verdict::Retry(NextAttempt { attempts, .. }) => self.retried(&attempts.to_string()),
            Verdict::Hold(_) => self.retried("hold"),
            Verdict::DeadLetter(death) => {
                tracing::warn!(integration = name, %body, reason = death.code(), "a repair was given up");
            }
            Verdict::Delivered | Verdict::Skipped(_) => tracing::debug!(integration = name, %body, "repaired"),
        }
    }

    /// An event came with choices that are outdated.
    pub fn stale(&self, values: usize) {
        self.each.stale_values.inc_by(values as u64);
    }

    /// Properties of an event were left out, because their newest value cannot be known.
    pub fn unknown(&self, values: usize) {
        self.each.unknown_values.inc_by(values as u64);
    }

    /// How far the clock of the records is ahead of this machine's.
    pub fn clock_offset(&self, offset: SignedDuration) {
        self.metrics.store_clock_offset.set(offset.as_secs_f64());
    }

    /// The records could not be read or written; the event stays with the broker.
    pub fn store_failed(&self, failed: &record::Failed) {
        self.metrics.store_errors.inc();
        tracing::error!(integration = self.integration, error = %failed, "the records failed; nothing is acked");
    }

    /// An answer of the gate changed what is consumed.
    pub fn gate_changed(&self, change: Change, answer: &Answer) {
        let name = self.integration.as_str();
        let (result, status) = (answer.outcome.label(), answer.status);
        match change {
            Change::Paused(pause) => {
                let pause_ms = pause.as_millis();
                tracing::warn!(integration = name, result, status, pause_ms, "the gate asks for a pause; pausing");
            }
            Change::Opened => {
                tracing::warn!(
                    integration = name,
                    result,
                    status,
                    "the gate is down; no more events are taken, and probes check whether it is back"
                );
            }
            Change::ProbeFailed(next) => {
                let next_ms = next.as_millis();
                tracing::warn!(integration = name, result, status, next_ms, "the gate is still down");
            }
            Change::Closed => tracing::info!(integration = name, "the gate is back; consuming again"),
        }
    }

    /// An event is let through to see whether the gate is back.
    pub fn probing(&self) {
        tracing::info!(integration = self.integration, "probing the gate");
    }

    fn latency(&self, receipt: &Receipt<'_>, now: Timestamp) {
        let Some(changed_at) = receipt.summary.changed_at else { return };
        if receipt.at.duration_since(changed_at).as_secs_f64() > LATE_AFTER_SECONDS {
            self.metrics.late_events.with_label_values(&[&self.integration]).inc();
            return;
        }
        let seconds = now.duration_since(changed_at).as_secs_f64().max(0.0);
        let path = match receipt.lane {
            Lane::Fresh => &self.each.first,
            Lane::Retry => &self.each.retry,
        };
        path.observe(seconds);
    }

    /// A publish or an ack failed; the event stays with the broker.
    pub fn settle_failed(&self, error: &broker::Error, now: Timestamp) {
        self.seen.unsettled.store(now.as_second(), Ordering::Relaxed);
        self.metrics.settle_failures.with_label_values(&[&self.integration]).inc();
        tracing::warn!(
            integration = self.integration,
            %error,
            "could not settle; the event stays with the broker. If this goes on, a policy limits a queue (rabbitmqctl list_policies) or an alarm blocks publishers (rabbitmqctl status)"
        );
    }

    /// A command left an audit entry.
    pub fn audited(&self, written: &[u8]) {
        match Entry::read(written) {
            Some(entry) => {
                self.metrics.audit_entries.with_label_values(&[&self.integration, entry.command.code()]).inc();
                entry.log(&self.integration);
            }
            None => tracing::warn!(
                integration = self.integration,
                "the audit queue contained an entry that this version cannot read; it was dropped"
            ),
        }
    }
}
