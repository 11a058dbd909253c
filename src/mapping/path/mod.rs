//! Didomi's paths: `consents_purposes_newsletter_enabled`.
//!
//! The parts of a path are joined by single `_`, the elements of lists are addressed by their ids, and ids
//! contain `_` themselves. So a path is resolved against the ids and fields that are present: the longest
//! match first, then the next longest if that leads nowhere.

mod found;
mod meant;
mod resolve;

pub use found::Found;

use crate::event::{Defect, Event, METADATA, Object, object};
use found::Leaf;
use meant::{meant, with_field};
use resolve::{descend_from, field, list, named, vendors};
use smallvec::smallvec;
use std::fmt;

/// The roots that a path can begin with.
pub const ROOTS: [&str; 12] = [
    "organization_user_id",
    "user",
    "consents_purposes",
    "consents_channels",
    "consents_vendors",
    "consents_tcfcs",
    "metadata",
    "country",
    "created_at",
    "updated_at",
    "regulation",
    "id",
];

/// The fields with which the path of a consent ends.
const FIELDS: [&str; 4] = ["enabled", "enabled_li", "value", "from_propagation"];

/// The lists of `consents.vendors`.
const VENDOR_LISTS: [&str; 4] = ["enabled", "disabled", "enabled_li", "disabled_li"];

/// A path that was checked when the document loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    root: Root,
    rest: String,
    written: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    Identifier,
    User,
    Purposes,
    Channels,
    Vendors,
    Tcfcs,
    Metadata,
    Country,
    CreatedAt,
    UpdatedAt,
    Regulation,
    Id,
}

const ROOT_KINDS: [Root; 12] = [
    Root::Identifier,
    Root::User,
    Root::Purposes,
    Root::Channels,
    Root::Vendors,
    Root::Tcfcs,
    Root::Metadata,
    Root::Country,
    Root::CreatedAt,
    Root::UpdatedAt,
    Root::Regulation,
    Root::Id,
];

/// The kind of value that a path leads to, as far as its spelling shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    Time,
    Text,
    Switch,
    Selection,
    Constant,
    /// The customer's own fields, and paths that can be read in two ways.
    Any,
}

impl PathKind {
    /// Whether a value may be of this kind.
    #[must_use]
    pub fn may_be(self, kind: PathKind) -> bool {
        self == kind || self == PathKind::Any
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathKind::Time => "a time",
            PathKind::Text => "a text",
            PathKind::Switch => "true or false",
            PathKind::Selection => "a list of ids",
            PathKind::Constant => "a constant",
            PathKind::Any => "anything",
        })
    }
}

impl Path {
    /// Compiles a path as a customer wrote it.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead, for people.
    pub fn compile(written: &str) -> Result<Path, String> {
        Path::read(written).map_err(|why| why + &meant(written))
    }

    fn read(written: &str) -> Result<Path, String> {
        let (root, rest) = ROOTS
            .iter()
            .zip(ROOT_KINDS)
            .filter_map(|(name, root)| Some((root, name.len(), rest_after(written, name)?)))
            .max_by_key(|(_, length, _)| *length)
            .map(|(root, _, rest)| (root, rest))
            .ok_or_else(|| {
                format!("path \"{written}\" does not begin with a known root; roots are {}", ROOTS.join(", "))
            })?;
        check_rest(root, rest, written)?;
        Ok(Path { root, rest: rest.to_owned(), written: written.to_owned() })
    }

    /// The path as written in the document.
    #[must_use]
    pub fn written(&self) -> &str {
        &self.written
    }

    /// Whether this is the path of Didomi's `organization_user_id`, the usual identifier.
    #[must_use]
    pub fn is_organization_user_id(&self) -> bool {
        self.root == Root::Identifier
    }

