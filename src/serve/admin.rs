//! The HTTP endpoints: `/metrics`, `/livez` and `/readyz`.

use crate::gate;
use crate::observe::facts::LastSeen;
use crate::observe::metrics::{IntegrationState, Metrics, ProcessState};
use crate::worker::Worker;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest that a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that one connection lives; a scraper simply opens another.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// The most connections served at once; more wait.
const MAX_CONNECTIONS: usize = 32;

/// The longest that a supervisor may go without a sign of life: each of its own waits is far shorter.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// The state of one integration's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Not connected, or no longer.
    Disconnected,
    /// The broker is up and refuses the integration's queues.
    Refused,
    /// Another worker holds the records; this one takes over when that one ends.
    StandingBy,
    /// The records cannot be used.
    WithoutRecords,
    /// Its task ended by a fault and is started again after a pause.
    Faulted,
    /// Nothing new is taken; what is in hand is being finished.
    Draining,
    /// Everything is declared, and its queues are consumed.
    Consuming,
}

#[derive(Debug)]
struct Sign {
    connection_state: ConnectionState,
    /// The reason for this state, if one was given.
    why: Option<String>,
    at: Instant,
    seen: Arc<LastSeen>,
    /// The workers that serve it. The one for the current document is the last; requests of earlier ones may
    /// still be ending.
    workers: Vec<Weak<Worker>>,
}

impl Sign {
    fn new() -> Sign {
        let (seen, workers) = (Arc::default(), Vec::new());
        Sign { connection_state: ConnectionState::Disconnected, why: None, at: Instant::now(), seen, workers }
    }

    /// Its current state, as its workers report it.
    fn state(&self) -> IntegrationState {
        let workers: Vec<Arc<Worker>> = self.workers.iter().filter_map(Weak::upgrade).collect();
        let seen = IntegrationState {
            in_flight: workers.iter().map(|worker| worker.gate().under_way()).sum(),
            is_consuming: self.connection_state == ConnectionState::Consuming,
            last_event: self.seen.last_event(),
            waiting: self.seen.waiting(),
            ..IntegrationState::default()
        };
        let Some(worker) = self.workers.last().and_then(Weak::upgrade) else { return seen };
        IntegrationState {
            concurrency_limit: worker.gate().limit(),
            is_breaker_open: matches!(worker.gate().state(), gate::BreakerState::Open { .. }),
            is_misconfigured: worker.gate().is_misconfigured(),
            skips_everything: worker.facts().skips_everything(),
            properties_without_value: worker.facts().properties_without_value(),
            ..seen
        }
    }

    /// What is known of its gate, `unknown` before its first proper answer. This shows here, in metrics and in
    /// alerts, and does not make the worker unready.
    fn gate(&self) -> &'static str {
        let Some(worker) = self.workers.last().and_then(Weak::upgrade) else { return "unknown" };
        match worker.gate().is_misconfigured() {
            Some(true) => "misconfigured",
            _ if worker.gate().is_down() => "down",
            Some(false) => "ok",
            None => "unknown",
        }
    }
}

/// What the worker knows about itself, for `/metrics`, `/readyz` and `/livez`.
#[derive(Clone, Debug)]
pub struct Health {
    known: Arc<Mutex<KnownOfIntegrations>>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct KnownOfIntegrations {
    signs: BTreeMap<String, Sign>,
    is_stopping: bool,
    is_configuration_refused: bool,
}

impl KnownOfIntegrations {
    fn those(&self, wanted: impl Fn(&Sign) -> bool) -> Vec<&str> {
        self.signs.iter().filter(|(_, sign)| wanted(sign)).map(|(name, _)| name.as_str()).collect()
    }

    /// What is to be said of each integration, where there is something.
    fn of_each<'k, T>(&'k self, said: impl Fn(&'k Sign) -> Option<T>) -> BTreeMap<&'k str, T> {
        self.signs.iter().filter_map(|(name, sign)| Some((name.as_str(), said(sign)?))).collect()
    }

    fn has(&self, wanted: ConnectionState) -> bool {
        self.signs.values().any(|sign| sign.connection_state == wanted)
    }

    fn all_consume(&self) -> bool {
        self.signs.values().all(|sign| sign.connection_state == ConnectionState::Consuming)
    }

    /// Without records, connections are only made for a look.
    fn is_connected(&self) -> bool {
        !self.has(ConnectionState::Disconnected) && self.holds_store()
    }

    fn holds_store(&self) -> bool {
        !self.has(ConnectionState::StandingBy) && !self.has(ConnectionState::WithoutRecords)
    }

    /// The connection to the broker, in words.
    fn broker(&self) -> &'static str {
        if self.has(ConnectionState::Disconnected) {
            "not connected"
        } else if self.holds_store() {
            "connected"
        } else {
            "not used without the records"
        }
    }

    /// The overall state, in a word.
    fn state(&self) -> &'static str {
        if self.is_stopping {
            "stopping"
        } else if self.has(ConnectionState::StandingBy) {
            "standby"
        } else if self.all_consume() {
            "ready"
        } else {
            "not ready"
        }
    }
}

impl Health {
    /// No integration is served until [`Health::show`] says so.
    #[must_use]
    pub fn new(metrics: Metrics) -> Health {
        Health { known: Arc::default(), metrics }
    }

