//! The core of the worker: what serves one integration. How it takes one delivery through steps 1 to 7:
//! `worker/handling.rs`.
//!
//! At least once: nothing is acked before its verdict is carried out, and if the worker dies before that, the broker
//! delivers the message again. One event costs only itself: a panic while handling it makes it a dead letter, and
//! all others go on.

mod handling;
pub mod intake;
pub mod quarantine;
mod suspects;

use crate::broker::consumers::{Incoming, QueueKind};
use crate::broker::redelivery::Unsettled;
use crate::broker::settler::Settler;
use crate::gate::{Gate, Lane, Pass};
use crate::integration::Integration;
use crate::observe::facts::Facts;
use crate::record::sequencer::Sequencer;
use crate::record::{self, Claim, Records, Verified};
use crate::task;
use crate::worker::quarantine::{Quarantine, Share};
use futures_util::FutureExt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How a delivery is handled.
#[derive(Clone, Copy, Debug)]
struct Terms {
    pass: Pass,
    /// Nothing else is under way in the process.
    is_alone: bool,
}

/// Everything that serves one integration; it outlives connections.
#[derive(Debug)]
pub struct Worker {
    integration: Integration,
    gate: Gate,
    sequencer: Sequencer,
    facts: Facts,
    prefetch: u16,
    most_in_hand: u32,
    retries_in_hand: Arc<Semaphore>,
    fresh_in_hand: Arc<Semaphore>,
    /// Separate from the others: a message that is handled alone must not wait for messages that wait for it.
    suspects_in_hand: Semaphore,
    unsettled: Arc<Unsettled>,
    records: Arc<Records>,
    verified: Mutex<Option<Arc<Verified>>>,
    store_failed: Notify,
    faulted: Notify,
    stops: Stops,
    quarantine: Quarantine,
    suspects: Share,
}

/// How a worker ends.
#[derive(Clone, Debug)]
pub struct Stops {
    /// Nothing new is begun.
    pub stopping: CancellationToken,
    /// What still waits for its turn goes back to the broker.
    pub hurry: CancellationToken,
}

/// What a worker has from before its document was loaded.
#[derive(Debug)]
pub struct AcrossReloads {
    /// What this process had in hand of the integration, under another document.
    pub unsettled: Arc<Unsettled>,
    /// Shared by all workers of the process.
    pub quarantine: Quarantine,
}

impl Worker {
    /// Prepares a worker; nothing is sent or consumed yet.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(
        integration: Integration,
        facts: Facts,
        records: Arc<Records>,
        stops: Stops,
        AcrossReloads { unsettled, quarantine }: AcrossReloads,
    ) -> anyhow::Result<Worker> {
        let limit = integration.limits.max_in_flight;
        // Four times the limit, so that a permit never waits for the broker's next delivery, nor for the records of the
        // next events to be durable.
        let prefetch = u16::try_from(limit * 4).unwrap_or(u16::MAX);
        // Two queues can feed the fresh lane, and the requests of a lost connection still run to their end.
        let most_in_hand = limit * 9;
        Ok(Worker {
            gate: integration.gate()?,
            integration,
            sequencer: Sequencer::default(),
            facts,
            prefetch,
            most_in_hand: u32::try_from(most_in_hand).unwrap_or(u32::MAX),
            retries_in_hand: Arc::new(Semaphore::new(most_in_hand)),
            fresh_in_hand: Arc::new(Semaphore::new(most_in_hand)),
            suspects_in_hand: Semaphore::new(most_in_hand),
            unsettled,
            records,
            verified: Mutex::default(),
            store_failed: Notify::new(),
            faulted: Notify::new(),
            stops,
            quarantine,
            suspects: Share::default(),
        })
    }

    /// What this worker serves.
    #[must_use]
    pub fn integration(&self) -> &Integration {
        &self.integration
    }

    /// The gate that it sends to.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The facts that it logs and counts.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What it has not settled, on all connections.
    #[must_use]
    pub fn unsettled(&self) -> Arc<Unsettled> {
        Arc::clone(&self.unsettled)
    }

    /// The most deliveries that one consumer may have in hand.
    #[must_use]
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Opens the records, before anything is consumed.
    ///
    /// # Errors
    /// Another process holds them, or they cannot be read or written.
    pub async fn open_records(&self) -> Result<(), record::Failed> {
        self.records.open().await
    }

    /// Compares the records with what the broker remembers of them; only then are events merged into them. Returns
    /// what the broker is to remember from now on, if anything.
    ///
    /// # Errors
    /// They are not the records that the broker remembers, or they failed.
    pub async fn verify(&self, known: Option<&Claim>) -> Result<Option<Claim>, record::Failed> {
        let (verified, claim) = self.records.verify(&self.integration, known).await?;
        *self.verified.lock().unwrap_or_else(PoisonError::into_inner) = verified;
        Ok(claim)
    }

    /// Whether its records are for one worker only, and nothing was merged into them yet.
    #[must_use]
    pub fn is_first_claim(&self) -> bool {
        self.keeps_folder() && self.verified().is_none()
    }

    /// Whether its records are in a directory, which is for one worker only.
    #[must_use]
    pub fn keeps_folder(&self) -> bool {
        matches!(self.records.place(), record::Backend::Directory(_))
    }

    /// The records into which events may be merged; `None` if none are kept.
    fn verified(&self) -> Option<Arc<Verified>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The records of all persons.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Returns when the records failed: nothing that needs them can be acked.
    pub async fn records_failed(&self) {
        self.store_failed.notified().await;
    }

    /// Returns when the task of an event ended by a fault outside the event's handling: the event would stay in hand.
    pub async fn faulted(&self) {
        self.faulted.notified().await;
    }

    /// Waits until nothing is under way any more.
    pub async fn at_rest(&self) {
        let _ = self.retries_in_hand.acquire_many(self.most_in_hand).await;
        let _ = self.fresh_in_hand.acquire_many(self.most_in_hand).await;
        let _ = self.suspects_in_hand.acquire_many(self.most_in_hand).await;
    }

    /// Waits until one more delivery of a queue may be under way.
    async fn room_in_hand(&self, queue_kind: QueueKind) -> Option<OwnedSemaphorePermit> {
        let hand = match lane(queue_kind) {
            Lane::Retry => &self.retries_in_hand,
            Lane::Fresh => &self.fresh_in_hand,
        };
        // The semaphores are never closed.
        Arc::clone(hand).acquire_owned().await.ok()
    }

    /// Starts to handle a delivery; `None` if that ended at once. The handling is polled once right here, so that the
    /// event joins its person's line in the order of receipt.
    pub async fn begin(
        self: &Arc<Self>,
        incoming: Incoming,
        settler: &Arc<Settler>,
        pass: Pass,
    ) -> Option<JoinHandle<()>> {
        let hand = self.room_in_hand(incoming.queue_kind).await;
        let (worker, settler) = (Arc::clone(self), Arc::clone(settler));
        let mut handling = Box::pin(async move {
            let name = Some(worker.integration.name.as_str());
            if task::watched("event", name, worker.handle(incoming, &settler, Terms { pass, is_alone: false }))
                .await
                .is_none()
            {
                worker.faulted.notify_one();
            }
            drop(hand);
        });
        match handling.as_mut().now_or_never() {
            Some(()) => None,
            None => Some(tokio::spawn(handling)),
        }
    }
}

fn lane(queue_kind: QueueKind) -> Lane {
    match queue_kind {
        QueueKind::Retry => Lane::Retry,
        QueueKind::Work | QueueKind::Source => Lane::Fresh,
    }
}
