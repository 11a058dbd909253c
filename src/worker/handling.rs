//! One delivery on its way through steps 1 to 7; read `handle` and `deliver` first.

use super::{Terms, Worker, lane};
use crate::broker::consumers::{Incoming, QueueKind};
use crate::broker::headers::{self, traceparent};
use crate::broker::redelivery::Redelivery;
use crate::broker::settler::Settler;
use crate::event::Body;
use crate::gate::{Answer, AnswerEffects, Lane, NotUsable, Outcome, Permit};
use crate::observe::facts::{Fingerprint, Receipt};
use crate::observe::traces::Span;
use crate::plan::{self, EventSummary, Plan, plan};
use crate::record::sequencer::Ticket;
use crate::record::{self, Answered, Taken, Turn};
use crate::verdict::history::{Attempt, History};
use crate::verdict::{self, NextAttempt, Processed, Repair, Settlement, Skip, Verdict};
use futures_util::FutureExt;
use jiff::Timestamp;
use lapin::types::ShortString;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::time::Duration;

/// The longest that an event waits in hand for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// How long after the end of its delay an event is expected to be in hand again.
const MARGIN: Duration = Duration::from_secs(5);
/// How many times newer values are sent after an accepted request, if they came meanwhile, before the event waits.
const MOST_FOLLOW_UPS: usize = 2;

impl Worker {
    /// Handles a delivery to its end, and returns whether it was settled.
    pub(super) async fn handle(&self, incoming: Incoming, settler: &Settler, terms: Terms) -> bool {
        if incoming.queue_kind == QueueKind::Retry {
            // A letter that is replayed comes into this queue as well, and out of no delay.
            let is_back = || headers::moved(&incoming.due.delivery.properties).is_some();
            if !incoming.due.delivery.redelivered && is_back() {
                self.facts.delay_ended();
            }
            self.gate.expect_retries(MARGIN);
        }
        if incoming.redelivery == Redelivery::Recount {
            return self.recount(incoming, settler).await;
        }
        let received = Timestamp::now();
        self.facts.arrived(received);
        let publishers_trace = traceparent(&incoming.due.delivery.properties);
        let span = self.facts.begun(publishers_trace.as_deref());
        let trace = span.as_ref().map(Span::traceparent).or(publishers_trace);
        let handling = Handling { incoming: &incoming, settler, terms, received };
        let (summary, plan) = self.read(&handling, trace.as_deref()).await;
        let handled = match plan {
            Ok(ref plan) => guarded(self.deliver(&handling, plan)).await,
            Err(processed) => Err(processed.into()),
        };
        let Incoming { due, queue_kind, history, .. } = incoming;
        let Handled { processed, attempt, is_repair_due } = match handled {
            Ok(handled) => handled,
            Err(Stop::Processed(processed)) => processed.into(),
            Err(Stop::Unsettled) => {
                self.facts.handled(span, queue_kind, history.attempts, &summary, None);
                return false;
            }
        };
        let verdict = verdict::decide(&processed, &history, &self.integration.schedule, Timestamp::now());
        let is_repair = history.is_repair;
        let attempts = history.attempts.saturating_add(attempt.is_some().into());
        let answer = attempt.as_ref().map(|attempt| (attempt.result, attempt.status));
        let watcher = headers::report_to(&due.delivery.properties).filter(|_| !is_repair).map(str::to_owned);
        let repair = is_repair_due.then(|| self.repair());
        let settlement = verdict::settlement(&verdict, &processed, attempt, history, repair);
        let failed = |error: &_| self.facts.settle_failed(error, Timestamp::now());
        let settled = settler.settle(due, &settlement, failed).await;
        self.facts.handled(span, queue_kind, attempts, &summary, settled.is_ok().then_some(&verdict));
        let Ok(body) = settled else { return false };
        if let Verdict::Retry(NextAttempt { delay, .. }) | Verdict::Hold(delay) = verdict {
            self.gate.expect_retries(delay + MARGIN);
        }
        if let Settlement::Park(..) = settlement {
            self.facts.parked();
        }
        let receipt = Receipt { at: received, lane: lane(queue_kind), body: Fingerprint(&body), trace, summary };
        if is_repair {
            self.facts.repaired(&verdict, &receipt);
        } else {
            self.facts.settled(&verdict, &processed, &receipt, Timestamp::now());
        }
        if let Some(queue) = watcher {
            settler.report(queue, receipt.report(&verdict, attempts, answer));
        }
        true
    }

