//! Instants as publishers spell them: RFC 3339 and ISO 8601, always with an offset. Nothing is guessed.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, ISOWeekDate};
use std::borrow::Cow;

/// What a time field must contain, for people.
pub const EXPECTED: &str = "a time with an offset, such as 2026-11-20T10:26:21Z";

/// How many digits of a fraction are kept: nanoseconds.
const MAX_FRACTION: usize = 9;

/// Reads an instant.
///
/// # Errors
/// What the text is instead, for people, but never the text itself.
pub fn instant(text: &str) -> Result<Timestamp, &'static str> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let text = text.trim();
    if text.is_empty() {
        return Err("an empty text");
    }
    let usual = usual(text);
    usual.parse().map_err(|_| match usual.parse::<DateTime>() {
        Ok(_) => "a time without an offset",
        Err(_) => "a text that is not a time",
    })
}

/// The same instant in the spelling that the library reads: a calendar date, the offset directly after the
/// time, an ASCII minus, nanoseconds.
fn usual(text: &str) -> String {
    let text = text.replace('\u{2212}', "-");
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((&text, ""));
    let separator = if time.is_empty() { "" } else { "T" };
    format!("{}{separator}{}", calendar(date), shortened(&adjoined(time)))
}

/// Converts a week date or an ordinal date to a calendar date.
fn calendar(date: &str) -> Cow<'_, str> {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let other = if date.contains(['W', 'w']) {
        date.parse::<ISOWeekDate>().ok().map(Date::from)
    } else {
        let parts = date.split_once('-').or_else(|| date.split_at_checked(4));
        let ordinal =
            parts.filter(|(year, day)| year.len() == 4 && day.len() == 3 && is_digits(year) && is_digits(day));
        ordinal.and_then(|(year, day)| Date::strptime("%Y-%j", format!("{year}-{day}")).ok())
    };
    other.map_or(Cow::Borrowed(date), |date| Cow::Owned(date.to_string()))
}

/// Removes the blanks before the offset.
fn adjoined(time: &str) -> Cow<'_, str> {
    match time.rsplit_once(' ') {
        Some((time, offset)) if offset.starts_with(['+', '-', 'Z', 'z']) => {
            Cow::Owned(format!("{}{offset}", time.trim_end()))
        }
        _ => Cow::Borrowed(time),
    }
}

/// Removes the digits of a fraction beyond nanoseconds.
fn shortened(time: &str) -> Cow<'_, str> {
    let Some((whole, rest)) = time.split_once(['.', ',']) else { return Cow::Borrowed(time) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits <= MAX_FRACTION {
        return Cow::Borrowed(time);
    }
    let (fraction, offset) = rest.split_at(digits);
    Cow::Owned(format!("{whole}.{}{offset}", &fraction[..MAX_FRACTION]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_with_an_offset_is_the_same_instant() {
        for text in [
            "2026-11-20T10:26:21Z",
            "2026-11-20t10:26:21z",
            "2026-11-20 10:26:21Z",
            "2026-11-20 10:26:21 Z",
            "2026-11-20 11:26:21+01:00",
            "2026-11-20T11:26:21+0100",
            "2026-11-20 11:26:21 +0100",
            "2026-11-20 11:26:21  +01",
            "2026-11-20T11:26:21+01",
            "2026-11-20T10:26:21-00:00",
            "2026-11-20T09:26:21\u{2212}01:00",
            "20261120T102621Z",
            "20261120 112621 +0100",
            " 2026-11-20T10:26:21Z\n",
            "2026-11-20T10:26:21.000Z",
            "2026-11-20T10:26:21,0Z",
            "2026-11-20T10:26:21.00000000000000Z",
            "2026-W47-5T10:26:21Z",
            "2026W475T102621Z",
            "2026-324T10:26:21Z",
            "2026324T112621+0100",
            "2026-11-20T11:26:21+01:00[Europe/Berlin]",
        ] {
            let read = instant(text).map(|at| at.to_string());
            assert_eq!(read.as_deref(), Ok("2026-11-20T10:26:21Z"), "{text}");
        }
        assert_eq!(instant("2026-11-20T11:26:21,5+01").unwrap().to_string(), "2026-11-20T10:26:21.5Z");
        assert_eq!(instant("2026-11-20T10:26Z").unwrap().to_string(), "2026-11-20T10:26:00Z");
    }

    #[test]
    fn nothing_is_guessed() {
        for text in [
            "2026-11-20T11:26:21",
            "2026-11-20 11:26:21.5",
            "2026-11-20",
            "20261120T112621",
            "2026-W47-5",
            "2026-324T10:26:21",
            "2026-11-20T11:26:21[Europe/Berlin]",
        ] {
            assert_eq!(instant(text), Err("a time without an offset"), "{text}");
        }
        for text in [
            "yesterday",
            "1763634381",
            "2026-11-20T11:26:21 CET",
            "20.11.2026 11:26:21 +01:00",
            "2026-02-30T10:26:21Z",
            "2026-366T10:26:21Z",
            "2026-W54-1T10:26:21Z",
            "2026-11-20T10:26:21+1",
            "10:26:21Z",
            "2026-11-20Z",
            "Fri, 20 Nov 2026 10:26:21 +0000",
            "\u{1F600}T\u{1F600}.1234567890\u{1F600}",
        ] {
            assert_eq!(instant(text), Err("a text that is not a time"), "{text}");
        }
        assert_eq!(instant("  "), Err("an empty text"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in r"\PC{0,30}|[0-9TtWwZz:.,+\-\u{2212} ]{0,40}") {
            let _ = instant(&text);
        }
    }
}
