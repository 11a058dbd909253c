//! Step 5: send one request to the gate and classify the answer.
//!
//! This speaks Selligent's REST v1, by the facts collected in `docs/selligent-gate.md`. What is not certain
//! about the vendor's server is confined to three small files: [`endpoint`] (the address), `signature.rs`
//! (the authentication) and [`answer`] (the meaning of a reply). To use another of the vendor's interfaces,
//! replace these; nothing else depends on its details.
//!
//! One call is one request: nothing here follows redirects or reads without a bound, and nothing is retried except
//! once, on an idle connection that the server has closed: the client notices only after it has written a
//! request to it, and then sends the request again. This costs no attempt, but it is not certain that the
//! server did not execute the first request, so the answer says that there may be an earlier copy.

pub mod answer;
mod body;
pub mod breaker;
mod concurrency;
pub mod connections;
pub mod endpoint;
mod limit;
pub mod redact;
mod request;
mod retry_after;
pub mod signature;
pub mod tls;
pub mod way;

pub use answer::{Answer, Belief, Mode, Outcome};
pub(crate) use body::read_bounded;
pub use breaker::{BreakerState, Change};
pub use endpoint::Endpoint;
pub use limit::{Lane, Limits, Permit};
pub use request::GateRequest;

use crate::schedule::{OnOutage, Schedule};
use answer::HttpReply;
use breaker::Breaker;
use connections::{Connections, Unanswered};
use jiff::Timestamp;
use limit::Limit;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use signature::Signer;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The most that is read of an answer's body, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// The longest pause that is waited for with the event in hand; it is the shortest delay if that is shorter.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

/// One customer's gate, with an HTTP client and limits of its own.
#[derive(Debug)]
pub struct Gate {
    endpoint: Endpoint,
    url: reqwest::Url,
    signer: Signer,
    limits: Limits,
    limit: Limit,
    breaker: Mutex<Breaker>,
    state: watch::Sender<BreakerState>,
    patience: Duration,
    connections: Connections,
    under_way: AtomicUsize,
}

/// Counts a request as under way until it is dropped.
struct UnderWay<'g>(&'g AtomicUsize);

impl<'g> UnderWay<'g> {
    fn new(count: &'g AtomicUsize) -> UnderWay<'g> {
        count.fetch_add(1, Ordering::Relaxed);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How an event may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Only while the gate is usable.
    Usual,
    /// As a probe: to see whether a gate that was down is back.
    Probe,
}

/// The gate is down or asked for a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUsable;

/// What the answers of a gate have shown.
#[derive(Clone, Debug)]
pub struct Learned {
    url: reqwest::Url,
    breaker: Breaker,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerEffects {
    /// The change of the breaker's state, if any.
    pub change: Option<Change>,
    /// The gate is known to be down.
    pub is_down: bool,
}

impl Gate {
    /// Prepares a client; nothing is sent.
    ///
    /// # Errors
    /// The TLS library cannot be set up, for example without any system certificates; or the endpoint was not
    /// checked.
    pub fn new(endpoint: Endpoint, limits: Limits, schedule: &Schedule, on_outage: OnOutage) -> anyhow::Result<Gate> {
        let (connect_timeout, idle) = (limits.connect_timeout.min(limits.timeout), limits.max_in_flight);
        let way = limits.way.clone();
        let connections = Connections::new(limits.way.ca.clone(), move |client| {
            way.lead(client.connect_timeout(connect_timeout).pool_max_idle_per_host(idle))
        })?;
        let breaker = Mutex::new(Breaker::new(on_outage, schedule.window()));
        let (state, _) = watch::channel(BreakerState::Closed);
        let patience = schedule.shortest().min(LONGEST_PATIENCE);
        // Parsed once: parsing it for each request would cost more than signing the request.
        let url = reqwest::Url::parse(&endpoint.url())?;
        let (limit, signer) = (Limit::new(&limits), Signer::default());
        let under_way = AtomicUsize::new(0);
        Ok(Gate { endpoint, url, signer, limits, limit, breaker, state, patience, connections, under_way })
    }

    /// The proxy in front of the gate, as it may be shown.
    #[must_use]
    pub fn proxy(&self) -> Option<&str> {
        self.limits.way.proxy.as_ref().map(way::Proxy::shown)
    }

    /// Where the requests go.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits for a permit, for the rate limit, and for the end of a short pause. A request may be sent while the
    /// permit is held.
    ///
    /// # Errors
    /// [`NotUsable`], if the gate stays unusable for longer than is worth waiting for with the event in hand.
    pub async fn enter(&self, lane: Lane, pass: Pass) -> Result<Permit, NotUsable> {
        let permit = self.limit.enter(lane).await;
        self.pass(lane, pass).await?;
        Ok(permit)
    }

    /// Waits for the rate limit and for the end of a short pause; for callers that need no permit.
    ///
    /// # Errors
    /// [`NotUsable`], if the gate stays unusable for longer than is worth waiting for with the event in hand.
    pub async fn pass(&self, lane: Lane, pass: Pass) -> Result<(), NotUsable> {
        loop {
            self.pause_is_over(pass).await?;
            self.limit.pace(lane).await;
            // It may be unusable by now. After a pause, too, requests leave only at the rate.
            if self.state() == BreakerState::Closed || pass == Pass::Probe {
                return Ok(());
            }
        }
    }

    /// Waits for the end of a short pause.
    async fn pause_is_over(&self, pass: Pass) -> Result<(), NotUsable> {
        loop {
            match self.state() {
                BreakerState::Closed => return Ok(()),
                BreakerState::Open { .. } if pass == Pass::Probe => return Ok(()),
                BreakerState::Paused { until } if self.is_short(until) => tokio::time::sleep_until(until).await,
                BreakerState::Open { .. } | BreakerState::Paused { .. } => return Err(NotUsable),
            }
        }
    }

    /// What the gate's answers have shown, for its successor after a reload of the document.
    #[must_use]
    pub fn learned(&self) -> Learned {
        let breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Learned { url: self.url.clone(), breaker }
    }

    /// Takes over what a former one has learned, if it is about the same gate.
    pub fn follow(&self, former: &Learned) {
        if former.url == self.url {
            let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
            breaker.follow(&former.breaker, tokio::time::Instant::now());
        }
    }

    /// Whether the gate may be asked now.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).state(tokio::time::Instant::now())
    }

    /// Whether the gate may be asked now or very soon, so that consuming continues.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        match self.state() {
            BreakerState::Closed => true,
            BreakerState::Paused { until } => self.is_short(until),
            BreakerState::Open { .. } => false,
        }
    }

