//! Step 3: [`Event`] to the properties of a gate request (pure).
//!
//! Mappings are compiled once, when the integration's document loads; a path that could never
//! give a value is refused there. `null` and absent values are left out, never sent as false or
//! empty: an empty text could blank a field of the profile.

mod path;

pub use path::{Path, ROOTS};

use crate::event::{Defect, Event};
use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;

/// Where a property's value comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A path into the event.
    Path(Path),
    /// The same text for every event.
    Constant(String),
}

/// One property of the profile and how its text is made.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The property at Selligent, spelled as the customer typed it.
    pub id: String,
    pub source: Source,
    /// The texts for true and for false.
    pub texts: (String, String),
    /// A strftime format for values that are times; rendered in UTC.
    pub date_format: Option<String>,
}

/// The mappings of one integration, and which of them names the person.
#[derive(Clone, Debug)]
pub struct Mappings {
    list: Vec<Mapping>,
    identifier: usize,
}

/// A value as the event has it, before it is rendered as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Switch(bool),
    Text(String),
}

/// What became of one mapping for one event.
#[derive(Clone, Debug)]
pub struct Property<'m> {
    pub id: &'m str,
    /// The text to send, or why the property is left out.
    pub text: Result<String, LeftOut>,
    /// The place in the event that gave it; `None` for constants and where nothing was found.
    pub place: Option<String>,
}

/// Why a property is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// The event does not name it: a partial update keeps what it does not name.
    Absent,
    /// `null`: no choice was made.
    NoChoice,
    /// An empty text, which could blank the field.
    Empty,
}

impl LeftOut {
    /// A few words for people.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            LeftOut::Absent => "the event does not name it",
            LeftOut::NoChoice => "null: no choice was made",
            LeftOut::Empty => "an empty text could blank the field",
        }
    }
}

impl Mappings {
    /// Puts compiled mappings together; `identifier` is the index of the one that names the person.
    #[must_use]
    pub fn new(list: Vec<Mapping>, identifier: usize) -> Mappings {
        Mappings { list, identifier }
    }

    /// All mappings, in the document's order.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.list.iter()
    }

    /// The id of the property that names the person.
    #[must_use]
    pub fn identifier_id(&self) -> &str {
        self.list.get(self.identifier).map_or("", |mapping| &mapping.id)
    }

    /// The person that the event is about, as the event spells it; `None` when it names nobody.
    ///
    /// # Errors
    /// A field on the way has a wrong type.
    pub fn identifier(&self, event: &Event) -> Result<Option<String>, Defect> {
        let Some(mapping) = self.list.get(self.identifier) else { return Ok(None) };
        let text = mapping.property(event, false)?.text;
        Ok(text.ok().filter(|text| !text.trim().is_empty()))
    }

    /// Every property, sent or left out, in the document's order. `explain` also says where each
    /// value was found, which `map` shows and the worker does without.
    ///
    /// # Errors
    /// Every mapped field that has a wrong type, at once.
    pub fn properties(&self, event: &Event, explain: bool) -> Result<Vec<Property<'_>>, Defect> {
        let mut defect: Option<Defect> = None;
        let mut properties = Vec::with_capacity(self.list.len());
        for mapping in &self.list {
            match mapping.property(event, explain) {
                Ok(property) => properties.push(property),
                Err(next) => {
                    defect = Some(match defect {
                        Some(earlier) => earlier.and(next),
                        None => next,
                    });
                }
            }
        }
        defect.map_or(Ok(properties), Err)
    }
}

impl Mapping {
    fn property(&self, event: &Event, explain: bool) -> Result<Property<'_>, Defect> {
        let path = match &self.source {
            Source::Constant(text) => {
                return Ok(Property { id: &self.id, text: Ok(text.clone()), place: None });
            }
            Source::Path(path) => path,
        };
        let found = path.find(event)?;
        let place = found.as_ref().filter(|_| explain).map(path::Found::place);
        let text = match found {
            None => Err(LeftOut::Absent),
            Some(found) => match found.choice()? {
                None => Err(LeftOut::NoChoice),
                Some(choice) => self.render(choice, &found)?,
            },
        };
        Ok(Property { id: &self.id, text, place })
    }

    fn render(&self, choice: Choice, found: &path::Found<'_>) -> Result<Result<String, LeftOut>, Defect> {
        let text = match choice {
            Choice::Switch(true) => self.texts.0.clone(),
            Choice::Switch(false) => self.texts.1.clone(),
            Choice::Text(text) => match &self.date_format {
                None => text,
                Some(_) if text.is_empty() => text,
                Some(format) => render_date(&text, format, found)?,
            },
        };
        Ok(if text.is_empty() { Err(LeftOut::Empty) } else { Ok(text) })
    }
}

fn render_date(text: &str, format: &str, found: &path::Found<'_>) -> Result<String, Defect> {
    let bad = |what| Defect::at(&found.place(), what);
    let time: Timestamp = text.parse().map_err(|_| bad("not an RFC 3339 time, as its date_format needs"))?;
    format_time(time, format).ok_or_else(|| bad("a time that its date_format cannot show"))
}

/// Renders an instant in UTC; `None` when the format is not a valid one.
#[must_use]
pub fn format_time(time: Timestamp, format: &str) -> Option<String> {
    BrokenDownTime::from(&time.to_zoned_datetime(jiff::tz::TimeZone::UTC)).to_string(format).ok()
}
