//! What letters would do today, as far as mapping and records tell.

use super::letter::Letter;
use super::preview::{KnownOfPerson, Preview, would};
use crate::config::Settings;
use crate::integration::Integration;
use crate::ops::{Failure, retention};
use crate::plan::{Plan, plan};
use crate::record::control_socket::Access;
use crate::verdict::{DeadReason, Processed};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::OnceCell;

/// Finds out what a letter would do today.
pub struct Asking<'s> {
    settings: &'s Settings,
    integration: &'s Integration,
    records: OnceCell<Option<Access>>,
}

impl Asking<'_> {
    pub fn new<'s>(settings: &'s Settings, integration: &'s Integration) -> Asking<'s> {
        Asking { settings, integration, records: OnceCell::new() }
    }

    /// The records, which are opened at the first call; says so if they cannot be asked.
    pub async fn records(&self) -> Option<&Access> {
        let open = async || {
            let records = crate::ops::store::compared(self.settings, self.integration).await;
            if let Err(why) = &records {
                super::talk(&format!(
                    "the records cannot be asked what is newest ({}); the mapping alone decides",
                    why.why()
                ));
            }
            records.ok()
        };
        self.records.get_or_init(open).await.as_ref()
    }

    /// What the mapping makes of a letter today, and what would become of it.
    ///
    /// # Errors
    /// The records failed (exit code 1).
    pub async fn preview(
        &self,
        letter: &Letter<'_>,
        now: Timestamp,
    ) -> Result<(Result<Plan, Processed>, Preview), Failure> {
        let (_, planned) = plan(letter.whole(), self.integration, now);
        let preview = self.preview_of(&planned, now).await?;
        Ok((planned, preview))
    }

    async fn preview_of(&self, planned: &Result<Plan, Processed>, now: Timestamp) -> Result<Preview, Failure> {
        let integration = self.integration;
        let known = match planned {
            Ok(Plan::Trigger(send)) => match self.records().await {
                Some(records) => {
                    KnownOfPerson::Told(Box::new(records.person(&integration.records, &send.identifier).await?))
                }
                None => KnownOfPerson::Untold,
            },
            _ => KnownOfPerson::Untold,
        };
        Ok(would(planned, &known, integration, retention(self.settings), now))
    }

    /// What would become of a letter that is replayed. The mapping alone tells; the worker asks the records anyway. They
    /// are asked here only for letters that may be older than what they remember.
    pub async fn quick(&self, letter: &Letter<'_>, now: Timestamp) -> Preview {
        let (integration, retention) = (self.integration, retention(self.settings));
        let (_, planned) = plan(letter.whole(), integration, now);
        let is_old = |at: Timestamp| now.duration_since(at) > retention;
        if let Ok(Plan::Trigger(send)) = &planned
            && (letter.reason == Some(DeadReason::OlderThanRetention) || send.offer.latest().is_some_and(is_old))
            && let Ok(preview) = self.preview_of(&planned, now).await
        {
            return preview;
        }
        would(&planned, &KnownOfPerson::Untold, integration, SignedDuration::MAX, now)
    }
}
