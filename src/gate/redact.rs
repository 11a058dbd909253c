//! Redacts a gate's answer so that it can be kept in headers: values that were sent, and secrets, are
//! replaced before the text is cut, in any case and however the server escaped them.
//!
//! The text is untrusted, up to 64 KiB long, and redacted on the thread that serves all events. So the work
//! is bounded whatever it contains: no more of it is searched than is kept, each position is looked up in a
//! sorted list, and no comparison is longer than 1,024 bytes.

use std::borrow::Cow;

/// The longest text kept, in characters.
pub const MAX_CHARS: usize = 512;

const MASK: &str = "***";
/// Shorter values, such as `1` or `Y`, are replaced only where they stand alone: replaced inside numbers and
/// words, they would hide what the gate said and protect nothing.
const STANDS_ALONE_BELOW: usize = 4;
/// How many bytes of a longer value are compared. If they match, nothing after them is kept.
const LONGEST_FORM: usize = 1024;
/// The most bytes of an escape, such as `&#x1F600;`.
const LONGEST_ESCAPE: usize = 10;

/// Replaces every non-empty value in `text` and everything that looks like an e-mail address, then cuts it to
/// [`MAX_CHARS`] characters. Escapes are undone first, so that none can hide a value.
pub fn redact<'a>(text: &str, values: impl Iterator<Item = &'a str>) -> String {
    redact_counting(text, values).0
}

/// The same, with an upper bound of the number of bytes compared.
fn redact_counting<'a>(text: &str, values: impl Iterator<Item = &'a str>) -> (String, usize) {
    let forms = Forms::of(values);
    let text = unescaped(text);
    let folded: String = text.chars().map(fold).collect();
    let (mut rest, mut folded) = (text.chars(), folded.as_str());
    let (mut clean, mut kept, mut before, mut compared) = (String::new(), 0, None, 0);
    while kept < MAX_CHARS {
        let Some(next) = rest.clone().next() else { break };
        let found = forms.longest_at(folded, before, &mut compared);
        let length = found.map_or(fold(next).len_utf8(), |form| form.text.len());
        match found {
            Some(_) => clean.push_str(MASK),
            None => clean.push(if next.is_control() { ' ' } else { next }),
        }
        kept += if found.is_some() { MASK.len() } else { 1 };
        if found.is_some_and(|form| form.is_cut) {
            rest = "".chars();
            break;
        }
        let (passed, ahead) = folded.split_at(length);
        before = rest.nth(passed.chars().count() - 1);
        folded = ahead;
    }
    // The word at the cut may be an address of which only the beginning was kept.
    let is_address_cut = rest.take_while(|c| *c != ' ' && !c.is_control()).any(|c| c == '@');
    let last = clean.rfind(' ').map_or(0, |blank| blank + 1);
    if is_address_cut && last < clean.len() {
        clean.truncate(last);
        clean.push_str(MASK);
    }
    let words = clean.split(' ').map(|word| if word.contains('@') { MASK } else { word });
    (words.collect::<Vec<_>>().join(" ").chars().take(MAX_CHARS).collect(), compared)
}

/// One way in which a value may appear, in lower case.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Form {
    text: String,
    /// The text is only the beginning of a longer form.
    is_cut: bool,
    /// It is replaced only where it stands alone.
    is_short: bool,
    /// The longest other form that is a prefix of this one.
    parent: Option<usize>,
}

/// All forms, sorted by their texts.
#[derive(Debug)]
struct Forms(Vec<Form>);

