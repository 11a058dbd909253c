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
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest that a client may take for its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that one connection lives; a scraper simply opens another.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// The most connections served at once; more wait.
const MAX_CONNECTIONS: usize = 32;

#[derive(Debug, Default)]
struct State {
    connected: bool,
    refused: Vec<String>,
}

/// What the worker knows of itself, for `/readyz`.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<State>>,
    integrations: Arc<Vec<String>>,
    metrics: Metrics,
}

impl Health {
    /// Not ready until [`Health::set_connected`] says so.
    #[must_use]
    pub fn new(integrations: Vec<String>, metrics: Metrics) -> Health {
        Health { state: Arc::default(), integrations: Arc::new(integrations), metrics }
    }

    /// Whether the broker is connected and consumed, and the integrations whose queues it refuses.
    pub fn set_connected(&self, connected: bool, refused: Vec<String>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { connected, refused };
        self.metrics.broker_connected.set(i64::from(connected));
    }

    fn ready(&self) -> (StatusCode, String) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = state.connected && state.refused.is_empty();
        let gates: serde_json::Map<_, _> =
            self.integrations.iter().map(|name| (name.clone(), self.gate(name).into())).collect();
        let broker = if state.connected { "connected" } else { "not connected" };
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, json!({ "ready": ready, "broker": broker, "refused": state.refused, "gates": gates }).to_string())
    }

    /// A gate that refuses shows here, in metrics and alerts, but does not make the worker unready.
    fn gate(&self, name: &str) -> &'static str {
        if self.metrics.misconfigured.with_label_values(&[name]).get() == 1 { "misconfigured" } else { "ok" }
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
pub async fn serve(listener: TcpListener, health: Health) {
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
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, JSON, json!({ "alive": true }).to_string()),
        (&Method::GET | &Method::HEAD, "/readyz") => {
            let (status, body) = health.ready();
            (status, JSON, body)
        }
        _ => (StatusCode::NOT_FOUND, TEXT, "try /metrics, /livez or /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
