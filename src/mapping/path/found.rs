//! The value that a path led to, and the choice that it is.

use crate::event::{Defect, Json};
use crate::mapping::{Choice, Names, SelectedIds};
use smallvec::SmallVec;
use std::borrow::Cow;

/// The value that a path led to in one event.
#[derive(Debug)]
pub struct Found<'e> {
    pub(super) value: Leaf<'e>,
    pub(super) segments: Segments<'e>,
}

/// Most paths in an event are no deeper than this.
pub(super) type Segments<'e> = SmallVec<[&'e str; 8]>;

#[derive(Debug)]
pub(super) enum Leaf<'e> {
    Value(&'e Json<'e>),
    Text(&'e str),
    Switch(bool),
    /// One of the lists of `consents.vendors`.
    Ids(&'e Json<'e>),
}

impl<'e> Found<'e> {
    pub(super) fn at(value: &'e Json<'e>, segments: Segments<'e>) -> Found<'e> {
        Found { value: Leaf::Value(value), segments }
    }

    /// The place of the value in the event, for people.
    #[must_use]
    pub fn place(&self) -> String {
        self.segments.join(".")
    }

    fn damaged(&self, expected: &str) -> Defect {
        Defect::wrong_type(&self.place(), expected, &Json::Damaged(String::new()))
    }

    /// What the ids of a list of vendors mean.
    fn names(&self) -> Names {
        let is_of_refusals = self.segments.last().is_some_and(|list| list.starts_with("disabled"));
        if is_of_refusals { Names::Refusals } else { Names::Grants }
    }

    /// Checks that the value can identify a person.
    ///
    /// # Errors
    /// It is neither a text nor a whole number: taken as either, it could identify somebody else.
    pub fn check_name(&self) -> Result<(), Defect> {
        match self.value {
            Leaf::Text(_) | Leaf::Value(Json::Null) => Ok(()),
            Leaf::Value(value) if value.as_name().is_some() => Ok(()),
            Leaf::Value(Json::Number(_)) => {
                Err(Defect::expected(&self.place(), NAME, "a number with a fraction or an exponent"))
            }
            Leaf::Value(other) | Leaf::Ids(other) => Err(Defect::wrong_type(&self.place(), NAME, other)),
            Leaf::Switch(_) => Err(Defect::expected(&self.place(), NAME, "true or false")),
        }
    }

    /// The value as a choice; `None` for `null`.
    ///
    /// # Errors
    /// The value's type is not that of its field.
    pub fn choice(&self) -> Result<Option<Choice>, Defect> {
        let value = match self.value {
            Leaf::Switch(on) => return Ok(Some(Choice::Switch(on))),
            Leaf::Text(text) => return Ok(Some(Choice::Text(text.into()))),
            Leaf::Ids(Json::Null) => return Ok(None),
            Leaf::Ids(list @ Json::Array(_)) if list.is_damaged() => return Err(self.damaged("a list of ids")),
            Leaf::Ids(Json::Array(ids)) => {
                return Ok(Some(Choice::Selection(SelectedIds::new(ids_of(ids), self.names()))));
            }
            Leaf::Ids(other) => return Err(Defect::wrong_type(&self.place(), "a list", other)),
            Leaf::Value(value) => value,
        };
        let in_consents = self.segments.first() == Some(&"consents") && !self.segments.contains(&"metadata");
        let field = self.segments.last().copied().filter(|_| in_consents);
        match (value, field) {
            (Json::Null, _) => Ok(None),
            (Json::Bool(on), Some("enabled" | "enabled_li" | "from_propagation") | None) => {
                Ok(Some(Choice::Switch(*on)))
            }
            (other, Some("enabled" | "enabled_li")) => {
                Err(Defect::wrong_type(&self.place(), "true, false or null", other))
            }
            (Json::String(ids), Some("value")) => {
                let ids = ids.split(',').map(Cow::Borrowed);
                Ok(Some(Choice::Selection(SelectedIds::new(ids, Names::Grants))))
            }
            (Json::String(text), _) => Ok(Some(Choice::Text((&**text).into()))),
            (other, Some("value" | "tcfcs")) => Err(Defect::wrong_type(&self.place(), "a string", other)),
            (Json::Array(items), _) if items.iter().all(|item| item.as_str().is_some()) => {
                Ok(Some(Choice::Text(ids_of(items).collect::<Vec<_>>().join(",").into())))
            }
            (other, _) if other.is_damaged() => Err(self.damaged("text")),
            // The customer's own fields: nested data is sent as an escaped string.
            (other, _) => Ok(Some(Choice::Text(other.to_string().into()))),
        }
    }
}

impl<'e> Found<'e> {
    /// Adds the segments of the parent; they are collected from the leaf upwards.
    pub(super) fn under(mut self, root: &'static str) -> Found<'e> {
        self.segments.extend(root.rsplit('.'));
        self.segments.reverse();
        self
    }

    pub(super) fn behind(mut self, segment: &'e str) -> Found<'e> {
        self.segments.push(segment);
        self
    }
}

/// What can identify a person, for people.
const NAME: &str = "a string or a whole number";

/// Ids as texts; numbers are ids too.
fn ids_of<'j>(ids: &'j [Json<'_>]) -> impl Iterator<Item = Cow<'j, str>> {
    ids.iter().map(|id| id.as_str().map_or_else(|| Cow::Owned(id.to_string()), Cow::Borrowed))
}