    fn known(&self) -> MutexGuard<'_, KnownOfIntegrations> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process is stopping, so it is no longer ready.
    pub fn stop(&self) {
        self.known().is_stopping = true;
    }

    /// Takes note of whether the configuration in the files is refused now, with an earlier one in force.
    /// Returns whether this has changed.
    #[expect(clippy::must_use_candidate, reason = "it is shown whether or not anybody asks that")]
    pub fn show_configuration(&self, is_refused: bool) -> bool {
        std::mem::replace(&mut self.known().is_configuration_refused, is_refused) != is_refused
    }

    /// An integration is no longer served.
    pub fn forget(&self, integration: &str) {
        self.known().signs.remove(integration);
    }

    /// What was seen of an integration, for as long as it is served.
    #[must_use]
    pub fn seen(&self, integration: &str) -> Arc<LastSeen> {
        let mut known = self.known();
        Arc::clone(&known.signs.entry(integration.to_owned()).or_insert_with(Sign::new).seen)
    }

    /// This worker serves the integration from now on.
    pub fn served_by(&self, integration: &str, worker: &Arc<Worker>) {
        let mut known = self.known();
        let sign = known.signs.entry(integration.to_owned()).or_insert_with(Sign::new);
        sign.workers.retain(|before| before.strong_count() > 0);
        sign.workers.push(Arc::downgrade(worker));
    }

    /// A sign of life from an integration's supervisor. Returns whether with it all integrations are now
    /// consuming.
    #[expect(clippy::must_use_candidate, reason = "it is shown whether or not anybody asks that")]
    pub fn show(&self, integration: &str, connection_state: ConnectionState) -> bool {
        self.sign(integration, connection_state, None)
    }

    /// The same from a supervisor that cannot consume, and why.
    pub fn show_trouble(&self, integration: &str, connection_state: ConnectionState, why: &str) {
        self.sign(integration, connection_state, Some(why.to_owned()));
    }

    fn sign(&self, integration: &str, connection_state: ConnectionState, why: Option<String>) -> bool {
        let mut known = self.known();
        let before = known.all_consume();
        let sign = known.signs.entry(integration.to_owned()).or_insert_with(Sign::new);
        (sign.connection_state, sign.why, sign.at) = (connection_state, why, Instant::now());
        !before && known.all_consume()
    }

    /// The page that Prometheus scrapes.
    #[must_use]
    pub fn page(&self) -> String {
        // Locked while the page is made, so that only one is made at a time.
        let known = self.known();
        let integrations = known.signs.iter().map(|(name, sign)| (name.clone(), sign.state())).collect();
        let (is_connected, holds_store) = (known.is_connected(), known.holds_store());
        let is_configuration_refused = known.is_configuration_refused;
        self.metrics.page(&ProcessState { is_connected, holds_store, is_configuration_refused, integrations })
    }

    fn ready(&self) -> (StatusCode, String) {
        let known = self.known();
        let ready = known.all_consume() && !known.is_stopping;
        let now = Timestamp::now();
        let vanished = |sign: &Sign| {
            let (messages, at) = sign.seen.vanished()?;
            Some(json!({ "messages": messages, "at": at }))
        };
        let records = if known.holds_store() { "held" } else { "not available" };
        let configuration = if known.is_configuration_refused { "refused" } else { "in force" };
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = json!({
            "ready": ready,
            "state": known.state(),
            "broker": known.broker(),
            "records": records,
            "configuration": configuration,
            "refused": known.those(|sign| sign.connection_state == ConnectionState::Refused),
            "faulted": known.those(|sign| sign.connection_state == ConnectionState::Faulted),
            "unsettled": known.those(|sign| sign.seen.cannot_settle(now)),
            "vanished": known.of_each(vanished),
            "reasons": known.of_each(|sign| sign.why.as_deref()),
            "gates": known.of_each(|sign| Some(sign.gate())),
        });
        (status, body.to_string())
    }

    /// Whether a restart would not help.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive().0 == StatusCode::OK
    }

    /// Whether everything still makes progress. A broker or a gate that is down is no reason to restart; a
    /// supervisor without a sign of life is.
    fn alive(&self) -> (StatusCode, String) {
        let known = self.known();
        let silent = known.those(|sign| sign.at.elapsed() > LONGEST_SILENCE);
        let status = if silent.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, json!({ "alive": silent.is_empty(), "silent": silent }).to_string())
    }
}

/// Opens the port, so that a port in use is reported at the start.
///
/// # Errors
/// The worker cannot listen on the address.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let hint = "another worker may run there; set admin.listen";
    TcpListener::bind(address)
        .await
        .map_err(|e| anyhow::anyhow!("cannot listen on {address} for metrics and health: {e}; {hint}"))
}

/// Serves until the process ends.
pub async fn serve(listener: &TcpListener, health: &Health) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve_connection(stream, health.clone(), permit));
            }
            // Most likely out of file descriptors: give other connections time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_connection(stream: TcpStream, health: Health, _permit: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let response = respond(&request, &health);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    // Errors of a client that goes away early, or never reads, are ignored.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

fn respond(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, TEXT, health.page()),
        (&Method::GET | &Method::HEAD, path @ ("/livez" | "/readyz")) => {
            let (status, body) = if path == "/livez" { health.alive() } else { health.ready() };
            (status, JSON, body)
        }
        _ => (StatusCode::NOT_FOUND, TEXT, "try /metrics, /livez or /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
