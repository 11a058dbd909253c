//! One dead letter as its headers and its body describe it, whoever published it.

use crate::broker::headers;
use crate::event::{self, Body, Event};
use crate::integration::Integration;
use crate::observe::facts::Fingerprint;
use crate::verdict::DeadReason;
use crate::verdict::history::History;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::message::Delivery;
use std::cell::OnceCell;
use std::sync::Arc;

/// A letter; its body is decoded when it is first needed.
pub struct Letter<'d> {
    pub body: &'d [u8],
    pub properties: &'d BasicProperties,
    /// `None` if the letter names none, or none that this worker knows.
    pub reason: Option<DeadReason>,
    pub history: History,
    pub died: Option<Timestamp>,
    integration: &'d Integration,
    event: OnceCell<Option<Event<'d>>>,
}

impl<'d> Letter<'d> {
    /// Reads the headers.
    pub fn new(delivery: &'d Delivery, integration: &'d Integration) -> Letter<'d> {
        Letter::of(&delivery.data, &delivery.properties, integration)
    }

    /// The same for a letter that is not in the queue.
    pub fn of(body: &'d [u8], properties: &'d BasicProperties, integration: &'d Integration) -> Letter<'d> {
        let history = History::read(properties);
        let written = headers::reason(properties);
        Letter {
            body,
            properties,
            reason: DeadReason::ALL.iter().copied().find(|death| Some(death.code()) == written),
            died: headers::died(properties, &history),
            history,
            integration,
            event: OnceCell::new(),
        }
    }

    /// The event; `None` when its body cannot be read.
    pub fn event(&self) -> Option<&Event<'d>> {
        self.event.get_or_init(|| event::decode(self.whole(), &[]).ok()).as_ref()
    }

    /// Body and encoding.
    pub fn whole(&self) -> Body<'d> {
        Body { bytes: self.body, encoding: headers::encoding(self.properties) }
    }

    /// The HTTP status of the last attempt's answer.
    pub fn status(&self) -> Option<u16> {
        self.history.entries.last().and_then(|last| last.status)
    }

    /// The letter's id, which names its body.
    pub fn id(&self) -> String {
        Fingerprint(self.body).to_string()
    }

    /// The person that it is about, as the event names them.
    pub fn identifier(&self) -> Option<Arc<str>> {
        self.integration.mappings.identifier(self.event()?).ok()?
    }

    /// The reason's code, or "none".
    pub fn reason_code(&self) -> &'static str {
        self.reason.map_or("none", DeadReason::code)
    }
}
