//! `map`: shows, property by property, what would be sent for an event; sends nothing.

use super::audit::{audit, persons};
use super::dead::preview::begun;
use super::store::compared;
use super::{Failure, integration, print, read_event, retention, verdict_of};
use crate::cli::MapArgs;
use crate::config::Environment;
use crate::event::{self, Body};
use crate::gate::GateRequest;
use crate::integration::Integration;
use crate::mapping::{Mapping, Property, ValueSource};
use crate::observe::audit::AuditedAction;
use crate::plan::{EventSummary, Plan, plan};
use crate::record::{Record, ToSend};
use crate::verdict::Processed;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

/// Why a property is left out if its newest value was not recorded.
const UNKNOWN: &str =
    "a newer event of this person came under another path, and its value for this property was not recorded";
/// Why a property is left out if the gate refused its newest value.
const REFUSED: &str = "a newer value than this one was refused for good by the gate";

/// Why a property is left out if its person was erased after the event.
const ERASED: &str = "the person was erased after this event; only what takes back a granted consent is sent";

/// Shows the request for one event. The values are the operator's own and are shown in clear; the signature and
/// the password never are.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); the event would be a dead letter, or the records or
/// the broker cannot be reached (1). An event that would be skipped is no error.
pub async fn map(args: &MapArgs, file: Option<&Path>, environment: &Environment, as_json: bool) -> Result<(), Failure> {
    let (settings, integration) = integration(&args.integration, file, environment)?;
    let body = read_event(&args.event)?;
    let now = Timestamp::now();
    let (summary, planned) = plan(Body::of_file(&body), &integration, now);
    let (mut to_send, mut is_erased) = (None, false);
    let planned = match planned {
        Ok(Plan::Trigger(send)) if args.recorded => {
            let access = compared(&settings, &integration).await?;
            let recorded = access.person(&integration.records, &send.identifier).await?;
            audit(&settings, &integration.name, AuditedAction::PersonShow, persons(1)).await;
            let erased = recorded.record.as_ref().and_then(Record::erased);
            is_erased = erased.is_some() && send.offer.latest() <= erased;
            begun(&send, &recorded, &integration, retention(&settings), now).map(|(known, _)| {
                let request = send.request(&integration, &known.newest);
                to_send = Some(known);
                request
            })
        }
        planned => planned.and_then(|plan| plan.own_request(&integration)),
    };
    let decoded = event::decode(Body::of_file(&body), &[]).ok();
    let properties = decoded.as_ref().and_then(|event| integration.mappings.properties(event, true).ok());
    let shown = MappedEvent {
        integration: &integration,
        summary,
        outcome: planned.as_ref().map(|_| ()).map_err(Clone::clone),
        properties: integration.mappings.iter().zip(properties.unwrap_or_default()).collect(),
        to_send,
        is_erased,
        request: planned.ok(),
    };
    print(&if as_json { format!("{}\n", shown.json()) } else { shown.text() })?;
    match shown.verdict() {
        ("dead_lettered", code, detail) => {
            let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
            Err(Failure::Failed(format!("this event would be a dead letter: {code}{detail}")))
        }
        _ => Ok(()),
    }
}

struct MappedEvent<'i> {
    integration: &'i Integration,
    summary: EventSummary,
    outcome: Result<(), Processed>,
    properties: Vec<(&'i Mapping, Property<'i>)>,
    /// What is to be sent according to the person's record, if that was read.
    to_send: Option<ToSend>,
    /// According to the record, the person was erased after the event.
    is_erased: bool,
    request: Option<GateRequest>,
}

/// What becomes of one mapping.
enum MappingOutcome {
    /// Sent with this text, because the event says so.
    Own(Arc<str>),
    /// Sent with a newer text than the event's.
    Recorded(Arc<str>),
    /// Sent with a text that takes a granted consent back, since the person was erased.
    TakenBack(Arc<str>),
    LeftOut(&'static str),
}

impl MappedEvent<'_> {
    fn told(&self, mapping: &Mapping, property: &Property<'_>) -> MappingOutcome {
        let own = || match &property.text {
            Ok(text) => MappingOutcome::Own(Arc::clone(text)),
            Err(why) => MappingOutcome::LeftOut(why.explain()),
        };
        let (Some(to_send), Some(slot)) = (&self.to_send, &mapping.slot) else { return own() };
        if property.choice.is_none() {
            return own();
        }
        if to_send.unknown.contains(slot) {
            return MappingOutcome::LeftOut(UNKNOWN);
        }
        let newest = to_send.newest.get(slot).and_then(|said| mapping.text(&said.choice()).ok().flatten());
        match (newest, &property.text) {
            (Some(newest), Ok(own)) if newest == *own => MappingOutcome::Own(newest),
            (Some(newest), _) if self.is_erased => MappingOutcome::TakenBack(newest),
            (Some(newest), _) => MappingOutcome::Recorded(newest),
            (None, _) if self.is_erased => MappingOutcome::LeftOut(ERASED),
            (None, _) => MappingOutcome::LeftOut(REFUSED),
        }
    }

