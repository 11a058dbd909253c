//! The HTTP connections to one server, and when the open ones may no longer be used.
//!
//! A connection that works is reused. After a failure that is no longer safe: the server's name may have
//! another address by now, and every other connection may be as dead as the one that failed. Then all idle
//! connections are dropped, and the next request opens a new one: it looks the name up again, and verifies
//! the server by the current certificate authorities.

use super::tls;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response};
use std::cell::Cell;
use std::fmt;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tower_layer::Layer;
use tower_service::Service;

/// How long an idle connection may still be used. Servers close them after 60 to 75 s; here they are closed
/// within twice this time.
const LONGEST_IDLE: Duration = Duration::from_secs(25);
/// While a server answers but refuses, its connections are dropped at most this often, because each new one
/// costs a handshake.
const RENEW_EVERY: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Whether a connection was opened for the current request.
    static HAS_CONNECTED: Cell<bool>;
}

/// Adds the settings of one client to those that all clients have in common.
type Make = dyn Fn(ClientBuilder) -> ClientBuilder + Send + Sync;

/// A client whose idle connections can be dropped.
pub struct Connections {
    make: Box<Make>,
    ca: Option<Arc<str>>,
    current: Mutex<Generation>,
}

/// The connections that were opened since the last failure.
struct Generation {
    client: Client,
    number: u64,
    since: Instant,
    /// There was an answer, so there may be idle connections.
    has_answered: bool,
    /// The version of the authorities by which servers are verified ([`tls::authorities`]).
    authorities: u64,
}

/// No answer came.
#[derive(Debug)]
pub struct Unanswered {
    pub error: reqwest::Error,
    /// The request was sent on a connection that had been used before, and the server closed it without an
    /// answer: most likely it had closed it already, and the request was never read.
    pub was_closed_meanwhile: bool,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl Connections {
    /// Prepares a client; nothing is sent. `make` adds to the settings that all clients have in common, `ca`
    /// to the authorities that all of them trust.
    ///
    /// # Errors
    /// The TLS library cannot be set up, for example without any system certificates.
    pub fn new(
        ca: Option<Arc<str>>,
        make: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static,
    ) -> anyhow::Result<Connections> {
        let make: Box<Make> = Box::new(make);
        let current = Mutex::new(Generation::begin(&*make, ca.as_deref(), 0)?);
        Ok(Connections { make, ca, current })
    }

    /// Sends a request. Dropping the future counts as a failure.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn send(&self, request: impl FnOnce(&Client) -> RequestBuilder) -> Result<Response, Unanswered> {
        let (client, number) = self.usable();
        let mut failing = Failing { connections: self, number, is_over: false };
        let sending = async { (request(&client).send().await, HAS_CONNECTED.with(Cell::get)) };
        let (sent, has_connected) = HAS_CONNECTED.scope(Cell::new(false), sending).await;
        match sent {
            Ok(response) => {
                failing.is_over = true;
                self.answered(number);
                Ok(response)
            }
            Err(error) => Err(Unanswered { was_closed_meanwhile: !has_connected && is_closed(&error), error }),
        }
    }

    /// Takes note that the server answered with an error of its own.
    pub fn refused(&self) {
        let mut current = self.current();
        if current.since.elapsed() >= RENEW_EVERY {
            self.renew(&mut current);
        }
    }

    fn current(&self) -> MutexGuard<'_, Generation> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> (Client, u64) {
        let mut current = self.current();
        if current.authorities != tls::authorities() {
            self.renew(&mut current);
        }
        (current.client.clone(), current.number)
    }

    fn answered(&self, number: u64) {
        let mut current = self.current();
        if current.number == number {
            current.has_answered = true;
        }
    }

    fn failed(&self, number: u64) {
        let mut current = self.current();
        // Without an answer nothing is idle; so a server that is down causes no extra work.
        if current.number == number && current.has_answered {
            self.renew(&mut current);
        }
    }

    fn renew(&self, current: &mut Generation) {
        // If no new client can be built, the old one is kept.
        if let Ok(next) = Generation::begin(&*self.make, self.ca.as_deref(), current.number + 1) {
            *current = next;
        }
    }
}

impl Generation {
    fn begin(make: &Make, ca: Option<&str>, number: u64) -> anyhow::Result<Generation> {
        let (client, authorities) = tls::client(ca)?;
        let client = make(client).pool_idle_timeout(LONGEST_IDLE).connector_layer(Noticing(())).build()?;
        Ok(Generation { client, number, since: Instant::now(), has_answered: false, authorities })
    }
}

/// A request that counts as failed unless `is_over` is set; so one whose future is dropped counts, too.
struct Failing<'c> {
    connections: &'c Connections,
    number: u64,
    is_over: bool,
}

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.connections.failed(self.number);
        }
    }
}

/// Whether a connection was closed or reset before an answer came.
fn is_closed(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let is_incomplete = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message);
        let is_reset = error.downcast_ref::<std::io::Error>().is_some_and(|error| {
            let ended = [
                ErrorKind::ConnectionReset,
                ErrorKind::ConnectionAborted,
                ErrorKind::BrokenPipe,
                ErrorKind::UnexpectedEof,
            ];
            ended.contains(&error.kind())
        });
        if is_incomplete || is_reset {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Wraps the connector, and notes for the current request that a connection is opened.
#[derive(Clone, Debug)]
struct Noticing<S>(S);

impl<S> Layer<S> for Noticing<()> {
    type Service = Noticing<S>;

    fn layer(&self, inner: S) -> Noticing<S> {
        Noticing(inner)
    }
}

impl<R, S: Service<R>> Service<R> for Noticing<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        // Outside a request, a connection is opened in the background for the next one.
        let _ = HAS_CONNECTED.try_with(|has_connected| has_connected.set(true));
        self.0.call(request)
    }
}

#[cfg(test)]
mod tests;
