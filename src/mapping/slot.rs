//! The name under which the choices of one mapping are recorded.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A property and the path that feeds it. A mapping whose path was corrected therefore knows only what was
/// recorded under that path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(Arc<str>);

/// Separates property and path; no property's name contains it.
const SEPARATOR: char = '\u{1f}';

impl Slot {
    /// The slot of a mapping.
    #[must_use]
    pub fn new(property: &str, path: &str) -> Slot {
        Slot(format!("{property}{SEPARATOR}{path}").into())
    }

    /// A slot as it was written to a store.
    pub(crate) fn from_text(text: &str) -> Slot {
        Slot(text.into())
    }

    /// The slot as it is written to a store.
    pub(crate) fn as_text(&self) -> &str {
        &self.0
    }

    /// The property at the gate.
    #[must_use]
    pub fn property(&self) -> &str {
        self.0.split_once(SEPARATOR).map_or(&self.0, |(property, _)| property)
    }

    /// The path into the event.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.split_once(SEPARATOR).map_or("", |(_, path)| path)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.property(), self.path())
    }
}