    /// Returns once consuming should stop.
    pub async fn unusable(&self) {
        let mut state = self.state.subscribe();
        while self.is_usable() {
            // `self` owns the sender, so there is always a next state.
            let _ = state.changed().await;
        }
    }

    /// Returns at that time, or as soon as the state changes.
    pub async fn changed(&self, at: tokio::time::Instant) {
        let mut state = self.state.subscribe();
        // Read after subscribing: a change before the subscription is not reported.
        let before = self.state();
        let changed = state.wait_for(|_| self.state() != before);
        let _ = tokio::time::timeout_at(at, changed).await;
    }

    fn is_short(&self, until: tokio::time::Instant) -> bool {
        until.saturating_duration_since(tokio::time::Instant::now()) <= self.patience
    }

    /// Takes note of an answer, which may open or close the breaker, or pause the gate for all (`Retry-After`).
    pub fn note(&self, answer: &Answer, pass: Pass) -> AnswerEffects {
        let now = tokio::time::Instant::now();
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let change = breaker.answered(answer, pass, now);
        let state = breaker.state(now);
        drop(breaker);
        if change.is_some() {
            self.state.send_replace(state);
        }
        let is_overload = matches!(answer.outcome, Outcome::Unavailable | Outcome::Throttled | Outcome::NotTheGate);
        self.limit.answered(!is_overload);
        AnswerEffects { change, is_down: matches!(state, BreakerState::Open { .. }) }
    }

