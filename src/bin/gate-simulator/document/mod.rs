//! Integration documents, as far as a gate knows them: who may call, which gate, which properties.
//!
//! Comments and trailing commas are allowed, unknown keys and the `url` are ignored: judging the
//! whole document is the worker's job. Both forms are read, the documented one and the older
//! `{"config": …}`. Every problem of every document is reported in one run.

mod reader;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jsonc_parser::{ParseOptions, parse_to_serde_value};
use serde_json::Value;

use crate::document::reader::{Environment, Reader};
use crate::signature::Key;

/// What the simulator needs of one document.
pub struct Integration {
    /// The file's stem.
    pub name: String,
    pub username: String,
    pub key: Key,
    pub gate: String,
    /// The property that tells people apart.
    pub identifier: String,
    /// Every property that the document maps.
    pub properties: BTreeSet<String>,
}

/// Documents that can be served, and what a person should know about them.
pub struct Loaded {
    pub integrations: Vec<Integration>,
    pub remarks: Vec<String>,
}

/// Reads all documents, or lists everything that is wrong with them.
pub fn load(files: &[PathBuf], environment: &Environment) -> Result<Loaded, Vec<String>> {
    let mut problems = Vec::new();
    let mut remarks = Vec::new();
    let mut integrations: Vec<(Integration, String)> = Vec::new();
    for file in files {
        match read(file, environment) {
            Ok((new, password)) => {
                if integrations.iter().any(|(old, _)| old.name == new.name) {
                    let (file, name) = (file.display(), &new.name);
                    problems.push(format!("{file}: there are two integrations `{name}`; rename a file"));
                }
                remarks.push(describe(&new));
                remarks.extend(shadowed(&integrations, &new, &password));
                integrations.push((new, password));
            }
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() {
        let integrations = integrations.into_iter().map(|(read, _)| read).collect();
        return Ok(Loaded { integrations, remarks });
    }
    Err(problems)
}

fn describe(new: &Integration) -> String {
    format!("{}: user {}, gate {}, identifier {}", new.name, new.username, new.gate, new.identifier)
}

/// Says that two integrations cannot be told apart by their requests, and which one gets them.
fn shadowed(earlier: &[(Integration, String)], new: &Integration, password: &str) -> Option<String> {
    let (first, _) = earlier
        .iter()
        .find(|(old, old_password)| old.username == new.username && old.gate == new.gate && old_password == password)?;
    let (first, second) = (&first.name, &new.name);
    Some(format!("{first} and {second} have the same user, password and gate: every such request counts as {first}'s"))
}

fn read(file: &Path, environment: &Environment) -> Result<(Integration, String), Vec<String>> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|error| vec![format!("{shown}: {error}")])?;
    let document = parse(&text).map_err(|error| vec![format!("{shown}: {error}")])?;
    let mut reader = Reader::new(file, document);
    let name = reader.name();
    let username = reader.username();
    let password = reader.password(environment);
    let gate = reader.gate();
    reader.mode();
    let (properties, personal) = reader.mappings();
    let identifier = reader.identifier(&properties, personal);
    if !reader.problems.is_empty() {
        return Err(reader.problems);
    }
    let integration = Integration { name, username, key: Key::new(&password), gate, identifier, properties };
    Ok((integration, password))
}

fn parse(text: &str) -> Result<Value, String> {
    let options = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let document: Value = parse_to_serde_value(text, &options).map_err(|e| e.to_string())?;
    if document.is_object() {
        return Ok(document);
    }
    Err("not a JSON object; see the documented form of an integration".to_owned())
}

#[cfg(test)]
mod tests;
