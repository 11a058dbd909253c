//! What comes back from where the gate should be: a status, a content coding, a content type, and a body.

#![no_main]

use consent_gate::gate::answer::{Belief, HttpReply, Manner, classify};
use consent_gate::gate::redact::{self, MAX_CHARS};
use consent_gate::gate::{Mode, Outcome};
use libfuzzer_sys::fuzz_target;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};

const TYPES: [&str; 4] = ["application/json", "text/html; charset=utf-8", "text/plain", ""];
const CODINGS: [&str; 5] = ["", "gzip", "deflate", "gzip, gzip", "br"];
const PERSON: &str = "jane.doe@example.com";

fuzz_target!(|told: (u16, u8, u8, bool, bool, &[u8])| {
    let (status, kind, coding, is_async, by_status, body) = told;
    let status = 100 + status % 500;
    let mut names = HeaderMap::new();
    names.insert(CONTENT_TYPE, HeaderValue::from_static(TYPES[usize::from(kind) % TYPES.len()]));
    names.insert(CONTENT_ENCODING, HeaderValue::from_static(CODINGS[usize::from(coding) % CODINGS.len()]));
    let manner = Manner {
        mode: if is_async { Mode::Async } else { Mode::Sync },
        belief: if by_status { Belief::Status } else { Belief::Envelope },
    };
    let redact = |said: &str| redact::redact(said, [PERSON].into_iter());
    let answer = classify(HttpReply { status, headers: &names, body }, manner, &redact);
    assert!(answer.outcome != Outcome::Accepted || (200..300).contains(&status), "{status} is accepted");
    if let Some(said) = &answer.said {
        assert!(said.chars().count() <= MAX_CHARS + 1, "{} characters are kept", said.chars().count());
        assert!(!said.contains(PERSON), "a person is kept: {said}");
    }
    let told = answer.told().unwrap_or_default();
    assert!(told.len() < 1_000 && !told.chars().any(char::is_control), "{told}");
});
