//! What really arrives: inputs as reported by users, and every spelling that is accepted or refused.

use super::dead::{dead, told};
use super::harness::{Folder, Lab, Message, choice, document, golden, project};
use consent_gate::config::{self, Environment};
use consent_gate::event::Body;
use consent_gate::integration::Integration;
use consent_gate::plan::{Plan, plan};
use consent_gate::verdict::Processed;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use lapin::BasicProperties;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;

fn public() -> Vec<(String, Vec<u8>)> {
    let folder = project().join("tests/fixtures/public");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<(String, Vec<u8>)> = files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .filter(|(name, _)| name != "README.md")
        .collect();
    files.sort();
    files
}

fn with_topics(document: &mut Value) {
    let topics = json!({ "id": "TOPICS", "value": "consents_purposes_newsletter_values_topics_value" });
    document["mappings"].as_array_mut().unwrap().push(topics);
}

fn integration() -> Integration {
    let folder = Folder::new();
    let mut document = document("https://gate.example.com");
    with_topics(&mut document);
    let file = folder.write("acme.json", document.to_string());
    let settings = config::load_settings(None, &Environment::new()).unwrap();
    config::load_document(&file, &settings, &Environment::new()).unwrap()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A message with a content encoding.
fn encoded(body: Vec<u8>, encoding: &str) -> Message {
    let properties = BasicProperties::default().with_delivery_mode(2).with_content_encoding(encoding.into());
    Message { body, properties }
}

/// The outcome of an event, as one line.
fn outcome(body: Body<'_>, integration: &Integration) -> String {
    let now = "2100-01-01T00:00:00Z".parse().unwrap();
    match plan(body, integration, now) {
        (summary, Ok(Plan::Trigger(send))) => {
            let request: Value = serde_json::from_slice(send.own_request(integration).body()).unwrap();
            let at = summary.changed_at.map(|at| at.to_string()).unwrap_or_default();
            format!("send {} of {at}", request["GateInput"])
        }
        (_, Ok(Plan::Erase { identifier, at })) => format!("erase {identifier} at {at:?}"),
        (_, Err(Processed::Defective(defect))) => format!("undecodable: {defect}"),
        (_, Err(processed)) => format!("{processed:?}"),
    }
}

#[test]
fn public_inputs_come_to_what_is_right() {
    let integration = integration();
    let files = public();
    assert_eq!(files.len(), 9);
    let line = |(name, body): &(String, Vec<u8>)| {
        let encoding = name.ends_with(".gz").then_some("gzip");
        format!("{name}: {}\n", outcome(Body { bytes: body, encoding }, &integration))
    };
    golden("public.txt", &files.iter().map(line).collect::<String>());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn public_inputs_pass_a_real_broker() {
    let mut lab = Lab::with(&[&with_topics]);
    lab.start();
    let mut settled = 0;
    for (name, body) in public() {
        // All have the same time and person: here each gets a name of its own, so that each one shows.
        let text =
            |body: &[u8]| String::from_utf8_lossy(body).replace("ann@example.com", &format!("{name}@example.com"));
        let message = match name.as_str() {
            "event.json.gz" => {
                let mut plain = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*body), &mut plain).unwrap();
                encoded(packed(text(&plain).as_bytes()), "gzip")
            }
            _ => text(&body).into_bytes().into(),
        };
        lab.publish(vec![message]);
        settled += 1;
        lab.settled(settled);
    }
    let profiles = lab.gate(0).profiles();
    let mut names: Vec<&str> = profiles.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let whole = ["bom", "date-blank-before-offset", "emptied-selection", "event", "lone-surrogate-in-a-note"];
    let expected = whole.map(|stem| match stem {
        "event" => "event.json.gz@example.com".to_owned(),
        stem => format!("{stem}.json@example.com"),
    });
    assert_eq!(names, [&["9007199254740993".to_owned()][..], &expected[..]].concat());
    assert_eq!(profiles["emptied-selection.json@example.com"]["TOPICS"], "");
    let rows = &told(&lab, "list", &[])[1..];
    let why: Vec<&str> = rows.iter().map(|row| row["why"].as_str().unwrap()).collect();
    assert_eq!(why.len(), 2, "{rows:?}");
    assert!(why.iter().any(|why| why.starts_with("created_at: ") && why.contains("without an offset")), "{why:?}");
    assert!(why.iter().any(|why| why.starts_with("updated_at: ") && why.contains("without an offset")), "{why:?}");
}

