//! One request to the gate, from receipt to ending: read, judged, and executed or struck by a fault.
//!
//! Path, method and size come first, since without them there is nothing to judge. Then come the
//! vendor's steps: quota (the early faults), the caller, the request; all other faults follow.
//! Each request gets exactly one outcome, even if its client leaves halfway.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::Method;
use hyper::body::Incoming;
use hyper::http::request::{Parts, Request};
use jiff::Timestamp;
use tokio::time::sleep;

use crate::answer::Answer;
use crate::body;
use crate::effect::{Effect, Ending, Execution};
use crate::judge::{Claim, judge};
use crate::outcome::{Outcome, Refusal};
use crate::simulator::Simulator;

const SYNC_PATH: &str = "/restapi/api/sync/campaigns/triggerbyjson";
const ASYNC_PATH: &str = "/restapi/api/async/campaigns/triggerbyjson";

/// One request while it is in flight; dropped with its answer or with its connection.
pub struct Visit {
    simulator: Arc<Simulator>,
    /// When the request was received.
    at: Timestamp,
    /// What becomes of it if the client leaves now; `None` once its outcome is known.
    if_left: Option<(Outcome, Claim)>,
}

impl Visit {
    pub fn begin(simulator: Arc<Simulator>) -> Self {
        simulator.in_flight.enter();
        Self { simulator, at: Timestamp::now(), if_left: Some((Outcome::Stop, Claim::default())) }
    }

    /// Takes the request to its ending. The caller keeps the visit until the client has the answer.
    pub async fn receive(&mut self, request: Request<Incoming>) -> Ending {
        let (head, body) = request.into_parts();
        let body = match route(&head) {
            Ok(()) => body::read(body).await,
            Err(refusal) => Err(refusal),
        };
        let body = match body {
            Ok(body) => body,
            Err(refusal) => return self.refuse(Claim::default(), &refusal),
        };
        let path_and_query = head.uri.path_and_query().map_or("", |path| path.as_str());
        let integrations = &self.simulator.integrations;
        let now = self.at.as_second();
        let (claim, verdict) = judge(integrations, &head.headers, path_and_query, &body, now);
        match (self.simulator.fault(&claim, verdict.is_ok()), verdict) {
            (Some(effect), _) => self.suffer(claim, &effect).await,
            (None, Err(refusal)) => self.refuse(claim, &refusal),
            (None, Ok(())) => {
                self.execute(claim, Some(Outcome::Accepted.status()));
                Ending::Answer(Answer::success())
            }
        }
    }

    async fn suffer(&mut self, claim: Claim, effect: &Effect) -> Ending {
        let status = effect.ending.status();
        match effect.execution {
            Execution::Never => self.settle(Outcome::Fault, status, claim),
            Execution::InTurn => self.if_left = Some((Outcome::Fault, claim)),
            Execution::Late(delay) => self.execute_late(claim, status, delay),
        }
        if !effect.latency.is_zero() {
            sleep(effect.latency).await;
        }
        if let Some((_, claim)) = self.if_left.take() {
            self.execute(claim, status);
        }
        effect.ending.clone()
    }

    fn execute(&mut self, claim: Claim, status: Option<u16>) {
        self.if_left = None;
        self.simulator.execute(self.at, claim, status);
    }

    /// Executes later, whether or not the client is still there.
    fn execute_late(&mut self, claim: Claim, status: Option<u16>, delay: Duration) {
        self.if_left = None;
        let (simulator, at) = (Arc::clone(&self.simulator), self.at);
        simulator.waiting.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            sleep(delay).await;
            simulator.execute(at, claim, status);
            simulator.waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }

    fn refuse(&mut self, claim: Claim, refusal: &Refusal) -> Ending {
        let answer = Answer::refusal(refusal);
        self.settle(refusal.outcome, Some(answer.status.as_u16()), claim);
        Ending::Answer(answer)
    }

    /// Records an outcome other than execution.
    fn settle(&mut self, outcome: Outcome, status: Option<u16>, claim: Claim) {
        self.if_left = None;
        self.simulator.record(self.at, outcome, status, claim);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some((outcome, claim)) = self.if_left.take() {
            self.simulator.record(self.at, outcome, None, claim);
        }
        self.simulator.in_flight.leave();
    }
}

/// Whether this is a POST to one of the gate's two paths.
fn route(head: &Parts) -> Result<(), Refusal> {
    let path = head.uri.path();
    if path != SYNC_PATH && path != ASYNC_PATH {
        let error = format!("nothing at {path}; the gate is at {SYNC_PATH}");
        return Err(Refusal::new(Outcome::UnknownPath, error));
    }
    if head.method != Method::POST {
        let error = format!("the gate takes POST, not {}", head.method);
        return Err(Refusal::new(Outcome::WrongMethod, error));
    }
    Ok(())
}
