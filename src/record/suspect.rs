//! A message that may kill the process, noted while it is handled.

use super::keys::Key;
use super::store::Store;
use super::{Failed, Note, SuspectState};
use jiff::Timestamp;
use std::sync::Arc;

/// A message that may kill the process, and what is known about it.
#[derive(Debug)]
pub struct Suspect {
    pub(super) store: Arc<Store>,
    pub(super) key: Key,
    pub(super) own: Arc<str>,
    pub known: SuspectState,
}

/// A suspect that is being handled: noted durably, so that a death of this process is noticed.
#[derive(Debug)]
pub struct SuspectNote {
    store: Arc<Store>,
    key: Key,
    deaths: u32,
}

impl Suspect {
    /// The number of deaths at which it was being handled, as far as is known.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        match self.known {
            SuspectState::Deaths(deaths) => deaths,
            SuspectState::HeldElsewhere => 0,
        }
    }

    /// Notes that this process is handling it from now on.
    ///
    /// # Errors
    /// The store failed: the message must not be handled.
    pub async fn note(self, now: Timestamp) -> Result<SuspectNote, Failed> {
        let deaths = self.deaths();
        let Suspect { store, key, own, .. } = self;
        store.note_suspect(key, &Note { deaths, holder: Some(own.as_ref().to_owned()), at: now }).await?;
        store.count_suspects(1);
        Ok(SuspectNote { store, key, deaths })
    }
}

impl SuspectNote {
    /// Takes note that it was handled and that this process is still alive. If it is settled, it is
    /// forgotten; otherwise it comes back, and the number of deaths is kept.
    ///
    /// # Errors
    /// The store failed: the message still counts as being handled.
    pub async fn passed(self, is_settled: bool, now: Timestamp) -> Result<(), Failed> {
        let SuspectNote { store, key, deaths } = &self;
        if is_settled || *deaths == 0 {
            return store.forget_suspect(*key).await;
        }
        store.note_suspect(*key, &Note { deaths: *deaths, holder: None, at: now }).await
    }
}

impl Drop for SuspectNote {
    fn drop(&mut self) {
        self.store.count_suspects(-1);
    }
}
