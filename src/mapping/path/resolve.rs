//! How a path is followed through the fields and lists of an event.

use super::found::{Found, Leaf, Segments};
use super::{VENDOR_LISTS, rest_after};
use crate::event::{Defect, Event, Json, Object};
use smallvec::{SmallVec, smallvec};
use std::cmp::Reverse;
use std::fmt::Arguments;

/// A field whose value is a string or null.
pub(super) fn field<'e>(
    fields: Option<&'e Object<'e>>,
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
pub(super) fn named<'e>(user: Option<&'e Object<'e>>, event: &Event<'_>) -> Result<Option<Found<'e>>, Defect> {
    let key = "organization_user_id";
    let segments: Segments<'e> = if event.kind().is_user() { smallvec![key] } else { smallvec!["user", key] };
    let Some(value) = user.and_then(|user| user.get(key)) else { return Ok(None) };
    let found = Found::at(value, segments);
    found.check_name()?;
    Ok(Some(found))
}

pub(super) fn descend_from<'e>(
    fields: Option<&'e Object<'e>>,
    rest: &str,
    root: &'static str,
) -> Result<Option<Found<'e>>, Defect> {
    let Some(fields) = fields else { return Ok(None) };
    let found = in_object(fields, rest, format_args!("{root}"))?;
    Ok(found.map(|found| found.under(root)))
}

pub(super) fn list<'e>(
    value: Option<&'e Json<'e>>,
    rest: &str,
    root: &'static str,
) -> Result<Option<Found<'e>>, Defect> {
    match value {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Array(elements)) => {
            Ok(in_list(elements, rest, format_args!("{root}"))?.map(|found| found.under(root)))
        }
        Some(other) => Err(Defect::wrong_type(root, "a list", other)),
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

fn in_object<'e>(fields: &'e Object<'e>, rest: &str, place: Arguments<'_>) -> Result<Option<Found<'e>>, Defect> {
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
pub(super) fn vendors<'e>(value: Option<&'e Json<'e>>, rest: &str) -> Result<Option<Found<'e>>, Defect> {
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

fn names_vendor(lists: &Object<'_>, name: &str, vendor: &str) -> Result<bool, Defect> {
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
