//! The documented metrics, in Prometheus' text format.
//!
//! Every metric is exposed, whatever the configuration, and every series of its closed label set exists from
//! the start, at 0. This module takes labels as texts and depends on no other module's types.
//!
//! Counters are incremented as things happen. The current state of an integration is not stored here: the
//! caller passes it for each page, so that no gauge can show an outdated state.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// The queues whose depth is shown.
pub const QUEUES: [&str; 6] = ["work", "delay", "retry", "dead", "aside", "unreadable"];
/// Events older than this at receipt, in seconds, are counted as late and not included in the latency.
pub const LATE_AFTER_SECONDS: f64 = 3600.0;

const GATE_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const LATENCY_BUCKETS: [f64; 16] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// The closed sets of labels, as defined by other modules.
#[derive(Clone, Debug)]
pub struct Labels {
    pub outcomes: Vec<&'static str>,
    pub skips: Vec<&'static str>,
    pub deaths: Vec<&'static str>,
    pub results: Vec<&'static str>,
    /// Commands that touch personal data.
    pub commands: Vec<&'static str>,
    /// `1` to the number of delays, and `hold`.
    pub steps: Vec<String>,
}

/// All metrics of the process.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    pub events: IntCounterVec,
    pub skipped: IntCounterVec,
    pub attempts: IntCounterVec,
    pub retries: IntCounterVec,
    pub dead_lettered: IntCounterVec,
    pub gate_request_seconds: HistogramVec,
    pub consent_latency_seconds: HistogramVec,
    pub late_events: IntCounterVec,
    pub parked: IntCounterVec,
    pub returned: IntCounterVec,
    states: States,
    pub stale_values: IntCounterVec,
    pub unknown_values: IntCounterVec,
    pub settle_failures: IntCounterVec,
    pub exchange_missing: IntCounterVec,
    pub letters_vanished: IntCounterVec,
    pub audit_entries: IntCounterVec,
    pub store_errors: IntCounter,
    pub reload_failures: IntCounter,
    pub spans_dropped: IntCounter,
    pub store_clock_offset: Gauge,
    pub build_info: Gauge,
}

/// The state of one integration at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct IntegrationState {
    pub in_flight: usize,
    pub concurrency_limit: usize,
    pub is_breaker_open: bool,
    pub is_misconfigured: Option<bool>,
    pub is_consuming: bool,
    pub skips_everything: bool,
    pub properties_without_value: usize,
    /// When the last event arrived, in seconds since the epoch; 0 for none.
    pub last_event: i64,
    /// How many messages wait, in the order of [`QUEUES`].
    pub waiting: [u32; QUEUES.len()],
}

/// The state of the process at the moment of a scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessState {
    pub is_connected: bool,
    pub holds_store: bool,
    /// The configuration in the files would be refused now.
    pub is_configuration_refused: bool,
    /// The integrations that are served, by name.
    pub integrations: Vec<(String, IntegrationState)>,
}

/// A gauge with one series for each integration, and its value.
type GaugeOfState<'s> = (&'s IntGaugeVec, fn(&IntegrationState) -> i64);

/// The gauges of [`ProcessState`], set anew for each page.
#[derive(Clone, Debug)]
struct States {
    queue_messages: IntGaugeVec,
    in_flight: IntGaugeVec,
    concurrency_limit: IntGaugeVec,
    breaker_open: IntGaugeVec,
    misconfigured: IntGaugeVec,
    consuming: IntGaugeVec,
    skips_everything: IntGaugeVec,
    properties_without_value: IntGaugeVec,
    last_event: IntGaugeVec,
    broker_connected: IntGauge,
    store_held: IntGauge,
    configuration_refused: IntGauge,
}

