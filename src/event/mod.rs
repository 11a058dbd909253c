//! Step 2: from bytes to an [`Event`], or to a [`Defect`] that names what is wrong (pure).
//!
//! Tolerant on purpose: unknown fields are ignored, and a field is checked only when it is needed. The shapes
//! are those of Didomi's documentation: webhook envelopes of six types, bare events, and flattened ones
//! (`event/flat.rs`). A defect names the field, the kind of value found there, and what would be right, but
//! never a value.

mod body;
mod flat;
mod instant;
mod json;

pub use body::{Body, MAX_BODY};
pub use instant::{EXPECTED as AN_INSTANT, instant};
pub use json::{Json, METADATA, Object};

use jiff::Timestamp;
use std::borrow::Cow;
use std::fmt;

/// The types of Didomi's webhook envelopes, as written there.
pub const TYPES: [&str; 6] =
    ["event.created", "event.updated", "event.deleted", "user.created", "user.updated", "user.deleted"];

/// The regulations that Didomi's programs know (its SDK for Unity, 2026), and its word for none.
pub const REGULATIONS: [&str; 24] = [
    "gdpr", "ccpa", "cpa", "cpra", "ctdpa", "dpdpa", "fdbr", "icdpa", "idpl", "incdpa", "kcdpa", "mcdpa", "mncdpa",
    "modpa", "ndpa", "nhpa", "njdpa", "ocpa", "ridtppa", "tdpsa", "tipa", "ucpa", "vcdpa", "none",
];

/// The default regulation of an event.
pub const DEFAULT_REGULATION: &str = "gdpr";

/// What happened, by the envelope's `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    EventCreated,
    EventUpdated,
    EventDeleted,
    UserCreated,
    UserUpdated,
    UserDeleted,
    /// A type that Didomi does not document.
    Other,
}

impl EventKind {
    fn of(name: &str) -> EventKind {
        match name {
            "event.created" => EventKind::EventCreated,
            "event.updated" => EventKind::EventUpdated,
            "event.deleted" => EventKind::EventDeleted,
            "user.created" => EventKind::UserCreated,
            "user.updated" => EventKind::UserUpdated,
            "user.deleted" => EventKind::UserDeleted,
            _ => EventKind::Other,
        }
    }

    /// The type's documented name; `other` for undocumented ones.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EventKind::EventCreated => TYPES[0],
            EventKind::EventUpdated => TYPES[1],
            EventKind::EventDeleted => TYPES[2],
            EventKind::UserCreated => TYPES[3],
            EventKind::UserUpdated => TYPES[4],
            EventKind::UserDeleted => TYPES[5],
            EventKind::Other => "other",
        }
    }

    /// Whether the entity is a user (the merged status), not a consent event.
    #[must_use]
    pub fn is_user(self) -> bool {
        matches!(self, EventKind::UserCreated | EventKind::UserUpdated | EventKind::UserDeleted)
    }
}

/// Whether a consent event was already applied to its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Confirmed,
    /// Stored at Didomi but not applied; its confirmation arrives as `event.updated`.
    Pending,
}

/// Why a message cannot be understood: all wrong fields, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect(Vec<String>);

impl Defect {
    /// One defect at one place, for example `("user", "expected an object, found a string")`.
    #[must_use]
    pub fn at(place: &str, what: impl fmt::Display) -> Defect {
        Defect(vec![format!("{place}: {what}")])
    }

    /// A defect: something else was found than expected.
    #[must_use]
    pub fn expected(place: &str, expected: &str, found: &str) -> Defect {
        Defect::at(place, format_args!("expected {expected}, found {found}"))
    }

    /// A defect: the value has another type than expected.
    #[must_use]
    pub fn wrong_type(place: &str, expected: &str, found: &Json<'_>) -> Defect {
        Defect::expected(place, expected, found.type_name())
    }

    /// Combines two defects, so that they are reported together.
    #[must_use]
    pub fn and(mut self, other: Defect) -> Defect {
        for problem in other.0 {
            if !self.0.contains(&problem) {
                self.0.push(problem);
            }
        }
        self
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Why a message cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    Defective(Defect),
    /// It is larger than [`MAX_BODY`] once unpacked.
    TooLarge(Defect),
}

impl From<Defect> for Unreadable {
    fn from(defect: Defect) -> Unreadable {
        Unreadable::Defective(defect)
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Unreadable::Defective(defect) | Unreadable::TooLarge(defect)) = self;
        defect.fmt(f)
    }
}

/// One message of the bus, decoded as far as every event needs it.
#[derive(Clone, Debug)]
pub struct Event<'b> {
    kind: EventKind,
    envelope_regulation: Option<Json<'b>>,
    entity: Json<'b>,
    previous: Option<Json<'b>>,
}

