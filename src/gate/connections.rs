//! The HTTP connections to one server, and when none of those that are open may be used any more.
//!
//! A connection that works is used again. After a failure that is no longer right: the server's name
//! may mean another address by now, and every other connection may be as dead as the one that
//! failed. Then all that are idle are let go, and the next request opens one: it looks the name up,
//! and verifies the server by the authorities of that moment.

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

/// How long an idle connection may still be used. Servers close them after 60 to 75 s, and ours is
/// closed within twice this time.
const LONGEST_IDLE: Duration = Duration::from_secs(25);
/// While a server answers and refuses, its connections are let go at most this often: each new one
/// costs a handshake.
const RENEW_EVERY: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Whether the request under way had a connection opened.
    static HAS_CONNECTED: Cell<bool>;
}

/// How a client is made, but for what all have in common.
type Make = dyn Fn(ClientBuilder) -> ClientBuilder + Send + Sync;

/// A client whose idle connections can be let go.
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
    /// Something was answered, so there may be idle connections.
    has_answered: bool,
    /// The authorities by which servers are verified.
    authorities: u64,
}

/// No answer came.
#[derive(Debug)]
pub struct Unanswered {
    pub error: reqwest::Error,
    /// The request left on a connection that had been used before, and that the server closed without
    /// a word: most likely it had closed it already, and nobody saw the request.
    pub was_closed_meanwhile: bool,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl Connections {
    /// Prepares a client; nothing is sent. `make` adds to what all clients have in common, `ca` to the
    /// authorities that all trust.
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

    /// Sends a request. When this is given up, it counts as a failure.
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

    /// The server answered, and what it said blames the server.
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
        // Where nothing was answered nothing is idle, and a server that is down costs no more.
        if current.number == number && current.has_answered {
            self.renew(&mut current);
        }
    }

    fn renew(&self, current: &mut Generation) {
        // Without a new client the old one has to do.
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

/// A request that failed unless it is said to be over: also one that was given up.
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

/// Whether a connection ended before an answer came: by its end, or because it was reset.
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

/// Around what opens connections: tells the request for which it does.
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
        // Without a request, a connection is opened in the background for the next one.
        let _ = HAS_CONNECTED.try_with(|has_connected| has_connected.set(true));
        self.0.call(request)
    }
}

#[cfg(test)]
mod tests;
