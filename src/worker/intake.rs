//! What to take from the queues, and when: normally everything as it comes, one message at a time while
//! connections die in a row, and nothing but probes while the gate is down.

use crate::broker::Error;
use crate::broker::consumers::{Consumers, Incoming, QueueKind};
use crate::broker::redelivery::Redelivery;
use crate::broker::settler::Settler;
use crate::gate::{BreakerState, Pass};
use crate::worker::Worker;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often empty queues are checked for an event to probe with.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One integration's intake over one pair of connections.
pub struct Intake<'i> {
    pub worker: &'i Arc<Worker>,
    pub consumers: &'i mut Consumers,
    pub settler: &'i Arc<Settler>,
    /// Connections were lost one after the other: the next message may end this one, too, so everything in hand
    /// has to be safe before it is taken.
    pub is_careful: bool,
}

/// What was at the head of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Nothing,
    /// A message that came back once or more; others that came back follow it.
    Returned,
    /// A message that was never delivered before: nothing behind it came back.
    Fresh,
}

impl Intake<'_> {
    /// Takes deliveries until the consumers end, and returns why they did. Deliveries that were begun go on by
    /// themselves.
    pub async fn run(mut self) -> Error {
        let mut probes = 0;
        loop {
            let taken = match self.worker.gate().state() {
                BreakerState::Open { probe_at } => self.probe(probe_at, &mut probes).await,
                BreakerState::Paused { until } if !self.worker.gate().is_usable() => {
                    self.worker.gate().changed(until).await;
                    Ok(())
                }
                BreakerState::Closed | BreakerState::Paused { .. } => self.consume_while_usable().await,
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }

    /// Consumes everything while the gate is usable.
    async fn consume_while_usable(&mut self) -> Result<(), Error> {
        if self.is_careful {
            self.returned_ones().await?;
        }
        self.consumers.start().await?;
        let worker = Arc::clone(self.worker);
        let mut unusable = pin!(worker.gate().unusable());
        loop {
            self.consumers.adapt().await?;
            let next = tokio::select! {
                biased;
                () = &mut unusable => break,
                next = self.consumers.next() => next?,
            };
            self.begin(next).await;
        }
        for incoming in self.consumers.stop().await? {
            self.begin(incoming).await;
        }
        Ok(())
    }

    /// Begins to handle a delivery. A suspect waits separately for its turn while everything else goes on.
    async fn begin(&mut self, incoming: Incoming) {
        if incoming.redelivery == Redelivery::Suspect {
            self.consumers.set_aside(incoming.queue_kind);
            tokio::spawn(Arc::clone(self.worker).suspect(incoming, Arc::clone(self.settler), Pass::Usual));
        } else {
            self.worker.begin(incoming, self.settler, Pass::Usual).await;
        }
    }

    /// Takes the messages that came back one by one: each is settled before the next is in hand.
    async fn returned_ones(&mut self) -> Result<(), Error> {
        for queue_kind in self.consumers.queue_kinds() {
            while self.take(queue_kind, Pass::Usual).await? == Head::Returned {
                self.retries_first().await?;
            }
        }
        Ok(())
    }

    /// Between two messages that are taken one by one, takes the retries that are due, so that a delay of five
    /// minutes stays five minutes.
    async fn retries_first(&mut self) -> Result<(), Error> {
        for _ in 0..self.consumers.depth(QueueKind::Retry).await? {
            if self.take(QueueKind::Retry, Pass::Usual).await? == Head::Nothing {
                break;
            }
        }
        Ok(())
    }

    /// Takes the head of a queue, and returns once it is settled and the broker has been told.
    async fn take(&mut self, queue_kind: QueueKind, pass: Pass) -> Result<Head, Error> {
        let Some(incoming) = self.consumers.look(queue_kind).await? else { return Ok(Head::Nothing) };
        if pass == Pass::Probe {
            self.worker.facts().probing();
        }
        let head = if incoming.due.delivery.redelivered { Head::Returned } else { Head::Fresh };
        if incoming.redelivery == Redelivery::Suspect {
            Arc::clone(self.worker).suspect(incoming, Arc::clone(self.settler), pass).await;
        } else if let Some(handling) = self.worker.begin(incoming, self.settler, pass).await {
            // A panic is caught inside the task.
            let _ = handling.await;
        }
        self.consumers.flush().await?;
        Ok(head)
    }

    /// When it is time, lets one event through to see whether the gate is back. The queues take turns, so that
    /// one bad event cannot keep the breaker open.
    async fn probe(&mut self, at: Instant, probes: &mut usize) -> Result<(), Error> {
        self.worker.gate().changed(at).await;
        if Instant::now() < at {
            return Ok(());
        }
        let queue_kinds = self.consumers.queue_kinds();
        for _ in &queue_kinds {
            *probes += 1;
            if self.take(queue_kinds[*probes % queue_kinds.len()], Pass::Probe).await? != Head::Nothing {
                return Ok(());
            }
        }
        self.worker.gate().changed(Instant::now() + LOOK_EVERY).await;
        Ok(())
    }
}
