//! `person`: what is recorded of somebody, and how to forget it.

use super::audit::{audit, one_person};
use super::dead::OfPerson;
use super::store::compared;
use super::{Failure, agreed, integration, named, print, talk};
use crate::audit::Command;
use crate::config::{self, Environment};
use crate::mapping::Choice;
use crate::record::{Place, Record, Version};
use jiff::Timestamp;
use serde_json::json;
use std::path::Path;

/// Shows each value that is recorded of a person: since when, by which event, and when the gate
/// accepted it. The values themselves only when they are to be revealed.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); nothing is recorded, or the records cannot be
/// reached (1).
pub async fn show(
    name: &str,
    identifier: &str,
    reveal: bool,
    file: Option<&Path>,
    environment: &Environment,
    as_json: bool,
) -> Result<(), Failure> {
    let (settings, integration) = integration(name, file, environment)?;
    let recorded = compared(&settings, &integration).await?.person(&integration.records, identifier).await?;
    let Some(record) = recorded.record else {
        return Err(Failure::Failed(format!("nothing is recorded of this person under {}", integration.name)));
    };
    if reveal {
        audit(&settings, &integration.name, Command::PersonShow, one_person()).await;
    }
    print(&if as_json { as_lines(&record, reveal) } else { as_table(&record, reveal) })
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
    let time = |at: Option<Timestamp>, none: &str| at.map_or_else(|| none.to_owned(), |at| at.to_string());
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
        text.push_str(&format!("erased: everything up to {at}\n"));
    }
    text
}

/// Forgets a person after asking, unless `yes`: record and dead letters, with a tombstone for what is
/// still on its way.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); the records or the broker cannot be reached (1).
pub async fn forget(
    name: &str,
    identifier: &str,
    yes: bool,
    file: Option<&Path>,
    environment: &Environment,
    as_json: bool,
) -> Result<(), Failure> {
    let config = config::load(file, environment)?;
    let integration = named(&config.integrations, name)?.clone();
    let settings = config.settings;
    // Before anything is counted or asked: an answer by the wrong records would be none.
    let access = match settings.records.place {
        Place::Off => None,
        _ => Some(compared(&settings, &integration).await?),
    };
    if access.is_none() {
        talk(
            "no records are kept ([records] store is \"off\"): letters are removed and nothing is remembered, \
            so an older event that is still on its way can bring the person back",
        );
    }
    let theirs = OfPerson::count(settings.clone(), integration.clone(), identifier).await?;
    let letters = theirs.letters;
    let question = format!(
        "forget this person under {}: what is recorded, and {letters} dead letters?{}",
        integration.name,
        if access.is_some() { " Older events of theirs will be skipped" } else { "" }
    );
    if !yes && !agreed(&question, "this cannot be taken back")? {
        return Err(Failure::Failed("nothing was forgotten".to_owned()));
    }
    if theirs.unreadable > 0 {
        talk(&format!("{} dead letters cannot be read and may be about anybody", theirs.unreadable));
    }
    audit(&settings, &integration.name, Command::PersonForget, one_person()).await;
    // The record first: from then on no letter brings the person back.
    let was_known = match &access {
        None => false,
        Some(access) => access.forget(&integration, identifier).await?,
    };
    let removed = theirs.remove().await?;
    if as_json {
        return print(&format!("{}\n", json!({ "forgotten": true, "was_known": was_known, "letters": removed })));
    }
    let known = if was_known { "what was recorded is gone" } else { "nothing was recorded" };
    let promise = if access.is_some() { "; older events of this person will be skipped" } else { "" };
    print(&format!("{known}, dead letters removed: {removed}{promise}\n"))
}
