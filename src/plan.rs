//! Steps 2 and 3 as one pure function: a message's bytes to the request that it asks for, or to
//! why there is none. The worker, `map` and `send` all ask here, so they cannot disagree.

use crate::event::{self, Defect, Event};
use crate::gate::GateRequest;
use crate::integration::Integration;
use crate::mapping::Property;
use crate::verdict::{self, Course, MAX_BODY, Skip};
use jiff::Timestamp;

/// What an event asks of the gate.
#[derive(Clone, Debug)]
pub struct Plan {
    pub identifier: String,
    pub request: GateRequest,
}

/// What may be told of an event: nothing in it is personal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brief {
    /// The type, `other` for undocumented ones; `None` when it could not be decoded.
    pub kind: Option<&'static str>,
    /// The event's id where it is a UUID; anything else could be somebody's address.
    pub id: Option<String>,
    /// When the choice changed.
    pub changed_at: Option<Timestamp>,
}

/// Reads a message and plans its request.
///
/// # Errors
/// Why nothing is to be sent.
pub fn plan(body: &[u8], integration: &Integration, now: Timestamp) -> (Brief, Result<Plan, Course>) {
    if body.len() > MAX_BODY {
        return (Brief::default(), Err(Course::TooLarge));
    }
    match event::decode(body) {
        Err(defect) => (Brief::default(), Err(Course::Defective(defect))),
        Ok(event) => (Brief::of(&event), plan_event(&event, integration, now)),
    }
}

fn plan_event(event: &Event, integration: &Integration, now: Timestamp) -> Result<Plan, Course> {
    if let Some(skip) = verdict::not_wanted(event, &integration.filter).map_err(Course::Defective)? {
        return Err(Course::NotWanted(skip));
    }
    let identifier = integration.mappings.identifier(event);
    if let Ok(None) = identifier {
        return Err(Course::NotWanted(Skip::NoIdentifier));
    }
    let properties = integration.mappings.properties(event, false);
    let (Ok(Some(identifier)), Ok(properties), Ok(())) = (&identifier, &properties, event.check()) else {
        let defects = [event.check().err(), identifier.err(), properties.err()];
        let defect = defects.into_iter().flatten().reduce(Defect::and);
        return Err(Course::Defective(defect.unwrap_or_else(|| Defect::at("body", "cannot be understood"))));
    };
    if verdict::is_future_dated(event.changed_at().ok().flatten(), now) {
        return Err(Course::FutureDated);
    }
    let request = GateRequest::new(integration.endpoint.gate(), sent(properties));
    Ok(Plan { identifier: identifier.clone(), request })
}

/// The properties that have a text, in the mappings' order.
fn sent(properties: &[Property<'_>]) -> Vec<(String, String)> {
    let texts =
        properties.iter().filter_map(|property| Some((property.id.to_owned(), property.text.as_ref().ok()?.clone())));
    texts.collect()
}

impl Brief {
    fn of(event: &Event) -> Brief {
        let id = event.id().ok().flatten().filter(|id| is_uuid(id));
        Brief {
            kind: Some(event.kind().name()),
            id: id.map(str::to_owned),
            changed_at: event.changed_at().ok().flatten(),
        }
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}
