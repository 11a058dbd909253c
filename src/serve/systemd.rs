//! Notifies systemd, if it listens, that the worker is ready, that it stops, and that it is alive. Messages are sent
//! on a thread of their own, since a systemd that hangs may not take them.

use crate::serve::admin::Health;
use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

/// How many times the worker says that it is alive within the time after which systemd restarts it.
const BEATS: u32 = 3;

/// Notifies systemd, if it listens.
pub fn notify(state: NotifyState<'static>) {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        drop(tokio::task::spawn_blocking(move || send(state)));
    }
}

/// If systemd watches the worker (`WatchdogSec`), says that it is alive for as long as it is: while the event loop
/// comes to this task, and `/livez` says so, too.
pub async fn keep_watchdog(health: &Health) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let mut beats = tokio::time::interval(within / BEATS);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        if health.is_alive() {
            // Nothing else waits for a message that is not taken, but no second one is sent meanwhile.
            let _ = tokio::task::spawn_blocking(|| send(NotifyState::Watchdog)).await;
        }
    }
}

fn send(state: NotifyState<'static>) {
    // Without systemd there is nothing to notify.
    let _ = sd_notify::notify(&[state]);
}
