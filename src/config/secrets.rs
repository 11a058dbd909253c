//! Secrets as literal, `${VARIABLE}` or file; none of them can be printed afterwards.

use super::Environment;
use super::fields::{At, Fields};
use secrecy::SecretString;
use std::path::{Path, PathBuf};

/// A text in which a whole value `${NAME}` stands for an environment variable.
pub(super) fn expand(
    text: At<String>,
    key: &str,
    environment: &Environment,
    fields: &Fields<'_>,
) -> Option<At<String>> {
    let Some(variable) = text.value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else {
        return Some(text);
    };
    match environment.get(variable).filter(|value| !value.is_empty()) {
        Some(value) => Some(At { value: value.clone(), place: text.place }),
        None => {
            let name = fields.name(key);
            let why =
                format!("{name}: environment variable {variable} is not set; set it, or write the value or a file");
            fields.problems().add(&text.place, why);
            None
        }
    }
}

/// Where a relative path of a file starts.
pub(super) fn resolve(folder: &Path, path: &str) -> PathBuf {
    folder.join(path)
}

/// A secret's file, without the line end that editors and mounted secrets leave.
pub(super) fn from_file(path: &At<String>, key: &str, folder: &Path, fields: &Fields<'_>) -> Option<SecretString> {
    let text = text_file(path, key, folder, fields)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        fields.problems().add(&path.place, format!("{}: {} is empty", fields.name(key), path.value));
        return None;
    }
    Some(SecretString::from(secret))
}

/// A file's text, or a complaint that says which file and why.
pub(super) fn text_file(path: &At<String>, key: &str, folder: &Path, fields: &Fields<'_>) -> Option<String> {
    let file = resolve(folder, &path.value);
    match super::read_bounded(&file) {
        Ok(text) => Some(text),
        Err(error) => {
            let why = format!(
                "{}: {} cannot be read: {error}; check the path and its permissions",
                fields.name(key),
                file.display()
            );
            fields.problems().add(&path.place, why);
            None
        }
    }
}

/// `key` or `key_file`, but not both; `required` says what to do when neither is there.
pub(super) fn secret(
    fields: &mut Fields<'_>,
    keys: (&'static str, &'static str),
    folder: &Path,
    environment: &Environment,
    required: Option<&str>,
) -> Option<SecretString> {
    let (key, file_key) = keys;
    if !fields.has(key) && !fields.has(file_key) {
        if let Some(remedy) = required {
            fields.missing(key, remedy);
        }
        return None;
    }
    let literal = fields.filled(key);
    let file = fields.filled(file_key);
    match (literal, file) {
        (Some(_), Some(file)) => {
            let why = format!("{} and {} are both written; keep one", fields.name(key), fields.name(file_key));
            fields.problems().add(&file.place, why);
            None
        }
        (Some(text), None) => expand(text, key, environment, fields).map(|text| SecretString::from(text.value)),
        (None, Some(file)) => from_file(&file, file_key, folder, fields),
        (None, None) => None,
    }
}
