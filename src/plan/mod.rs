//! Steps 2 and 3 as one pure function: from a message's bytes to the request that it asks for, or to the
//! reason why there is none. The worker, `map` and `send` all call it, so they cannot disagree.

use crate::event::{self, Body, Defect, Event, EventKind, MAX_BODY, Unreadable};
use crate::gate::GateRequest;
use crate::integration::Integration;
use crate::integration::filter;
use crate::mapping::Property;
use crate::record::{Offer, Said, Values};
use crate::verdict::{Processed, Skip};
use jiff::Timestamp;
use std::sync::Arc;

/// The beginning of 2019: no consent event is older than Didomi's.
const EARLIEST_PUBLISHED: Timestamp = Timestamp::constant(1_546_300_800, 0);

/// What an event asks for.
#[derive(Clone, Debug)]
pub enum Plan {
    /// A request to the gate, which triggers the campaign.
    Trigger(PlannedRequest),
    /// The erasure of a person: everything up to an instant, if the event names one.
    Erase { identifier: Arc<str>, at: Option<Timestamp> },
}

impl Plan {
    /// The same plan as a part of the trace that its publisher began.
    #[must_use]
    pub fn traced(mut self, trace: Option<&str>) -> Plan {
        if let Plan::Trigger(send) = &mut self {
            send.trace = trace.map(str::to_owned);
        }
        self
    }

    /// The request with the event's own values, for use without records.
    ///
    /// # Errors
    /// Why nothing is to be sent.
    pub fn own_request(self, integration: &Integration) -> Result<GateRequest, Processed> {
        match self {
            Plan::Trigger(send) => Ok(send.own_request(integration)),
            Plan::Erase { .. } => Err(Processed::NotWanted(Skip::UserDeleted)),
        }
    }
}

/// A planned request.
#[derive(Clone, Debug)]
pub struct PlannedRequest {
    pub identifier: Arc<str>,
    pub offer: Arc<Offer>,
    trace: Option<String>,
    /// The event's own values, as texts, in the mappings' order.
    own: Vec<(Arc<str>, Arc<str>)>,
}

impl PlannedRequest {
    /// The request with the event's own values.
    #[must_use]
    pub fn own_request(&self, integration: &Integration) -> GateRequest {
        GateRequest::new(integration.endpoint.gate(), self.own.clone()).traced(self.trace.clone())
    }

    /// Whether the event has a value for a property.
    #[must_use]
    pub fn has_value(&self, property: &str) -> bool {
        self.own.iter().any(|(own, _)| **own == *property)
    }

    /// The request with the newest values that are known. Texts are rendered only here: a record keeps
    /// choices.
    #[must_use]
    pub fn request(&self, integration: &Integration, newest: &Values) -> GateRequest {
        let own = |id: &str| self.own.iter().find(|(own, _)| **own == *id).map(|(_, text)| Arc::clone(text));
        let mappings = integration.mappings.iter().filter_map(|mapping| {
            let said = mapping.slot.as_ref().and_then(|slot| newest.get(slot));
            let choice = self.offer.choices.iter().find(|(slot, _)| mapping.slot.as_ref() == Some(slot));
            let text = match (said, choice) {
                // The event's own selection keeps its order.
                (Some(said), Some((_, choice))) if **said == Said::offered(choice, &self.offer) => own(&mapping.id),
                (Some(said), _) => mapping.text(&said.choice()).ok().flatten(),
                (None, Some(_)) => None,
                (None, None) => own(&mapping.id),
            };
            Some((Arc::clone(&mapping.id), text?))
        });
        GateRequest::new(integration.endpoint.gate(), mappings.collect()).traced(self.trace.clone())
    }
}

/// What may be logged about an event: nothing in it is personal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSummary {
    /// The type, `other` for undocumented ones; `None` if it could not be decoded.
    pub kind: Option<&'static str>,
    /// The event's id if it is a UUID; anything else could be somebody's e-mail address.
    pub id: Option<String>,
    /// When the choice changed.
    pub changed_at: Option<Timestamp>,
}