impl States {
    fn new(r: &Registry) -> prometheus::Result<States> {
        let one = ["integration"];
        Ok(States {
            queue_messages: gauges(r, "queue_messages", "Messages waiting, by queue.", &["integration", "queue"])?,
            in_flight: gauges(r, "in_flight", "Gate requests under way.", &one)?,
            concurrency_limit: gauges(r, "concurrency_limit", "Gate requests allowed at once.", &one)?,
            breaker_open: gauges(r, "breaker_open", "1 while the gate is down and no more events are taken.", &one)?,
            misconfigured: gauges(
                r,
                "misconfigured",
                "1 while the gate refuses the integration (401, 403, 404, 3xx).",
                &one,
            )?,
            consuming: gauges(r, "consuming", "1 while the integration's queues are consumed.", &one)?,
            skips_everything: gauges(r, "skips_everything", "1 while every event in a long series is skipped.", &one)?,
            properties_without_value: gauges(
                r,
                "properties_without_value",
                "Mapped properties that had no value in any of many events.",
                &one,
            )?,
            last_event: gauges(
                r,
                "last_event_timestamp_seconds",
                "When the last event arrived, since the worker's start; 0 for none.",
                &one,
            )?,
            broker_connected: gauge(r, "broker_connected", "1 while the broker is connected.")?,
            store_held: gauge(r, "store_held", "1 while the records can be used.")?,
            configuration_refused: gauge(
                r,
                "configuration_refused",
                "1 while the configuration as it is in its files cannot be used, and an earlier one is in force.",
            )?,
        })
    }

    /// Sets the gauges to this state, and removes all other series.
    fn show(&self, whole: &ProcessState) {
        self.broker_connected.set(whole.is_connected.into());
        self.store_held.set(whole.holds_store.into());
        self.configuration_refused.set(whole.is_configuration_refused.into());
        let of_one = self.of_one();
        for (family, _) in &of_one {
            family.reset();
        }
        self.queue_messages.reset();
        for (name, state) in &whole.integrations {
            for (family, value) in &of_one {
                family.with_label_values(&[name]).set(value(state));
            }
            for (queue, waiting) in QUEUES.iter().zip(state.waiting) {
                self.queue_messages.with_label_values(&[name.as_str(), queue]).set(waiting.into());
            }
        }
    }

