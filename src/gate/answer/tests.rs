//! What counts as the gate's answer, and what may come in its place.

use super::super::MAX_ANSWER;
use super::*;
use reqwest::header::HeaderName;

const SYNC: Manner = Manner { mode: Mode::Sync, belief: Belief::Envelope };
const ASYNC: Manner = Manner { mode: Mode::Async, belief: Belief::Envelope };

fn answer(manner: Manner, status: u16, headers: &HeaderMap, body: &[u8]) -> Answer {
    super::classify(HttpReply { status, headers, body }, manner, &str::to_owned)
}

fn classify(status: u16, body: &[u8]) -> Answer {
    answer(SYNC, status, &HeaderMap::new(), body)
}

#[test]
fn every_status_has_its_class() {
    let classes = |statuses: &[u16], outcome| {
        for status in statuses {
            assert_eq!(classify(*status, b"").outcome, outcome, "{status}");
        }
    };
    classes(&[200, 204], Outcome::Accepted);
    classes(&[201, 202, 203, 205, 206, 226, 299], Outcome::NotTheGate);
    classes(&[400, 413, 414, 415, 422], Outcome::Refused);
    classes(&[301, 302, 307, 401, 403, 404, 407], Outcome::Misconfigured);
    classes(&[408, 425, 500, 502, 503, 504, 599], Outcome::Unavailable);
    classes(&[429], Outcome::Throttled);
    classes(&[402, 405, 406, 409, 410, 418, 451, 600, 999], Outcome::UnexpectedStatus);
}

#[test]
fn an_empty_202_is_the_gates_only_where_it_queues() {
    let none = HeaderMap::new();
    assert_eq!(answer(SYNC, 202, &none, b"").outcome, Outcome::NotTheGate);
    assert_eq!(answer(ASYNC, 202, &none, b"").outcome, Outcome::Accepted);
    assert_eq!(answer(ASYNC, 201, &none, b"").outcome, Outcome::NotTheGate);
}

#[test]
fn a_challenge_is_never_the_gates() {
    for name in CHALLENGES {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), "challenge".parse().unwrap())]);
        for (status, body) in [(200, &b""[..]), (202, b""), (204, b""), (200, br#"{"IsSuccess":true}"#), (400, b"")] {
            let answer = answer(ASYNC, status, &headers, body);
            assert_eq!(answer.outcome, Outcome::NotTheGate, "{name} {status}");
            let error = format!("status {status}, not the gate's answer: a challenge ({name})");
            assert_eq!(answer.error, Some(error));
        }
    }
}

#[test]
fn somebody_elses_words_are_neither_acceptance_nor_refusal() {
    let bodies: [&[u8]; 14] = [
        b"OK",
        b"[]",
        b"{}",
        b"null",
        b"true",
        b"\"IsSuccess\"",
        b" ",
        b"\xef\xbb\xbf",
        br#"{"status":"ok"}"#,
        br#"[{"IsSuccess":true}]"#,
        br#"{"IsSuccess":true"#,
        b"<html><head><title>Request Rejected</title></head></html>",
        b"<!DOCTYPE html><form action=/login>",
        b"\x00\xff\xfe\x80",
    ];
    for body in bodies {
        for status in [200, 201, 202, 204, 299, 400, 413, 414, 415, 422] {
            let answer = classify(status, body);
            assert_eq!(answer.outcome, Outcome::NotTheGate, "{status} {}", String::from_utf8_lossy(body));
            assert!(answer.error.unwrap().contains("not the gate's answer"));
        }
        for status in [401, 403, 404] {
            let answer = classify(status, body);
            assert_eq!(answer.outcome, Outcome::Misconfigured);
            assert!(answer.error.unwrap().contains("not the gate's answer"));
        }
    }
}

#[test]
fn an_installation_may_be_believed_by_its_status_alone() {
    let manner = Manner { belief: Belief::Status, ..SYNC };
    let none = HeaderMap::new();
    for (status, outcome) in [(200, Outcome::Accepted), (201, Outcome::Accepted), (400, Outcome::Refused)] {
        assert_eq!(answer(manner, status, &none, b"<p>thanks</p>").outcome, outcome);
    }
}

