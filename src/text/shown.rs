//! Escapes text that somebody else wrote, for terminals and logs (pure).
//!
//! A terminal obeys control characters, and characters that cannot be seen or that change the direction of writing
//! deceive a reader. They are written as JSON writes them (`\u202e`), so that a line of JSON is still the same
//! value.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes everything that a terminal obeys or does not show, including line ends: for a single value.
#[must_use]
pub fn value(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// The same for a whole output, which has line ends of its own.
#[must_use]
pub fn output(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_wrong = |c: char| is_unseen(c) && !is_kept(c);
    if !text.contains(is_wrong) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if !is_wrong(c) {
            clean.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a String cannot fail.
            let _ = write!(clean, "\\u{unit:04x}");
        }
    }
    Cow::Owned(clean)
}

/// Control characters, line and paragraph separators, bidirectional marks and overrides, and characters that take no
/// room: joiners, fillers, variation selectors, tags.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A value of the configuration as an error message may quote it. Of a value that may be an address with a password
/// in it, however misspelt or misplaced, at most the scheme is shown.
#[must_use]
pub fn quoted(text: &str) -> Cow<'_, str> {
    let has_scheme = text.split_once(":/").map(|(scheme, _)| scheme);
    let is_plain = |scheme: &&str| scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    match has_scheme {
        Some(scheme) if !scheme.is_empty() && is_plain(&scheme) => Cow::Owned(format!("{scheme}://***")),
        None if !has_credentials(text) => value(text),
        _ => Cow::Borrowed("***"),
    }
}

/// `user:password@…`, or libpq's `password=…`. A directory's name may well have an `@` alone.
fn has_credentials(text: &str) -> bool {
    text.rsplit_once('@').is_some_and(|(before, _)| before.contains(':'))
        || text.to_ascii_lowercase().contains("password=")
}

/// Whether a text looks like an address, and not like a file or a word.
#[must_use]
pub fn is_like_address(text: &str) -> bool {
    quoted(text).ends_with("***")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unseen_passes() {
        let hostile = "\u{0}\u{7}\u{1b}[31m\u{7f}\u{85}\u{9b}\u{202e}\u{200b}\u{2066}\u{feff}\u{e0041}\r\t\n";
        for clean in [value(hostile), output(hostile)] {
            assert!(!clean.chars().any(|c| is_unseen(c) && c != '\n'), "{clean}");
        }
        assert_eq!(value("a\nb\u{1b}"), "a\\u000ab\\u001b");
        assert_eq!(output("a\nb\u{1b}\n"), "a\nb\\u001b\n");
        assert_eq!(value("Zoë 日本 🎈"), "Zoë 日本 🎈");
    }

    #[test]
    fn json_is_still_the_same_value() {
        let value = serde_json::json!({ "a\u{202e}": "b\u{9b}\u{e0041}\u{7f}\n" });
        let shown = output(&value.to_string()).into_owned();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn what_may_hold_a_password_shows_its_scheme_at_most() {
        for (text, shown) in [
            ("postgre://user:secret@host/db", "postgre://***"),
            ("postgres:/user:secret@host", "postgres://***"),
            ("amqp://guest:secret", "amqp://***"),
            ("user:secret@host/db", "***"),
            ("user:sec://ret@host", "***"),
            ("host=h password=secret", "***"),
            ("records", "records"),
            ("/etc/consent-gate@acme/key", "/etc/consent-gate@acme/key"),
            ("C:\\records", "C:\\records"),
        ] {
            assert_eq!(quoted(text), shown);
        }
    }
}
