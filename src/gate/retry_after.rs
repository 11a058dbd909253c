//! How long a pause a gate asks for (pure).

use super::Outcome;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::time::Duration;

/// What a related API of the vendor sends with a 429.
const RATE_LIMIT_RESET: &str = "x-ratelimit-reset";
/// From this value on, a reset is a Unix time, not a number of seconds.
const EPOCH_FROM: f64 = 1e9;

/// Reads `Retry-After` (seconds or an HTTP date), else, for a throttled request, `X-RateLimit-Reset` (seconds
/// or a Unix time). `None` if no pause is asked for; a value too large for a duration is [`Duration::MAX`].
#[must_use]
pub fn read(headers: &HeaderMap, outcome: Outcome, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let asked = match text(RETRY_AFTER.as_str()).and_then(|text| seconds(text).or_else(|| until(text, now))) {
        None if outcome == Outcome::Throttled => text(RATE_LIMIT_RESET).and_then(|text| reset(text, now)),
        asked => asked,
    };
    asked.filter(|wait| !wait.is_zero())
}

/// A number without sign or exponent; fractions occur.
fn number(text: &str) -> Option<f64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|_| is_plain)
}

fn seconds(text: &str) -> Option<Duration> {
    number(text).map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

fn until(text: &str, now: Timestamp) -> Option<Duration> {
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

fn reset(text: &str, now: Timestamp) -> Option<Duration> {
    let number = number(text)?;
    if number < EPOCH_FROM {
        return seconds(text);
    }
    let now = Duration::try_from(now.as_duration()).unwrap_or_default();
    Some(Duration::try_from_secs_f64(number).map_or(Duration::MAX, |at| at.saturating_sub(now)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    /// Sat, 14 Nov 2023 22:13:20 GMT.
    const NOW: i64 = 1_700_000_000;

    fn read(outcome: Outcome, headers: &[(&str, &str)]) -> Option<Duration> {
        let headers = headers.iter().map(|(name, value)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        });
        super::read(&headers.collect(), outcome, Timestamp::from_second(NOW).unwrap())
    }

    fn retry_after(text: &str) -> Option<Duration> {
        read(Outcome::Unavailable, &[("retry-after", text)])
    }

    #[test]
    fn seconds_and_dates_are_read() {
        assert_eq!(retry_after("45"), Some(Duration::from_secs(45)));
        assert_eq!(retry_after(" 1.5 "), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after("Tue, 14 Nov 2023 22:14:05 GMT"), Some(Duration::from_secs(45)));
        assert_eq!(retry_after("Tue, 14 Nov 2023 22:13:00 GMT"), None, "a date that is past asks for nothing");
    }

    #[test]
    fn absurd_values_ask_for_nothing_or_for_ever() {
        for nothing in ["", "0", "0.0", "-5", "+5", "soon", "1e9", "inf", "NaN", ".", "1.2.3", "Tue, 99 Nov 2023"] {
            assert_eq!(retry_after(nothing), None, "{nothing}");
        }
        assert_eq!(retry_after(&"9".repeat(400)), Some(Duration::MAX));
        assert_eq!(retry_after("99999999999999999999999"), Some(Duration::MAX));
        assert!(retry_after("Wed, 31 Dec 9000 23:59:59 GMT") > Some(Duration::from_secs(1 << 32)));
        assert_eq!(retry_after("\u{e9}"), None);
    }

    #[test]
    fn a_reset_counts_only_for_who_was_throttled() {
        let reset = |text| read(Outcome::Throttled, &[("X-RateLimit-Reset", text)]);
        assert_eq!(reset("30"), Some(Duration::from_secs(30)));
        assert_eq!(reset("1700000030"), Some(Duration::from_secs(30)));
        assert_eq!(reset("1600000000"), None);
        assert_eq!(read(Outcome::Unavailable, &[("x-ratelimit-reset", "30")]), None);
        let both = [("retry-after", "5"), ("x-ratelimit-reset", "30")];
        assert_eq!(read(Outcome::Throttled, &both), Some(Duration::from_secs(5)));
    }
}
