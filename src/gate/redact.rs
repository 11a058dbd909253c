//! What a gate said, made fit for headers: values that were sent and secrets are replaced before
//! the text is cut, whatever their case and however a server escaped them.

/// The longest text kept, in characters.
pub const MAX_CHARS: usize = 512;

const MASK: &str = "***";
/// Shorter values, such as `1` or `Y`, are replaced only where they stand alone: within numbers
/// and words they would hide what the gate said and tell nothing.
const STANDS_ALONE_BELOW: usize = 4;

/// Replaces every non-empty value in `text` and everything that looks like an address, then cuts
/// it to [`MAX_CHARS`] characters. Escapes are undone first, so that none can hide a value.
pub fn redact<'a>(text: &str, values: impl Iterator<Item = &'a str>) -> String {
    let mut forms: Vec<Vec<char>> = values.flat_map(forms_of).filter(|form| !form.is_empty()).collect();
    // Longest first, so that a value within another leaves nothing of the longer one behind.
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    forms.dedup();
    let chars: Vec<char> = unescaped(text).chars().collect();
    let mut clean = String::new();
    let mut at = 0;
    while at < chars.len() {
        match forms.iter().find(|form| matches_at(&chars, at, form)) {
            Some(form) => {
                clean.push_str(MASK);
                at += form.len();
            }
            None => {
                clean.push(if chars[at].is_control() { ' ' } else { chars[at] });
                at += 1;
            }
        }
    }
    let words = clean.split(' ').map(|word| if word.contains('@') { MASK } else { word });
    words.collect::<Vec<_>>().join(" ").chars().take(MAX_CHARS).collect()
}

/// A value as sent, trimmed, with its spaces as `+`, and for an address its two halves.
fn forms_of(value: &str) -> Vec<Vec<char>> {
    let value = value.trim();
    let mut forms = vec![value.to_owned(), value.replace(' ', "+"), unescaped(value)];
    if let Some((local, domain)) = value.split_once('@') {
        forms.extend([local.to_owned(), domain.to_owned()]);
    }
    forms.iter().map(|form| form.chars().collect()).collect()
}

fn matches_at(text: &[char], at: usize, form: &[char]) -> bool {
    let Some(candidate) = text.get(at..at + form.len()) else { return false };
    let same = form.iter().zip(candidate).all(|(a, b)| a == b || a.to_lowercase().eq(b.to_lowercase()));
    let alone = || {
        let part_of_word = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(|c| c.is_alphanumeric());
        !part_of_word(at.checked_sub(1)) && !part_of_word(Some(at + form.len()))
    };
    same && (form.len() >= STANDS_ALONE_BELOW || alone())
}

/// Undoes what servers escape values with: `\u0040` and `\"` (JSON), `%40` (URLs), `&#64;`, `&#x40;`
/// and `&amp;` (HTML), in one pass over bytes.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (decoded, length) = escape_at(rest).unwrap_or_else(|| (first.to_string().into_bytes(), first.len_utf8()));
        bytes.extend(decoded);
        rest = rest.get(length..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The bytes that an escape at the beginning stands for, and its length.
fn escape_at(text: &str) -> Option<(Vec<u8>, usize)> {
    let character = |digits: &str, radix: u32, length: usize| {
        let decoded = char::from_u32(u32::from_str_radix(digits, radix).ok()?)?;
        Some((decoded.to_string().into_bytes(), length))
    };
    if let Some(rest) = text.strip_prefix("\\u") {
        return character(rest.get(..4)?, 16, 6);
    }
    if let Some(rest) = text.strip_prefix('\\') {
        let escaped = rest.chars().next().filter(|c| matches!(c, '"' | '\\' | '/' | '\''))?;
        return Some((escaped.to_string().into_bytes(), 2));
    }
    if let Some(rest) = text.strip_prefix('%') {
        return Some((vec![u8::from_str_radix(rest.get(..2)?, 16).ok()?], 3));
    }
    let entity = text.strip_prefix('&')?.split_once(';').map(|(name, _)| name).filter(|name| name.len() <= 8)?;
    let length = entity.len() + 2;
    match entity.strip_prefix('#') {
        Some(number) => match number.strip_prefix(['x', 'X']) {
            Some(hex) => character(hex, 16, length),
            None => character(number, 10, length),
        },
        None => {
            let names = [("amp", b'&'), ("lt", b'<'), ("gt", b'>'), ("quot", b'"'), ("apos", b'\'')];
            names.iter().find(|(name, _)| *name == entity).map(|(_, byte)| (vec![*byte], length))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_value_survives() {
        let address = "Jane+x@mail.example.com";
        for echoed in [
            "jane+x@MAIL.example.com",
            "jane\\u002Bx@mail.example.com",
            "jane\\u002bx\\u0040mail.example.com",
            "jane%2Bx%40mail.example.com",
            "jane+x%40mail.example.com",
            "jane+x&#64;mail.example.com",
            "jane&#x2B;x&#x40;mail.example.com",
            "jane+x",
            "@mail.example.com",
        ] {
            let clean = redact(&format!("user <{echoed}> unknown"), std::iter::once(address));
            assert!(!clean.to_lowercase().contains("jane") && !clean.contains("mail.example"), "{echoed}: {clean}");
            assert!(clean.starts_with("user ") && clean.ends_with(" unknown"), "{clean}");
        }
        assert_eq!(redact(r#"said "a\"b" c+d"#, ["a\"b", "c d"].into_iter()), r#"said "***" ***"#);
    }

    #[test]
    fn somebody_elses_address_goes_too() {
        assert_eq!(redact("owner bob@example.org asked", std::iter::empty()), "owner *** asked");
    }

    #[test]
    fn short_values_do_not_hide_numbers_and_words() {
        let clean = redact("field NEWS=1 unknown on list 1000, code 101", ["1", "0", "Y"].into_iter());
        assert_eq!(clean, "field NEWS=*** unknown on list 1000, code 101");
    }

    #[test]
    fn values_are_replaced_before_the_cut() {
        let text = format!("{}jane@example.com", "x ".repeat(MAX_CHARS / 2 - 2));
        let clean = redact(&text, std::iter::once("jane@example.com"));
        assert!(!clean.contains("jan"), "{clean}");
    }

    #[test]
    fn the_longer_of_two_overlapping_values_goes_whole() {
        assert_eq!(redact("abcd abcde", ["abcd", "abcde"].into_iter()), "*** ***");
    }
}
