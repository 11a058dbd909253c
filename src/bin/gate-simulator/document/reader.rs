//! Where an integration document keeps what the gate needs, in either of its forms.
//!
//! A value that is missing or wrong becomes a problem with the file, the key and a remedy, and
//! reading goes on, so that one run finds every problem.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Looks an environment variable up.
pub type Environment = dyn Fn(&str) -> Option<String>;

/// The keys under which a form keeps what the gate needs.
struct Form {
    username: &'static str,
    password: &'static str,
    password_file: &'static str,
    gate: &'static str,
    mappings: &'static str,
    identifier: &'static str,
}

const DOCUMENTED: Form = Form {
    username: "authentication.username",
    password: "authentication.password",
    password_file: "authentication.password_file",
    gate: "properties.gate",
    mappings: "mappings",
    identifier: "identifier",
};

const OLDER: Form = Form {
    username: "config.authentication.username",
    password: "config.authentication.password",
    password_file: "config.authentication.password_file",
    gate: "config.gate",
    mappings: "config.properties",
    identifier: "identifier",
};

/// Reads one document and remembers every problem met on the way.
pub struct Reader<'a> {
    file: &'a Path,
    document: Value,
    form: &'static Form,
    pub problems: Vec<String>,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a Path, document: Value) -> Self {
        let older = document.get("config").is_some();
        Self { file, document, form: if older { &OLDER } else { &DOCUMENTED }, problems: Vec::new() }
    }

    fn at(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.document, |value, part| value.get(part))
    }

    fn complain(&mut self, key: &str, what: &str) {
        let file = self.file.display();
        self.problems.push(format!("{file}: {key}: {what}"));
    }

    /// The file's stem; one that cannot name an integration is a problem.
    pub fn name(&mut self) -> String {
        let stem = self.file.file_stem().and_then(|stem| stem.to_str());
        let name = stem.unwrap_or_default().to_owned();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let good = name.len() <= 63
            && name.bytes().next().is_some_and(plain)
            && name.bytes().all(|b| plain(b) || b == b'_' || b == b'-');
        if !good {
            self.complain("file name", "rename it to [a-z0-9][a-z0-9_-]{0,62}.json");
        }
        name
    }

    /// A text that may be absent; a value of another type is a problem.
    fn optional_text(&mut self, key: &str) -> Option<String> {
        match self.at(key)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            _ => {
                self.complain(key, "must be a string");
                None
            }
        }
    }

    fn text(&mut self, key: &str, remedy: &str) -> String {
        let known = self.problems.len();
        let text = self.optional_text(key).unwrap_or_default();
        if text.is_empty() && self.problems.len() == known {
            self.complain(key, &format!("missing; {remedy}"));
        }
        text
    }

    pub fn username(&mut self) -> String {
        self.text(self.form.username, "give the API user's name")
    }

    pub fn gate(&mut self) -> String {
        self.text(self.form.gate, "give the gate's name")
    }

    pub fn password(&mut self, environment: &Environment) -> String {
        let (key, file_key) = (self.form.password, self.form.password_file);
        let Some(file) = self.optional_text(file_key) else {
            let literal = self.text(key, "give it, `${VARIABLE}` or a password_file");
            return self.resolved(key, literal, environment);
        };
        if self.at(key).is_some() {
            self.complain(file_key, "there is a password too; keep one of them");
        }
        let path = self.file.parent().unwrap_or(Path::new("")).join(file);
        match fs::read_to_string(&path) {
            Ok(text) if stripped(&text).is_empty() => {
                self.complain(file_key, &format!("{} is empty", path.display()));
                String::new()
            }
            Ok(text) => stripped(&text).to_owned(),
            Err(error) => {
                self.complain(file_key, &format!("{}: {error}", path.display()));
                String::new()
            }
        }
    }

    /// The variable's value if the whole text reads `${VARIABLE}`, else the text itself.
    fn resolved(&mut self, key: &str, literal: String, environment: &Environment) -> String {
        let Some(variable) = variable(&literal) else {
            return stripped(&literal).to_owned();
        };
        let value = environment(variable).map(|value| stripped(&value).to_owned()).filter(|value| !value.is_empty());
        if value.is_none() {
            let what = format!("the environment variable {variable} is not set");
            self.complain(key, &what);
        }
        value.unwrap_or_default()
    }

    /// Both paths are served in either mode; only an unknown mode is a problem.
    pub fn mode(&mut self) {
        let mode = self.optional_text("properties.mode");
        if !matches!(mode.as_deref(), None | Some("sync" | "async")) {
            self.complain("properties.mode", "must be `sync` or `async`");
        }
    }

    /// Every mapped property, and the one that takes the person's id.
    pub fn mappings(&mut self) -> (BTreeSet<String>, Option<String>) {
        let key = self.form.mappings;
        let entries = match self.at(key) {
            Some(Value::Array(entries)) if !entries.is_empty() => entries.clone(),
            _ => {
                self.complain(key, "missing; list at least one {\"id\", \"value\"}");
                return Default::default();
            }
        };
        let mut properties = BTreeSet::new();
        let mut personal = None;
        for (place, entry) in entries.iter().enumerate() {
            let id = entry["id"].as_str().unwrap_or_default();
            if id.is_empty() {
                self.complain(&format!("{key}[{place}].id"), "must be a non-empty string");
            } else if !properties.insert(id.to_owned()) {
                self.complain(&format!("{key}[{place}].id"), &format!("`{id}` is mapped twice"));
            } else if entry["value"] == "organization_user_id" && personal.is_none() {
                personal = Some(id.to_owned());
            }
        }
        (properties, personal)
    }

    pub fn identifier(&mut self, properties: &BTreeSet<String>, personal: Option<String>) -> String {
        let key = self.form.identifier;
        let identifier = self.optional_text(key).or(personal).unwrap_or_default();
        if !properties.is_empty() && !properties.contains(&identifier) {
            self.complain(key, "must name a mapped property; or map organization_user_id");
        }
        identifier
    }
}

fn variable(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && name.bytes().all(word)).then_some(name)
}

/// A secret without what an editor or a copy left around it: blanks, line ends and a byte order mark.
fn stripped(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}')
}
