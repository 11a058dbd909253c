//! What a binding key can mean (pure).
//!
//! A routing key consists of words separated by dots. In a binding key `*` stands for one word and `#` for
//! any number of words, but only if it is a word by itself; within a word both are ordinary characters.

use crate::text::shown::quoted;

/// Why a key matches nothing, or less than it seems to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyDoubt {
    /// It cannot be intended.
    Never(String),
    /// It is unlikely, but there may be such routing keys.
    Hardly(String),
}

/// What is suspicious about a binding key.
pub(super) fn doubt(key: &str) -> Option<KeyDoubt> {
    let shown = quoted(key);
    let words: Vec<&str> = key.split('.').collect();
    if words.iter().any(|word| word.len() > 1 && word.contains(['*', '#'])) {
        return Some(KeyDoubt::Never(format!(
            "\"{shown}\" has a star or hash within a word, where it is an ordinary character; make it a word of its own, as in \"{}\"",
            spaced(&words)
        )));
    }
    if key != key.trim() {
        return Some(KeyDoubt::Never(format!(
            "\"{shown}\" has whitespace around it, which would have to be in the routing key"
        )));
    }
    let why = if key.is_empty() {
        "matches only messages with an empty routing key; write \"#\" for everything"
    } else if words.contains(&"") {
        "has an empty word before, after or between its dots, so it matches only routing keys with the same empty word; remove a dot"
    } else if words.iter().any(|word| matches!(*word, ">" | "+")) {
        "has + or > as a word, which are ordinary characters here; * stands for one word, # for any number of them"
    } else if key.contains(char::is_whitespace) || key.contains([',', ';']) {
        "has a space, comma or semicolon, which would have to be in the routing key; write several keys as several strings of the list"
    } else if key.contains('/') {
        "has slashes, which do not separate words here; separate words with dots"
    } else {
        return None;
    };
    Some(KeyDoubt::Hardly(format!("\"{shown}\" {why}")))
}

/// The same words with every star and hash as a word of its own.
fn spaced(words: &[&str]) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for mut word in words.iter().copied() {
        while let Some(at) = word.find(['*', '#']) {
            parts.extend(Some(word[..at].trim_end_matches(['/', '-', '_', ':'])).filter(|part| !part.is_empty()));
            let wild = &word[at..=at];
            if parts.last() != Some(&wild) {
                parts.push(wild);
            }
            word = word[at + 1..].trim_start_matches(['/', '-', '_', ':']);
        }
        parts.extend(Some(word).filter(|part| !part.is_empty()));
    }
    quoted(&parts.join(".")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_words_stands_alone() {
        for (key, meant) in [
            ("acme*", "acme.*"),
            ("acme.*.event*", "acme.*.event.*"),
            ("acme/#", "acme.#"),
            ("#acme", "#.acme"),
            ("acme.**", "acme.*"),
            ("acme_*_x", "acme.*.x"),
        ] {
            let Some(KeyDoubt::Never(why)) = doubt(key) else { panic!("{key}: {:?}", doubt(key)) };
            assert!(why.ends_with(&format!("as in \"{meant}\"")), "{why}");
            assert_eq!(doubt(meant), None, "{meant}");
        }
    }

    #[test]
    fn what_may_be_meant_is_only_warned_of() {
        for key in ["", ".acme", "acme.", "acme..x", ".*", "acme.>", "+.acme", "a, b", "a;b", "acme/x"] {
            assert!(matches!(doubt(key), Some(KeyDoubt::Hardly(_))), "{key}: {:?}", doubt(key));
        }
        assert!(matches!(doubt(" acme.#"), Some(KeyDoubt::Never(_))));
        for key in ["#", "*", "acme.#", "acme.*.x", "a-b_c.d:e", "acme.#.x.*", "é.日本"] {
            assert_eq!(doubt(key), None, "{key}");
        }
    }
}
