//! A message that may kill the process, noted while it is handled.

use super::keys::Key;
use super::store::Store;
use super::{Failed, Known, Note};
use jiff::Timestamp;
use std::sync::Arc;

/// A message that may kill the process, and what is known of it.
#[derive(Debug)]
pub struct Suspect {
    pub(super) store: Arc<Store>,
    pub(super) key: Key,
    pub(super) own: Arc<str>,
    pub known: Known,
}

/// A suspect that is being handled: noted durably, so that the death of this process is noticed.
#[derive(Debug)]
pub struct Noted {
    store: Arc<Store>,
    key: Key,
    deaths: u32,
}

impl Suspect {
    /// At how many deaths it was being handled, as far as is known.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        match self.known {
            Known::Deaths(deaths) => deaths,
            Known::HeldElsewhere => 0,
        }
    }

    /// Notes that this process handles it from now on.
    ///
    /// # Errors
    /// The store failed: it must not be handled.
    pub async fn note(self, now: Timestamp) -> Result<Noted, Failed> {
        let deaths = self.deaths();
        let Suspect { store, key, own, .. } = self;
        store.note_suspect(key, &Note { deaths, holder: Some(own.as_ref().to_owned()), at: now }).await?;
        store.count_suspects(1);
        Ok(Noted { store, key, deaths })
    }
}

impl Noted {
    /// It was handled and this process lives. What is settled is forgotten; what is not settled comes
    /// back, and the deaths at which it was are remembered.
    ///
    /// # Errors
    /// The store failed: it still counts as being handled.
    pub async fn passed(self, is_settled: bool, now: Timestamp) -> Result<(), Failed> {
        let Noted { store, key, deaths } = &self;
        if is_settled || *deaths == 0 {
            return store.forget_suspect(*key).await;
        }
        store.note_suspect(*key, &Note { deaths: *deaths, holder: None, at: now }).await
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.store.count_suspects(-1);
    }
}
