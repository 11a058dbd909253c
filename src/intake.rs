//! When to take what: everything in a flow, one message at a time while connections die in a row, and
//! while the gate is shut nothing but probes.

use crate::broker::Error;
use crate::broker::inbox::{Feed, Inbox, Incoming};
use crate::broker::outbox::Outbox;
use crate::broker::standing::Standing;
use crate::gate::{Pass, State};
use crate::worker::Worker;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often an empty queue is looked into for something to probe with.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One integration's intake over one pair of connections.
pub struct Intake<'i> {
    pub worker: &'i Arc<Worker>,
    pub inbox: &'i mut Inbox,
    pub outbox: &'i Arc<Outbox>,
    /// Connections were lost one after the other: the next message may be what ends this one, so
    /// whatever is in hand has to be safe before it is taken.
    pub is_careful: bool,
}

/// What was at the head of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Nothing,
    /// It came back once or more; others that came back follow it.
    Returned,
    /// One that was never delivered before: nothing behind it came back.
    Fresh,
}

impl Intake<'_> {
    /// Takes deliveries until the inbox ends, and says why it did. What was begun goes on by
    /// itself.
    pub async fn run(mut self) -> Error {
        let mut probes = 0;
        loop {
            let taken = match self.worker.gate().state() {
                State::Open { probe_at } => self.probe(probe_at, &mut probes).await,
                State::Paused { until } if !self.worker.gate().is_usable() => {
                    self.worker.gate().changed(until).await;
                    Ok(())
                }
                State::Closed | State::Paused { .. } => self.flow().await,
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }

    /// Lets everything flow until the gate shuts.
    async fn flow(&mut self) -> Result<(), Error> {
        if self.is_careful {
            self.returned_ones().await?;
        }
        self.inbox.start().await?;
        let worker = Arc::clone(self.worker);
        let mut shut = pin!(worker.gate().shut());
        loop {
            self.inbox.adapt().await?;
            let next = tokio::select! {
                biased;
                () = &mut shut => break,
                next = self.inbox.next() => next?,
            };
            self.begin(next).await;
        }
        for incoming in self.inbox.stop().await? {
            self.begin(incoming).await;
        }
        Ok(())
    }

    /// Begins to handle a delivery. A suspect waits aside for its turn while everything else flows.
    async fn begin(&mut self, incoming: Incoming) {
        if incoming.standing == Standing::Suspect {
            self.inbox.set_aside(incoming.feed);
            tokio::spawn(Arc::clone(self.worker).suspect(incoming, Arc::clone(self.outbox), Pass::Usual));
        } else {
            self.worker.begin(incoming, self.outbox, Pass::Usual).await;
        }
    }

    /// Takes what came back one by one: each is settled before the next is in hand.
    async fn returned_ones(&mut self) -> Result<(), Error> {
        for feed in self.inbox.feeds() {
            while self.take(feed, Pass::Usual).await? == Head::Returned {
                self.retries_first().await?;
            }
        }
        Ok(())
    }

    /// Between two that are taken alone, retries whose time has come: five minutes stay five.
    async fn retries_first(&mut self) -> Result<(), Error> {
        for _ in 0..self.inbox.depth(Feed::Retry).await? {
            if self.take(Feed::Retry, Pass::Usual).await? == Head::Nothing {
                break;
            }
        }
        Ok(())
    }

    /// Takes the head of a queue, and returns once it is settled and the broker was told.
    async fn take(&mut self, feed: Feed, pass: Pass) -> Result<Head, Error> {
        let Some(incoming) = self.inbox.look(feed).await? else { return Ok(Head::Nothing) };
        let head = if incoming.due.delivery.redelivered { Head::Returned } else { Head::Fresh };
        if incoming.standing == Standing::Suspect {
            Arc::clone(self.worker).suspect(incoming, Arc::clone(self.outbox), pass).await;
        } else if let Some(handling) = self.worker.begin(incoming, self.outbox, pass).await {
            // A panic is caught within.
            let _ = handling.await;
        }
        self.inbox.flush().await?;
        Ok(head)
    }

    /// When it is time, lets one event through to see whether the gate is back; from the queues in
    /// turn, so that one bad event cannot keep it shut.
    async fn probe(&mut self, at: Instant, probes: &mut usize) -> Result<(), Error> {
        self.worker.gate().changed(at).await;
        if Instant::now() < at {
            return Ok(());
        }
        self.worker.facts().probing();
        let feeds = self.inbox.feeds();
        for _ in &feeds {
            *probes += 1;
            if self.take(feeds[*probes % feeds.len()], Pass::Probe).await? != Head::Nothing {
                return Ok(());
            }
        }
        self.worker.gate().changed(Instant::now() + LOOK_EVERY).await;
        Ok(())
    }
}
