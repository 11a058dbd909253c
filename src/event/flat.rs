//! Flattened messages: one flat object whose keys are paths joined by `__`.
//!
//! How lists are flattened is not documented, so both spellings are read: an element's index
//! (`purposes__0__id`) and its id (`purposes__newsletter__enabled`).

use super::{Defect, Json, METADATA, Object};
use std::borrow::Cow;

const SEPARATOR: &str = "__";
/// Deeper than any documented field; bounds the recursion below.
const MAX_DEPTH: usize = 24;
/// Fields of Didomi's entities that are lists of `{id, …}`.
const LISTS_BY_ID: [&str; 3] = ["channels", "purposes", "preferences"];
/// Fields of Didomi's entities that are lists of ids.
const LISTS_OF_IDS: [&str; 5] = ["enabled", "disabled", "enabled_li", "disabled_li", "proofs_id"];

/// Restores the nested form of a flattened object; any other object stays as it is.
///
/// # Errors
/// A path that is too deep, or that leads through a value that is not an object.
pub(super) fn unflatten(fields: Object<'_>) -> Result<Object<'_>, Defect> {
    if !fields.keys().any(|key| key.contains(SEPARATOR)) {
        return Ok(fields);
    }
    let mut nested = Object::new();
    for (key, value) in fields {
        let path: Vec<&str> = key.split(SEPARATOR).collect();
        if path.len() > MAX_DEPTH {
            return Err(Defect::expected("body", "flattened keys of at most 24 parts", "one with more"));
        }
        insert(&mut nested, &path, value)?;
    }
    for (key, value) in &mut nested {
        restore_lists(key, value);
    }
    Ok(nested)
}

fn insert<'b>(into: &mut Object<'b>, path: &[&str], value: Json<'b>) -> Result<(), Defect> {
    let [first, rest @ ..] = path else { return Ok(()) };
    if rest.is_empty() {
        into.insert(Cow::Owned((*first).to_owned()), value);
        return Ok(());
    }
    // Keys are sorted, so a parent that is written as null or empty comes before its children.
    let parent = into.entry(Cow::Owned((*first).to_owned())).or_insert(Json::Null);
    if *parent == Json::Null || *parent == Json::Array(Vec::new()) {
        *parent = Json::Object(Object::new());
    }
    match parent {
        Json::Object(inner) => insert(inner, rest, value),
        _ => Err(Defect::expected("body", "flattened keys that fit together", "one that leads through a single value")),
    }
}

fn restore_lists(key: &str, value: &mut Json<'_>) {
    let Json::Object(fields) = value else { return };
    if key == METADATA {
        return;
    }
    for (inner_key, inner) in fields.iter_mut() {
        restore_lists(inner_key, inner);
    }
    if LISTS_BY_ID.contains(&key) {
        *value = Json::Array(elements(std::mem::take(fields)));
    } else if LISTS_OF_IDS.contains(&key) {
        *value = Json::Array(ids(std::mem::take(fields)));
    }
}

/// The elements in the order of their index; an element without an `id` gets its key as its id.
fn elements(fields: Object<'_>) -> Vec<Json<'_>> {
    let mut list: Vec<(Cow<'_, str>, Json<'_>)> = fields.into_iter().collect();
    list.sort_by_key(|(key, _)| key.parse::<u64>().unwrap_or(u64::MAX));
    list.into_iter()
        .map(|(key, mut element)| {
            if let Json::Object(fields) = &mut element {
                fields.entry(Cow::Borrowed("id")).or_insert(Json::String(key));
            }
            element
        })
        .collect()
}

/// `{"0": "google"}` and `{"google": true}` both contain the vendor `google`.
fn ids(fields: Object<'_>) -> Vec<Json<'_>> {
    fields
        .into_iter()
        .filter_map(|(key, value)| match value {
            Json::Bool(true) => Some(Json::String(key)),
            Json::Bool(false) | Json::Null => None,
            named => Some(named),
        })
        .collect()
}
