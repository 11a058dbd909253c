//! Secrets, written as a literal, `${VARIABLE}` or a file; once read, none of them can be printed.

use super::Environment;
use super::fields::{At, Fields, bare};
use crate::text::shown::{is_like_address, quoted};
use secrecy::SecretString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Expands a value that consists of `${NAME}` to that environment variable.
pub(super) fn expand(
    text: At<String>,
    key: &str,
    environment: &Environment,
    fields: &Fields<'_>,
) -> Option<At<String>> {
    let text = At { value: bare(&text.value).to_owned(), place: text.place };
    let Some(variable) = text.value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else {
        return is_meant_as_written(&text, key, environment, fields).then_some(text);
    };
    let value = environment.get(variable).map(|value| bare(value));
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        return Some(At { value: value.to_owned(), place: text.place });
    }
    let (name, variable) = (fields.name(key), quoted(variable));
    let state = if value.is_some() { "is empty" } else { "is not set" };
    let why = format!("{name}: environment variable {variable} {state}; set it, or write the value or a file");
    fields.problems().add(&text.place, why);
    None
}

/// Whether a text that is not `${NAME}` may be meant literally. If not, this is reported without the text,
/// which may be a secret.
fn is_meant_as_written(text: &At<String>, key: &str, environment: &Environment, fields: &Fields<'_>) -> bool {
    let name = fields.name(key);
    let refuse = |why: String| {
        fields.problems().add(&text.place, format!("{name}: {why}"));
        false
    };
    if text.value.contains("${") {
        let why = "${…} stands for a whole value only, and would be taken as it is written";
        return refuse(format!("{why}; put the whole value into the variable, or into a file"));
    }
    // Longer than one character, because a shell has variables such as $_ itself.
    let variables = text.value.split('$').skip(1).map(variable_at).filter(|variable| variable.len() > 1);
    if let Some(variable) = variables.into_iter().find(|variable| environment.contains_key(*variable)) {
        let whole =
            if bare(&text.value).trim_matches(['$', '(', ')']) == variable { "" } else { ", for a whole value" };
        return refuse(format!("${variable} is not expanded without braces; write \"${{{variable}}}\"{whole}"));
    }
    let is_alone = |begin: &str, end: &str| {
        let inner = text.value.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
        inner.is_some_and(|inner| inner.len() > 1 && variable_at(inner) == inner)
    };
    if [("$", ""), ("$(", ")"), ("%", "%"), ("{", "}"), ("{{", "}}")].iter().any(|(begin, end)| is_alone(begin, end)) {
        let why = "looks like a variable's name and is taken as it is written; a variable is \"${NAME}\"";
        fields.problems().warn(&text.place, format!("{name} {why}"));
    }
    true
}

/// The name of a variable at the beginning of a text, also in parentheses.
fn variable_at(text: &str) -> &str {
    let text = text.strip_prefix('(').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let name = &text[..end];
    if name.starts_with(|c: char| c.is_ascii_digit()) { "" } else { name }
}

/// Resolves a path relative to a folder.
pub(super) fn resolve(folder: &Path, path: &str) -> PathBuf {
    folder.join(path)
}

/// Reads a secret from a file, without the blanks and line ends that editors and mounted secrets leave.
pub(super) fn from_file(path: &At<String>, key: &str, folder: &Path, fields: &Fields<'_>) -> Option<SecretString> {
    let text = text_file(path, key, folder, fields)?;
    let secret = bare(&text);
    if secret.is_empty() {
        fields.problems().add(&path.place, format!("{}: {} is empty", fields.name(key), quoted(&path.value)));
        return None;
    }
    warn_of_others(path, key, folder, fields);
    one_line(secret, key, path, fields)
}

/// Checks that a secret is a single line: otherwise it is several values, or not a secret.
fn one_line<T>(secret: &str, key: &str, at: &At<T>, fields: &Fields<'_>) -> Option<SecretString> {
    if secret.chars().any(char::is_control) {
        let why = format!("{} contains a line end or a control character; write only the secret", fields.name(key));
        fields.problems().add(&at.place, why);
        return None;
    }
    Some(SecretString::from(secret))
}

/// Warns if everybody on the machine may read a secret's file.
pub(super) fn warn_of_others(path: &At<String>, key: &str, folder: &Path, fields: &Fields<'_>) {
    let file = resolve(folder, &path.value);
    let Ok(found) = std::fs::metadata(&file) else { return };
    if found.permissions().mode() & 0o004 != 0 {
        let (name, shown) = (fields.name(key), file.display().to_string());
        let shown = quoted(&shown);
        let text = format!("{name}: {shown} can be read by everybody on this machine; chmod o-rwx it");
        fields.problems().warn(&path.place, text);
    }
}

/// Reads a file's text, or reports which file cannot be read and why.
pub(super) fn text_file(path: &At<String>, key: &str, folder: &Path, fields: &Fields<'_>) -> Option<String> {
    let file = resolve(folder, &path.value);
    match super::read_bounded(&file) {
        Ok(text) => Some(text),
        Err(_) if is_like_address(&path.value) => {
            let why = format!("{} names a file, and this is an address; write it without _file", fields.name(key));
            fields.problems().add(&path.place, why);
            None
        }
        Err(error) => {
            let shown = file.display().to_string();
            let why = format!(
                "{}: {} cannot be read: {error}; check the path and its permissions",
                fields.name(key),
                quoted(&shown)
            );
            fields.problems().add(&path.place, why);
            None
        }
    }
}

/// Reads `key` or `key_file`, but not both; `required` says what to do if neither is there.
pub(super) fn secret(
    fields: &mut Fields<'_>,
    keys: (&'static str, &'static str),
    folder: &Path,
    environment: &Environment,
    required: Option<&str>,
) -> Option<SecretString> {
    let (key, file_key) = keys;
    let is_missing = !fields.has(key) && !fields.has(file_key);
    // Read in any case, so that both keys are known, and a misspelt one is reported.
    let literal = fields.filled(key);
    let file = fields.bare(file_key);
    if is_missing {
        if let Some(remedy) = required {
            fields.missing(key, remedy);
        }
        return None;
    }
    match (literal, file) {
        (Some(_), Some(file)) => {
            let why = format!("{} and {} are both written; keep one", fields.name(key), fields.name(file_key));
            fields.problems().add(&file.place, why);
            None
        }
        (Some(text), None) => {
            let text = expand(text, key, environment, fields)?;
            one_line(&text.value, key, &text, fields)
        }
        (None, Some(file)) => from_file(&file, file_key, folder, fields),
        (None, None) => None,
    }
}