/// Reads a message and plans its request.
///
/// # Errors
/// Why nothing is to be sent.
pub fn plan<'b>(
    body: impl Into<Body<'b>>,
    integration: &Integration,
    now: Timestamp,
) -> (EventSummary, Result<Plan, Processed>) {
    let body = body.into();
    if body.bytes.len() > MAX_BODY {
        let defect = Defect::expected("body", "at most 1 MiB", "more");
        return (EventSummary::default(), Err(Processed::TooLarge(defect)));
    }
    match event::decode(body, integration.mappings.unread()) {
        Err(Unreadable::Defective(defect)) => (EventSummary::default(), Err(Processed::Defective(defect))),
        Err(Unreadable::TooLarge(defect)) => (EventSummary::default(), Err(Processed::TooLarge(defect))),
        Ok(event) => (EventSummary::of(&event), plan_event(&event, integration, now)),
    }
}

fn plan_event(event: &Event, integration: &Integration, now: Timestamp) -> Result<Plan, Processed> {
    if let Some(erasure) = erasure(event, integration, now) {
        return erasure;
    }
    if let Some(skip) = filter::not_wanted(event, &integration.filter).map_err(Processed::Defective)? {
        return Err(Processed::NotWanted(skip));
    }
    let identifier = integration.mappings.identifier(event);
    if let Ok(None) = identifier {
        return Err(Processed::NotWanted(Skip::NoIdentifier));
    }
    let properties = integration.mappings.properties(event, false);
    let (identifier, properties) = match (identifier, properties, event.check()) {
        (Ok(Some(identifier)), Ok(properties), Ok(())) => (identifier, properties),
        (identifier, properties, checked) => {
            let defects = [checked.err(), identifier.err(), properties.err()];
            let defect = defects.into_iter().flatten().reduce(Defect::and);
            return Err(Processed::Defective(
                defect.unwrap_or_else(|| Defect::expected("body", "a consent event", "something else")),
            ));
        }
    };
    let [at, withdrawn_at] = [event.granted_at(), event.changed_at()].map(|at| at.ok().flatten());
    if filter::is_future_dated(at.max(withdrawn_at), now) {
        return Err(Processed::FutureDated);
    }
    let (mut choices, mut own) = (Vec::new(), Vec::new());
    for Property { id, slot, text, choice, .. } in properties {
        choices.extend(slot.cloned().zip(choice));
        own.extend(text.ok().map(|text| (Arc::clone(id), text)));
    }
    let event = event.id().ok().flatten().map(Arc::from);
    let offer = Arc::new(Offer { at, withdrawn_at, event, choices });
    Ok(Plan::Trigger(PlannedRequest { identifier, offer, trace: None, own }))
}

/// A person deleted at Didomi must be forgotten here, whatever types and regulations the integration takes;
/// `None` if the event is not an erasure. An erasure that cannot be carried out must not disappear.
fn erasure(event: &Event, integration: &Integration, now: Timestamp) -> Option<Result<Plan, Processed>> {
    if event.kind() != EventKind::UserDeleted {
        return None;
    }
    Some(match (event.organization_id(), integration.mappings.identifier(event), event.changed_at()) {
        (Ok(own), ..) if integration.filter.organization_id.as_deref().is_some_and(|wanted| own != Some(wanted)) => {
            Err(Processed::NotWanted(Skip::OtherOrganization))
        }
        (_, _, Ok(at)) if filter::is_future_dated(at, now) => Err(Processed::FutureDated),
        (Ok(_), Ok(Some(identifier)), Ok(at)) => Ok(Plan::Erase { identifier, at }),
        (organization, identifier, at) => {
            let unnamed = matches!(identifier, Ok(None))
                .then(|| Defect::expected(integration.mappings.identifier_path(), "the person to erase", "nothing"));
            let defects = [organization.err(), identifier.err(), at.err(), unnamed];
            let defect = defects.into_iter().flatten().reduce(Defect::and);
            Err(Processed::Defective(
                defect.unwrap_or_else(|| Defect::expected("body", "a consent event", "something else")),
            ))
        }
    })
}

/// The AMQP timestamp of a message, in seconds since 1970, if it is plausible: publishers that set none may
/// send 0, or milliseconds.
#[must_use]
pub fn published(seconds: u64, now: Timestamp) -> Option<Timestamp> {
    possible(Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?, now)
}

/// The time, if a message can have been published then.
#[must_use]
pub fn possible(at: Timestamp, now: Timestamp) -> Option<Timestamp> {
    (EARLIEST_PUBLISHED..=now).contains(&at).then_some(at)
}

impl EventSummary {
    /// What may be logged about an event.
    #[must_use]
    pub fn of(event: &Event) -> EventSummary {
        // In a `user.*` message the id is the person's.
        let id = event.id().ok().flatten().filter(|id| !event.kind().is_user() && is_uuid(id));
        EventSummary {
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

#[cfg(test)]
mod tests;
