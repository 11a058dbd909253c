//! `person show`: what is recorded of a person.

use super::audit::{audit, persons};
use super::store::compared;
use super::{Failure, integration, is_somebody, print};
use crate::cli::PersonShowArgs;
use crate::config::Environment;
use crate::mapping::Choice;
use crate::observe::audit::AuditedAction;
use crate::record::{Record, Version};
use jiff::Timestamp;
use serde_json::json;
use std::path::Path;

/// Shows for each value that is recorded of a person since when it holds, from which event, and when the gate
/// accepted it. The values themselves are shown only with `reveal`.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); nothing is recorded, or the records cannot be
/// reached (1).
pub async fn show(
    args: &PersonShowArgs,
    file: Option<&Path>,
    environment: &Environment,
    as_json: bool,
) -> Result<(), Failure> {
    let PersonShowArgs { integration: name, identifier, reveal } = args;
    is_somebody(identifier)?;
    let (settings, integration) = integration(name, file, environment)?;
    let recorded = compared(&settings, &integration).await?.person(&integration.records, identifier).await?;
    let Some(record) = recorded.record else {
        return Err(Failure::Failed(format!("nothing is recorded of this person under {}", integration.name)));
    };
    if *reveal {
        audit(&settings, &integration.name, AuditedAction::PersonShow, persons(1)).await;
    }
    print(&if as_json { as_lines(&record, *reveal) } else { as_table(&record, *reveal) })
}

fn as_lines(record: &Record, reveal: bool) -> String {
    let values = record.values().map(|(slot, newest)| {
        let latest = newest.said.latest();
        let value = match newest.said.choice() {
            Choice::Switch(on) => json!(on),
            other => json!(other.to_string()),
        };
        json!({
            "property": slot.property(),
            "path": slot.path(),
            "value": reveal.then_some(value),
            "changed_at": latest.at,
            "event": latest.event,
            "accepted_at": newest.accepted,
            "refused": newest.is_refused,
        })
    });
    let erased = record.erased().map(|at| json!({ "erased": at }));
    values.chain(erased).map(|line| format!("{line}\n")).collect()
}

fn as_table(record: &Record, reveal: bool) -> String {
    let time = |at: Option<Timestamp>, none: &str| at.map_or_else(|| none.to_owned(), super::time);
    let head = ["property", "path", "value", "changed at", "by event", "accepted by the gate at"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    for (slot, newest) in record.values() {
        let value = if reveal { newest.said.choice().to_string() } else { "(hidden)".to_owned() };
        let accepted = if newest.is_refused { "refused for good".to_owned() } else { time(newest.accepted, "not yet") };
        let Version { at, event } = newest.said.latest();
        let event = event.as_deref().unwrap_or("(no id)").to_owned();
        let (property, path) = (slot.property().to_owned(), slot.path().to_owned());
        rows.push(vec![property, path, value, time(*at, "(undated)"), event, accepted]);
    }
    let mut text = if rows.len() > 1 { super::table(&rows) } else { "no choice is recorded\n".to_owned() };
    if let Some(at) = record.erased() {
        text.push_str(&format!("erased: everything up to {}\n", super::time(at)));
    }
    text
}