    /// The kind of value that the path leads to.
    #[must_use]
    pub fn kind(&self) -> PathKind {
        let rest = self.rest.as_str();
        match self.root {
            Root::CreatedAt | Root::UpdatedAt => PathKind::Time,
            Root::Identifier | Root::Country | Root::Regulation | Root::Id | Root::Tcfcs => PathKind::Text,
            Root::User | Root::Metadata => PathKind::Any,
            Root::Vendors if VENDOR_LISTS.contains(&rest) => PathKind::Selection,
            Root::Vendors => PathKind::Switch,
            Root::Purposes | Root::Channels if rest.contains("_metadata_") => PathKind::Any,
            Root::Purposes | Root::Channels => match (rest.contains("_value_"), rest.ends_with("_value")) {
                (true, true) => PathKind::Any,
                (false, true) => PathKind::Selection,
                (_, false) => PathKind::Switch,
            },
        }
    }

    /// Whether the path may lead through a field of this name: a path spells all of its fields, `channels`
    /// also as `channel`.
    pub(super) fn may_name(&self, field: &str) -> bool {
        self.written.contains(field) || field == "channels" && self.written.contains("channel")
    }

    /// Follows the path into an event; `None` if the event does not contain the value.
    ///
    /// # Errors
    /// A field on the path has a wrong type.
    pub fn find<'e>(&self, event: &'e Event<'e>) -> Result<Option<Found<'e>>, Defect> {
        let entity = event.entity()?;
        let consents = |key| Ok::<_, Defect>(object(entity, "consents", "consents")?.and_then(|c| c.get(key)));
        match self.root {
            Root::Identifier => named(event.user()?, event),
            Root::Country => field(event.user()?, "user", "country", event),
            Root::User => descend_from(event.user()?, &self.rest, "user"),
            Root::Metadata => self.metadata(event, entity),
            Root::Purposes => list(consents("purposes")?, &self.rest, "consents.purposes"),
            Root::Channels => list(consents("channels")?, &self.rest, "consents.channels"),
            Root::Vendors => vendors(consents("vendors")?, &self.rest),
            Root::Tcfcs => Ok(consents("tcfcs")?.map(|value| Found::at(value, smallvec!["consents", "tcfcs"]))),
            Root::CreatedAt => field(Some(entity), "", "created_at", event),
            Root::UpdatedAt => field(Some(entity), "", "updated_at", event),
            Root::Id => field(Some(entity), "", "id", event),
            Root::Regulation => {
                Ok(Some(Found { value: Leaf::Text(event.regulation()?), segments: smallvec!["regulation"] }))
            }
        }
    }

    /// A field of the event's own metadata, or, if it is not there, of its user's.
    fn metadata<'e>(&self, event: &'e Event<'e>, entity: &'e Object<'e>) -> Result<Option<Found<'e>>, Defect> {
        let own = descend_from(object(entity, METADATA, METADATA)?, &self.rest, METADATA)?;
        if own.is_some() {
            return Ok(own);
        }
        let Some(user) = event.user()? else { return Ok(None) };
        descend_from(object(user, METADATA, "user.metadata")?, &self.rest, "user.metadata")
    }
}

/// What follows a root: `Some("")` if nothing does, `None` if `written` has another root.
fn rest_after<'w>(written: &'w str, root: &str) -> Option<&'w str> {
    let rest = written.strip_prefix(root)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('_') }
}

fn check_rest(root: Root, rest: &str, written: &str) -> Result<(), String> {
    let needs_more = matches!(root, Root::User | Root::Purposes | Root::Channels | Root::Vendors | Root::Metadata);
    if needs_more && rest.is_empty() {
        return Err(format!("path \"{written}\" names no field; write {written}_… down to a single value"));
    }
    if !needs_more && !rest.is_empty() {
        return Err(format!(
            "path \"{written}\" continues after a single value; fields of the user are written user_…"
        ));
    }
    let ends = FIELDS.iter().any(|field| rest.strip_suffix(field).is_some_and(|before| before.ends_with('_')));
    let within = ["_value_", "_metadata_"].iter().any(|field| rest.contains(field));
    let is_without_field = match root {
        Root::Purposes | Root::Channels => !ends && !within,
        // A vendor's id alone stands for the vendor, unless it ends like a misspelt field.
        Root::Vendors => !ends && !VENDOR_LISTS.contains(&rest) && with_field(rest).is_some(),
        _ => false,
    };
    if is_without_field {
        return Err(format!("path \"{written}\" does not end in a field, such as _enabled"));
    }
    Ok(())
}
