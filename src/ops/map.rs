//! `map`: what an event would send, property by property, sending nothing.

use super::{Failure, integration, print, read_event, verdict_of};
use crate::config::Environment;
use crate::event::{self, Body};
use crate::gate::GateRequest;
use crate::integration::Integration;
use crate::mapping::{Mapping, Property, Source};
use crate::plan::{Brief, plan};
use crate::verdict::Course;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// Shows the request of one event. The values are the operator's own and shown in clear; the
/// signature and the password never are.
///
/// # Errors
/// Problems of configuration or usage (exit code 2). An event that would not be sent is no error.
pub fn map(
    name: &str,
    event: &Path,
    file: Option<&Path>,
    environment: &Environment,
    as_json: bool,
) -> Result<(), Failure> {
    let (_, integration) = integration(name, file, environment)?;
    let body = read_event(event)?;
    let (brief, planned) = plan(Body::of_file(&body), &integration, Timestamp::now());
    let planned = planned.and_then(|plan| plan.own_request(&integration));
    let decoded = event::decode(Body::of_file(&body), &[]).ok();
    let properties = decoded.as_ref().and_then(|event| integration.mappings.properties(event, true).ok());
    let shown = Shown {
        integration: &integration,
        brief,
        outcome: planned.as_ref().map(|_| ()).map_err(Clone::clone),
        properties: integration.mappings.iter().zip(properties.unwrap_or_default()).collect(),
        request: planned.ok(),
    };
    print(&if as_json { format!("{}\n", shown.json()) } else { shown.text() })
}

struct Shown<'i> {
    integration: &'i Integration,
    brief: Brief,
    outcome: Result<(), Course>,
    properties: Vec<(&'i Mapping, Property<'i>)>,
    request: Option<GateRequest>,
}

impl Shown<'_> {
    /// Outcome, code and detail of what the worker would do.
    fn verdict(&self) -> (&'static str, &'static str, Option<String>) {
        let Err(course) = &self.outcome else { return ("sent", "", None) };
        let (outcome, code) = verdict_of(course, self.integration);
        (outcome, code, course.error())
    }

    fn json(&self) -> Value {
        let (outcome, code, detail) = self.verdict();
        let properties: Vec<Value> =
            self.properties.iter().map(|(mapping, property)| property_json(mapping, property)).collect();
        let request = self.request.as_ref().map(|request| {
            let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
            json!({ "method": "POST", "url": self.integration.endpoint.url(), "headers": self.headers(), "body": body })
        });
        json!({
            "integration": self.integration.name.as_str(),
            "type": self.brief.kind,
            "event_id": self.brief.id,
            "changed_at": self.brief.changed_at.map(|at| at.to_string()),
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
            self.brief.kind.unwrap_or("unknown"),
            self.brief.id.as_deref().unwrap_or("(no id)")
        ));
        let changed = self.brief.changed_at.map_or_else(|| "unknown".to_owned(), super::time);
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
                line(format_args!("{:width$}  {}", mapping.id, property_text(mapping, property)));
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
        Source::Path(path) => path.written(),
        Source::Constant(_) => "constant",
    }
}

fn property_json(mapping: &Mapping, property: &Property<'_>) -> Value {
    match &property.text {
        Ok(text) => json!({ "id": mapping.id, "mapping": origin(mapping), "value": text, "found_at": property.place }),
        Err(why) => {
            json!({ "id": mapping.id, "mapping": origin(mapping), "left_out": why.explain(), "found_at": property.place })
        }
    }
}

fn property_text(mapping: &Mapping, property: &Property<'_>) -> String {
    let place = property.place.as_deref().unwrap_or(origin(mapping));
    match &property.text {
        Ok(text) => format!("{text:?}  from {place}"),
        Err(why) => format!("left out  ({}: {})", place, why.explain()),
    }
}
