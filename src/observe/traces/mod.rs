//! The worker's own spans, for operators who ask for them with `[traces] endpoint`.
//!
//! Each delivery has a span, as a child in the trace that its publisher began, and below it each gate request has
//! one; the gate receives that span's place in the trace as `traceparent`. If a publisher does not want its trace
//! recorded, there are no spans for it. Without an endpoint there are none at all, and nothing here costs more
//! than checking for a `None`.
//!
//! A span holds what a metric's labels hold: words of closed sets, names from the configuration, numbers. Nothing
//! waits for the exporter: when the queue to it is full, a span is dropped and counted.

mod export;
mod otlp;

pub use export::Exporter;
pub use otlp::request;

use crate::bytes::random;
use crate::observe::metrics::Metrics;
use std::time::SystemTime;
use tokio::sync::mpsc;

/// The most ended spans that wait for the exporter.
const MOST_WAITING: usize = 4_096;

/// Checks the address to which spans are sent, as it is typed.
///
/// # Errors
/// What is wrong and what to write instead, for people.
pub fn endpoint(url: &str, allow_http: bool) -> Result<String, String> {
    let form = "write the collector's whole address, such as \"https://collector.example.com:4318/v1/traces\"";
    let parsed = reqwest::Url::parse(url.trim()).map_err(|e| format!("is not an address ({e}); {form}"))?;
    let host = parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(|| format!("names no host; {form}"))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("carries credentials, which are not supported; let your own collector add them".to_owned());
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(format!("carries a query or a fragment; {form}"));
    }
    if parsed.path() == "/" {
        return Err(format!("names no path; {form}"));
    }
    match parsed.scheme() {
        "https" => {}
        "http" if allow_http || crate::gate::endpoint::is_loopback(host) => {}
        "http" => {
            return Err(
                "plain http:// beyond loopback shows the network who is sent what and when; use https://, or set traces.allow_http = true"
                    .to_owned(),
            );
        }
        _ => return Err("its scheme is not supported; use https://".to_owned()),
    }
    Ok(parsed.to_string())
}

/// Begins and ends spans. The default makes none.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Queue>);

#[derive(Clone, Debug)]
struct Queue {
    ended: mpsc::Sender<FinishedSpan>,
    dropped: prometheus::IntCounter,
}

/// A span that is under way.
#[derive(Clone, Debug)]
pub struct Span {
    /// 32 hex digits.
    trace: String,
    /// 16 hex digits.
    id: String,
    /// The span of which this is a part; `None` for a trace that begins here.
    parent: Option<String>,
    began: SystemTime,
}

/// What a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// The handling of a delivery.
    Consumer,
    /// A request to the gate.
    Client,
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    Text(String),
    Number(i64),
}

impl From<&str> for AttributeValue {
    fn from(text: &str) -> AttributeValue {
        AttributeValue::Text(text.to_owned())
    }
}

impl From<u32> for AttributeValue {
    fn from(number: u32) -> AttributeValue {
        AttributeValue::Number(number.into())
    }
}

/// How a span ends.
#[derive(Clone, Debug)]
pub struct SpanEnd {
    pub kind: SpanKind,
    pub name: &'static str,
    pub attributes: Vec<(&'static str, AttributeValue)>,
    pub is_error: bool,
}

/// A span that is over.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    span: Span,
    ending: SpanEnd,
    at: SystemTime,
}

impl Tracer {
    /// A tracer whose spans go to the exporter that reads the other end.
    fn new(metrics: &Metrics) -> (Tracer, mpsc::Receiver<FinishedSpan>) {
        let (ended, receiver) = mpsc::channel(MOST_WAITING);
        (Tracer(Some(Queue { ended, dropped: metrics.spans_dropped.clone() })), receiver)
    }

    /// Begins a span as a part of the trace that a `traceparent` names, or with a trace of its own. `None` if no
    /// spans are made, or this trace's publisher wants none.
    #[must_use]
    pub fn begin(&self, traceparent: Option<&str>) -> Option<Span> {
        self.0.as_ref()?;
        let parent = traceparent.and_then(Parent::read);
        if parent.as_ref().is_some_and(|parent| !parent.is_sampled) {
            return None;
        }
        let (trace, parent) = match parent {
            Some(parent) => (parent.trace, Some(parent.span)),
            None => (hex::encode(random::<16>().ok()?), None),
        };
        Some(Span { trace, id: hex::encode(random::<8>().ok()?), parent, began: SystemTime::now() })
    }