    /// When nothing older can be executed by the gate any more.
    fn repair(&self) -> Repair {
        let at = Timestamp::now().checked_add(record::execution_horizon(&self.integration)).unwrap_or(Timestamp::MAX);
        Repair { at, delay: self.integration.schedule.longest() }
    }

    /// Publishes a message anew that came back with a lost connection, so that its count of returns begins anew.
    async fn recount(&self, incoming: Incoming, settler: &Settler) -> bool {
        let Incoming { due, history, .. } = incoming;
        let failed = |error: &_| self.facts.settle_failed(error, Timestamp::now());
        let is_settled = settler.settle(due, &Settlement::Recount(history), failed).await.is_ok();
        if is_settled {
            self.facts.came_back();
        }
        is_settled
    }

    /// Steps 2 and 3: what the event says, and what is to be done about it.
    async fn read(&self, handling: &Handling<'_>, trace: Option<&str>) -> (EventSummary, Result<Plan, Processed>) {
        let Incoming { due, redelivery, history, .. } = handling.incoming;
        if *redelivery == Redelivery::Crashed {
            return (EventSummary::default(), Err(Processed::Crashed));
        }
        if let Some(at) = verdict::too_early(history, &self.integration.schedule, handling.received) {
            return (EventSummary::default(), Err(Processed::TooEarly(at)));
        }
        let _work = self.work_permit(handling.terms).await;
        let encoding = headers::encoding(&due.delivery.properties);
        let body = Body { bytes: &due.delivery.data, encoding };
        let read = catch_unwind(AssertUnwindSafe(|| plan(body, &self.integration, handling.received)));
        let (summary, plan) = read.unwrap_or_else(|_| (EventSummary::default(), Err(Processed::Panicked)));
        (summary, plan.map(|plan| plan.traced(trace)))
    }

    /// Steps 4 and 5: ends with a result, or as [`Stop`] says; settles nothing.
    async fn deliver(&self, handling: &Handling<'_>, plan: &Plan) -> Result<Handled, Stop> {
        match plan {
            Plan::Trigger(plan) => {
                self.facts.mapped(|property| plan.has_value(property));
                self.trigger(handling, plan).await
            }
            Plan::Erase { identifier, at } => self.erase(handling, identifier, *at).await,
        }
    }

    /// Waits for a turn in the person's line, for the record and for a permit, then sends.
    async fn trigger(&self, handling: &Handling<'_>, plan: &plan::PlannedRequest) -> Result<Handled, Stop> {
        let Handling { incoming, settler, terms, .. } = *handling;
        let lane = lane(incoming.queue_kind);
        // Held until the answer is recorded: the person's next event waits for that.
        let mut ticket = self.join(&plan.identifier, terms)?;
        let entering = pin!(async {
            first_in_line(&mut ticket).await;
            let work = self.work_permit(terms).await;
            let turn = self.turn(plan, &incoming.history).await?;
            drop(work);
            let permit = self.enter(lane, terms).await?;
            Ok((turn, permit))
        });
        let (turn, permit) = self.wait_in_hand(settler, entering).await?;
        if !settler.holds(&incoming.due.delivery) {
            return Err(Stop::Unsettled);
        }
        self.send(plan, turn, (lane, terms), permit).await
    }

    /// Joins a person's line, unless the delivery is handled alone: events ahead in the line would wait for it in turn.
    fn join(&self, identifier: &str, terms: Terms) -> Result<Option<Ticket>, Stop> {
        if terms.is_alone {
            return Ok(None);
        }
        self.sequencer.join(identifier).map(Some).ok_or(Stop::Processed(Processed::Held))
    }

    /// Waits until a request may be sent. A delivery that is handled alone takes no permit: deliveries that wait for it
    /// may hold them all.
    async fn enter(&self, lane: Lane, terms: Terms) -> Result<Option<Permit>, Stop> {
        let entered = if terms.is_alone {
            self.gate.pass(lane, terms.pass).await.map(|()| None)
        } else {
            self.gate.enter(lane, terms.pass).await.map(Some)
        };
        entered.map_err(|NotUsable| Processed::Held.into())
    }

