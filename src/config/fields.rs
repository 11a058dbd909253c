//! Reads typed values out of a tree and collects every problem on the way.

use super::node::{Location, Node, NodeValue, from_toml};
use super::problems::Problems;
use crate::text::shown::quoted;
use crate::text::suggest::{did_you_mean, nearest};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

/// A typed value and where it was written.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub place: Location,
}

/// The entries of one table. A key that was never read is unknown, which [`Fields::finish`] reports.
pub struct Fields<'p> {
    path: String,
    place: Location,
    entries: Vec<(String, Node)>,
    known: Vec<&'static str>,
    /// Required keys that are absent, with what to do.
    missing: Vec<(&'static str, String)>,
    problems: &'p Problems,
}

impl<'p> Fields<'p> {
    /// Opens a table; anything else is reported and treated as an empty one.
    pub fn open(path: &str, node: Node, problems: &'p Problems) -> Fields<'p> {
        let place = node.place;
        let entries = match node.value {
            NodeValue::Table(entries) => entries,
            other => {
                problems.add(&place, format!("{}expected a table, found {}", prefix(path), other.type_name()));
                Vec::new()
            }
        };
        Fields { path: path.to_owned(), place, entries, known: Vec::new(), missing: Vec::new(), problems }
    }

    /// Where the table was written.
    #[must_use]
    pub fn place(&self) -> &Location {
        &self.place
    }

    /// Where problems are recorded.
    #[must_use]
    pub fn problems(&self) -> &'p Problems {
        self.problems
    }

    /// `section.key`, as it is called in messages.
    #[must_use]
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes that a required key is missing. It is reported after all keys were read: a misspelt one is
    /// reported as misspelt, and only once.
    pub fn missing(&mut self, key: &'static str, remedy: &str) {
        self.known.push(key);
        self.missing.push((key, remedy.to_owned()));
    }

    /// Reports the missing keys, except those that are there but misspelt.
    fn report_missing(&self) {
        let is_misspelt = |key| self.entries.iter().any(|(written, _)| nearest(written, self.known()) == Some(key));
        for (key, remedy) in self.missing.iter().filter(|(key, _)| !is_misspelt(*key)) {
            let begun = self.entries.iter().map(|(written, _)| written).find(|written| is_beginning(written, key));
            let renamed = begun.map_or_else(String::new, |written| format!("rename {}, or ", quoted(written)));
            self.problems.add(&self.place, format!("{} is missing; {renamed}{remedy}", self.name(key)));
        }
    }

