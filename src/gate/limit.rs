//! How much one gate is asked at once and per second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// The settings of `[gate]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bounds a whole attempt, connecting included.
    pub timeout: Duration,
    /// Bounds connecting; never more than `timeout`.
    pub connect_timeout: Duration,
    /// The most requests under way at once.
    pub max_in_flight: usize,
    /// The most requests that leave within a second; `None` for as many as can be.
    pub requests_per_second: Option<f64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_in_flight: 64,
            requests_per_second: None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Limit {
    slots: Semaphore,
    pace: Option<Pace>,
}

/// The right to have one request under way; dropping it gives it back.
#[derive(Debug)]
pub struct Slot<'l> {
    _permit: Option<SemaphorePermit<'l>>,
}

/// Requests leave evenly: each takes the next free instant.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: Mutex<Instant>,
}

impl Limit {
    pub(super) fn new(limits: &Limits) -> Limit {
        let pace = limits
            .requests_per_second
            .map(|rate| Pace { interval: Duration::from_secs_f64(1.0 / rate), next: Mutex::new(Instant::now()) });
        Limit { slots: Semaphore::new(limits.max_in_flight), pace }
    }

    /// Waits until one more request may leave.
    pub(super) async fn enter(&self) -> Slot<'_> {
        // The semaphore is never closed, so this is always a permit.
        let slot = Slot { _permit: self.slots.acquire().await.ok() };
        if let Some(pace) = &self.pace {
            tokio::time::sleep_until(pace.take()).await;
        }
        slot
    }
}

impl Pace {
    fn take(&self) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(Instant::now());
        *next = turn + self.interval;
        turn
    }
}