    /// Outcome, code and detail of what the worker would do.
    fn verdict(&self) -> (&'static str, &'static str, Option<String>) {
        let Err(processed) = &self.outcome else { return ("sent", "", None) };
        let (outcome, code) = verdict_of(processed, self.integration);
        (outcome, code, processed.error())
    }

    fn json(&self) -> Value {
        let (outcome, code, detail) = self.verdict();
        let properties: Vec<Value> = self
            .properties
            .iter()
            .map(|(mapping, property)| property_json(mapping, property, self.told(mapping, property)))
            .collect();
        let request = self.request.as_ref().map(|request| {
            let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
            json!({ "method": "POST", "url": self.integration.endpoint.url(), "headers": self.headers(), "body": body })
        });
        json!({
            "integration": self.integration.name.as_str(),
            "type": self.summary.kind,
            "event_id": self.summary.id,
            "changed_at": self.summary.changed_at.map(|at| at.to_string()),
            "verdict": { "outcome": outcome, "code": code, "detail": detail },
            "properties": properties,
            "request": request,
        })
    }

    fn headers(&self) -> Value {
        json!({
            "Authorization": self.integration.endpoint.masked_authorization(),
            "Content-Type": "application/json",
            "Accept": "application/json",
        })
    }

    fn text(&self) -> String {
        let (outcome, code, detail) = self.verdict();
        let mut text = String::new();
        let mut line = |parts: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{parts}");
        };
        line(format_args!("integration  {}", self.integration.name));
        line(format_args!(
            "event        {} {}",
            self.summary.kind.unwrap_or("unknown"),
            self.summary.id.as_deref().unwrap_or("(no id)")
        ));
        let changed = self.summary.changed_at.map_or_else(|| "unknown".to_owned(), super::time);
        line(format_args!("changed      {changed}"));
        match (code, detail) {
            ("", _) => line(format_args!("verdict      would be {outcome}")),
            (code, None) => line(format_args!("verdict      would be {outcome}: {code}")),
            (code, Some(detail)) => line(format_args!("verdict      would be {outcome}: {code}: {detail}")),
        }
        if !self.properties.is_empty() {
            line(format_args!(""));
            let width = self.properties.iter().map(|(mapping, _)| mapping.id.chars().count()).max().unwrap_or(0);
            for (mapping, property) in &self.properties {
                line(format_args!(
                    "{:width$}  {}",
                    mapping.id,
                    property_text(mapping, property, self.told(mapping, property))
                ));
            }
        }
        if let Some(request) = &self.request {
            line(format_args!("\nPOST {}", self.integration.endpoint.url()));
            line(format_args!("Authorization: {}", self.integration.endpoint.masked_authorization()));
            line(format_args!("Content-Type: application/json\nAccept: application/json\n"));
            line(format_args!("{}", String::from_utf8_lossy(request.body())));
        }
        text
    }
}

fn origin(mapping: &Mapping) -> &str {
    match &mapping.source {
        ValueSource::Path(path) => path.written(),
        ValueSource::Constant(_) => "constant",
    }
}

fn property_json(mapping: &Mapping, property: &Property<'_>, told: MappingOutcome) -> Value {
    let (key, text, is_recorded) = match told {
        MappingOutcome::Own(text) => ("value", text, false),
        MappingOutcome::Recorded(text) | MappingOutcome::TakenBack(text) => ("value", text, true),
        MappingOutcome::LeftOut(why) => ("left_out", why.into(), false),
    };
    let mut line = json!({ "id": mapping.id, "mapping": origin(mapping), key: text, "found_at": property.place });
    if is_recorded {
        line["recorded"] = json!(true);
    }
    line
}

fn property_text(mapping: &Mapping, property: &Property<'_>, told: MappingOutcome) -> String {
    let place = property.place.as_deref().unwrap_or(origin(mapping));
    match told {
        MappingOutcome::Own(text) => format!("{text:?}  from {place}"),
        MappingOutcome::Recorded(text) => format!("{text:?}  recorded, newer than {place}"),
        MappingOutcome::TakenBack(text) => {
            format!("{text:?}  takes back what was granted: the person was erased after {place}")
        }
        MappingOutcome::LeftOut(why) => format!("left out  ({place}: {why})"),
    }
}
