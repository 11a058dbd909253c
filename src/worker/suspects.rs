//! Messages that may kill the process: each waits for its turn, and is handled as carefully as the notes ask for.

use super::{Terms, Worker};
use crate::broker::consumers::Incoming;
use crate::broker::redelivery::Redelivery;
use crate::broker::settler::Settler;
use crate::gate::Pass;
use crate::record::{Suspect, SuspectState};
use crate::task;
use crate::worker::quarantine::{Admitted, Care, LONGEST_ALONE, Part};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::RwLockReadGuard;

/// How often to check whether another process still handles a suspect.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
impl Worker {
    /// Handles a message that may kill the process, as carefully as the note about it asks for. The message stays in
    /// hand while it waits for its turn, until the worker stops or its channel is gone.
    pub async fn suspect(self: Arc<Self>, mut incoming: Incoming, settler: Arc<Settler>, pass: Pass) {
        let admitted = tokio::select! {
            biased;
            () = self.stops.stopping.cancelled() => return,
            () = settler.over() => return,
            admitted = self.admit(&incoming) => admitted,
        };
        let Some((_part, admitted, suspect)) = admitted else { return };
        let _hand = self.suspects_in_hand.acquire().await;
        if self.stops.stopping.is_cancelled() || !settler.holds(&incoming.due.delivery) {
            return;
        }
        let deaths = suspect.as_ref().map(Suspect::deaths);
        if Care::of(deaths) == Care::Convicted {
            incoming.redelivery = Redelivery::Crashed;
        }
        let noted = match suspect {
            Some(suspect) => match self.or_unsettled(suspect.note(Timestamp::now()).await) {
                Ok(noted) => Some(noted),
                Err(_) => return,
            },
            None => None,
        };
        let terms = Terms { pass, is_alone: matches!(admitted, Admitted::Alone(_)) };
        let name = Some(self.integration.name.as_str());
        let mut handling = Box::pin(task::watched("suspect", name, self.handle(incoming, &settler, terms)));
        let handled = match tokio::time::timeout(LONGEST_ALONE, &mut handling).await {
            Ok(handled) => handled,
            Err(_) => {
                // A suspect that cannot be settled holds up only its own integration.
                drop(admitted);
                handling.await
            }
        };
        if handled.is_none() {
            self.faulted.notify_one();
        }
        if let Some(noted) = noted {
            // A failure is reported, and the note stays.
            let _ = self.or_unsettled(noted.passed(handled == Some(true), Timestamp::now()).await);
        }
    }

    /// Waits until a suspect may be handled. `None` when the records failed.
    async fn admit(&self, incoming: &Incoming) -> Option<(Part<'_>, Admitted, Option<Suspect>)> {
        let body = &incoming.due.delivery.data;
        // Somewhat more than the gate takes at once: it takes more only while something waits.
        let part = self.suspects.take(|| self.gate.limit() * 3 / 2).await;
        loop {
            let suspect = self.or_unsettled(self.records.suspect(&self.integration.name, body).await).ok()?;
            if suspect.as_ref().is_none_or(|suspect| suspect.known != SuspectState::HeldElsewhere) {
                let care = Care::of(suspect.as_ref().map(Suspect::deaths));
                return Some((part, self.quarantine.admit(care).await, suspect));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until a piece of work may be done; the guard is held while it is done.
    pub(super) async fn work_permit(&self, terms: Terms) -> Option<RwLockReadGuard<'_, ()>> {
        if terms.is_alone { None } else { Some(self.quarantine.beside().await) }
    }
}