    fn known(&self) -> impl Iterator<Item = &'static str> {
        self.known.iter().copied()
    }

    /// Where a key is written, without marking it as read.
    #[must_use]
    pub fn place_of(&self, key: &str) -> Option<Location> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, node)| node.place.clone())
    }

    /// Whether a key is written, without marking it as read.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| name == key)
    }

    /// The key's node; `None` if absent or null. A key that is written twice is reported.
    pub fn node(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let mut found = None;
        while let Some(index) = self.entries.iter().position(|(name, _)| name == key) {
            let (_, node) = self.entries.remove(index);
            if found.is_some() {
                self.problems.add(&node.place, format!("{} is written twice; keep one", self.name(key)));
            }
            found = Some(node);
        }
        found.filter(|node| !matches!(node.value, NodeValue::Null))
    }

    /// A table within this one; an empty one if it is absent.
    pub fn table(&mut self, key: &'static str) -> Fields<'p> {
        let path = self.name(key);
        let place = self.place.clone();
        let node = self.node(key).unwrap_or(Node { value: NodeValue::Table(Vec::new()), place });
        Fields::open(&path, node, self.problems)
    }

    fn typed<T>(&mut self, key: &'static str, expected: &str, read: impl Fn(&NodeValue) -> Option<T>) -> Option<At<T>> {
        let node = self.node(key)?;
        if let Some(value) = read(&node.value) {
            return Some(At { value, place: node.place });
        }
        let found = node.value.type_name();
        self.problems.add(&node.place, format!("{}: expected {expected}, found {found}", self.name(key)));
        None
    }

    /// A string.
    pub fn text(&mut self, key: &'static str) -> Option<At<String>> {
        self.typed(key, "a string", as_string)
    }

    /// A string that is not blank.
    pub fn filled(&mut self, key: &'static str) -> Option<At<String>> {
        let text = self.text(key)?;
        if bare(&text.value).is_empty() {
            self.problems.add(&text.place, format!("{} is empty; write a value or remove the key", self.name(key)));
            return None;
        }
        Some(text)
    }

    /// A string that is not blank, trimmed of what an editor or a copy left around it.
    pub fn bare(&mut self, key: &'static str) -> Option<At<String>> {
        self.filled(key).map(|at| At { value: bare(&at.value).to_owned(), place: at.place })
    }

    /// True or false; in the environment, the word.
    pub fn flag(&mut self, key: &'static str) -> Option<At<bool>> {
        self.typed(key, "true or false", |value| match value {
            NodeValue::Bool(flag) => Some(*flag),
            NodeValue::Text(text) => text.parse().ok(),
            _ => None,
        })
    }

    /// A whole number from 1 to `most`.
    pub fn count(&mut self, key: &'static str, most: i64) -> Option<At<usize>> {
        let number = self.typed(key, &format!("a whole number from 1 to {most}"), |value| match value {
            NodeValue::Integer(number) => Some(*number),
            NodeValue::Text(text) => text.parse().ok(),
            _ => None,
        });
        let At { value, place } = self.within(key, number?, 1, most)?;
        usize::try_from(value).ok().map(|value| At { value, place })
    }

    /// A rate, from 0.001 to a million.
    pub fn rate(&mut self, key: &'static str) -> Option<At<f64>> {
        let number = self.typed(key, "a number from 0.001 to 1000000", |value| match value {
            NodeValue::Integer(number) => Some(*number as f64),
            NodeValue::Float(number) => Some(*number),
            NodeValue::Text(text) => text.parse().ok(),
            _ => None,
        });
        self.within(key, number?, 0.001, 1e6)
    }

    fn within<T: PartialOrd + Display>(&self, key: &str, number: At<T>, least: T, most: T) -> Option<At<T>> {
        let At { value, place } = &number;
        if *value >= least && *value <= most {
            return Some(number);
        }
        self.problems.add(place, format!("{} is {value}; it must be from {least} to {most}", self.name(key)));
        None
    }

    /// A duration such as `"10s"`.
    pub fn duration(&mut self, key: &'static str) -> Option<At<Duration>> {
        let text = self.typed(key, "a duration with its unit, such as \"10s\"", as_string)?;
        match parse_duration(&text.value) {
            Ok(value) => Some(At { value, place: text.place }),
            Err(why) => {
                self.problems.add(&text.place, format!("{}: {why}", self.name(key)));
                None
            }
        }
    }

    /// A list of strings; in the environment, written as in TOML.
    pub fn texts(&mut self, key: &'static str) -> Option<At<Vec<String>>> {
        self.texts_like(key, "[\"a\", \"b\"]")
    }

    /// The same, with an example of what is expected.
    pub fn texts_like(&mut self, key: &'static str, example: &str) -> Option<At<Vec<String>>> {
        let node = self.node(key)?;
        let place = node.place.clone();
        let value = match node.value {
            NodeValue::Text(text) if matches!(place, Location::Variable(_)) => list_from_variable(&text),
            other => other,
        };
        let strings = match &value {
            NodeValue::List(items) => items.iter().map(|item| as_string(&item.value)).collect::<Option<Vec<String>>>(),
            _ => None,
        };
        if strings.is_none() {
            let expected = format!("expected a list of strings such as {example}");
            self.problems.add(&place, format!("{}: {expected}, found {}", self.name(key), value.type_name()));
        }
        strings.map(|value| At { value, place })
    }

    /// One of a few words.
    pub fn word(&mut self, key: &'static str, words: &[&'static str]) -> Option<At<&'static str>> {
        let text = self.text(key)?;
        if let Some(word) = words.iter().find(|word| **word == text.value) {
            return Some(At { value: word, place: text.place });
        }
        let meant = did_you_mean(&text.value, words.iter().copied());
        let choices = words.join(", ");
        self.problems.add(
            &text.place,
            format!("{}: \"{}\" is not one of {choices}{meant}", self.name(key), quoted(&text.value)),
        );
        None
    }

    /// Reports every key that was not read.
    pub fn finish(self) {
        self.report_missing();
        self.problems.learn(&self.path, &self.known);
        for (key, node) in &self.entries {
            let remedy = remedy(key, &self.known);
            self.problems.add(&node.place, format!("{} is unknown{remedy}", self.name(&quoted(key))));
        }
    }

    /// The same for a table to which Didomi may add keys: an unknown key is only a warning, unless it is
    /// close to a known one.
    pub fn finish_with_strangers(self) {
        self.report_missing();
        for (key, node) in &self.entries {
            let name = self.name(&quoted(key));
            match did_you_mean(key, self.known()).as_str() {
                "" => self.problems.warn(&node.place, format!("{name} is unknown and changes nothing")),
                meant => self.problems.add(&node.place, format!("{name} is unknown{meant}")),
            }
        }
    }
}

/// Whether a key was probably meant as this one, of which it is only the beginning.
fn is_beginning(written: &str, key: &str) -> bool {
    written.len() >= 4 && key.starts_with(written)
}

/// What to do about a word that is not one of the known ones.
pub fn remedy(written: &str, known: &[&str]) -> String {
    match did_you_mean(written, known.iter().copied()) {
        meant if meant.is_empty() => {
            let all: BTreeSet<&str> = known.iter().copied().collect();
            format!("; remove it, or write one of {}", all.into_iter().collect::<Vec<_>>().join(", "))
        }
        meant => meant,
    }
}

/// A text without the blanks, line ends and byte order marks around it.
pub fn bare(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}')
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

fn as_string(value: &NodeValue) -> Option<String> {
    match value {
        NodeValue::Text(text) => Some(text.clone()),
        _ => None,
    }
}

fn list_from_variable(text: &str) -> NodeValue {
    match from_toml(&format!("list = {text}"), "") {
        Ok(Node { value: NodeValue::Table(entries), .. }) => {
            entries.into_iter().next().map_or(NodeValue::Null, |(_, node)| node.value)
        }
        _ => NodeValue::Text(text.to_owned()),
    }
}

/// Reads a number with `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// What a duration looks like, for people.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("\"{}\" is not a duration; write a number and ms, s, m, h or d, such as \"10s\"", quoted(text));
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit_ms: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("365d"), Ok(Duration::from_secs(31_536_000)));
        for wrong in ["", "5", "s", "1.5s", "-1s", "5 weeks", "99999999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