#[test]
fn the_envelope_can_contradict_a_2xx_in_any_case() {
    for body in [
        r#"{"IsSuccess":false,"Error":null}"#,
        r#"{"issuccess":"False"}"#,
        r#"{"IsSuccess":0}"#,
        r#"{"IsSuccess":"no"}"#,
        r#"{"isSuccess":true,"ISSUCCESS":false}"#,
        r#"{"IsSuccess":true,"Error":"no such field"}"#,
        r#"{"ERROR":{"code":7}}"#,
        r#"{"IsSuccess":true,"Error":["no such field"]}"#,
        r#"{"IsSuccess":true,"Error":7}"#,
        r#"{"IsSuccess":true,"Error":true}"#,
    ] {
        assert_eq!(classify(200, body.as_bytes()).outcome, Outcome::Rejected, "{body}");
    }
    for body in [
        "",
        r#"{"IsSuccess":true,"Error":"","Result":1}"#,
        r#"{"isSuccess":true,"error":null}"#,
        r#"{"IsSuccess":"True"}"#,
        r#"{"IsSuccess":null,"Result":"queued"}"#,
        r#"{"RESULT":null}"#,
    ] {
        assert_eq!(classify(200, body.as_bytes()).outcome, Outcome::Accepted, "{body}");
    }
    for status in [201, 202, 206] {
        assert_eq!(classify(status, br#"{"IsSuccess":true}"#).outcome, Outcome::Accepted);
    }
}

#[test]
fn the_gates_own_code_is_kept_where_it_can_be_nobodys() {
    for (error, told) in [
        (r#"{"Code":7,"Message":"x"}"#, "status 200, code 7"),
        ("10012", "status 200, code 10012"),
        (r#"{"Code":4915112345678}"#, "status 200"),
        (r#"{"Code":"jane"}"#, "status 200"),
        ("\"jane\"", "status 200"),
    ] {
        let body = format!("{{\"IsSuccess\":false,\"Error\":{error}}}");
        assert_eq!(classify(200, body.as_bytes()).error.as_deref(), Some(told), "{error}");
    }
}

#[test]
fn an_envelope_in_another_encoding_still_contradicts() {
    let text = r#"{"IsSuccess":false,"Error":"no such gate"}"#;
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for body in [
        [b"\xef\xbb\xbf", text.as_bytes()].concat(),
        [b"\xff\xfe", little.as_slice()].concat(),
        [b"\xfe\xff", big.as_slice()].concat(),
        little,
        big,
    ] {
        let answer = classify(200, &body);
        assert_eq!((answer.outcome, answer.said.as_deref()), (Outcome::Rejected, Some("no such gate")));
    }
    let latin = b"{\"IsSuccess\":false,\"Error\":\"inconnu: Ren\xe9\"}";
    assert_eq!(classify(200, latin).outcome, Outcome::Rejected);
}

#[test]
fn an_empty_error_of_any_type_is_none() {
    for error in ["null", "\"\"", "\" \"", "{}", "[]", "0", "false"] {
        let body = format!("{{\"IsSuccess\":true,\"Error\":{error}}}");
        assert_eq!(classify(200, body.as_bytes()).outcome, Outcome::Accepted, "{error}");
    }
}

#[test]
fn the_longest_answer_that_is_read_is_still_the_gates() {
    let envelope = br#"{"IsSuccess":true}"#.to_vec();
    let filled = |length| [&envelope[..], &vec![b' '; length - envelope.len()]].concat();
    let longest = filled(MAX_ANSWER);
    assert_eq!(classify(200, &longest).outcome, Outcome::Accepted);
    let too_long = filled(MAX_ANSWER + 1);
    assert_eq!(classify(200, &too_long).outcome, Outcome::NotTheGate);
    // What is packed counts by what it unpacks to.
    let none = HeaderMap::new();
    for (body, outcome) in [(longest, Outcome::Accepted), (too_long, Outcome::NotTheGate)] {
        let mut packer = flate2::read::GzEncoder::new(&body[..], flate2::Compression::best());
        let mut small = Vec::new();
        std::io::Read::read_to_end(&mut packer, &mut small).unwrap();
        assert!(small.len() < 1_000);
        assert_eq!(answer(SYNC, 200, &none, &small).outcome, outcome);
    }
}

#[test]
fn what_came_in_the_gates_place_is_named() {
    for (body, what) in [
        ("<html>sign in</html>", "a page"),
        ("\n\t <!DOCTYPE html>", "a page"),
        ("sign in <here>", "no object with IsSuccess, Error or Result"),
    ] {
        let answer = classify(200, body.as_bytes());
        assert_eq!(answer.told(), Some(format!("not_the_gate: status 200, not the gate's answer: {what}")));
        assert_eq!(answer.status, Some(200));
    }
    assert_eq!(classify(201, b"").told().unwrap(), "not_the_gate: status 201, not the gate's answer: an empty body");
    let damaged = classify(200, b"\x00\xff\xfe\x80").told().unwrap();
    assert!(damaged.ends_with("nothing that can be read as text"), "{damaged}");
}

#[test]
fn an_accepted_answer_has_its_status_and_nothing_wrong() {
    let accepted = classify(204, b"");
    assert_eq!((accepted.outcome, accepted.status), (Outcome::Accepted, Some(204)));
    assert_eq!((accepted.error.as_ref(), accepted.said.as_ref(), accepted.told()), (None, None, None));
}

#[test]
fn each_class_has_a_label_of_its_own() {
    let labels: Vec<&str> = Outcome::ALL.iter().map(|outcome| outcome.label()).collect();
    let expected = [
        "accepted",
        "rejected",
        "refused",
        "not_the_gate",
        "misconfigured",
        "unavailable",
        "throttled",
        "unexpected_status",
    ];
    assert_eq!(labels, expected);
}

#[test]
fn an_endless_answer_is_not_the_gates() {
    let body = vec![b' '; MAX_ANSWER + 1];
    for status in [200, 400] {
        let answer = classify(status, &body);
        assert_eq!(answer.outcome, Outcome::NotTheGate);
        assert_eq!(answer.error, Some(format!("status {status}, not the gate's answer: over 64 KiB")));
    }
}
