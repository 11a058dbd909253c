//! Didomi's paths: `consents_purposes_newsletter_enabled`.
//!
//! The parts of a path are joined by single `_`, the elements of lists are addressed by their ids, and ids
//! contain `_` themselves. So a path is resolved against the ids and fields that are present: the longest
//! match first, then the next longest if that leads nowhere.

use super::{Choice, Names, Selection};
use crate::event::{Defect, Event, Fields, Json, METADATA, object};
use crate::suggest::{asked, distance};
use smallvec::{SmallVec, smallvec};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt::{self, Arguments};

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
pub enum Kind {
    Time,
    Text,
    Switch,
    Selection,
    Constant,
    /// The customer's own fields, and paths that can be read in two ways.
    Any,
}

impl Kind {
    /// Whether a value may be of this kind.
    #[must_use]
    pub fn may_be(self, kind: Kind) -> bool {
        self == kind || self == Kind::Any
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Time => "a time",
            Kind::Text => "a text",
            Kind::Switch => "true or false",
            Kind::Selection => "a list of ids",
            Kind::Constant => "a constant",
            Kind::Any => "anything",
        })
    }
}

/// The value that a path led to in one event.
#[derive(Debug)]
pub struct Found<'e> {
    value: Leaf<'e>,
    segments: Segments<'e>,
}

/// Most paths in an event are no deeper than this.
type Segments<'e> = SmallVec<[&'e str; 8]>;

#[derive(Debug)]
enum Leaf<'e> {
    Value(&'e Json<'e>),
    Text(&'e str),
    Switch(bool),
    /// One of the lists of `consents.vendors`.
    Ids(&'e Json<'e>),
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
    pub fn kind(&self) -> Kind {
        let rest = self.rest.as_str();
        match self.root {
            Root::CreatedAt | Root::UpdatedAt => Kind::Time,
            Root::Identifier | Root::Country | Root::Regulation | Root::Id | Root::Tcfcs => Kind::Text,
            Root::User | Root::Metadata => Kind::Any,
            Root::Vendors if VENDOR_LISTS.contains(&rest) => Kind::Selection,
            Root::Vendors => Kind::Switch,
            Root::Purposes | Root::Channels if rest.contains("_metadata_") => Kind::Any,
            Root::Purposes | Root::Channels => match (rest.contains("_value_"), rest.ends_with("_value")) {
                (true, true) => Kind::Any,
                (false, true) => Kind::Selection,
                (_, false) => Kind::Switch,
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
    fn metadata<'e>(&self, event: &'e Event<'e>, entity: &'e Fields<'e>) -> Result<Option<Found<'e>>, Defect> {
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

/// A "did you mean" with a valid path that is close to what was written.
fn meant(written: &str) -> String {
    let joined = written.replace('.', "_").trim_end_matches('_').to_owned();
    let whole = ["purposes_", "channels_", "vendors_"].iter().any(|list| joined.starts_with(list));
    let whole = if whole { format!("consents_{joined}") } else { joined };
    let rooted = with_root(&whole).unwrap_or_else(|| whole.clone());
    let ended = with_field(&rooted);
    let is_consent = rooted.starts_with("consents_");
    // `values` contains the preferences, and each has a `value`.
    let twice = rooted.rsplit_once("_values_").filter(|(before, _)| before.contains("_values_"));
    let chosen = twice.map(|(before, id)| format!("{before}_value_{id}"));
    let valued = rooted.contains("_values_").then(|| format!("{rooted}_value"));
    let longer = is_consent.then(|| format!("{rooted}_enabled"));
    let purpose = (!is_consent).then(|| format!("consents_purposes_{}", ended.as_deref().unwrap_or(&rooted)));
    let mut candidates = [Some(whole), Some(rooted), ended, chosen, valued, longer, purpose].into_iter().flatten();
    candidates.find(|path| Path::read(path).is_ok()).map_or_else(String::new, |path| asked(&path))
}

/// Replaces a misspelt root by the known one.
fn with_root(written: &str) -> Option<String> {
    let near = |root: &&'static str| {
        let count = root.split('_').count();
        let end = written.match_indices('_').nth(count - 1).map_or(written.len(), |(at, _)| at);
        Some((distance(&written[..end], root)?, *root, &written[end..]))
    };
    let nearest = ROOTS.iter().filter_map(near).min_by_key(|(distance, root, _)| (*distance, Reverse(root.len())));
    nearest.map(|(_, root, rest)| format!("{root}{rest}"))
}

/// Replaces a misspelt field at the end by the known one.
fn with_field(written: &str) -> Option<String> {
    let near = |field: &&'static str| {
        let count = field.split('_').count();
        let begin = written.rmatch_indices('_').nth(count - 1).map(|(at, _)| at + 1)?;
        Some((distance(&written[begin..], field)?, *field, &written[..begin]))
    };
    let nearest = FIELDS.iter().filter_map(near).min_by_key(|(distance, _, _)| *distance);
    nearest.map(|(_, field, before)| format!("{before}{field}"))
}

impl<'e> Found<'e> {
    fn at(value: &'e Json<'e>, segments: Segments<'e>) -> Found<'e> {
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
                return Ok(Some(Choice::Selection(Selection::new(ids_of(ids), self.names()))));
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
                Ok(Some(Choice::Selection(Selection::new(ids, Names::Grants))))
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

/// What can identify a person, for people.
const NAME: &str = "a string or a whole number";

/// Ids as texts; numbers are ids too.
fn ids_of<'j>(ids: &'j [Json<'_>]) -> impl Iterator<Item = Cow<'j, str>> {
    ids.iter().map(|id| id.as_str().map_or_else(|| Cow::Owned(id.to_string()), Cow::Borrowed))
}

/// A field whose value is a string or null.
fn field<'e>(
    fields: Option<&'e Fields<'e>>,
    parent: &'static str,
    key: &'static str,
    event: &Event<'_>,
) -> Result<Option<Found<'e>>, Defect> {
    let segments: Segments<'e> =
        if parent.is_empty() || event.kind().is_user() { smallvec![key] } else { smallvec![parent, key] };
    match fields.and_then(|fields| fields.get(key)) {
        None => Ok(None),
        Some(value @ (Json::String(_) | Json::Null)) => Ok(Some(Found::at(value, segments))),
        Some(other) => Err(Defect::wrong_type(&segments.join("."), "a string", other)),
    }
}

/// The identifier of the event's user.
fn named<'e>(user: Option<&'e Fields<'e>>, event: &Event<'_>) -> Result<Option<Found<'e>>, Defect> {
    let key = "organization_user_id";
    let segments: Segments<'e> = if event.kind().is_user() { smallvec![key] } else { smallvec!["user", key] };
    let Some(value) = user.and_then(|user| user.get(key)) else { return Ok(None) };
    let found = Found::at(value, segments);
    found.check_name()?;
    Ok(Some(found))
}

fn descend_from<'e>(
    fields: Option<&'e Fields<'e>>,
    rest: &str,
    root: &'static str,
) -> Result<Option<Found<'e>>, Defect> {
    let Some(fields) = fields else { return Ok(None) };
    let found = in_object(fields, rest, format_args!("{root}"))?;
    Ok(found.map(|found| found.under(root)))
}

fn list<'e>(value: Option<&'e Json<'e>>, rest: &str, root: &'static str) -> Result<Option<Found<'e>>, Defect> {
    match value {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Array(elements)) => {
            Ok(in_list(elements, rest, format_args!("{root}"))?.map(|found| found.under(root)))
        }
        Some(other) => Err(Defect::wrong_type(root, "a list", other)),
    }
}

