//! Notes besides the records: the integrations they belong to, their mappings, and how persons are
//! identified.

use super::store::Store;
use super::{Failed, Mapped};
use crate::integration::{Integration, Name};
use crate::mapping::Slot;

/// The prefix of the notes about integrations whose records these are.
const CLAIMED: &str = "claimed ";

/// The name of the note that the broker knew these records as this integration's.
pub(super) fn claimed(integration: &Name) -> String {
    format!("{CLAIMED}{integration}")
}

/// The integration that such a note is about.
pub(super) fn claimed_by(note: &str) -> Option<&str> {
    note.strip_prefix(CLAIMED)
}

/// The name of the note of a set of mappings.
fn mappings_note(records: &Name, set: u64) -> String {
    format!("mappings {records} {set:016x}")
}

/// The mappings of a set; none if the set is no longer known.
pub(super) async fn mappings(store: &Store, records: &Name, set: u64) -> Result<Vec<Slot>, Failed> {
    let known = store.note(&mappings_note(records, set)).await?;
    Ok(known.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// Remembers the current mappings of an integration, so that it can be looked up later under which mappings
/// an event was merged.
pub(super) async fn remember_mappings(store: &Store, integration: &Integration) -> Result<Mapped, Failed> {
    let mapped = Mapped::new(integration.mappings.slots().cloned());
    let name = mappings_note(&integration.records, mapped.own());
    if store.note(&name).await?.is_none() {
        let slots: Vec<&Slot> = mapped.slots().collect();
        store.set_note(&name, &serde_json::json!(slots).to_string()).await?;
    }
    Ok(mapped)
}

/// Remembers how persons are identified, and warns if that has changed.
pub(super) async fn remember_names(store: &Store, integration: &Integration) -> Result<(), Failed> {
    let name = &integration.name;
    let identifier = integration.mappings.identifier_path();
    let notes = [
        ("identifier", format!("identifier {}", integration.records), identifier),
        ("records", format!("records of {name}"), integration.records.as_str()),
    ];
    for (key, note, now) in notes {
        match store.note(&note).await? {
            Some(before) if before == now => continue,
            Some(before) => tracing::warn!(
                integration = name.as_str(),
                before,
                now,
                "\"{key}\" changed: what is recorded under the former one is no longer found, so an event from \
                 before the change that is retried or replayed can win once over a newer one; change it back to avoid that"
            ),
            None => {}
        }
        store.set_note(&note, now).await?;
    }
    Ok(())
}