/// A normal event with other bytes in place of a text.
fn raw(from: &str, to: &[u8]) -> Message {
    let event = choice("jane@example.com", true).to_string();
    let (before, after) = event.split_once(from).unwrap();
    [before.as_bytes(), to, after.as_bytes()].concat().into()
}

/// Bodies that are not events, each with the error expected for it.
fn unreadable() -> Vec<(Message, &'static str)> {
    let plain = || choice("jane@example.com", true).to_string().into_bytes();
    vec![
        (encoded(plain(), "zstd"), "content_encoding: expected gzip or none, found zstd"),
        (encoded(plain(), "jane@example.com"), "content_encoding: expected gzip or none, found another name"),
        (packed(&plain()).into(), "body: expected JSON in UTF-8, found gzip that content_encoding does not name"),
        (
            encoded(packed(&plain())[..40].to_vec(), "gzip"),
            "body: expected gzip, as content_encoding says, found damaged or truncated gzip",
        ),
        (b"\xff\xfe{\0".to_vec().into(), "body: expected JSON in UTF-8, found UTF-16"),
        (Vec::new().into(), "body: expected JSON in UTF-8, found nothing"),
        (b"jane".to_vec().into(), "body: expected JSON, found something else at line 1 column 1"),
        (plain()[..50].to_vec().into(), "body: expected JSON, found truncated JSON at line 1 column"),
        (json!(["jane"]).into(), "body: expected an object, found a list"),
        (json!({ "jane": 1 }).into(), "body: expected an envelope with a type, or a consent event"),
        (json!({ "type": "event.created" }).into(), "parameters.entity: expected an object, found nothing"),
        (
            json!({ "type": "event.created", "entity": [] }).into(),
            "parameters.entity: expected an object, found a list",
        ),
    ]
}

