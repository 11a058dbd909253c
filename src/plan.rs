//! Steps 2 and 3 as one pure function: a message's bytes to the request that it asks for, or to
//! why there is none. The worker, `map` and `send` all ask here, so they cannot disagree.

use crate::event::{self, Defect, Event, Kind};
use crate::gate::GateRequest;
use crate::integration::Integration;
use crate::mapping::Property;
use crate::record::{Offer, Values};
use crate::verdict::{self, Course, MAX_BODY, Skip};
use jiff::Timestamp;
use std::sync::Arc;

/// What an event asks for.
#[derive(Clone, Debug)]
pub enum Plan {
    /// A request to the gate.
    Send(Send),
    /// That a person is forgotten: everything up to an instant, if the event names one.
    Erase { identifier: Arc<str>, at: Option<Timestamp> },
}

impl Plan {
    /// The request with the event's own values, for who keeps no records.
    ///
    /// # Errors
    /// Why nothing is to be sent.
    pub fn own_request(self, integration: &Integration) -> Result<GateRequest, Course> {
        match self {
            Plan::Send(send) => Ok(send.own_request(integration)),
            Plan::Erase { .. } => Err(Course::NotWanted(Skip::UserDeleted)),
        }
    }
}

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Send {
    pub identifier: Arc<str>,
    pub offer: Arc<Offer>,
    trace: Option<String>,
    /// What the event itself says, as texts, in the mappings' order.
    own: Vec<(Arc<str>, Arc<str>)>,
}

impl Send {
    /// The same as a part of the trace that its publisher began.
    #[must_use]
    pub fn traced(self, trace: Option<String>) -> Send {
        Send { trace, ..self }
    }

    /// The request with the event's own values.
    #[must_use]
    pub fn own_request(&self, integration: &Integration) -> GateRequest {
        GateRequest::new(integration.endpoint.gate(), self.own.clone()).traced(self.trace.clone())
    }

    /// The request with the newest values that are known. Texts are made here and now: a record
    /// keeps choices.
    #[must_use]
    pub fn request(&self, integration: &Integration, newest: &Values) -> GateRequest {
        let is_choice = |id: &str| self.offer.choices.iter().any(|(property, _)| **property == *id);
        let mappings = integration.mappings.iter().filter_map(|mapping| {
            let text = match newest.get(&mapping.id) {
                Some(newest) => mapping.text(&newest.choice).ok().flatten(),
                None if is_choice(&mapping.id) => None,
                None => self.own.iter().find(|(id, _)| *id == mapping.id).map(|(_, text)| text.clone()),
            };
            Some((Arc::clone(&mapping.id), text?))
        });
        GateRequest::new(integration.endpoint.gate(), mappings.collect()).traced(self.trace.clone())
    }
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
    match event::decode(body, integration.mappings.unread()) {
        Err(defect) => (Brief::default(), Err(Course::Defective(defect))),
        Ok(event) => (Brief::of(&event), plan_event(&event, integration, now)),
    }
}

fn plan_event(event: &Event, integration: &Integration, now: Timestamp) -> Result<Plan, Course> {
    if let Some(erase) = erasure(event, integration) {
        return Ok(erase);
    }
    if let Some(skip) = verdict::not_wanted(event, &integration.filter).map_err(Course::Defective)? {
        return Err(Course::NotWanted(skip));
    }
    let identifier = integration.mappings.identifier(event);
    if let Ok(None) = identifier {
        return Err(Course::NotWanted(Skip::NoIdentifier));
    }
    let properties = integration.mappings.properties(event, false);
    let (identifier, properties) = match (identifier, properties, event.check()) {
        (Ok(Some(identifier)), Ok(properties), Ok(())) => (identifier, properties),
        (identifier, properties, checked) => {
            let defects = [checked.err(), identifier.err(), properties.err()];
            let defect = defects.into_iter().flatten().reduce(Defect::and);
            return Err(Course::Defective(defect.unwrap_or_else(|| Defect::at("body", "cannot be understood"))));
        }
    };
    let at = event.changed_at().ok().flatten();
    if verdict::is_future_dated(at, now) {
        return Err(Course::FutureDated);
    }
    let (mut choices, mut own) = (Vec::new(), Vec::new());
    for Property { id, text, choice, .. } in properties {
        choices.extend(choice.map(|choice| (Arc::clone(id), choice)));
        own.extend(text.ok().map(|text| (Arc::clone(id), text)));
    }
    let event = event.id().ok().flatten().map(Arc::from);
    let offer = Arc::new(Offer { at, event, choices });
    Ok(Plan::Send(Send { identifier, offer, trace: None, own }))
}

/// Who was deleted at Didomi is to be forgotten here, whatever types the integration takes; unless
/// it is another organization's person.
fn erasure(event: &Event, integration: &Integration) -> Option<Plan> {
    if event.kind() != Kind::UserDeleted {
        return None;
    }
    let wanted = integration.filter.organization_id.as_deref();
    let is_ours = wanted.is_none() || event.organization_id().ok()?.is_none_or(|own| Some(own) == wanted);
    let identifier = integration.mappings.identifier(event).ok()??;
    let at = event.changed_at().ok()?;
    is_ours.then_some(Plan::Erase { identifier, at })
}

impl Brief {
    /// What may be told of an event.
    #[must_use]
    pub fn of(event: &Event) -> Brief {
        // Of a user's message the id is the person's.
        let id = event.id().ok().flatten().filter(|id| !event.kind().is_user() && is_uuid(id));
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