impl Forms {
    fn of<'a>(values: impl Iterator<Item = &'a str>) -> Forms {
        let mut forms: Vec<Form> = values.flat_map(forms_of).filter(|form| !form.text.is_empty()).collect();
        forms.sort_unstable();
        // If a cut form equals a whole one, keep the cut one, to be safe: it ends the text.
        forms.reverse();
        forms.dedup_by(|one, other| one.text == other.text);
        forms.reverse();
        for index in 1..forms.len() {
            let begins = |parent: &usize| forms[index].text.starts_with(&forms[*parent].text);
            let mut parent = Some(index - 1);
            while let Some(known) = parent.filter(|known| !begins(known)) {
                parent = forms[known].parent;
            }
            forms[index].parent = parent;
        }
        Forms(forms)
    }

    /// The longest form that is a prefix of the text; `before` is the character in front of it.
    fn longest_at(&self, text: &str, before: Option<char>, compared: &mut usize) -> Option<&Form> {
        let after = self.0.partition_point(|form| {
            *compared += form.text.len().min(text.len());
            form.text.as_str() <= text
        });
        let mut index = after.checked_sub(1)?;
        // Every form that is a prefix of the text is this one or a prefix of it.
        let same = self.0[index].text.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        *compared += same;
        let part_of_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        loop {
            let form = &self.0[index];
            let stands_alone = || !part_of_word(before) && !part_of_word(text[form.text.len()..].chars().next());
            if form.text.len() <= same && (!form.is_short || stands_alone()) {
                return Some(form);
            }
            index = form.parent?;
        }
    }
}

/// The forms of a value: as sent but trimmed, with `+` for its spaces, without escapes, and for an e-mail
/// address its two halves.
fn forms_of(value: &str) -> Vec<Form> {
    let value = value.trim();
    let mut forms = vec![folded_form(value)];
    if value.contains(' ') {
        forms.push(folded_form(&value.replace(' ', "+")));
    }
    if let Cow::Owned(unescaped) = unescaped(value) {
        forms.push(folded_form(&unescaped));
    }
    if let Some((local, domain)) = value.split_once('@') {
        forms.extend([folded_form(local), folded_form(domain)]);
    }
    forms
}

fn folded_form(form: &str) -> Form {
    let mut text = String::with_capacity(form.len().min(LONGEST_FORM));
    let mut is_cut = false;
    for c in form.chars().map(fold) {
        is_cut = text.len() + c.len_utf8() > LONGEST_FORM;
        if is_cut {
            break;
        }
        text.push(c);
    }
    let is_short = !is_cut && text.chars().count() < STANDS_ALONE_BELOW;
    Form { text, is_cut, is_short, parent: None }
}

/// A character in lower case, if that is a single character, too.
fn fold(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_lowercase();
    }
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(lower), None) => lower,
        _ => c,
    }
}

/// Undoes the escapes that servers use: `\u0040` and `\"` (JSON), `%40` (URLs), `&#64;`, `&#x40;` and `&amp;`
/// (HTML), in one pass over the bytes.
fn unescaped(text: &str) -> Cow<'_, str> {
    let Some(mut at) = escape_in(text) else { return Cow::Borrowed(text) };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        let (plain, escape) = rest.split_at(at);
        bytes.extend_from_slice(plain.as_bytes());
        let length = match escape_at(escape) {
            Some((Decoded::Byte(byte), length)) => {
                bytes.push(byte);
                length
            }
            Some((Decoded::Character(c), length)) => {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                length
            }
            None => {
                // Only its first character, an ASCII one, is known not to begin an escape.
                bytes.extend(escape.bytes().take(1));
                1
            }
        };
        rest = escape.get(length..).unwrap_or_default();
        if rest.is_empty() {
            let lossy = |error: std::string::FromUtf8Error| String::from_utf8_lossy(error.as_bytes()).into_owned();
            return Cow::Owned(String::from_utf8(bytes).unwrap_or_else(lossy));
        }
        at = escape_in(rest).unwrap_or(rest.len());
    }
}

/// Where the next escape may begin.
fn escape_in(text: &str) -> Option<usize> {
    text.bytes().position(|byte| matches!(byte, b'\\' | b'%' | b'&'))
}

/// What an escape stands for.
enum Decoded {
    /// A byte, perhaps of a longer character.
    Byte(u8),
    Character(char),
}

