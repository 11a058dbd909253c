//! How many requests one gate gets at once and per second, and which go first.
//!
//! Retries go first: they get a permit as soon as one is free, and while any are expected at least half of the
//! permits are kept for them. Otherwise, with a backlog waiting and a gate that hangs, five attempts would take
//! six minutes instead of five.

use super::concurrency::Concurrency;
use super::way::Way;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
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
    /// Whether to search for the number of parallel requests at which the gate serves most.
    pub is_adaptive: bool,
    /// The most requests per second; `None` for no limit.
    pub requests_per_second: Option<f64>,
    /// How the gate is reached.
    pub way: Way,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_in_flight: 64,
            is_adaptive: true,
            requests_per_second: None,
            way: Way::default(),
        }
    }
}

/// The two classes of events that ask for a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// An event from the retry queue: tried, held or returned before.
    Retry,
    Fresh,
}

#[derive(Debug)]
pub(super) struct Limit {
    permits: Arc<Mutex<Permits>>,
    pace: Option<Pace>,
}

/// The right to have one request under way; dropping it releases it.
#[derive(Debug)]
pub struct Permit {
    lane: Lane,
    permits: Arc<Mutex<Permits>>,
}

#[derive(Debug)]
struct Permits {
    most: usize,
    /// The search for the best limit; without it the limit is `most`.
    search: Option<Concurrency>,
    retry: usize,
    fresh: usize,
    waiting_retry: VecDeque<oneshot::Sender<Permit>>,
    waiting_fresh: VecDeque<oneshot::Sender<Permit>>,
    retries_until: Option<Instant>,
}

/// Spaces requests evenly. A waiter that gives up does not use up a turn, and only one waiter of fresh work
/// competes with the retries.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: tokio::sync::Mutex<Instant>,
    fresh: tokio::sync::Mutex<()>,
}

impl Limit {
    pub(super) fn new(limits: &Limits) -> Limit {
        let pace = limits.requests_per_second.map(|rate| Pace {
            interval: Duration::from_secs_f64(1.0 / rate),
            next: tokio::sync::Mutex::new(Instant::now()),
            fresh: tokio::sync::Mutex::default(),
        });
        let permits = Permits {
            most: limits.max_in_flight,
            search: limits.is_adaptive.then(|| Concurrency::new(limits.max_in_flight)),
            retry: 0,
            fresh: 0,
            waiting_retry: VecDeque::new(),
            waiting_fresh: VecDeque::new(),
            retries_until: None,
        };
        Limit { permits: Arc::new(Mutex::new(permits)), pace }
    }

    /// How many requests may be under way at once now.
    pub(super) fn now(&self) -> usize {
        lock(&self.permits).limit()
    }

    /// Waits for the rate limit.
    pub(super) async fn pace(&self, lane: Lane) {
        if let Some(pace) = &self.pace {
            pace.turn(lane).await;
        }
    }

