//! THE SPINE: one delivery through steps 1 to 7.
//!
//! At least once: nothing is acked before its verdict is carried out, and whatever dies before
//! that is delivered again by the broker. One event costs one event: a panic while handling it
//! makes it a dead letter, and everybody else goes on.

use crate::broker::headers::{Attempt, History};
use crate::broker::inbox::{Feed, Incoming};
use crate::broker::outbox::{Outbox, Settlement};
use crate::broker::standing::{Standing, Unsettled};
use crate::facts::{Facts, Receipt, fingerprint};
use crate::gate::{Gate, Lane, Pass};
use crate::integration::Integration;
use crate::order::Order;
use crate::plan::{Brief, plan};
use crate::verdict::{self, Course, Verdict};
use futures_util::FutureExt;
use jiff::Timestamp;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;

/// The longest that an event waits in hand for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// How long after the end of its delay an event is expected to be in hand again.
const MARGIN: Duration = Duration::from_secs(5);

/// Everything that serves one integration, whatever connections come and go.
#[derive(Debug)]
pub struct Worker {
    integration: Integration,
    gate: Gate,
    order: Order,
    facts: Facts,
    prefetch: u16,
    most_in_hand: u32,
    retries_in_hand: Arc<Semaphore>,
    fresh_in_hand: Arc<Semaphore>,
    unsettled: Arc<Unsettled>,
    quarantine: Arc<Mutex<()>>,
}

impl Worker {
    /// Prepares a worker; nothing is sent or consumed yet. The `quarantine` is shared by all
    /// workers of the process: whoever handles a suspect holds it.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(integration: Integration, facts: Facts, quarantine: Arc<Mutex<()>>) -> anyhow::Result<Worker> {
        let limit = integration.limits.max_in_flight;
        // Twice the limit, so that a slot never waits for the broker's next delivery.
        let prefetch = u16::try_from(limit * 2).unwrap_or(u16::MAX);
        // Two queues can feed the fresh lane, and requests of a connection that was lost still end.
        let most_in_hand = limit * 5;
        Ok(Worker {
            gate: integration.gate()?,
            integration,
            order: Order::default(),
            facts,
            prefetch,
            most_in_hand: u32::try_from(most_in_hand).unwrap_or(u32::MAX),
            retries_in_hand: Arc::new(Semaphore::new(most_in_hand)),
            fresh_in_hand: Arc::new(Semaphore::new(most_in_hand)),
            unsettled: Arc::new(Unsettled::new(2 * most_in_hand)),
            quarantine,
        })
    }

    /// What this worker serves.
    #[must_use]
    pub fn integration(&self) -> &Integration {
        &self.integration
    }

    /// Where it sends to.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What it tells.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What it has not settled, over all connections.
    #[must_use]
    pub fn unsettled(&self) -> Arc<Unsettled> {
        Arc::clone(&self.unsettled)
    }

    /// Held by whoever handles a suspect, anywhere in the process.
    #[must_use]
    pub fn quarantine(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.quarantine)
    }

    /// The most deliveries of one queue in hand at once.
    #[must_use]
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Waits until nothing is in hand any more.
    pub async fn drained(&self) {
        let _ = self.retries_in_hand.acquire_many(self.most_in_hand).await;
        let _ = self.fresh_in_hand.acquire_many(self.most_in_hand).await;
    }

    /// Starts to handle a delivery; `None` when it ended at once. It is polled once right here, so
    /// that it joins its person's line in the order of receipt.
    pub async fn begin(
        self: &Arc<Self>,
        incoming: Incoming,
        outbox: &Arc<Outbox>,
        pass: Pass,
    ) -> Option<JoinHandle<()>> {
        let hand = match lane(incoming.feed) {
            Lane::Retry => &self.retries_in_hand,
            Lane::Fresh => &self.fresh_in_hand,
        };
        let hand = Arc::clone(hand).acquire_owned().await;
        let (worker, outbox) = (Arc::clone(self), Arc::clone(outbox));
        let mut handling = Box::pin(async move {
            worker.handle(incoming, &outbox, pass).await;
            drop(hand);
        });
        match handling.as_mut().now_or_never() {
            Some(()) => None,
            None => Some(tokio::spawn(handling)),
        }
    }

    /// Handles a delivery with nothing else of this integration in hand.
    pub async fn alone(self: &Arc<Self>, incoming: Incoming, outbox: &Arc<Outbox>, pass: Pass) {
        self.drained().await;
        if let Some(handling) = self.begin(incoming, outbox, pass).await {
            // A panic is caught within.
            let _ = handling.await;
        }
    }

    async fn handle(&self, incoming: Incoming, outbox: &Outbox, pass: Pass) {
        if incoming.feed == Feed::Retry {
            self.gate.expect_retries(MARGIN);
        }
        let failed = |error: &_| self.facts.settle_failed(error);
        if incoming.standing == Standing::Anew {
            let Incoming { delivery, history, .. } = incoming;
            if outbox.settle(delivery, &Settlement::Anew(history), failed).await.is_ok() {
                self.facts.came_back();
            }
            return;
        }
        let received = Timestamp::now();
        let told = OnceLock::new();
        let passage = guarded(self.deliver(&incoming, outbox, pass, received, &told)).await;
        let Some(Passage { course, attempt }) = passage else { return };
        let Incoming { delivery, feed, history, .. } = incoming;
        let verdict = verdict::decide(&course, &history, &self.integration.schedule, Timestamp::now());
        let receipt = Receipt {
            at: received,
            lane: lane(feed),
            fingerprint: fingerprint(&delivery.data),
            brief: told.into_inner().unwrap_or_default(),
        };
        let settlement = settlement(&verdict, &course, attempt, history);
        if outbox.settle(delivery, &settlement, failed).await.is_ok() {
            if let Verdict::Retry(verdict::Retry { delay, .. }) | Verdict::Hold(delay) = verdict {
                self.gate.expect_retries(delay + MARGIN);
            }
            self.facts.settled(&verdict, &course, &receipt, Timestamp::now());
        }
    }

    /// Steps 2 to 5: may end in named ways, never settles. `None` when the delivery's channel went
    /// away while it waited: the broker delivers it again, so sending it now would be in vain.
    async fn deliver(
        &self,
        incoming: &Incoming,
        outbox: &Outbox,
        pass: Pass,
        received: Timestamp,
        told: &OnceLock<Brief>,
    ) -> Option<Passage> {
        let Incoming { delivery, feed, standing, history } = incoming;
        if *standing == Standing::Crashed {
            return Some(Course::Crashed.into());
        }
        if let Some(at) = verdict::too_early(history, &self.integration.schedule, received) {
            return Some(Course::TooEarly(at).into());
        }
        let (brief, plan) = plan(&delivery.data, &self.integration, received);
        let _ = told.set(brief);
        let plan = match plan {
            Ok(plan) => plan,
            Err(course) => return Some(course.into()),
        };
        let Some(mut place) = self.order.join(&plan.identifier) else { return Some(Course::Held.into()) };
        let turn = async {
            place.turn().await;
            self.gate.enter(lane(*feed), pass).await
        };
        let slot = tokio::select! {
            biased;
            () = outbox.over() => return None,
            slot = tokio::time::timeout(LONGEST_WAIT, turn) => slot,
        };
        let Ok(Ok(slot)) = slot else { return Some(Course::Held.into()) };
        if !outbox.holds(delivery) {
            return None;
        }
        let at = Timestamp::now();
        self.facts.in_flight(1);
        let answer = self.gate.send(&plan.request, at).await;
        self.facts.in_flight(-1);
        drop(slot);
        self.facts.attempted(&answer);
        let (change, is_down) = self.gate.note(&answer);
        if let Some(change) = change {
            self.facts.gate_changed(change);
        }
        if is_down && answer.outcome.blames_endpoint() {
            return Some(Course::Outage(answer).into());
        }
        let attempt = Attempt {
            at,
            result: answer.outcome,
            status: answer.status,
            ms: i64::try_from(answer.duration.as_millis()).unwrap_or(i64::MAX),
        };
        Some(Passage { course: Course::Answered(answer), attempt: Some(attempt) })
    }
}