/// Events with a wrong field, each with the error expected for it.
fn defective() -> Vec<(Message, &'static str)> {
    let entity = |key: &str, value: Value| -> Message {
        let mut event = choice("jane@example.com", true);
        event["parameters"]["entity"][key] = value;
        event.into()
    };
    let user = |identifier: Value| entity("user", json!({ "organization_user_id": identifier }));
    vec![
        (
            raw("jane@example.com", b"jane\\ud83d"),
            "user.organization_user_id: expected a string or a whole number, found a damaged text",
        ),
        (
            raw("jane@example.com", b"jane\xe9"),
            "user.organization_user_id: expected a string or a whole number, found a damaged text",
        ),
        (
            user(json!(1.5)),
            "user.organization_user_id: expected a string or a whole number, found a number with a fraction",
        ),
        (
            user(json!(1e300)),
            "user.organization_user_id: expected a string or a whole number, found a number with a fraction",
        ),
        (user(json!(["jane"])), "user.organization_user_id: expected a string or a whole number, found a list"),
        (user(json!(true)), "user.organization_user_id: expected a string or a whole number, found true or false"),
        (entity("id", json!(7)), "id: expected a string, found a number"),
        (entity("status", json!("jane")), "status: expected confirmed or pending_approval, found another text"),
        (
            entity("created_at", json!("jane")),
            "created_at: expected a time with an offset, such as 2026-11-20T10:26:21Z, found a text that is not a time",
        ),
        (
            entity("created_at", json!("2026-11-20 10:26:21")),
            "created_at: expected a time with an offset, such as 2026-11-20T10:26:21Z, found a time without an offset",
        ),
        (
            entity("created_at", json!("")),
            "created_at: expected a time with an offset, such as 2026-11-20T10:26:21Z, found an empty text",
        ),
        (entity("created_at", json!(1)), "created_at: expected a string, found a number"),
        (
            entity("consents", json!({ "purposes": [7] })),
            "consents.purposes[0]: expected an object with an id that is a string, found a number",
        ),
        (
            entity("consents", json!({ "purposes": [{}] })),
            "consents.purposes[0]: expected an object with an id that is a string, found one without an id",
        ),
        (
            raw("\"newsletter\"", b"\"news\\udc00\""),
            "consents.purposes[0]: expected an object with an id that is a string, found a damaged text",
        ),
        (
            entity("consents", json!({ "purposes": [{ "id": "newsletter", "enabled": "jane" }] })),
            "consents.purposes.newsletter.enabled: expected true, false or null, found a string",
        ),
    ]
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_undecodable_letter_says_where_what_was_found_and_what_would_be_right() {
    let mut lab = Lab::new();
    lab.start();
    let kinds: Vec<(Message, &str)> = unreadable().into_iter().chain(defective()).collect();
    let count = kinds.len();
    let expected: Vec<&str> = kinds.iter().map(|(_, why)| *why).collect();
    lab.publish(kinds.into_iter().map(|(message, _)| message).collect());
    lab.settled(count);
    let rows = &told(&lab, "list", &["--reason", "undecodable"])[1..];
    let whys: Vec<&str> = rows.iter().map(|row| row["why"].as_str().unwrap()).collect();
    for part in &expected {
        assert!(whys.iter().any(|why| why.contains(part)), "{part} in {whys:#?}");
    }
    assert_eq!(rows.len(), count);
    let shown = dead(&lab, "list", &[]).out;
    let head = shown.lines().find(|line| line.starts_with("died")).unwrap();
    let at = head.find("why").unwrap();
    for why in &whys {
        assert!(shown.lines().any(|line| line.get(at..) == Some(why)), "{why} at {at} in\n{shown}");
    }
    let group = dead(&lab, "list", &["--group"]).out;
    let twice = "2  user.organization_user_id: expected a string or a whole number, found a number with a fraction or an exponent";
    assert!(group.lines().any(|line| line.trim() == twice), "{group}");
    assert!(!shown.contains("jane") && !group.contains("jane"));
}

/// A gibibyte compressed to less than a mebibyte.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_bomb_is_too_large_and_a_large_event_passes_packed() {
    let mut lab = Lab::new();
    lab.start();
    lab.publish(vec![choice("before@example.com", true).into()]);
    lab.settled(1);
    let before = lab.worker().peak_memory().unwrap();
    let bomb = packed(&vec![b' '; 16 * 1024 * 1024]).repeat(64);
    assert!(bomb.len() < 1024 * 1024, "what is larger as it comes is not opened at all");
    let mut large = choice("large@example.com", true);
    large["padding"] = json!("x".repeat(1_000_000));
    let mut messages: Vec<Message> = (0..20).map(|_| encoded(bomb.clone(), "gzip")).collect();
    messages.push(encoded(packed(large.to_string().as_bytes()), "gzip"));
    lab.publish(messages);
    lab.settled(22);
    assert_eq!(super::newest::at_gate(&lab, "large@example.com"), "1");
    let rows = &told(&lab, "list", &["--reason", "too_large"])[1..];
    let why = "body: expected at most 1 MiB, found more after decompression";
    assert!(rows.len() == 20 && rows.iter().all(|row| row["why"] == why), "{rows:?}");
    let peak = lab.worker().peak_memory().unwrap();
    assert!(peak < before + 64 * 1024, "{before} KiB before, {peak} KiB at most");
}

#[test]
fn damage_where_nobody_reads_keeps_no_consent_from_its_gate() {
    let integration = integration();
    let event = choice("jane@example.com", true);
    let damages: [&[u8]; 5] = [b"caf\\ud83d", b"\\udc00", b"caf\xe9", b"two\nlines", b"\\x"];
    for damage in damages {
        for field in ["note", "domain", "metadata", "delegate"] {
            let mut event = event.clone();
            event["parameters"]["entity"][field] = json!({ "a": ["HERE"] });
            let text = event.to_string();
            let (before, after) = text.split_once("HERE").unwrap();
            let body = [before.as_bytes(), damage, after.as_bytes()].concat();
            let sent = outcome((&body).into(), &integration);
            assert!(sent.starts_with("send "), "{field}: {sent}");
            let sent = outcome(Body { bytes: &packed(&body), encoding: Some("gzip") }, &integration);
            assert!(sent.starts_with("send "), "{field}, packed: {sent}");
        }
    }
}

#[test]
fn identifiers_are_whole_numbers_digit_by_digit() {
    let integration = integration();
    for digits in ["9007199254740993", "18446744073709551616", "0", "12345678901234567890123"] {
        let event = choice("IDENTIFIER", true).to_string().replace("\"IDENTIFIER\"", digits);
        let now = Timestamp::now();
        let (_, Ok(Plan::Trigger(send))) = plan(event.as_bytes(), &integration, now) else { panic!("{digits}") };
        assert_eq!(&*send.identifier, digits);
        let request: Value = serde_json::from_slice(send.own_request(&integration).body()).unwrap();
        assert_eq!(request["GateInput"]["MAIL"], digits);
    }
}
