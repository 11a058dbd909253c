//! Watched tasks. A task that ends by a fault (a panic) is named in the log, and ends no other: its watcher starts
//! it again, or takes down the one integration that needs it.

use futures_util::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// The pause before a task that ended by a fault is started again: long enough that a fault that repeats itself
/// does not fill the log, short enough that one that does not is over soon.
pub const PAUSE: Duration = Duration::from_secs(5);

/// Runs a task of one integration, or of the whole process. `None` when it ended by a fault.
// Not an async function: its future would have room for the task's twice.
pub fn watched<T>(
    name: &str,
    integration: Option<&str>,
    task: impl Future<Output = T>,
) -> impl Future<Output = Option<T>> {
    AssertUnwindSafe(task).catch_unwind().map(move |ended| {
        let ended = ended.ok();
        if ended.is_none() {
            tracing::error!(task = name, integration, "a task ended because of a bug in the worker");
        }
        ended
    })
}

/// Runs a task of the whole process to its end, and starts it again whenever it ends by a fault.
pub async fn kept(name: &str, mut task: impl AsyncFnMut()) {
    while watched(name, None, task()).await.is_none() {
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_is_started_anew_after_a_fault_and_not_after_its_end() {
        let (mut starts, mut told) = (0, Vec::new());
        kept("test", async || {
            starts += 1;
            tokio::task::yield_now().await;
            assert!(starts > 2, "jane@example.com");
            told.push(starts);
        })
        .await;
        assert_eq!((starts, told), (3, vec![3]));
    }

    #[tokio::test]
    async fn a_fault_is_not_an_end() {
        assert_eq!(watched("test", Some("acme"), async { 1 }).await, Some(1));
        assert_eq!(watched("test", Some("acme"), async { panic!("jane@example.com") }).await, None::<()>);
    }
}
