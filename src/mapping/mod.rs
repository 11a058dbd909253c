//! Step 3: from an [`Event`] to the properties of a gate request (pure).
//!
//! Mappings are compiled once, when the integration's document loads; a path that could never give a value is
//! refused then. `null` and absent values are left out, never sent as false or empty: an empty text could
//! blank a field of the profile.

mod path;
mod slot;

pub use path::{Path, PathKind, ROOTS};
pub use slot::Slot;

use crate::event::{self, Defect, Event, METADATA};
use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Where a property's value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueSource {
    /// A path into the event.
    Path(Path),
    /// The same text for every event.
    Constant(Arc<str>),
}

impl ValueSource {
    /// The kind of value that the source gives.
    #[must_use]
    pub fn kind(&self) -> PathKind {
        match self {
            ValueSource::Path(path) => path.kind(),
            ValueSource::Constant(_) => PathKind::Constant,
        }
    }
}

/// One property of the profile, and how its text is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapping {
    /// The property at Selligent, spelled as in the document.
    pub id: Arc<str>,
    pub source: ValueSource,
    /// The texts for true and for false.
    pub texts: (Arc<str>, Arc<str>),
    /// The text for an empty selection.
    pub none: Arc<str>,
    /// A strftime format for values that are times; rendered in UTC.
    pub date_format: Option<String>,
    /// The slot under which its choices are recorded; `None` for constants.
    pub slot: Option<Slot>,
}

impl Mapping {
    /// A mapping with the default texts.
    #[must_use]
    pub fn new(id: &str, source: ValueSource) -> Mapping {
        let slot = match &source {
            ValueSource::Path(path) => Some(Slot::new(id, path.written())),
            ValueSource::Constant(_) => None,
        };
        Mapping { id: id.into(), source, texts: ("1".into(), "0".into()), none: "".into(), date_format: None, slot }
    }
}

/// The mappings of one integration, and which of them identifies the person.
#[derive(Clone, Debug, PartialEq)]
pub struct Mappings {
    list: Vec<Mapping>,
    identifier: usize,
    unread: Vec<&'static str>,
}

/// What a field with a `date_format` must contain, for people.
const DATED: &str = "a time with an offset, as its date_format needs";

/// Fields of events that are large and rarely mapped.
const SELDOM_MAPPED: [&str; 9] =
    ["channels", "delegate", METADATA, "preferences", "proofs_id", "propagation", "source", "values", "vendors"];

/// A value as it is in the event, before it is rendered as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Choice {
    Switch(bool),
    Text(Arc<str>),
    /// The values of a multiple-choice preference, or one of the lists of vendors.
    Selection(SelectedIds),
}

/// Ids that were selected, each once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SelectedIds {
    pub ids: Vec<Arc<str>>,
    pub names: Names,
}

/// What the ids of a selection mean; ids that are not in it mean the opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Names {
    Grants,
    /// Only for the lists of disabled vendors.
    Refusals,
}

impl SelectedIds {
    /// The ids of a list, in its order, without the blanks around them and without empty ones.
    #[must_use]
    pub fn new<'i>(ids: impl IntoIterator<Item = Cow<'i, str>>, names: Names) -> SelectedIds {
        let mut selection = SelectedIds { ids: Vec::new(), names };
        let mut seen = HashSet::new();
        for id in ids {
            let id: Arc<str> = id.trim().into();
            if !id.is_empty() && seen.insert(Arc::clone(&id)) {
                selection.ids.push(id);
            }
        }
        selection
    }

    fn joined(&self) -> String {
        self.ids.join(",")
    }
}

impl Choice {
    /// Whether it withdraws a consent, whatever text it is sent as.
    #[must_use]
    pub fn is_withdrawal(&self) -> bool {
        *self == Choice::Switch(false)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Switch(on) => write!(f, "{on}"),
            Choice::Text(text) => f.write_str(text),
            Choice::Selection(selection) => f.write_str(&selection.joined()),
        }
    }
}

/// The result of one mapping for one event.
#[derive(Clone, Debug)]
pub struct Property<'m> {
    pub id: &'m Arc<str>,
    /// The slot under which its choice is recorded; `None` for constants.
    pub slot: Option<&'m Slot>,
    /// The text to send, or why the property is left out.
    pub text: Result<Arc<str>, LeftOut>,
    /// What the person chose; `None` for constants, for the identifier, and when left out.
    pub choice: Option<Choice>,
    /// The place in the event where the value was found; `None` for constants and if nothing was found.
    pub place: Option<String>,
}