impl<'e> Found<'e> {
    /// Adds the segments of the parent; they are collected from the leaf upwards.
    fn under(mut self, root: &'static str) -> Found<'e> {
        self.segments.extend(root.rsplit('.'));
        self.segments.reverse();
        self
    }

    fn behind(mut self, segment: &'e str) -> Found<'e> {
        self.segments.push(segment);
        self
    }
}

fn descend<'e>(value: &'e Json<'e>, rest: &str, place: Arguments<'_>) -> Result<Option<Found<'e>>, Defect> {
    match value {
        value if rest.is_empty() => Ok(Some(Found::at(value, Segments::new()))),
        Json::Object(fields) => in_object(fields, rest, place),
        Json::Array(elements) => in_list(elements, rest, place),
        _ => Ok(None),
    }
}

fn in_object<'e>(fields: &'e Fields<'e>, rest: &str, place: Arguments<'_>) -> Result<Option<Found<'e>>, Defect> {
    for (key, deeper) in splits(rest) {
        // Didomi's documentation says `channel` where its events say `channels`.
        let spelled = if key == "channel" && !fields.contains_key(key) { "channels" } else { key };
        let Some((name, value)) = fields.find_index(spelled).ok().and_then(|index| fields.get_indexed(index)) else {
            continue;
        };
        let found = match value {
            Json::String(ids) if name == "value" && !deeper.is_empty() => Some(selected(ids, deeper)),
            value => descend(value, deeper, format_args!("{place}.{name}"))?,
        };
        if let Some(found) = found {
            return Ok(Some(found.behind(name)));
        }
    }
    Ok(None)
}

/// Whether one value is among those selected in a preference: a list of ids joined by commas.
fn selected<'e>(ids: &str, wanted: &str) -> Found<'e> {
    let on = ids.split(',').any(|id| id.trim() == wanted);
    Found { value: Leaf::Switch(on), segments: Segments::new() }
}

