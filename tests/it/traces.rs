//! Spans: what a collector gets, and that nothing waits for a collector.

use super::harness::{Lab, Message, PASSWORD, choice, events, poll_until};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";

/// Listens for spans, and keeps them.
pub struct Collector {
    pub address: SocketAddr,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    pub fn new(lab: &Lab) -> Collector {
        let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&bodies);
        let address = lab.bench.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let kept = Arc::clone(&kept);
                    tokio::spawn(async move {
                        let service = service_fn(move |request| keep(request, Arc::clone(&kept)));
                        let http = hyper::server::conn::http1::Builder::new();
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            });
            address
        });
        Collector { address, bodies }
    }

    fn url(&self) -> String {
        format!("http://{}/v1/traces", self.address)
    }

    fn text(&self) -> String {
        self.bodies.lock().unwrap().join("\n")
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Value> {
        let bodies = self.bodies.lock().unwrap();
        let bodies = bodies.iter().map(|body| serde_json::from_str::<Value>(body).unwrap());
        bodies.flat_map(|body| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()).collect()
    }
}

async fn keep(request: Request<Incoming>, kept: Arc<Mutex<Vec<String>>>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/json");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    kept.lock().unwrap().push(String::from_utf8(body.to_vec()).unwrap());
    Ok(Response::new(Full::new(Bytes::from_static(b"{}"))))
}

/// A lab whose worker sends its spans to a collector.
fn lab() -> (Lab, Collector) {
    let mut lab = Lab::new();
    let collector = Collector::new(&lab);
    lab.set("CONSENT_GATE_TRACES__ENDPOINT", &collector.url());
    (lab, collector)
}

fn traced(person: &str, flags: &str) -> Message {
    let mut headers = FieldTable::default();
    let traceparent = format!("00-{TRACE}-{PUBLISHER}-{flags}");
    headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    Message { body: choice(person, true).to_string().into_bytes(), properties }
}

/// A span's attributes as texts.
fn attributes(span: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value["stringValue"].as_str().or(value["intValue"].as_str()).unwrap().to_owned();
    let attributes = span["attributes"].as_array().unwrap().iter();
    attributes.map(|own| (own["key"].as_str().unwrap().to_owned(), text(&own["value"]))).collect()
}