    /// Ends a span, and hands it to the exporter if there is room.
    pub fn end(&self, span: Span, ending: SpanEnd) {
        let Some(Queue { ended, dropped }) = &self.0 else { return };
        if ended.try_send(FinishedSpan { span, ending, at: SystemTime::now() }).is_err() {
            dropped.inc();
        }
    }
}

impl Span {
    /// Its place, as W3C's `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }
}

/// What a `traceparent` names.
struct Parent {
    trace: String,
    span: String,
    is_sampled: bool,
}

impl Parent {
    /// `None` for what W3C calls invalid: then a new trace begins.
    fn read(traceparent: &str) -> Option<Parent> {
        let [version, trace, span, flags] = traceparent.split('-').collect::<Vec<_>>()[..] else { return None };
        let is_zero = |digits: &str| digits.bytes().all(|digit| digit == b'0');
        if version == "ff" || is_zero(trace) || is_zero(span) {
            return None;
        }
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Parent { trace: trace.to_owned(), span: span.to_owned(), is_sampled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer() -> (Tracer, mpsc::Receiver<FinishedSpan>, Metrics) {
        let metrics = Metrics::new(|| 0).unwrap();
        let (tracer, receiver) = Tracer::new(&metrics);
        (tracer, receiver, metrics)
    }

    fn ending() -> SpanEnd {
        SpanEnd { kind: SpanKind::Consumer, name: "consent", attributes: Vec::new(), is_error: false }
    }

    #[test]
    fn a_span_continues_its_publishers_trace_or_begins_one() {
        let (tracer, _receiver, _) = tracer();
        let span = tracer.begin(Some(SAMPLED)).unwrap();
        assert_eq!((span.trace.as_str(), span.parent.as_deref()), (&SAMPLED[3..35], Some(&SAMPLED[36..52])));
        assert_ne!(span.id, SAMPLED[36..52]);
        let child = tracer.begin(Some(&span.traceparent())).unwrap();
        assert_eq!((child.trace, child.parent), (span.trace, Some(span.id)));
        let zeros = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        for none in [None, Some(zeros.as_str()), Some(&SAMPLED.replace("00-4b", "ff-4b"))] {
            let span = tracer.begin(none).unwrap();
            assert_eq!((span.trace.len(), span.id.len(), span.parent), (32, 16, None), "{none:?}");
            assert_ne!(span.trace, SAMPLED[3..35]);
        }
    }

    #[test]
    fn nobody_is_recorded_who_is_not_to_be() {
        let (tracer, _receiver, _) = tracer();
        assert!(tracer.begin(Some(&SAMPLED.replace("-01", "-00"))).is_none());
        assert!(tracer.begin(Some(&SAMPLED.replace("-01", "-03"))).is_some());
        assert!(Tracer::default().begin(Some(SAMPLED)).is_none());
    }

    #[test]
    fn what_has_no_room_is_dropped_and_counted() {
        let (tracer, mut receiver, metrics) = tracer();
        for _ in 0..MOST_WAITING + 3 {
            tracer.end(tracer.begin(None).unwrap(), ending());
        }
        assert_eq!((receiver.len(), metrics.spans_dropped.get()), (MOST_WAITING, 3));
        assert!(receiver.try_recv().is_ok());
    }

    #[test]
    fn an_endpoint_is_an_address_that_shows_nothing_to_the_network() {
        let good = "https://collector.example.com:4318/v1/traces";
        assert_eq!(endpoint(good, false).unwrap(), good);
        assert!(endpoint("http://127.0.0.1:4318/v1/traces", false).is_ok());
        assert!(endpoint("http://collector.example.com/v1/traces", true).is_ok());
        for (wrong, why) in [
            ("http://collector.example.com/v1/traces", "allow_http"),
            ("https://collector.example.com", "no path"),
            ("https://jane:secret@collector.example.com/v1/traces", "credentials"),
            ("https://collector.example.com/v1/traces?key=secret", "query"),
            ("grpc://collector.example.com/v1/traces", "not supported"),
            ("collector.example.com", "not an address"),
        ] {
            let told = endpoint(wrong, false).unwrap_err();
            assert!(told.contains(why) && !told.contains("secret"), "{wrong}: {told}");
        }
    }
}