/// Why a property is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// The event does not contain it: a partial update keeps what it does not contain.
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
    /// Puts compiled mappings together; `identifier` is the index of the one that identifies the person.
    #[must_use]
    pub fn new(list: Vec<Mapping>, identifier: usize) -> Mappings {
        let is_read = |field: &str| {
            list.iter().any(|mapping| matches!(&mapping.source, ValueSource::Path(path) if path.may_name(field)))
        };
        let unread = SELDOM_MAPPED.into_iter().filter(|field| !is_read(field)).collect();
        Mappings { list, identifier, unread }
    }

    /// The slots under which the choices are recorded: of all mappings but the identifier's.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        let choices = self.list.iter().enumerate().filter(|(index, _)| *index != self.identifier);
        choices.filter_map(|(_, mapping)| mapping.slot.as_ref())
    }

    /// Rarely mapped fields of events that no mapping reads.
    #[must_use]
    pub fn unread(&self) -> &[&'static str] {
        &self.unread
    }

    /// All mappings, in the document's order.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.list.iter()
    }

    /// The slot of the mapping that identifies the person.
    #[must_use]
    pub fn identifier_slot(&self) -> Option<&Slot> {
        self.list.get(self.identifier)?.slot.as_ref()
    }

    /// The path of the person's identifier.
    #[must_use]
    pub fn identifier_path(&self) -> &str {
        self.identifier_slot().map_or("", Slot::path)
    }

    /// The id of the property that identifies the person.
    #[must_use]
    pub fn identifier_id(&self) -> &str {
        self.list.get(self.identifier).map_or("", |mapping| &mapping.id)
    }

    /// The person that the event is about, as the event spells it; `None` if it identifies nobody.
    ///
    /// # Errors
    /// A field on the path has a wrong type, or the value cannot identify anybody: a number with a fraction,
    /// a list.
    pub fn identifier(&self, event: &Event) -> Result<Option<Arc<str>>, Defect> {
        let Some(mapping) = self.list.get(self.identifier) else { return Ok(None) };
        if let ValueSource::Path(path) = &mapping.source
            && let Some(found) = path.find(event)?
        {
            found.check_name()?;
        }
        let text = mapping.property(event, false)?.text;
        Ok(text.ok().filter(|text| !text.trim().is_empty()))
    }

    /// Every property, sent or left out, in the document's order. `explain` adds where each value was found,
    /// which `map` shows and the worker does not need.
    ///
    /// # Errors
    /// All mapped fields that have a wrong type, in one error.
    pub fn properties(&self, event: &Event, explain: bool) -> Result<Vec<Property<'_>>, Defect> {
        let mut defect: Option<Defect> = None;
        let mut properties = Vec::with_capacity(self.list.len());
        for (index, mapping) in self.list.iter().enumerate() {
            match mapping.property(event, explain) {
                Ok(property) => {
                    let choice = property.choice.filter(|_| index != self.identifier);
                    properties.push(Property { choice, ..property });
                }
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
            ValueSource::Constant(text) => {
                return Ok(Property { id: &self.id, slot: None, text: Ok(text.clone()), choice: None, place: None });
            }
            ValueSource::Path(path) => path,
        };
        let found = path.find(event)?;
        let place = found.as_ref().filter(|_| explain).map(path::Found::place);
        let choice = found.as_ref().map(path::Found::choice).transpose()?;
        let text = match (&choice, &found) {
            (Some(Some(choice)), Some(found)) => {
                self.text(choice).map_err(|told| Defect::expected(&found.place(), DATED, told))?.ok_or(LeftOut::Empty)
            }
            (Some(None), _) => Err(LeftOut::NoChoice),
            _ => Err(LeftOut::Absent),
        };
        let choice = choice.flatten().filter(|_| text.is_ok());
        Ok(Property { id: &self.id, slot: self.slot.as_ref(), text, choice, place })
    }

    /// The text that this mapping sends for a choice; `None` for an empty text that is not a selection.
    ///
    /// # Errors
    /// The `date_format` needs a time, and the value is something else: what it is, for people.
    pub fn text(&self, choice: &Choice) -> Result<Option<Arc<str>>, &'static str> {
        let text = match choice {
            Choice::Switch(true) => self.texts.0.clone(),
            Choice::Switch(false) => self.texts.1.clone(),
            Choice::Text(text) => match &self.date_format {
                Some(format) if !text.is_empty() => {
                    format_time(event::instant(text)?, format).ok_or("one that this format cannot show")?.into()
                }
                _ => text.clone(),
            },
            Choice::Selection(selection) if selection.ids.is_empty() => return Ok(Some(self.none.clone())),
            Choice::Selection(selection) => selection.joined().into(),
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

/// Renders an instant in UTC; `None` if the format is not valid.
#[must_use]
pub fn format_time(time: Timestamp, format: &str) -> Option<String> {
    BrokenDownTime::from(&time.to_zoned_datetime(jiff::tz::TimeZone::UTC)).to_string(format).ok()
}

#[cfg(test)]
mod tests;
