//! A gate that answers after a given time and counts requests. It does nothing else, so that it is never what limits
//! the figures.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A listening gate. It ends with the process.
#[derive(Clone)]
pub struct Gate {
    pub url: String,
    received: Arc<AtomicU64>,
    latency_us: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    took_us: Arc<AtomicU64>,
    under_way: Arc<AtomicU64>,
    /// How many requests at once it answers as fast as a single one; 0 for any number.
    knee: Arc<AtomicU64>,
    /// Whether it refuses requests beyond that number, instead of getting slower.
    refuses: Arc<AtomicBool>,
    is_closed: Arc<AtomicBool>,
    /// Milliseconds from an event's publication to its request, if the person's name holds the time.
    waits_ms: Arc<Mutex<Vec<f64>>>,
}

impl Gate {
    /// Listens on a thread of its own, in plain text.
    pub fn listen() -> anyhow::Result<Gate> {
        Gate::listen_with(None)
    }

    /// The same over TLS 1.3, and the authority of its certificate, as PEM.
    pub fn listen_securely() -> anyhow::Result<(Gate, String)> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &authority)?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let versions = [&rustls::version::TLS13];
        let config = ServerConfig::builder_with_protocol_versions(&versions);
        let config = config.with_no_client_auth().with_single_cert(chain, key)?;
        Ok((Gate::listen_with(Some(TlsAcceptor::from(Arc::new(config))))?, authority.pem()))
    }

    fn listen_with(tls: Option<TlsAcceptor>) -> anyhow::Result<Gate> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let gate = Gate {
            url: match tls {
                None => format!("http://{}", listener.local_addr()?),
                Some(_) => format!("https://localhost:{}", listener.local_addr()?.port()),
            },
            received: Arc::default(),
            latency_us: Arc::default(),
            refused: Arc::default(),
            took_us: Arc::default(),
            under_way: Arc::default(),
            knee: Arc::default(),
            refuses: Arc::default(),
            is_closed: Arc::default(),
            waits_ms: Arc::default(),
        };
        let serving = gate.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                while let Ok((stream, _)) = listener.accept().await {
                    let (gate, tls) = (serving.clone(), tls.clone());
                    tokio::spawn(async move {
                        let Some(tls) = tls else { return gate.serve(stream).await };
                        // A client that gives up is not an error here.
                        if let Ok(stream) = tls.accept(stream).await {
                            gate.serve(stream).await;
                        }
                    });
                }
            });
        });
        Ok(gate)
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| self.clone().answer(request));
        let http = hyper::server::conn::http1::Builder::new();
        // A client that disconnects is not an error here.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    /// Resets the counters; from now on the gate answers after this time, or with `None` never.
    pub fn reset(&self, latency: Option<Duration>) {
        self.received.store(0, Ordering::Relaxed);
        self.refused.store(0, Ordering::Relaxed);
        self.took_us.store(0, Ordering::Relaxed);
        self.knee.store(0, Ordering::Relaxed);
        let us = latency.map_or(u64::MAX, |latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        self.latency_us.store(us, Ordering::Relaxed);
        self.waits_ms.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Gives it a knee: beyond this many requests at once it answers later and later, or refuses.
    pub fn bend(&self, knee: u64, refuses: bool) {
        self.knee.store(knee, Ordering::Relaxed);
        self.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Sets whether it refuses everything from now on.
    pub fn refuse(&self, everything: bool) {
        self.is_closed.store(everything, Ordering::Relaxed);
    }

    /// How long it took to answer, on average.
    pub fn mean_ms(&self) -> f64 {
        let answered = self.received().max(1);
        self.took_us.load(Ordering::Relaxed) as f64 / 1_000.0 / answered as f64
    }

    /// Requests that it refused so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Requests so far, without those that it refused.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How long events took to get here, sorted.
    pub fn waits_ms(&self) -> Vec<f64> {
        let mut waits = self.waits_ms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waits.sort_by(f64::total_cmp);
        waits
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        let _one = UnderWay(&self.under_way);
        Ok(self.respond(&body, under_way).await)
    }

    async fn respond(&self, body: &[u8], under_way: u64) -> Response<Full<Bytes>> {
        let knee = self.knee.load(Ordering::Relaxed);
        let beyond = if knee == 0 { 1.0 } else { (under_way as f64 / knee as f64).max(1.0) };
        if self.is_closed.load(Ordering::Relaxed) {
            return self.refusal(StatusCode::SERVICE_UNAVAILABLE);
        }
        if beyond > 1.0 && self.refuses.load(Ordering::Relaxed) {
            return self.refusal(StatusCode::TOO_MANY_REQUESTS);
        }
        self.received.fetch_add(1, Ordering::Relaxed);
        if let Some(wait) = wait_ms(body) {
            self.waits_ms.lock().unwrap_or_else(PoisonError::into_inner).push(wait);
        }
        match self.latency_us.load(Ordering::Relaxed) {
            u64::MAX => std::future::pending::<()>().await,
            0 => {}
            us => {
                let took = Duration::from_micros(us).mul_f64(beyond);
                self.took_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(0), Ordering::Relaxed);
                tokio::time::sleep(took).await;
            }
        }
        Response::new(Full::new(Bytes::from_static(b"{\"IsSuccess\":true,\"Error\":\"\",\"Result\":\"\"}")))
    }

    fn refusal(&self, status: StatusCode) -> Response<Full<Bytes>> {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut response = Response::default();
        *response.status_mut() = status;
        response
    }
}

/// A request that is counted until it is answered, or given up by its client.
struct UnderWay<'g>(&'g AtomicU64);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Persons of the latency case are named `t{microseconds}-{n}@…`.
fn wait_ms(body: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("\"t")?;
    let (us, _) = rest.split_once('-')?;
    let sent: u64 = us.parse().ok()?;
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()?;
    Some(now.saturating_sub(sent) as f64 / 1_000.0)
}
