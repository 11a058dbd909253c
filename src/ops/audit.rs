//! The audit entry that a command that touches personal data writes before it shows or does anything.

use super::{counted, talk};
use crate::broker;
use crate::config::Settings;
use crate::integration::Name;
use crate::observe::audit::{AuditedAction, Entry, Scope};
use crate::observe::telemetry;
use serde_json::json;
use std::sync::Once;

/// Sends the entry to the worker and, except for a replay, which reports by itself, writes it to standard error.
/// If the broker does not take it, the command goes on with a warning: a full queue must not keep an operator
/// from handling an outage.
pub async fn audit(settings: &Settings, integration: &Name, command: AuditedAction, scope: Scope) {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| telemetry::start(settings.log));
    let entry = Entry::own(command, scope);
    if command != AuditedAction::DeadReplay {
        entry.log(integration.as_str());
    }
    let written = json!(entry).to_string();
    if let Err(error) = broker::audit::put(&settings.broker, integration, written.as_bytes()).await {
        talk(&format!(
            "warning: this is not in the worker's log ({error}); \
            consent-gate declare makes the queue, a running worker empties it"
        ));
    }
}

/// The scope of a command about this many persons, who are not named.
pub fn persons(count: usize) -> Scope {
    Scope { queue: "records".to_owned(), filter: counted(count as u64, "person"), count: Some(count as u64) }
}