/// Decodes a message's body. Fields with the names in `unread` can only be compared; nobody may read them.
///
/// # Errors
/// The body cannot be unpacked, is not a JSON object, or is neither an envelope nor a bare event.
pub fn decode<'b>(body: impl Into<Body<'b>>, unread: &[&str]) -> Result<Event<'b>, Unreadable> {
    Ok(shaped(parse(body.into().json()?, unread)?)?)
}

/// Parses JSON. Bodies that were unpacked, or that have damaged texts, are copied; others are borrowed from.
fn parse<'b>(body: Cow<'b, [u8]>, unread: &[&str]) -> Result<Json<'b>, Defect> {
    let read = match &body {
        Cow::Borrowed(body) => json::read(body, unread),
        Cow::Owned(body) => json::copy(body),
    };
    read.or_else(|error| json::copy_damaged(&body).ok_or(error)).map_err(|error| {
        // serde_json's message would quote the body; its position is enough.
        let found = if error.is_eof() { "truncated JSON" } else { "something else" };
        Defect::expected("body", "JSON", &format!("{found} at line {} column {}", error.line(), error.column()))
    })
}

fn shaped(value: Json<'_>) -> Result<Event<'_>, Defect> {
    let Json::Object(fields) = value else {
        return Err(Defect::wrong_type("body", "an object", &value));
    };
    let mut fields = flat::unflatten(fields)?;
    match fields.remove("type") {
        Some(Json::String(name)) => envelope(EventKind::of(&name), fields),
        Some(Json::Null) | None => bare(fields),
        Some(other) => Err(Defect::wrong_type("type", "a string", &other)),
    }
}

fn bare(fields: Object<'_>) -> Result<Event<'_>, Defect> {
    if !fields.contains_key("user") && !fields.contains_key("consents") {
        let expected = "an envelope with a type, or a consent event with user or consents";
        return Err(Defect::expected("body", expected, "an object without any of them"));
    }
    Ok(Event { kind: EventKind::EventCreated, envelope_regulation: None, entity: Json::Object(fields), previous: None })
}

fn envelope(kind: EventKind, mut fields: Object<'_>) -> Result<Event<'_>, Defect> {
    let mut parameters = match fields.remove("parameters") {
        Some(Json::Object(parameters)) => parameters,
        // A flattened envelope may have `entity` as its root.
        Some(Json::Null) | None => Object::new(),
        Some(other) => return Err(Defect::wrong_type("parameters", "an object", &other)),
    };
    let mut take =
        |key: &str| parameters.remove(key).or_else(|| fields.remove(key)).filter(|value| *value != Json::Null);
    let entity = take("new_entity").or_else(|| take("entity")).unwrap_or(Json::Null);
    let previous = take("old_entity");
    Ok(Event { kind, envelope_regulation: fields.remove("regulation"), entity, previous })
}

impl<'b> Event<'b> {
    /// What happened.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        self.kind
    }

    /// The consent event, or for `user.*` the user, as it is now.
    ///
    /// # Errors
    /// The message contains none.
    pub fn entity(&self) -> Result<&Object<'b>, Defect> {
        match &self.entity {
            Json::Object(entity) => Ok(entity),
            Json::Null if self.kind == EventKind::EventUpdated || self.kind == EventKind::UserUpdated => {
                Err(Defect::expected("parameters.new_entity", "an object", "nothing"))
            }
            Json::Null => Err(Defect::expected("parameters.entity", "an object", "nothing")),
            other => Err(Defect::wrong_type("parameters.entity", "an object", other)),
        }
    }

    /// The user of the event; for `user.*` the entity itself. `None` if the event has none.
    ///
    /// # Errors
    /// `user` is not an object.
    pub fn user(&self) -> Result<Option<&Object<'b>>, Defect> {
        let entity = self.entity()?;
        if self.kind.is_user() {
            return Ok(Some(entity));
        }
        object(entity, "user", "user")
    }

    /// Didomi's identifier of the event (for `user.*`: of the user).
    ///
    /// # Errors
    /// It is not a string.
    pub fn id(&self) -> Result<Option<&str>, Defect> {
        text(self.entity()?, "id")
    }

    /// Confirmed unless the event says otherwise; messages without an entity count as confirmed.
    ///
    /// # Errors
    /// A status that Didomi does not document, so it is not known whether the event was applied.
    pub fn status(&self) -> Result<Status, Defect> {
        let Ok(entity) = self.entity() else { return Ok(Status::Confirmed) };
        if self.kind.is_user() {
            return Ok(Status::Confirmed);
        }
        match text(entity, "status")? {
            None | Some("confirmed") => Ok(Status::Confirmed),
            Some("pending_approval") => Ok(Status::Pending),
            Some(_) => Err(Defect::expected("status", "confirmed or pending_approval", "another text")),
        }
    }

    /// The organization at Didomi, if the message names one.
    ///
    /// # Errors
    /// It is not a string.
    pub fn organization_id(&self) -> Result<Option<&str>, Defect> {
        self.entity().map_or(Ok(None), |entity| text(entity, "organization_id"))
    }

    /// The regulation: the envelope's, else the entity's, else `gdpr`.
    ///
    /// # Errors
    /// It is not a string.
    pub fn regulation(&self) -> Result<&str, Defect> {
        match &self.envelope_regulation {
            Some(Json::String(regulation)) => return Ok(regulation),
            Some(Json::Null) | None => {}
            Some(other) => return Err(Defect::wrong_type("regulation", "a string", other)),
        }
        let own = self.entity().map_or(Ok(None), |entity| text(entity, "regulation"))?;
        Ok(own.unwrap_or(DEFAULT_REGULATION))
    }

    /// The instant at which the choice changed: `created_at` for `event.created`; for `event.updated` its
    /// `updated_at` if the update confirmed the event or changed its consents, else `created_at`;
    /// `updated_at` for `user.*`. `None` if undated.
    ///
    /// # Errors
    /// A time without an offset, or text that is not a time.
    pub fn changed_at(&self) -> Result<Option<Timestamp>, Defect> {
        let entity = self.entity()?;
        let created = || time(entity, "created_at");
        let updated = || time(entity, "updated_at");
        match self.kind {
            EventKind::UserCreated | EventKind::UserUpdated | EventKind::UserDeleted => updated(),
            EventKind::EventUpdated if self.changed_consents() => Ok(updated()?.or(created()?)),
            _ => created(),
        }
    }

    /// The instant from which the event's grants count: as [`Event::changed_at`], but an update that does not
    /// say what it changed does not make a grant newer than its creation.
    ///
    /// # Errors
    /// A time without an offset, or text that is not a time.
    pub fn granted_at(&self) -> Result<Option<Timestamp>, Defect> {
        if self.kind == EventKind::EventUpdated && self.previous.is_none() {
            return time(self.entity()?, "created_at");
        }
        self.changed_at()
    }

    /// Whether an update changed what the person chose. Without the old entity this is unknown and counts as
    /// changed.
    fn changed_consents(&self) -> bool {
        let Some(previous) = &self.previous else { return true };
        let is_pending = |entity: &Json<'_>| entity.field("status").as_str() == Some("pending_approval");
        let confirmed = is_pending(previous) && !is_pending(&self.entity);
        confirmed || previous.field("consents") != self.entity.field("consents")
    }

    /// Checks the fields that every delivered event needs, whatever the mappings.
    ///
    /// # Errors
    /// All fields that have a wrong type, in one error.
    pub fn check(&self) -> Result<(), Defect> {
        let entity = self.entity()?;
        let results = [
            self.id().map(|_| ()),
            self.changed_at().map(|_| ()),
            self.granted_at().map(|_| ()),
            self.user().map(|_| ()),
            object(entity, "consents", "consents").map(|_| ()),
        ];
        results.into_iter().filter_map(Result::err).reduce(Defect::and).map_or(Ok(()), Err)
    }
}

/// A field that is an object; `None` if it is absent or null.
///
/// # Errors
/// It is something else.
pub fn object<'e, 'b>(fields: &'e Object<'b>, key: &str, place: &str) -> Result<Option<&'e Object<'b>>, Defect> {
    match fields.get(key) {
        Some(Json::Object(inner)) => Ok(Some(inner)),
        Some(Json::Null) | None => Ok(None),
        Some(other) => Err(Defect::wrong_type(place, "an object", other)),
    }
}

fn text<'e>(fields: &'e Object<'_>, key: &str) -> Result<Option<&'e str>, Defect> {
    match fields.get(key) {
        Some(Json::String(text)) => Ok(Some(text)),
        Some(Json::Null) | None => Ok(None),
        Some(other) => Err(Defect::wrong_type(key, "a string", other)),
    }
}

/// A field that is an instant; `None` if it is absent or null.
fn time(fields: &Object<'_>, key: &str) -> Result<Option<Timestamp>, Defect> {
    let Some(text) = text(fields, key)? else { return Ok(None) };
    instant(text).map(Some).map_err(|found| Defect::expected(key, AN_INSTANT, found))
}