fn of_kind(spans: &[Value], kind: u64) -> Vec<&Value> {
    let mut spans: Vec<&Value> = spans.iter().filter(|span| span["kind"] == kind).collect();
    spans.sort_by_key(|span| span["startTimeUnixNano"].as_str().unwrap().parse::<u64>().unwrap());
    spans
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn each_delivery_is_a_span_of_its_publishers_trace_and_each_request_one_below_it() {
    let (mut lab, collector) = lab();
    lab.gate(0).faults(json!([{ "status": 503, "times": 1 }]));
    lab.start();
    lab.publish(vec![traced("jane@example.com", "01")]);
    lab.settled(1);
    let spans = poll_until("four spans", || Some(collector.spans()).filter(|spans| spans.len() == 4));
    let (deliveries, requests) = (of_kind(&spans, 5), of_kind(&spans, 3));
    assert_eq!((deliveries.len(), requests.len()), (2, 2), "{spans:?}");
    for span in &spans {
        assert_eq!((&span["traceId"], &span["flags"]), (&json!(TRACE), &json!(1)));
        let time = |name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
        assert!(time("startTimeUnixNano") <= time("endTimeUnixNano"));
    }
    let integration = lab.integration().to_owned();
    let told = [("work", "1", "retry"), ("retry", "2", "delivered")];
    for ((delivery, request), (queue, attempts, outcome)) in deliveries.iter().zip(&requests).zip(told) {
        assert_eq!(delivery["parentSpanId"], PUBLISHER);
        assert_eq!(request["parentSpanId"], delivery["spanId"]);
        let expected = [
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.type", "process"),
            ("consent_gate.integration", &integration),
            ("consent_gate.queue", queue),
            ("consent_gate.event_type", "event.created"),
            ("consent_gate.attempts", attempts),
            ("consent_gate.outcome", outcome),
        ];
        assert_eq!(attributes(delivery), expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }
    let answers = [("unavailable", "503", 2), ("accepted", "200", 0)];
    let seen = lab.gate(0).requests()["recent"].to_string();
    for (request, (result, status, code)) in requests.iter().zip(answers) {
        let expected = [
            ("http.request.method", "POST"),
            ("consent_gate.integration", &integration),
            ("consent_gate.result", result),
            ("http.response.status_code", status),
        ];
        assert_eq!(attributes(request), expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        assert_eq!(request["status"]["code"], code);
        let place = format!("00-{TRACE}-{}-01", request["spanId"].as_str().unwrap());
        assert!(seen.contains(&place), "{place} is not in {seen}");
    }
    for personal in ["jane", "example.com", PASSWORD, "api_user"] {
        assert!(!collector.text().contains(personal), "{personal} is in {}", collector.text());
    }
    assert_eq!(lab.metric("consent_gate_spans_dropped_total"), 0.0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_trace_that_is_not_recorded_passes_as_it_came_and_one_that_nobody_began_begins_here() {
    let (mut lab, collector) = lab();
    lab.start();
    lab.publish(vec![traced("quiet@example.com", "00")]);
    lab.settled(1);
    lab.publish(events("own", 1));
    lab.settled(2);
    let spans = poll_until("two spans", || Some(collector.spans()).filter(|spans| spans.len() == 2));
    let delivery = of_kind(&spans, 5)[0];
    assert_eq!(delivery["parentSpanId"], "");
    assert_ne!(delivery["traceId"], TRACE);
    let log = lab.worker().text();
    let line = log.lines().rfind(|line| line.contains("\"delivered\"")).unwrap();
    assert!(line.contains(delivery["traceId"].as_str().unwrap()), "its log line names its trace: {line}");
    let seen = lab.gate(0).requests().to_string();
    assert!(seen.contains(&format!("00-{TRACE}-{PUBLISHER}-00")), "{seen}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_skipped_or_dead_is_told_with_its_reason() {
    let (mut lab, collector) = lab();
    lab.start();
    let mut pending = choice("jane@example.com", true);
    pending["parameters"]["entity"]["status"] = json!("pending_approval");
    lab.publish(vec![pending.into(), b"no JSON".to_vec().into()]);
    lab.settled(2);
    // Waiting spans are sent at the end.
    lab.stop();
    let spans = collector.spans();
    let mut told: Vec<String> =
        spans.iter().map(|span| format!("{:?} {}", attributes(span), span["status"]["code"])).collect();
    told.sort_unstable();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|span| span.contains("\"pending\"") && span.ends_with('0')), "{told:?}");
    assert!(told.iter().any(|span| span.contains("\"undecodable\"") && span.ends_with('2')), "{told:?}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn without_a_collector_events_flow_all_the_same_and_dropped_spans_are_counted() {
    let mut lab = Lab::new();
    // A port on which nobody listens: one that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    lab.set("CONSENT_GATE_TRACES__ENDPOINT", &format!("http://{free}/v1/traces"));
    lab.start();
    for round in 1..=2 {
        lab.publish(events(&format!("p{round}"), 300));
        lab.settled(round * 300);
        poll_until("dropped spans", || {
            (lab.metric("consent_gate_spans_dropped_total") == round as f64 * 600.0).then_some(())
        });
    }
    assert_eq!(lab.gate(0).outcome("accepted"), 600);
    let told = lab.worker().text().matches("the collector did not accept spans").count();
    assert_eq!(told, 1, "not more than once a minute");
    lab.stop();
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_collector_that_never_answers_does_not_hold_up_the_end() {
    let mut lab = Lab::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    lab.set("CONSENT_GATE_TRACES__ENDPOINT", &format!("http://{}/v1/traces", silent.local_addr().unwrap()));
    lab.start();
    lab.publish(events("p", 10));
    lab.settled(10);
    lab.stop();
    assert!(lab.worker().text().contains("did not accept the last spans in time"), "{}", lab.worker().text());
}
