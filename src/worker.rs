//! THE SPINE: one delivery through steps 1 to 7.
//!
//! At least once: nothing is acked before its verdict is carried out, and whatever dies before
//! that is delivered again by the broker. One event costs one event: a panic while handling it
//! makes it a dead letter, and everybody else goes on.

use crate::broker::headers::{Attempt, Obituary};
use crate::broker::inbox::Inbox;
use crate::broker::outbox::{Outbox, Settlement};
use crate::facts::{Facts, Receipt, fingerprint};
use crate::gate::Gate;
use crate::integration::Integration;
use crate::order::Order;
use crate::plan::{Brief, plan};
use crate::shutdown::Shutdown;
use crate::verdict::{self, Course, Verdict};
use futures_util::FutureExt;
use jiff::Timestamp;
use lapin::message::Delivery;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Everything that serves one integration, whatever connections come and go.
#[derive(Debug)]
pub struct Worker {
    integration: Integration,
    gate: Gate,
    order: Order,
    facts: Facts,
    in_hand: Arc<Semaphore>,
    prefetch: u16,
}

impl Worker {
    /// Prepares a worker; nothing is sent or consumed yet.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(integration: Integration, facts: Facts) -> anyhow::Result<Worker> {
        let gate = Gate::new(integration.endpoint.clone(), integration.limits.clone())?;
        // Twice the limit, so that a slot never waits for the broker's next delivery.
        let prefetch = u16::try_from(integration.limits.max_in_flight * 2).unwrap_or(u16::MAX);
        let in_hand = Arc::new(Semaphore::new(prefetch.into()));
        Ok(Worker { integration, gate, order: Order::default(), facts, in_hand, prefetch })
    }

    /// What this worker serves.
    #[must_use]
    pub fn integration(&self) -> &Integration {
        &self.integration
    }

    /// What it tells.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The most deliveries in hand at once.
    #[must_use]
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Takes deliveries until the inbox ends or the process is to stop. What was begun goes on
    /// by itself. Gives the inbox back: without its channel nothing in hand could be acked.
    pub async fn consume(self: Arc<Self>, mut inbox: Inbox, outbox: Arc<Outbox>, shutdown: Shutdown) -> Inbox {
        loop {
            let next = async {
                let hand = Arc::clone(&self.in_hand).acquire_owned().await.ok()?;
                Some((hand, inbox.next().await?))
            };
            tokio::select! {
                biased;
                () = shutdown.wait() => {
                    inbox.cancel().await;
                    return inbox;
                }
                next = next => match next {
                    Some((hand, delivery)) => Arc::clone(&self).begin(delivery, Arc::clone(&outbox), hand),
                    None => return inbox,
                },
            }
        }
    }

    /// Waits until nothing is in hand any more.
    pub async fn drained(&self) {
        let _ = self.in_hand.acquire_many(self.prefetch.into()).await;
    }

    /// Starts to handle a delivery. It is polled once right here, so that it joins its person's
    /// line in the order of receipt.
    fn begin(self: Arc<Self>, delivery: Delivery, outbox: Arc<Outbox>, hand: OwnedSemaphorePermit) {
        let mut handling = Box::pin(async move {
            self.handle(delivery, &outbox).await;
            drop(hand);
        });
        if handling.as_mut().now_or_never().is_none() {
            tokio::spawn(handling);
        }
    }

    async fn handle(&self, delivery: Delivery, outbox: &Outbox) {
        let received = Timestamp::now();
        let told = OnceLock::new();
        let passage = guarded(self.deliver(&delivery, outbox, received, &told)).await;
        let Some(Passage { course, attempt }) = passage else { return };
        let verdict = verdict::decide(&course);
        let brief = told.into_inner().unwrap_or_default();
        let receipt = Receipt { at: received, fingerprint: fingerprint(&delivery.data), brief };
        let status = course.answer().and_then(|answer| answer.status);
        let settlement = settlement(&verdict, &course, attempt);
        if outbox.settle(delivery, &settlement, |error| self.facts.settle_failed(error)).await.is_ok() {
            self.facts.settled(&verdict, &receipt, status, Timestamp::now());
        }
    }

    /// Steps 2 to 5: may end in named ways, never settles. `None` when the delivery's channel went
    /// away while it waited: the broker delivers it again, so sending it now would be in vain.
    async fn deliver(
        &self,
        delivery: &Delivery,
        outbox: &Outbox,
        received: Timestamp,
        told: &OnceLock<Brief>,
    ) -> Option<Passage> {
        let (brief, plan) = plan(&delivery.data, &self.integration, received);
        let _ = told.set(brief);
        let plan = match plan {
            Ok(plan) => plan,
            Err(course) => return Some(Passage { course, attempt: None }),
        };
        let mut place = self.order.join(&plan.identifier);
        place.turn().await;
        let slot = self.gate.enter().await;
        if !outbox.holds(delivery) {
            return None;
        }
        let at = Timestamp::now();
        self.facts.in_flight(1);
        let answer = self.gate.send(&plan.request, at).await;
        self.facts.in_flight(-1);
        drop(slot);
        self.facts.attempted(&answer);
        let attempt = Attempt {
            at,
            result: answer.outcome.label(),
            status: answer.status,
            ms: i64::try_from(answer.duration.as_millis()).unwrap_or(i64::MAX),
        };
        Some(Passage { course: Course::Answered(answer), attempt: Some(attempt) })
    }
}

/// How far a delivery came, and the request that was made for it.
struct Passage {
    course: Course,
    attempt: Option<Attempt>,
}

/// A panic becomes the course of the one event that caused it.
async fn guarded(deliver: impl Future<Output = Option<Passage>>) -> Option<Passage> {
    let panicked = |_| Some(Passage { course: Course::Panicked, attempt: None });
    AssertUnwindSafe(deliver).catch_unwind().await.unwrap_or_else(panicked)
}

fn settlement(verdict: &Verdict, course: &Course, attempt: Option<Attempt>) -> Settlement {
    match verdict {
        Verdict::Delivered | Verdict::Skipped(_) => Settlement::Done,
        Verdict::DeadLetter(death) => Settlement::Dead(Obituary {
            reason: death.code(),
            last_error: course.error(),
            attempts: attempt.into_iter().collect(),
        }),
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