    /// Waits for something with an event in hand, but neither for ever nor beyond a stop: then the event is held.
    async fn wait_in_hand<T>(
        &self,
        settler: &Settler,
        waiting: Pin<&mut impl Future<Output = Result<T, Stop>>>,
    ) -> Result<T, Stop> {
        let held = || Err(Processed::Held.into());
        tokio::select! {
            biased;
            // If there is nothing to wait for, as without records, the other branches need not be polled either.
            waited = tokio::time::timeout(LONGEST_WAIT, waiting) => waited.unwrap_or_else(|_| held()),
            () = settler.over() => Err(Stop::Unsettled),
            () = self.stops.hurry.cancelled() => held(),
        }
    }

    /// Step 4: what the person's record makes of the event. Without records, the event's own values are sent.
    async fn turn(&self, plan: &plan::PlannedRequest, history: &History) -> Result<Option<Box<Taken>>, Stop> {
        let Some(verified) = self.verified() else { return Ok(None) };
        let turn = verified.begin(&plan.identifier, &plan.offer, history.is_repair, Timestamp::now()).await;
        let turn = entered(self.or_unsettled(turn)?)?;
        self.facts.stale(turn.outdated);
        self.facts.unknown(turn.unknown.len());
        Ok(Some(turn))
    }

    /// Step 5: sends the newest values, and takes note of the answer. If another worker's choice became the newest
    /// meanwhile, that is sent, too; it does not count as an attempt, since the event itself was accepted.
    async fn send(
        &self,
        plan: &plan::PlannedRequest,
        turn: Option<Box<Taken>>,
        (lane, terms): (Lane, Terms),
        permit: Option<Permit>,
    ) -> Result<Handled, Stop> {
        let turn = match turn {
            Some(turn) => Some(entered(self.or_unsettled(turn.looked_again(Timestamp::now()).await)?)?),
            None => None,
        };
        let (mut exchange, mut superseded) = self.send_once(plan, turn, permit, terms).await?;
        for _ in 0..MOST_FOLLOW_UPS {
            let Some(turn) = superseded.take() else { break };
            let permit = self.enter(lane, terms).await?;
            // What an erasure or another worker made needless meanwhile is not sent.
            let Ok(turn) = entered(self.or_unsettled(turn.looked_again(Timestamp::now()).await)?) else { break };
            let (again, further) = self.send_once(plan, Some(turn), permit, terms).await?;
            if again.answer.outcome != Outcome::Accepted {
                return Err(Processed::Held.into());
            }
            exchange.is_repair_due |= again.is_repair_due;
            superseded = further;
        }
        if superseded.is_some() {
            return Err(Processed::Held.into());
        }
        let Exchange { answer, at, is_down, carries_others, is_repair_due } = exchange;
        let attempt = Attempt {
            at,
            result: answer.outcome,
            status: answer.status,
            ms: i64::try_from(answer.duration.as_millis()).unwrap_or(i64::MAX),
        };
        let processed = Processed::of(answer, is_down, carries_others);
        Ok(Handled { processed, attempt: Some(attempt), is_repair_due })
    }

    /// Sends one request; returns its result, with what became the newest meanwhile.
    async fn send_once(
        &self,
        plan: &plan::PlannedRequest,
        turn: Option<Box<Taken>>,
        permit: Option<Permit>,
        terms: Terms,
    ) -> Result<(Exchange, Option<Box<Taken>>), Stop> {
        // Never held while waiting for a permit: the holder of a permit may be waiting for this.
        let _work = self.work_permit(terms).await;
        let at = Timestamp::now();
        let request = match &turn {
            Some(turn) => plan.request(&self.integration, &turn.newest),
            None => plan.own_request(&self.integration),
        };
        let span = self.facts.begun(request.trace());
        let request = match &span {
            Some(span) => request.traced(Some(span.traceparent())),
            None => request,
        };
        let answer = self.gate.send(&request, at).await;
        drop(permit);
        self.facts.attempted(&answer, span);
        let AnswerEffects { change, is_down } = self.gate.note(&answer, terms.pass);
        if let Some(change) = change {
            self.facts.gate_changed(change, &answer);
        }
        let carries_others = turn.as_ref().is_some_and(|turn| turn.carries_others());
        let answered = match turn {
            Some(turn) => {
                let effect = record::Effect::of(answer.outcome, carries_others);
                self.or_unsettled(turn.answered(effect, answer.was_resent, Timestamp::now()).await)?
            }
            None => Answered::default(),
        };
        let exchange = Exchange { answer, at, is_down, carries_others, is_repair_due: answered.is_repair_due };
        Ok((exchange, answered.superseded))
    }

