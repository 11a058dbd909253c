//! The gate's state: who may call, what was executed, what came in, which faults are in force.
//!
//! Executing and recording are one step under one lock, so the list of requests and the profiles
//! agree on the order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::document::Integration;
use crate::effect::Effect;
use crate::faults::{Faults, Subject};
use crate::judge::Claim;
use crate::outcome::Outcome;
use crate::profiles::Profiles;
use crate::requests::{Entry, Requests};

/// What changes together: what was executed and what was recorded.
pub struct Memory {
    pub profiles: Profiles,
    pub requests: Requests,
}

/// The gate and everything that it remembers.
pub struct Simulator {
    pub integrations: Vec<Integration>,
    memory: Mutex<Memory>,
    faults: Mutex<Faults>,
    pub in_flight: InFlight,
    /// Late executions that are still to come.
    pub waiting: AtomicU64,
}

impl Simulator {
    pub fn new(integrations: Vec<Integration>, keep: usize, seed: u64) -> Self {
        let names: Vec<String> = integrations.iter().map(|one| one.name.clone()).collect();
        Self {
            integrations,
            memory: Mutex::new(Memory {
                profiles: Profiles::new(names.iter().cloned()),
                requests: Requests::new(names, keep),
            }),
            faults: Mutex::new(Faults::new(seed)),
            in_flight: InFlight::default(),
            waiting: AtomicU64::new(0),
        }
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Merges the properties into the profile and records the request as accepted.
    pub fn execute(&self, at: Timestamp, claim: Claim, status: Option<u16>) {
        let mut memory = self.memory();
        if let (Some(integration), Some(identifier)) = (claim.integration, &claim.identifier) {
            let properties = &claim.properties;
            memory.profiles.upsert(integration, identifier, properties);
        }
        let mut entry = entry(at, Outcome::Accepted, status, claim);
        entry.executed_at = Some(Timestamp::now());
        memory.requests.record(entry);
    }

    /// Records a request that was not executed.
    pub fn record(&self, at: Timestamp, outcome: Outcome, status: Option<u16>, claim: Claim) {
        let entry = entry(at, outcome, status, claim);
        self.memory().requests.record(entry);
    }

    /// What a fault does to this request, if one applies.
    pub fn fault(&self, claim: &Claim, in_order: bool) -> Option<Arc<Effect>> {
        let integration = claim.integration.map(|place| &self.integrations[place]);
        self.faults().choose(&Subject {
            integration: integration.map(|one| one.name.as_str()),
            identifier: claim.identifier.as_deref(),
            in_order,
        })
    }
}

fn entry(at: Timestamp, outcome: Outcome, status: Option<u16>, claim: Claim) -> Entry {
    Entry {
        at,
        executed_at: None,
        integration: claim.integration,
        outcome,
        status,
        identifier: claim.identifier,
        properties: claim.properties,
        traceparent: claim.traceparent,
    }
}

/// How many requests wait for their answer, and the most that ever did at the same time.
///
/// A client that leaves is noticed a moment later, so the highest number can count a request
/// that was given up together with the one that followed it.
#[derive(Default)]
pub struct InFlight {
    now: AtomicU64,
    max: AtomicU64,
}

impl InFlight {
    pub fn enter(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.max.fetch_max(now, Ordering::Relaxed);
    }

    pub fn leave(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    /// The number now and the highest one.
    pub fn read(&self) -> (u64, u64) {
        let now = self.now.load(Ordering::Relaxed);
        (now, self.max.load(Ordering::Relaxed))
    }

    /// Forgets the highest number.
    pub fn reset(&self) {
        let now = self.now.load(Ordering::Relaxed);
        self.max.store(now, Ordering::Relaxed);
    }
}
