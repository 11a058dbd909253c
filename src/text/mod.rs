//! Text for people: what is escaped in it, suggestions, and remedies; maps as JSON objects.

pub(crate) mod json;
pub(crate) mod remedy;
pub mod shown;
pub mod suggest;
