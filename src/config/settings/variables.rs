//! The environment, which overrides the file.

use crate::config::Environment;
use crate::config::fields::{bare, remedy};
use crate::config::node::{self, Node, NodeValue};
use crate::config::problems::Problems;
use crate::text::shown::quoted;
use crate::text::suggest::{asked, nearest};
use std::ffi::OsString;

const VARIABLE_PREFIX: &str = "CONSENT_GATE_";
const SECTIONS: [&str; 10] =
    ["broker", "source", "integrations", "retry", "records", "gate", "admin", "log", "traces", "shutdown"];
/// Pairs of keys that replace each other, so that the environment can override either form.
const ALTERNATIVES: [(&str, &str); 8] = [
    ("proxy", "proxy_file"),
    ("proxy_file", "proxy"),
    ("url", "url_file"),
    ("url_file", "url"),
    ("queue", "exchange"),
    ("exchange", "queue"),
    ("store", "store_file"),
    ("store_file", "store"),
];

/// The variables of the process. One that is not ours and is not UTF-8 is left out.
///
/// # Errors
/// A setting is not UTF-8: left out, it would leave another one in force unseen.
pub fn environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Environment, String> {
    let mut known = Environment::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => drop(known.insert(name, value)),
            Err(_) if name.starts_with(VARIABLE_PREFIX) => {
                return Err(format!("the value of {name} is not UTF-8; write it in UTF-8"));
            }
            Err(_) => {}
        }
    }
    Ok(known)
}

/// Overrides the file's tree by the variables `CONSENT_GATE_<SECTION>__<KEY>`.
pub(in crate::config) fn overlay(mut tree: Node, environment: &Environment, problems: &Problems) -> Node {
    let NodeValue::Table(sections) = &mut tree.value else { return tree };
    for (variable, value) in environment {
        let Some((section, key)) = variable.strip_prefix(VARIABLE_PREFIX).and_then(|rest| rest.split_once("__")) else {
            continue;
        };
        let (section, key) = (section.to_lowercase(), key.to_lowercase());
        let place = node::Location::Variable(variable.clone());
        if !SECTIONS.contains(&section.as_str()) {
            let remedy = remedy(&section, &SECTIONS);
            problems.add(&place, format!("{} is unknown{remedy}", quoted(&section)));
            continue;
        }
        set(sections, &section, &key, Node { value: NodeValue::Text(bare(value).to_owned()), place });
    }
    tree
}

/// Reports variables that look like settings but are not. `known` has all sections and keys.
pub(super) fn strangers(environment: &Environment, known: &[(String, &'static str)], problems: &Problems) {
    let keys = known.iter().filter(|(section, _)| SECTIONS.contains(&section.as_str()));
    let names: Vec<String> = keys.map(|(section, key)| format!("{section}__{key}").to_uppercase()).collect();
    for variable in environment.keys() {
        let upper = variable.to_uppercase();
        let is_read = variable.strip_prefix(VARIABLE_PREFIX).is_some_and(|rest| rest.contains("__"));
        let Some(rest) = upper.strip_prefix(VARIABLE_PREFIX).filter(|rest| !is_read && !is_service_link(rest)) else {
            continue;
        };
        let place = node::Location::Variable(variable.clone());
        let joined = |name: &str| name.split('_').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
        if let Some(right) = names.iter().find(|name| joined(name) == joined(rest)) {
            problems.add(&place, format!("the variable is unknown; write {VARIABLE_PREFIX}{right}"));
            continue;
        }
        let meant = nearest(rest, names.iter().map(String::as_str));
        let meant = meant.map_or_else(String::new, |name| asked(&format!("{VARIABLE_PREFIX}{name}")));
        problems.warn(&place, format!("the variable is unknown and changes nothing{meant}"));
    }
}

/// Whether it is a variable that Kubernetes sets in every pod for a service whose name begins like the
/// prefix.
fn is_service_link(rest: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_port = |words: &[&str]| words.contains(&"PORT") && (words.ends_with(&["PORT"]) || words.contains(&"TCP"));
    is_port(&words) || rest.ends_with("SERVICE_HOST") || rest.contains("SERVICE_PORT")
}

fn set(sections: &mut Vec<(String, Node)>, section: &str, key: &str, node: Node) {
    let index = sections.iter().position(|(name, _)| name == section).unwrap_or_else(|| {
        sections.push((section.to_owned(), Node { value: NodeValue::Table(Vec::new()), place: node.place.clone() }));
        sections.len() - 1
    });
    let Some((_, Node { value: NodeValue::Table(entries), .. })) = sections.get_mut(index) else { return };
    let from_file = |node: &Node| !matches!(node.place, node::Location::Variable(_));
    entries.retain(|(name, old)| name != key && !(from_file(old) && ALTERNATIVES.contains(&(key, name.as_str()))));
    entries.push((key.to_owned(), node));
}