fn in_list<'e>(elements: &'e [Json<'e>], rest: &str, place: Arguments<'_>) -> Result<Option<Found<'e>>, Defect> {
    let mut candidates: SmallVec<[(&'e str, &'e Json<'e>); 4]> = SmallVec::new();
    for (index, element) in elements.iter().enumerate() {
        match element.field("id").as_str() {
            Some(id) if rest_after(rest, id).is_some() => candidates.push((id, element)),
            Some(_) => {}
            None => {
                let (expected, id) = ("an object with an id that is a string", element.field("id"));
                let found = match element {
                    Json::Object(_) if *id == Json::Null => "one without an id",
                    Json::Object(_) => id.type_name(),
                    other => other.type_name(),
                };
                return Err(Defect::expected(&format!("{place}[{index}]"), expected, found));
            }
        }
    }
    // The longest id first; of two elements with the same id the last one, as in a merge.
    candidates.reverse();
    candidates.sort_by_key(|(id, _)| Reverse(id.len()));
    for (id, element) in candidates {
        let deeper = rest_after(rest, id).unwrap_or_default();
        if let Some(found) = descend(element, deeper, format_args!("{place}[{id}]"))? {
            return Ok(Some(found.behind(id)));
        }
    }
    Ok(None)
}

/// `a_b_c` as `(a_b_c, "")`, `(a_b, c)`, `(a, b_c)`.
fn splits(rest: &str) -> impl Iterator<Item = (&str, &str)> {
    let whole = std::iter::once((rest, ""));
    whole.chain(rest.rmatch_indices('_').map(|(at, _)| (&rest[..at], &rest[at + 1..])))
}

/// `consents_vendors_google_enabled`, `…_enabled_li`, or a whole list by its name.
fn vendors<'e>(value: Option<&'e Json<'e>>, rest: &str) -> Result<Option<Found<'e>>, Defect> {
    let lists = match value {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::Object(lists)) => lists,
        Some(other) => return Err(Defect::wrong_type("consents.vendors", "an object", other)),
    };
    if let Some(name) = VENDOR_LISTS.into_iter().find(|name| *name == rest) {
        let segments = smallvec!["consents", "vendors", name];
        return Ok(lists.get(name).map(|list| Found { value: Leaf::Ids(list), segments }));
    }
    let (vendor, on, off) = match rest.strip_suffix("_enabled_li") {
        Some(vendor) => (vendor, "enabled_li", "disabled_li"),
        None => (rest.strip_suffix("_enabled").unwrap_or(rest), "enabled", "disabled"),
    };
    // If an event has a vendor in both lists, the withdrawal counts.
    for (name, switch) in [(off, false), (on, true)] {
        if names_vendor(lists, name, vendor)? {
            return Ok(Some(Found { value: Leaf::Switch(switch), segments: smallvec!["consents", "vendors", name] }));
        }
    }
    Ok(None)
}

fn names_vendor(lists: &Fields<'_>, name: &str, vendor: &str) -> Result<bool, Defect> {
    match lists.get(name) {
        None | Some(Json::Null) => Ok(false),
        Some(Json::Array(ids)) => ids.iter().try_fold(false, |found, id| match id {
            Json::String(id) => Ok(found || id == vendor),
            Json::Number(id) => Ok(found || id.as_str() == vendor),
            other => Err(Defect::wrong_type(&format!("consents.vendors.{name}"), "a list of ids", other)),
        }),
        Some(other) => Err(Defect::wrong_type(&format!("consents.vendors.{name}"), "a list", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_suggested_for_a_misspelt_path_is_a_path() {
        for (written, meant) in [
            ("consents_purposes_newsletter_enable", "consents_purposes_newsletter_enabled"),
            ("newsletter_enable", "consents_purposes_newsletter_enabled"),
            ("purposes_news_enabled", "consents_purposes_news_enabled"),
            ("consent_purposes_news_enable", "consents_purposes_news_enabled"),
            ("consents.purposes.news.enabled", "consents_purposes_news_enabled"),
            ("consents_purposes_sms", "consents_purposes_sms_enabled"),
            ("consents_purposes_newsletter_enabled_", "consents_purposes_newsletter_enabled"),
            ("consents_purposes_x_values_t", "consents_purposes_x_values_t_value"),
            ("consents_purposes_x_values_t_valu", "consents_purposes_x_values_t_value"),
            ("consents_purposes_x_values_t_values_sport", "consents_purposes_x_values_t_value_sport"),
            ("consents_vendor_google_enabled", "consents_vendors_google_enabled"),
            ("consents_vendors_google_enable", "consents_vendors_google_enabled"),
            ("create_at", "created_at"),
            ("Organisation_User_ID", "organization_user_id"),
            ("usr_country", "user_country"),
        ] {
            let why = Path::compile(written).unwrap_err();
            assert!(why.ends_with(&asked(meant)), "{written}: {why}");
            assert!(Path::compile(meant).is_ok(), "{meant}");
        }
        for written in ["user", "country_zip", "consents_purposes", "something", ""] {
            let why = Path::compile(written).unwrap_err();
            assert!(!why.contains("did you mean"), "{written}: {why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_each_suggestion_is_right(
            written in r"((consents?_?)?(purpose|channel|vendor|user|created?)s?[._])?[a-zé_.]{0,12}(_enable|_value_|_)?"
        ) {
            if let Err(why) = Path::compile(&written)
                && let Some((_, meant)) = why.split_once("; did you mean ")
            {
                proptest::prop_assert!(Path::compile(meant.trim_end_matches('?')).is_ok(), "{}", why);
            }
        }
    }
}
