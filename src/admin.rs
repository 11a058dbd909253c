//! Seen from outside: `/metrics`, `/livez` and `/readyz`.

use crate::metrics::Metrics;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest that a client may take for its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that one connection lives; a scraper simply opens another.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// The most connections served at once; more wait.
const MAX_CONNECTIONS: usize = 32;

/// The longest that a connection's supervisor may go without a sign of life: every wait of its
/// own is far shorter.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// How one integration stands with the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not connected, or not any more.
    Disconnected,
    /// The broker is there and refuses its queues.
    Refused,
    /// The records cannot be used: another worker holds them, or they failed.
    WithoutRecords,
    /// Its task ended by a fault and is started anew after a pause.
    Faulted,
    /// Everything is declared, and its queues are consumed.
    Consuming,
}

#[derive(Debug)]
struct Sign {
    standing: Standing,
    /// Why it is no other.
    why: Option<String>,
    at: Instant,
}

/// What the worker knows of itself, for `/readyz` and `/livez`.
#[derive(Clone, Debug)]
pub struct Health {
    signs: Arc<Mutex<BTreeMap<String, Sign>>>,
    metrics: Metrics,
}

impl Health {
    /// Nobody is served until [`Health::show`] says so.
    #[must_use]
    pub fn new(metrics: Metrics) -> Health {
        Health { signs: Arc::default(), metrics }
    }

    /// An integration is not served any more.
    pub fn forget(&self, integration: &str) {
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        signs.remove(integration);
        self.gauge(&signs);
    }

    /// A sign of life of the one that supervises an integration's connections. Says whether it
    /// completed the whole: all are consuming now.
    pub fn show(&self, integration: &str, standing: Standing) -> bool {
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let all = |signs: &BTreeMap<String, Sign>| signs.values().all(|sign| sign.standing == Standing::Consuming);
        let before = all(&signs);
        signs.insert(integration.to_owned(), Sign { standing, why: None, at: Instant::now() });
        let consuming = i64::from(standing == Standing::Consuming);
        self.metrics.consuming.with_label_values(&[integration]).set(consuming);
        self.gauge(&signs);
        !before && all(&signs)
    }

    /// The same of one that cannot consume, and why.
    pub fn show_trouble(&self, integration: &str, standing: Standing, why: &str) {
        self.show(integration, standing);
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sign) = signs.get_mut(integration) {
            sign.why = Some(why.to_owned());
        }
    }

    fn gauge(&self, signs: &BTreeMap<String, Sign>) {
        let is_away = |sign: &Sign| !matches!(sign.standing, Standing::Refused | Standing::Consuming);
        let without = |sign: &Sign| sign.standing == Standing::WithoutRecords;
        self.metrics.broker_connected.set(i64::from(!signs.values().any(is_away)));
        self.metrics.store_held.set(i64::from(!signs.values().any(without)));
    }

    fn ready(&self) -> (StatusCode, String) {
        let signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let those = |wanted| -> Vec<&str> {
            let those = signs.iter().filter(|(_, sign)| sign.standing == wanted);
            those.map(|(name, _)| name.as_str()).collect()
        };
        let ready = those(Standing::Consuming).len() == signs.len();
        let gates: serde_json::Map<_, _> = signs.keys().map(|name| (name.clone(), self.gate(name).into())).collect();
        let (refused, disconnected) = (those(Standing::Refused), those(Standing::Disconnected));
        let faulted = those(Standing::Faulted);
        let reasons: BTreeMap<&str, &str> =
            signs.iter().filter_map(|(name, sign)| Some((name.as_str(), sign.why.as_deref()?))).collect();
        let records = if those(Standing::WithoutRecords).is_empty() { "held" } else { "not available" };
        let broker = if disconnected.is_empty() { "connected" } else { "not connected" };
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = json!({
            "ready": ready,
            "broker": broker,
            "records": records,
            "refused": refused,
            "faulted": faulted,
            "reasons": reasons,
            "gates": gates,
        });
        (status, body.to_string())
    }

    /// Whether a restart would not help.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive().0 == StatusCode::OK
    }

    /// Whether everything still moves. A broker or a gate that is away is no reason to restart; a
    /// supervisor that fell silent is.
    fn alive(&self) -> (StatusCode, String) {
        let signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = |sign: &Sign| sign.at.elapsed() > LONGEST_SILENCE;
        let silent: Vec<&str> =
            signs.iter().filter(|(_, sign)| is_silent(sign)).map(|(name, _)| name.as_str()).collect();
        let status = if silent.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, json!({ "alive": silent.is_empty(), "silent": silent }).to_string())
    }

    /// A gate that refuses shows here, in metrics and alerts, but does not make the worker unready.
    fn gate(&self, name: &str) -> &'static str {
        let is = |family: &prometheus::IntGaugeVec| family.with_label_values(&[name]).get() == 1;
        match (is(&self.metrics.breaker_open), is(&self.metrics.misconfigured)) {
            (_, true) => "misconfigured",
            (true, false) => "down",
            (false, false) => "ok",
        }
    }
}

/// Opens the port, so that a port in use is told at start.
///
/// # Errors
/// The address cannot be listened on.
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
            // Out of file descriptors, most likely: leave the others time to end.
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
    // A client that goes away early, or never reads, is its own business.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

fn respond(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, TEXT, health.metrics.page()),
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