/// How far a delivery came, and the attempt that was made for it.
struct Passage {
    course: Course,
    attempt: Option<Attempt>,
}

impl From<Course> for Passage {
    fn from(course: Course) -> Passage {
        Passage { course, attempt: None }
    }
}

/// A panic becomes the course of the one event that caused it.
async fn guarded(deliver: impl Future<Output = Option<Passage>>) -> Option<Passage> {
    AssertUnwindSafe(deliver).catch_unwind().await.unwrap_or_else(|_| Some(Course::Panicked.into()))
}

fn lane(feed: Feed) -> Lane {
    match feed {
        Feed::Retry => Lane::Retry,
        Feed::Work | Feed::Source => Lane::Fresh,
    }
}

fn settlement(verdict: &Verdict, course: &Course, attempt: Option<Attempt>, history: History) -> Settlement {
    let told = |history: History| match attempt {
        Some(attempt) => history.with(attempt, course.error()),
        None => History { last_error: course.error().or(history.last_error.clone()), ..history },
    };
    match verdict {
        Verdict::Delivered | Verdict::Skipped(_) => Settlement::Done,
        Verdict::Retry(retry) => {
            Settlement::Park(retry.delay, History { not_before: retry.not_before, ..told(history) })
        }
        Verdict::Hold(delay) => Settlement::Park(*delay, history),
        Verdict::DeadLetter(death) => Settlement::Dead(death.code(), told(history)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_the_course_of_its_own_event() {
        let passage = guarded(async { panic!("jane@example.com") }).await;
        assert!(passage.is_some_and(|passage| passage.course == Course::Panicked));
    }
}