    /// How many requests may be under way at once now.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.now()
    }

    /// How many requests are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Whether the gate refuses the integration, as its last proper answer shows; `None` before the first one.
    #[must_use]
    pub fn is_misconfigured(&self) -> Option<bool> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).is_misconfigured()
    }

    /// Whether the last answers show an outage.
    pub fn is_down(&self) -> bool {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).is_down()
    }

    /// Tells the gate that retries are expected within this time, so that permits are kept for them.
    pub fn expect_retries(&self, within: Duration) {
        self.limit.expect_retries(within);
    }

    /// Sends one request, signed with `now`, and classifies the answer. If the connection turns out to have
    /// been closed by the server, the request is sent once more on a new one.
    pub async fn send(&self, request: &GateRequest, now: Timestamp) -> Answer {
        let _under_way = UnderWay::new(&self.under_way);
        let started = Instant::now();
        let exchanged = tokio::time::timeout(self.limits.timeout, self.exchange(request, now)).await;
        let timed_out = |_| Answer::unavailable(format!("no answer within {:?}", self.limits.timeout));
        let mut answer = exchanged.unwrap_or_else(timed_out);
        answer.duration = started.elapsed();
        answer
    }

    async fn exchange(&self, request: &GateRequest, now: Timestamp) -> Answer {
        let authorization = self.signer.authorization(&self.endpoint, now.as_second());
        let proxys = self.limits.way.proxy.as_ref().map(way::Proxy::secrets).unwrap_or_default();
        let redact = |said: &str| {
            let authorization = String::from_utf8_lossy(authorization.as_bytes());
            let secrets = self.endpoint.secrets().chain(authorization.split([' ', ':']));
            let secrets = secrets.chain(proxys.iter().map(String::as_str));
            // The gate's name tells nothing about a person, and may be what is wrong.
            let values = request.values().filter(|value| !value.eq_ignore_ascii_case(self.endpoint.gate()));
            redact::redact(said, values.chain(secrets))
        };
        let post = || {
            self.connections.send(|client| {
                let post = client
                    .post(self.url.clone())
                    .header(AUTHORIZATION, authorization.clone())
                    .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
                    .header(ACCEPT, HeaderValue::from_static("application/json"));
                let post = match request.trace() {
                    Some(trace) => post.header("traceparent", trace),
                    None => post,
                };
                post.body(request.body().clone())
            })
        };
        let mut sent = post().await;
        let was_resent = matches!(&sent, Err(Unanswered { was_closed_meanwhile: true, .. }));
        if was_resent {
            sent = post().await;
        }
        let answer = match sent {
            Ok(response) => self.read(response, &redact, now).await,
            Err(unanswered) => unreached(&unanswered.error.without_url()),
        };
        Answer { was_resent, ..answer }
    }

    /// Reads an answer and classifies it.
    async fn read(
        &self,
        mut response: reqwest::Response,
        redact: &(dyn Fn(&str) -> String + Sync),
        now: Timestamp,
    ) -> Answer {
        let status = response.status();
        let body = match read_bounded(&mut response).await {
            Ok(body) => body,
            // The other statuses need no body.
            Err(_) if !answer::is_told_by_body(status.as_u16()) => Vec::new(),
            Err(error) => return Answer::unavailable(format!("answer broke off: {}", describe(&error.without_url()))),
        };
        let reply = HttpReply { status: status.as_u16(), headers: response.headers(), body: &body };
        let mut answer = answer::classify(reply, self.endpoint.manner(), redact);
        if matches!(answer.outcome, Outcome::Unavailable | Outcome::Misconfigured | Outcome::NotTheGate) {
            self.connections.refused();
        }
        // A permanent refusal of one event is no reason to pause others.
        if !matches!(answer.outcome, Outcome::Accepted | Outcome::Refused) {
            answer.retry_after = retry_after::read(response.headers(), answer.outcome, now);
        }
        answer
    }

    /// Reaches the gate's host without triggering anything, for `check --connect`. Returns the status and, if
    /// the server sends a date, how far its clock is from `now`, in seconds.
    ///
    /// # Errors
    /// Why the host cannot be reached.
    pub async fn reach(&self, now: Timestamp) -> Result<(u16, Option<i64>), String> {
        let request = |client: &reqwest::Client| client.get(self.endpoint.base()).timeout(self.limits.timeout);
        let response = self.connections.send(request).await;
        let response = response.map_err(|unanswered| unreachable(&unanswered.error.without_url()).1)?;
        if response.status() == reqwest::StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err("the proxy requires a different user or password (status 407)".to_owned());
        }
        let date = response.headers().get("date").and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        Ok((response.status().as_u16(), date.map(|date| date.timestamp().as_second() - now.as_second())))
    }
}

/// Classifies a request that got no answer. If the proxy refused, none was sent.
fn unreached(error: &reqwest::Error) -> Answer {
    let (outcome, error) = unreachable(error);
    Answer { error: Some(error), ..Answer::of(outcome) }
}

/// Why a server was not reached, and which outcome that is.
fn unreachable(error: &reqwest::Error) -> (Outcome, String) {
    let error = describe(error);
    if !way::is_refused_by_proxy(&error) {
        return (Outcome::Unavailable, error);
    }
    let remedy = "check its user and password, whether it may connect there, and whether the gate is up";
    (Outcome::Misconfigured, format!("the proxy does not connect to the gate; {remedy}: {error}"))
}

/// An error with its causes, which reqwest's own message leaves out.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}