    async fn erase(&self, handling: &Handling<'_>, identifier: &str, at: Option<Timestamp>) -> Result<Handled, Stop> {
        let Handling { incoming, settler, terms, received } = *handling;
        let delivery = &incoming.due.delivery;
        // An erasure that names no time counts from its publication, else from its first receipt; one that was
        // replayed, from its first death.
        let properties = &delivery.properties;
        let published = (*properties.timestamp()).and_then(|at| plan::published(at, received));
        let published = published.or_else(|| plan::possible(headers::first_died(properties)?, received));
        let published = published.unwrap_or(received);
        let timestamp = properties.timestamp().unwrap_or_default().to_be_bytes();
        let id = properties.message_id().as_ref().map(ShortString::as_str).unwrap_or_default();
        let message = [&timestamp, id.as_bytes(), &delivery.data];
        let mut ticket = self.join(identifier, terms)?;
        let turn = pin!(async {
            first_in_line(&mut ticket).await;
            Ok(())
        });
        self.wait_in_hand(settler, turn).await?;
        let _work = self.work_permit(terms).await;
        if let Some(verified) = self.verified() {
            self.or_unsettled(verified.erase(identifier, at, (message, published), received).await)?;
        }
        Ok(Processed::NotWanted(Skip::UserDeleted).into())
    }

    /// If the records failed, the event stays with the broker, and consuming stops.
    pub(super) fn or_unsettled<T>(&self, result: Result<T, record::Failed>) -> Result<T, Stop> {
        result.map_err(|failed| {
            self.facts.store_failed(&failed);
            self.store_failed.notify_one();
            Stop::Unsettled
        })
    }
}

/// A delivery that is being handled.
struct Handling<'d> {
    incoming: &'d Incoming,
    settler: &'d Settler,
    terms: Terms,
    received: Timestamp,
}

/// Why a delivery goes no further.
pub(super) enum Stop {
    /// Its result is known.
    Processed(Processed),
    /// Its channel or the records failed while it waited: it is not settled, and the broker delivers it again.
    Unsettled,
}

impl From<Processed> for Stop {
    fn from(processed: Processed) -> Stop {
        Stop::Processed(processed)
    }
}

/// One request, and what became of it.
struct Exchange {
    answer: Answer,
    at: Timestamp,
    /// The gate is known to be down.
    is_down: bool,
    /// The request carried another event's newer values.
    carries_others: bool,
    is_repair_due: bool,
}

/// The result for a delivery, and the attempt that was made for it.
struct Handled {
    processed: Processed,
    attempt: Option<Attempt>,
    /// An older request may still be executed, and would spoil what was accepted.
    is_repair_due: bool,
}

impl From<Processed> for Handled {
    fn from(processed: Processed) -> Handled {
        Handled { processed, attempt: None, is_repair_due: false }
    }
}

/// Waits until every event of the person that is ahead is done.
async fn first_in_line(ticket: &mut Option<Ticket>) {
    if let Some(ticket) = ticket {
        ticket.turn().await;
    }
}

/// An event's turn, or its result if it gets none.
fn entered(turn: Turn) -> Result<Box<Taken>, Stop> {
    match turn {
        Turn::Taken(turn) => Ok(turn),
        Turn::Erased => Err(Processed::NotWanted(Skip::Erased).into()),
        Turn::TooOld => Err(Processed::OlderThanRetention.into()),
        Turn::Needless => Err(Processed::NeedlessRepair.into()),
    }
}

/// A panic becomes the result of the one event that caused it.
// Not an async function: its future would have room for the delivery's twice.
fn guarded(deliver: impl Future<Output = Result<Handled, Stop>>) -> impl Future<Output = Result<Handled, Stop>> {
    let handled = AssertUnwindSafe(deliver).catch_unwind();
    handled.map(|handled| handled.unwrap_or_else(|_| Err(Processed::Panicked.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_what_came_of_its_own_event() {
        let handled = guarded(async { panic!("jane@example.com") }).await;
        assert!(matches!(handled, Err(Stop::Processed(Processed::Panicked))));
    }
}