    /// Waits until one more request may be under way.
    pub(super) async fn enter(&self, lane: Lane) -> Permit {
        match self.take(lane) {
            Ok(permit) => permit,
            Err(promised) => match promised.await {
                Ok(permit) => permit,
                // Cannot happen: a sender leaves its queue only to send a permit.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Tells that retries are expected within this time, so that permits are kept for them.
    pub(super) fn expect_retries(&self, within: Duration) {
        let until = Instant::now() + within;
        let mut permits = lock(&self.permits);
        permits.retries_until = permits.retries_until.max(Some(until));
    }

    /// Takes note of an answer. `is_served` is false for answers that show that the gate is overloaded or
    /// down.
    pub(super) fn answered(&self, is_served: bool) {
        let now = Instant::now();
        let mut permits = lock(&self.permits);
        let is_full = !permits.waiting_retry.is_empty() || !permits.waiting_fresh.is_empty();
        let Some(search) = &mut permits.search else { return };
        if search.answered(is_served, is_full, now) {
            give(permits, &self.permits);
        }
    }

    fn take(&self, lane: Lane) -> Result<Permit, oneshot::Receiver<Permit>> {
        let mut permits = lock(&self.permits);
        if permits.admits(lane, Instant::now()) {
            permits.count(lane, 1);
            return Ok(Permit { lane, permits: Arc::clone(&self.permits) });
        }
        let (promise, promised) = oneshot::channel();
        permits.waiting(lane).push_back(promise);
        Err(promised)
    }
}

impl Permits {
    fn limit(&self) -> usize {
        self.search.as_ref().map_or(self.most, Concurrency::limit)
    }

    fn admits(&self, lane: Lane, now: Instant) -> bool {
        let is_free = self.retry + self.fresh < self.limit();
        match lane {
            Lane::Retry => is_free,
            Lane::Fresh => {
                let keep = self.retries_until.is_some_and(|until| now < until);
                let most = if keep { (self.limit() / 2).max(1) } else { self.limit() };
                is_free && self.waiting_retry.is_empty() && self.fresh < most
            }
        }
    }

    fn count(&mut self, lane: Lane, change: isize) {
        let count = match lane {
            Lane::Retry => &mut self.retry,
            Lane::Fresh => &mut self.fresh,
        };
        *count = count.saturating_add_signed(change);
    }

    fn waiting(&mut self, lane: Lane) -> &mut VecDeque<oneshot::Sender<Permit>> {
        match lane {
            Lane::Retry => &mut self.waiting_retry,
            Lane::Fresh => &mut self.waiting_fresh,
        }
    }

    /// Takes the next waiter that may go out of its queue.
    fn next(&mut self, now: Instant) -> Option<(Lane, oneshot::Sender<Permit>)> {
        for lane in [Lane::Retry, Lane::Fresh] {
            while self.admits(lane, now) {
                let Some(promise) = self.waiting(lane).pop_front() else { break };
                if !promise.is_closed() {
                    self.count(lane, 1);
                    return Some((lane, promise));
                }
            }
        }
        None
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut permits = lock(&self.permits);
        permits.count(self.lane, -1);
        give(permits, &self.permits);
    }
}

/// Gives free permits to the waiters, retries first.
fn give(mut permits: MutexGuard<'_, Permits>, all: &Arc<Mutex<Permits>>) {
    let mut given = Vec::new();
    while let Some(next) = permits.next(Instant::now()) {
        given.push(next);
    }
    drop(permits);
    for (lane, promise) in given {
        // A permit that is no longer wanted is dropped, and so comes back here.
        let _ = promise.send(Permit { lane, permits: Arc::clone(all) });
    }
}

impl Pace {
    async fn turn(&self, lane: Lane) {
        let _one_at_a_time = match lane {
            Lane::Fresh => Some(self.fresh.lock().await),
            Lane::Retry => None,
        };
        let mut next = self.next.lock().await;
        tokio::time::sleep_until(*next).await;
        *next = (*next).max(Instant::now()) + self.interval;
    }
}

fn lock(permits: &Mutex<Permits>) -> MutexGuard<'_, Permits> {
    permits.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn limit(max_in_flight: usize) -> Limit {
        Limit::new(&Limits { max_in_flight, is_adaptive: false, ..Limits::default() })
    }

    fn enter(limit: &Limit, lane: Lane) -> Option<Permit> {
        limit.enter(lane).now_or_never()
    }

    #[test]
    fn fresh_work_has_every_permit_when_no_retry_is_expected() {
        let limit = limit(4);
        let permits: Vec<Option<Permit>> = (0..5).map(|_| enter(&limit, Lane::Fresh)).collect();
        assert_eq!(permits.iter().flatten().count(), 4);
        drop(permits);
        assert!(enter(&limit, Lane::Fresh).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_permits_of_a_limit_that_rises() {
        let limit = Limit::new(&Limits { max_in_flight: 64, ..Limits::default() });
        let mut held: VecDeque<Permit> = (0..16).filter_map(|_| enter(&limit, Lane::Fresh)).collect();
        assert_eq!(held.len(), 16);
        let mut waiting: Vec<_> = (0..48).map(|_| Box::pin(limit.enter(Lane::Fresh))).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        while limit.now() == 16 {
            tokio::time::advance(Duration::from_millis(5)).await;
            limit.answered(true);
        }
        assert_eq!(limit.now(), 32);
        held.extend(waiting.iter_mut().filter_map(|one| one.as_mut().now_or_never()));
        assert_eq!(held.len(), 32);
    }

    #[test]
    fn half_of_the_permits_are_kept_while_retries_are_expected() {
        let limit = limit(5);
        limit.expect_retries(Duration::from_secs(60));
        let fresh: Vec<Option<Permit>> = (0..5).map(|_| enter(&limit, Lane::Fresh)).collect();
        assert_eq!(fresh.iter().flatten().count(), 2);
        let retries: Vec<Option<Permit>> = (0..5).map(|_| enter(&limit, Lane::Retry)).collect();
        assert_eq!(retries.iter().flatten().count(), 3);
        drop(fresh);
        let more: Vec<Option<Permit>> = (0..5).map(|_| enter(&limit, Lane::Retry)).collect();
        assert_eq!(more.iter().flatten().count(), 2, "retries may have all");
    }

    #[test]
    fn a_single_permit_is_not_kept_from_fresh_work_for_ever() {
        let limit = limit(1);
        limit.expect_retries(Duration::from_secs(60));
        assert!(enter(&limit, Lane::Fresh).is_some());
    }

    #[test]
    fn a_retry_that_waits_goes_before_fresh_work_that_waited_longer() {
        let limit = limit(1);
        let held = enter(&limit, Lane::Fresh);
        let mut fresh = Box::pin(limit.enter(Lane::Fresh));
        let mut retry = Box::pin(limit.enter(Lane::Retry));
        assert!(fresh.as_mut().now_or_never().is_none() && retry.as_mut().now_or_never().is_none());
        drop(held);
        assert!(fresh.as_mut().now_or_never().is_none());
        let permit = retry.as_mut().now_or_never();
        assert!(permit.is_some());
        drop(permit);
        assert!(fresh.as_mut().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_costs_nobody_an_instant_and_retries_pass_fresh_work() {
        let limit = Limit::new(&Limits { requests_per_second: Some(0.1), ..Limits::default() });
        let began = Instant::now();
        limit.pace(Lane::Fresh).await;
        for _ in 0..5 {
            let gave_up = tokio::time::timeout(Duration::from_secs(1), limit.pace(Lane::Fresh)).await;
            assert!(gave_up.is_err());
        }
        limit.pace(Lane::Fresh).await;
        assert_eq!(began.elapsed().as_secs(), 10);
        let mut fresh: Vec<_> = (0..3).map(|_| Box::pin(limit.pace(Lane::Fresh))).collect();
        for waiting in &mut fresh {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        let first = fresh.remove(0);
        let (retried, ()) = tokio::join!(
            async {
                limit.pace(Lane::Retry).await;
                began.elapsed().as_secs()
            },
            first
        );
        assert_eq!(retried, 30, "behind one of fresh work, not behind three");
    }

    #[test]
    fn who_stops_waiting_costs_nobody_a_permit() {
        let limit = limit(1);
        let held = enter(&limit, Lane::Fresh);
        let mut early = Box::pin(limit.enter(Lane::Fresh));
        let mut late = Box::pin(limit.enter(Lane::Fresh));
        let mut last = Box::pin(limit.enter(Lane::Fresh));
        for waiting in [&mut early, &mut late, &mut last] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        drop(early);
        drop(held);
        drop(late); // it was given the permit and never polled
        assert!(last.as_mut().now_or_never().is_some());
    }
}