    /// The gauges with no label but the integration, and their values.
    fn of_one(&self) -> [GaugeOfState<'_>; 8] {
        [
            (&self.in_flight, |state| count(state.in_flight)),
            (&self.concurrency_limit, |state| count(state.concurrency_limit)),
            (&self.breaker_open, |state| state.is_breaker_open.into()),
            (&self.misconfigured, |state| (state.is_misconfigured == Some(true)).into()),
            (&self.consuming, |state| state.is_consuming.into()),
            (&self.skips_everything, |state| state.skips_everything.into()),
            (&self.properties_without_value, |state| count(state.properties_without_value)),
            (&self.last_event, |state| state.last_event),
        ]
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Registers every metric. `log_lines_dropped` is called at each scrape.
    ///
    /// # Errors
    /// Two metrics with the same name, which is a bug in this module.
    pub fn new(log_lines_dropped: impl Fn() -> u64 + Send + Sync + 'static) -> prometheus::Result<Metrics> {
        let r = Registry::new();
        let lines = opts("log_lines_dropped_total", "Log lines dropped because their reader was too slow.");
        let described = IntCounter::with_opts(lines.clone())?;
        r.register(Box::new(CounterElsewhere { opts: lines, described, count: log_lines_dropped }))?;
        let (one, by_reason) = (["integration"], ["integration", "reason"]);
        let each = |name, help| counters(&r, name, help, &one);
        Ok(Metrics {
            events: counters(&r, "events_total", "Events settled, by outcome.", &["integration", "outcome"])?,
            skipped: counters(&r, "skipped_total", "Events skipped, by reason.", &by_reason)?,
            attempts: counters(&r, "attempts_total", "Gate requests, by result.", &["integration", "result"])?,
            retries: counters(&r, "retries_total", "Events sent to a delay queue, by step.", &["integration", "step"])?,
            dead_lettered: counters(&r, "dead_lettered_total", "Events dead-lettered, by reason.", &by_reason)?,
            gate_request_seconds: histograms(
                &r,
                "gate_request_seconds",
                "Duration of gate requests.",
                &one,
                &GATE_BUCKETS,
            )?,
            consent_latency_seconds: histograms(
                &r,
                "consent_latency_seconds",
                "From the choice to its acceptance by the gate; events over an hour old at receipt are in late_events_total.",
                &["integration", "path"],
                &LATENCY_BUCKETS,
            )?,
            late_events: each("late_events_total", "Accepted events over an hour old at receipt.")?,
            parked: each("parked_total", "Messages published to a delay queue.")?,
            returned: each("returned_total", "Messages that came back after their delay.")?,
            states: States::new(&r)?,
            stale_values: each("stale_values_total", "Values not sent because a newer one is known.")?,
            unknown_values: each(
                "unknown_values_total",
                "Values not sent because their newest value cannot be known.",
            )?,
            settle_failures: each("settle_failures_total", "Publishes or acks that failed.")?,
            exchange_missing: each(
                "exchange_missing_total",
                "Checks that found the exchange, and so the binding, missing.",
            )?,
            letters_vanished: each(
                "letters_vanished_total",
                "Messages that left the queues of an operator, or .store, without a command of this program.",
            )?,
            audit_entries: counters(
                &r,
                "audit_entries_total",
                "Commands that touched personal data.",
                &["integration", "command"],
            )?,
            store_errors: counter(&r, "store_errors_total", "Failed reads or commits of the record store.")?,
            reload_failures: counter(&r, "reload_failures_total", "Changed configurations that were refused.")?,
            spans_dropped: counter(&r, "spans_dropped_total", "Spans that no collector accepted.")?,
            store_clock_offset: seconds(&r, "store_clock_offset_seconds", "How far a shared store's clock is ahead.")?,
            build_info: build_info(&r)?,
            registry: r,
        })
    }

    /// Creates every counter of one integration, at 0; existing ones stay.
    pub fn prepare(&self, integration: &str, labels: &Labels) {
        let each = |family: &IntCounterVec, values: &[&str]| {
            for value in values {
                family.with_label_values(&[integration, value]);
            }
        };
        let steps: Vec<&str> = labels.steps.iter().map(String::as_str).collect();
        each(&self.events, &labels.outcomes);
        each(&self.skipped, &labels.skips);
        each(&self.attempts, &labels.results);
        each(&self.retries, &steps);
        each(&self.dead_lettered, &labels.deaths);
        each(&self.audit_entries, &labels.commands);
        for path in ["first", "retry"] {
            self.consent_latency_seconds.with_label_values(&[integration, path]);
        }
        self.gate_request_seconds.with_label_values(&[integration]);
        let counters = [
            &self.late_events,
            &self.stale_values,
            &self.unknown_values,
            &self.settle_failures,
            &self.parked,
            &self.returned,
        ];
        for family in counters.into_iter().chain([&self.exchange_missing, &self.letters_vanished]) {
            family.with_label_values(&[integration]);
        }
    }

    /// The page that Prometheus scrapes, for this state. Only one page may be made at a time.
    #[must_use]
    pub fn page(&self, whole: &ProcessState) -> String {
        self.states.show(whole);
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// A counter whose value is kept elsewhere.
struct CounterElsewhere<F> {
    opts: Opts,
    /// Always 0: only its description is used.
    described: IntCounter,
    count: F,
}

impl<F: Fn() -> u64 + Send + Sync> Collector for CounterElsewhere<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.described.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The same options worked once before.
        let Ok(counter) = IntCounter::with_opts(self.opts.clone()) else { return Vec::new() };
        counter.inc_by((self.count)());
        counter.collect()
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("consent_gate")
}

fn registered<M: prometheus::core::Collector + Clone + 'static>(r: &Registry, metric: M) -> prometheus::Result<M> {
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(r: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    registered(r, IntCounterVec::new(opts(name, help), labels)?)
}

fn counter(r: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    registered(r, IntCounter::with_opts(opts(name, help))?)
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    registered(r, IntGaugeVec::new(opts(name, help), labels)?)
}

fn gauge(r: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    registered(r, IntGauge::with_opts(opts(name, help))?)
}

fn histograms(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> prometheus::Result<HistogramVec> {
    let opts = HistogramOpts::new(name, help).namespace("consent_gate").buckets(buckets.to_vec());
    registered(r, HistogramVec::new(opts, labels)?)
}

fn seconds(registry: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    let gauge = Gauge::with_opts(opts(name, help))?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn build_info(r: &Registry) -> prometheus::Result<Gauge> {
    let opts =
        opts("build_info", "Always 1; its label is the version.").const_label("version", env!("CARGO_PKG_VERSION"));
    let gauge = registered(r, Gauge::with_opts(opts)?)?;
    gauge.set(1.0);
    Ok(gauge)
}
