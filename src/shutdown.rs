//! The request to stop, as a value that is passed to every part that must hear it.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Can be cloned and waited for; once stopping, always stopping.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Says that it is time to stop. Dropping it says so, too.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A pair; the trigger makes every clone of the other ready.
#[must_use]
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Begins the shutdown.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shutdown {
    /// Returns as soon as the process is to stop.
    pub async fn wait(&self) {
        let mut receiver = self.0.clone();
        // An error means that the trigger is gone, which says the same.
        let _ = receiver.wait_for(|stopping| *stopping).await;
    }

    /// Whether the process is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow()
    }
}

/// Waits for SIGTERM or SIGINT and returns its name.
///
/// # Errors
/// Signals cannot be listened to.
pub async fn signalled() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
