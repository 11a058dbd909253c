//! When to take what: suspects first and alone, then everything in a flow, and while the gate is
//! shut nothing but probes.

use crate::broker::Error;
use crate::broker::inbox::{Feed, Inbox, Incoming};
use crate::broker::outbox::Outbox;
use crate::broker::standing::Standing;
use crate::gate::{Pass, State};
use crate::worker::Worker;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The longest that the suspects of other integrations wait for one.
const LONGEST_QUARANTINE: Duration = Duration::from_secs(60);
/// How often an empty queue is looked into for something to probe with.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One integration's intake over one pair of connections.
pub struct Intake<'i> {
    pub worker: &'i Arc<Worker>,
    pub inbox: &'i mut Inbox,
    pub outbox: &'i Arc<Outbox>,
    /// Connections were lost one after the other: the next head may be what ends this one, so
    /// whatever is in hand has to be safe before it is looked at.
    pub is_careful: bool,
}

/// What was at the head of a queue.
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

    /// Lets everything flow until the gate shuts or a suspect shows.
    async fn flow(&mut self) -> Result<(), Error> {
        for feed in self.inbox.feeds() {
            while let (Head::Returned, _) = self.take(feed, Pass::Usual).await? {
                self.retries_first().await?;
            }
        }
        self.inbox.flow(self.worker.prefetch()).await?;
        let mut suspects = Vec::new();
        let mut shut = pin!(self.worker.gate().shut());
        while suspects.is_empty() {
            let next = tokio::select! {
                biased;
                () = &mut shut => break,
                next = self.inbox.next() => next,
            };
            self.sort(next.ok_or_else(Error::consumer_gone)?, &mut suspects).await;
        }
        for incoming in self.inbox.ebb().await? {
            self.sort(incoming, &mut suspects).await;
        }
        // In any order: who waits behind the guilty one is accused along with it.
        let random = RandomState::new();
        suspects.sort_by_cached_key(|suspect| random.hash_one(&suspect.due.delivery.data));
        for suspect in suspects {
            let quarantine = self.worker.quarantine().lock_owned().await;
            self.alone(suspect, Pass::Usual, quarantine).await?;
            self.retries_first().await?;
        }
        Ok(())
    }

    /// Between two that are taken alone, retries whose time has come: five minutes stay five.
    async fn retries_first(&mut self) -> Result<(), Error> {
        for _ in 0..self.worker.prefetch() {
            if let (Head::Nothing, _) = self.take(Feed::Retry, Pass::Usual).await? {
                break;
            }
        }
        Ok(())
    }

    /// Handles a suspect with nothing else of its integration in hand. Others wait for it, but not
    /// for ever: one that cannot be settled is its own integration's trouble.
    async fn alone(&self, suspect: Incoming, pass: Pass, quarantine: OwnedMutexGuard<()>) -> Result<(), Error> {
        let (worker, outbox) = (Arc::clone(self.worker), Arc::clone(self.outbox));
        let mut alone = tokio::spawn(async move { worker.alone(suspect, &outbox, pass).await });
        if tokio::time::timeout(LONGEST_QUARANTINE, &mut alone).await.is_err() {
            drop(quarantine);
            // A panic is caught within.
            let _ = alone.await;
        }
        self.inbox.flush().await
    }

    async fn sort(&self, incoming: Incoming, suspects: &mut Vec<Incoming>) {
        if incoming.standing == Standing::Suspect {
            suspects.push(incoming);
        } else {
            self.worker.begin(incoming, self.outbox, Pass::Usual).await;
        }
    }

    /// Takes the head of a queue. A suspect is not even in hand while another one is handled
    /// anywhere in the process.
    async fn take(&mut self, feed: Feed, pass: Pass) -> Result<(Head, Option<JoinHandle<()>>), Error> {
        let quarantine = self.worker.quarantine().lock_owned().await;
        let Some(incoming) = self.inbox.take(feed).await? else { return Ok((Head::Nothing, None)) };
        let head = if incoming.due.delivery.redelivered { Head::Returned } else { Head::Fresh };
        if incoming.standing == Standing::Suspect {
            self.alone(incoming, pass, quarantine).await?;
            return Ok((head, None));
        }
        drop(quarantine);
        let is_safe_first = self.is_careful || incoming.standing == Standing::Anew;
        match self.worker.begin(incoming, self.outbox, pass).await {
            Some(handling) if is_safe_first => {
                // A panic is caught within.
                let _ = handling.await;
                self.inbox.flush().await?;
                Ok((head, None))
            }
            handling => Ok((head, handling)),
        }
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
            if let (Head::Returned | Head::Fresh, handling) =
                self.take(feeds[*probes % feeds.len()], Pass::Probe).await?
            {
                if let Some(handling) = handling {
                    // A panic is caught within.
                    let _ = handling.await;
                }
                return Ok(());
            }
        }
        self.worker.gate().changed(Instant::now() + LOOK_EVERY).await;
        Ok(())
    }
}