/// What an escape at the beginning of the text stands for, and its length.
fn escape_at(text: &str) -> Option<(Decoded, usize)> {
    let character = |digits: &str, radix: u32, length: usize| {
        let decoded = char::from_u32(u32::from_str_radix(digits, radix).ok()?)?;
        Some((Decoded::Character(decoded), length))
    };
    if let Some(rest) = text.strip_prefix("\\u") {
        return character(rest.get(..4)?, 16, 6);
    }
    if let Some(rest) = text.strip_prefix('\\') {
        let escaped = rest.chars().next().filter(|c| matches!(c, '"' | '\\' | '/' | '\''))?;
        return Some((Decoded::Character(escaped), 2));
    }
    if let Some(rest) = text.strip_prefix('%') {
        return Some((Decoded::Byte(u8::from_str_radix(rest.get(..2)?, 16).ok()?), 3));
    }
    let rest = text.strip_prefix('&')?;
    // The search is bounded: otherwise a text of nothing but & would be read to its end for each of them.
    let end = rest.bytes().take(LONGEST_ESCAPE - 1).position(|byte| byte == b';')?;
    let (entity, length) = (rest.get(..end)?, end + 2);
    match entity.strip_prefix('#') {
        Some(number) => match number.strip_prefix(['x', 'X']) {
            Some(hex) => character(hex, 16, length),
            None => character(number, 10, length),
        },
        None => {
            let names = [("amp", '&'), ("lt", '<'), ("gt", '>'), ("quot", '"'), ("apos", '\'')];
            names.iter().find(|(name, _)| *name == entity).map(|(_, c)| (Decoded::Character(*c), length))
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

    #[test]
    fn nothing_of_the_longer_of_two_values_with_one_beginning_survives() {
        let (short, long) = ("p".repeat(95), format!("{}q{}", "p".repeat(95), "r".repeat(200)));
        assert_eq!(redact(&format!("said {long}."), [&*short, &*long].into_iter()), "said ***.");
        assert_eq!(redact(&format!("said {short}q."), [&*short, &*long].into_iter()), "said ***q.");
    }

    #[test]
    fn nothing_behind_the_beginning_of_a_very_long_value_is_kept() {
        let long = "v".repeat(LONGEST_FORM) + "tail";
        assert_eq!(redact(&format!("said {long}, and more"), std::iter::once(&*long)), "said ***");
        assert_eq!(redact("said vvvv, and more", std::iter::once(&*long)), "said vvvv, and more");
    }

    #[test]
    fn an_address_at_the_cut_goes_whole() {
        for behind in ["@example.com", "%40example.com"] {
            let clean = redact(
                &format!("{}bob.builder{behind} asked", "x".repeat(4) + &" ".repeat(MAX_CHARS - 8)),
                std::iter::empty(),
            );
            assert!(!clean.contains("bob") && clean.chars().count() <= MAX_CHARS, "{clean}");
        }
    }

    #[test]
    fn a_hostile_text_costs_no_more_when_it_is_longer() {
        let values = |length: usize| -> Vec<String> {
            (0..200).map(|n| format!("{}{n:03}@{}{n:03}", "a".repeat(length), "b".repeat(length))).collect()
        };
        for values in [values(20), values(2_000)] {
            let values = || values.iter().map(String::as_str);
            for part in [
                "<",
                "&",
                "a",
                "ab",
                "&amp;amp;",
                "&#x26;#x26;",
                "%2525",
                "\\u005cu005c",
                "@ ",
                "a@b ",
                values().next().unwrap(),
            ] {
                let compared = |length: usize| {
                    let text = part.repeat(length / part.len());
                    let (clean, compared) = redact_counting(&text, values());
                    assert!(clean.chars().count() <= MAX_CHARS);
                    compared
                };
                let (half, whole) = (compared(32 * 1024), compared(64 * 1024));
                assert!(half == whole || part.len() > 1_000, "{part}: {half} and {whole}");
                // For each position ten or eleven of a thousand forms.
                assert!(whole <= MAX_CHARS * 12 * LONGEST_FORM, "{part}: {whole}");
            }
        }
    }
}
