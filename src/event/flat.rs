//! Flattened messages: one flat object whose keys are paths joined by `__`.
//!
//! How lists flatten is not documented, so both spellings are read: an element's index
//! (`purposes__0__id`) and its id (`purposes__newsletter__enabled`).

use super::Defect;
use serde_json::{Map, Value};

const SEPARATOR: &str = "__";
/// Deeper than any documented field; it bounds the recursion below.
const MAX_DEPTH: usize = 24;
/// Fields of Didomi's entities that are lists of `{id, …}`.
const LISTS_BY_ID: [&str; 3] = ["channels", "purposes", "preferences"];
/// Fields of Didomi's entities that are lists of ids.
const LISTS_OF_IDS: [&str; 5] = ["enabled", "disabled", "enabled_li", "disabled_li", "proofs_id"];

/// Gives a flattened object its nested form back; any other object stays as it is.
///
/// # Errors
/// A path that is too deep, or that goes through a value which is no object.
pub(super) fn unflatten(fields: Map<String, Value>) -> Result<Map<String, Value>, Defect> {
    if !fields.keys().any(|key| key.contains(SEPARATOR)) {
        return Ok(fields);
    }
    let mut nested = Map::new();
    for (key, value) in fields {
        let path: Vec<&str> = key.split(SEPARATOR).collect();
        if path.len() > MAX_DEPTH {
            return Err(Defect::at("body", "a flattened key is nested too deep"));
        }
        insert(&mut nested, &path, value)?;
    }
    for (key, value) in &mut nested {
        restore_lists(key, value);
    }
    Ok(nested)
}

fn insert(into: &mut Map<String, Value>, path: &[&str], value: Value) -> Result<(), Defect> {
    let [first, rest @ ..] = path else { return Ok(()) };
    if rest.is_empty() {
        into.insert((*first).to_owned(), value);
        return Ok(());
    }
    // Keys come sorted, so a parent that is written as null or empty comes before its children.
    let parent = into.entry(*first).or_insert(Value::Null);
    if parent.is_null() || parent.as_array().is_some_and(Vec::is_empty) {
        *parent = Value::Object(Map::new());
    }
    match parent {
        Value::Object(inner) => insert(inner, rest, value),
        _ => Err(Defect::at("body", "flattened keys contradict each other")),
    }
}

fn restore_lists(key: &str, value: &mut Value) {
    let Value::Object(fields) = value else { return };
    if key == "metadata" {
        return; // the customer's own fields, whatever their names
    }
    for (inner_key, inner) in fields.iter_mut() {
        restore_lists(inner_key, inner);
    }
    if LISTS_BY_ID.contains(&key) {
        *value = Value::Array(elements(std::mem::take(fields)));
    } else if LISTS_OF_IDS.contains(&key) {
        *value = Value::Array(ids(std::mem::take(fields)));
    }
}

/// Elements in the order of their index; one without an `id` is named by its key.
fn elements(fields: Map<String, Value>) -> Vec<Value> {
    let mut list: Vec<(String, Value)> = fields.into_iter().collect();
    list.sort_by_key(|(key, _)| key.parse::<u64>().unwrap_or(u64::MAX));
    list.into_iter()
        .map(|(key, mut element)| {
            if let Value::Object(fields) = &mut element {
                fields.entry("id").or_insert(Value::String(key));
            }
            element
        })
        .collect()
}

/// `{"0": "google"}` and `{"google": true}` both name the vendor `google`.
fn ids(fields: Map<String, Value>) -> Vec<Value> {
    fields
        .into_iter()
        .filter_map(|(key, value)| match value {
            Value::Bool(true) => Some(Value::String(key)),
            Value::Bool(false) | Value::Null => None,
            named => Some(named),
        })
        .collect()
}
