//! The newest consent wins: through retries, reordering, crashes, replays and late execution.

use super::harness::{Folder, Lab, Message, Random, choice, document, poll_until};
use consent_gate::config::{self, Environment};
use consent_gate::integration::Integration;
use consent_gate::mapping::{Choice, Slot};
use consent_gate::record::{self, Backend, Effect, Offer, Records, Turn};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

pub const JANE: &str = "jane@example.com";

/// An event dated some seconds from now.
pub fn dated(person: &str, seconds: i64, purposes: &[(&str, bool)]) -> Value {
    let mut event = choice(person, true);
    let purposes: Vec<Value> = purposes.iter().map(|(id, on)| json!({ "id": id, "enabled": on })).collect();
    let at = Timestamp::now() + SignedDuration::from_secs(seconds);
    event["parameters"]["entity"]["created_at"] = json!(at.to_string());
    event["parameters"]["entity"]["consents"]["purposes"] = json!(purposes);
    event
}

pub fn news(person: &str, seconds: i64, on: bool) -> Value {
    dated(person, seconds, &[("newsletter", on)])
}

pub fn at_gate(lab: &Lab, person: &str) -> Value {
    lab.gate(0).profiles()[person]["OPTIN_NEWS"].clone()
}

/// Publishes one event and waits until it is settled.
pub fn deliver(lab: &mut Lab, event: Value, settled: usize) {
    lab.publish(vec![event.into()]);
    lab.settled(settled);
}

/// An opt-in during an outage, an opt-out after it, and the retry. Returns what the gate has then.
fn caught_in_an_outage(lab: &mut Lab) -> Value {
    lab.set_delays(&[1_000, 1_000]);
    lab.gate(0).faults(json!([{ "status": 503, "times": 1 }]));
    lab.start();
    lab.publish(vec![news(JANE, -60, true).into()]);
    poll_until("the opt-in to be parked", || lab.worker().text().contains("another one follows").then_some(()));
    lab.publish(vec![news(JANE, -1, false).into()]);
    lab.settled(2);
    assert_eq!(lab.gate(0).outcome("accepted"), 2, "every consent triggers the campaign");
    at_gate(lab, JANE)
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_retry_never_switches_on_what_was_switched_off_meanwhile() {
    let mut lab = Lab::new();
    assert_eq!(caught_in_an_outage(&mut lab), "0");
    let stale = format!("consent_gate_stale_values_total{{integration=\"{}\"}}", lab.integration());
    assert_eq!(lab.metric(&stale), 1.0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn without_records_it_does() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RECORDS__STORE", "off");
    assert_eq!(caught_in_an_outage(&mut lab), "1", "or the test above proves nothing");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_known_survives_a_kill_and_an_old_event_counts_for_what_nobody_changed() {
    let mut lab = Lab::with(&[&|document| {
        let mappings = document["mappings"].as_array_mut().unwrap();
        mappings.push(json!({ "id": "OPTIN_SMS", "value": "consents_purposes_sms_enabled" }));
    }]);
    lab.start();
    deliver(&mut lab, news("Jane@Example.com", -1, false), 1);
    lab.worker().signal("KILL");
    lab.worker().ended();
    lab.start();
    deliver(&mut lab, dated(JANE, -60, &[("newsletter", true), ("sms", true)]), 1);
    let profile = lab.gate(0).profiles()[JANE].clone();
    assert_eq!((&profile["OPTIN_NEWS"], &profile["OPTIN_SMS"]), (&json!("0"), &json!("1")), "{profile}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_dead_letter_is_safe_to_replay() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    lab.gate(0).faults(json!([]));
    deliver(&mut lab, news(JANE, -1, false), 2);
    let letters = lab.dead().into_iter().map(|letter| Message { body: letter.body, properties: letter.properties });
    lab.bench.publish("", &lab.queue(""), letters.collect());
    lab.settled(3);
    assert_eq!(at_gate(&lab, JANE), "0");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_the_gate_refuses_for_good_is_not_lent() {
    let mut lab = Lab::new();
    lab.start();
    lab.gate(0).faults(json!([{ "status": 400 }]));
    deliver(&mut lab, news(JANE, -1, false), 1);
    lab.gate(0).faults(json!([]));
    deliver(&mut lab, news(JANE, -60, true), 2);
    assert_eq!(at_gate(&lab, JANE), Value::Null, "neither the refused value nor the older one");
    assert_eq!(lab.gate(0).outcome("accepted"), 1, "the campaign is triggered all the same");
}

/// What `map --recorded` says would happen to an event.
fn would_send(lab: &Lab, event: &Value) -> Value {
    let arguments = ["map", "--json", "--recorded", "--integration", lab.integration()];
    let mapped = lab.run(&arguments, event.to_string().as_bytes());
    assert_eq!(mapped.code, 0, "{}", mapped.err);
    serde_json::from_str(&mapped.out).unwrap()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_recorded_is_looked_at_before_an_event_is_sent() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -60, false), 1);
    let property = |shown: &Value, id: &str| {
        let mut properties = shown["properties"].as_array().unwrap().iter();
        properties.find(|property| property["id"] == id).unwrap().clone()
    };
    let older = would_send(&lab, &news(JANE, -90, true));
    assert_eq!(older["request"]["body"]["GateInput"]["OPTIN_NEWS"], "0", "{older}");
    assert_eq!(
        (&property(&older, "OPTIN_NEWS")["value"], &property(&older, "OPTIN_NEWS")["recorded"]),
        (&json!("0"), &json!(true))
    );
    let newer = would_send(&lab, &news(JANE, -30, true));
    assert_eq!(newer["request"]["body"]["GateInput"]["OPTIN_NEWS"], "1", "{newer}");
    assert_eq!(property(&newer, "OPTIN_NEWS")["recorded"], Value::Null);
    // Under another document the newer event says nothing about this path, and the older one must not win.
    let document = lab.folder.0.join(format!("integrations/{}.json", lab.integration()));
    let mended = fs::read_to_string(&document).unwrap().replace("purposes_newsletter_", "purposes_sms_");
    fs::write(&document, mended).unwrap();
    let unknown = would_send(&lab, &dated(JANE, -90, &[("sms", true)]));
    assert_eq!(unknown["request"]["body"]["GateInput"]["OPTIN_NEWS"], Value::Null, "{unknown}");
    let why = property(&unknown, "OPTIN_NEWS")["left_out"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("was not recorded"), "{why}");
    let deleted =
        json!({ "type": "user.deleted", "parameters": { "entity": { "id": "u", "organization_user_id": JANE } } });
    deliver(&mut lab, deleted, 2);
    let erased = would_send(&lab, &news(JANE, -90, true));
    assert_eq!((&erased["verdict"]["code"], &erased["request"]), (&json!("erased"), &Value::Null));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_erased_person_does_not_come_back() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    let deleted =
        json!({ "type": "user.deleted", "parameters": { "entity": { "id": "u", "organization_user_id": JANE } } });
    deliver(&mut lab, deleted, 2);
    deliver(&mut lab, news(JANE, -30, true), 3);
    let name = lab.integration().to_owned();
    let skipped = |reason| format!("consent_gate_skipped_total{{integration=\"{name}\",reason=\"{reason}\"}}");
    assert_eq!(lab.metric(&skipped("user_deleted")), 1.0);
    assert_eq!(lab.metric(&skipped("erased")), 1.0);
    assert_eq!(lab.gate(0).outcome("accepted"), 1);
    deliver(&mut lab, news(JANE, 2, true), 4);
    assert_eq!(lab.gate(0).outcome("accepted"), 2, "who comes back by a choice of their own is welcome");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_older_than_the_memory_is_for_an_operator_to_judge() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RECORDS__RETENTION", "1h");
    lab.start();
    deliver(&mut lab, news(JANE, -7_200, true), 1);
    let dead =
        |lab: &Lab, more: &[&str]| lab.run(&[&["dead"], more, &["--integration", lab.integration()]].concat(), b"");
    let listed = dead(&lab, &["list"]);
    assert!(listed.out.contains("no record of the person"), "{}", listed.out);
    let replayed = dead(&lab, &["replay", "--yes"]);
    assert!(replayed.out.contains("sent        0"), "it would die again at once: {}{}", replayed.out, replayed.err);
    assert!(replayed.out.contains("1 older_than_retention"), "{}", replayed.out);
    assert_eq!(lab.dead()[0].header("consent-gate-reason").as_deref(), Some("older_than_retention"));
    deliver(&mut lab, news(JANE, -1, false), 2);
    deliver(&mut lab, news(JANE, -7_200, true), 3);
    assert_eq!(at_gate(&lab, JANE), "0", "of whom something is remembered, the newest is known");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_request_that_is_executed_late_is_repaired() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "timeout": "300ms" } })]);
    lab.set_delays(&[300, 2_000]);
    lab.gate(0).faults(json!([{ "execute_after_ms": 1500, "times": 1 }]));
    lab.start();
    lab.publish(vec![news(JANE, -60, true).into()]);
    lab.worker().line_with("another one follows");
    lab.publish(vec![news(JANE, -1, false).into()]);
    lab.settled(2);
    poll_until("the late execution", || (lab.gate(0).requests()["executed"].as_u64() >= Some(3)).then_some(()));
    lab.worker().line_with("\"repaired\"");
    assert_eq!(at_gate(&lab, JANE), "0");
    let name = lab.integration().to_owned();
    assert_eq!(lab.metric(&format!("consent_gate_events_total{{integration=\"{name}\",outcome=\"delivered\"}}")), 2.0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_second_worker_on_the_same_records_stands_by_and_takes_over() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    let first = lab.worker.take();
    lab.spawn();
    let line = lab.worker().line_with("standby: another worker holds the records");
    assert!(line.contains("standing by") && line.contains("INFO"), "{line}");
    // Logged once, however long it stands by, and not as an error.
    let told = |lab: &mut Lab, words: &str| lab.worker().text().matches(words).count();
    poll_until("it to look again twice", || (told(&mut lab, "still without the records") >= 2).then_some(()));
    assert_eq!((told(&mut lab, "standby: "), told(&mut lab, "ERROR"), told(&mut lab, "WARN")), (1, 0, 0));
    let (status, body) = lab.admin("/readyz");
    for part in ["\"state\":\"standby\"", "another worker holds them", "not available"] {
        assert!(status == 503 && body.contains(part), "{part} in {body}");
    }
    assert_eq!(lab.admin("/livez").0, 200);
    first.unwrap().signal("KILL");
    lab.worker().line_with("ready: consuming");
    deliver(&mut lab, news(JANE, -60, true), 1);
    assert_eq!(at_gate(&lab, JANE), "0");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn records_that_cannot_be_written_stop_everything_and_lose_nothing() {
    let mut lab = Lab::new();
    let file = lab.folder.write("in-the-way", "not a directory");
    lab.set("CONSENT_GATE_RECORDS__STORE", file.join("records").to_str().unwrap());
    lab.declare();
    lab.publish(vec![news(JANE, -1, false).into()]);
    lab.spawn();
    let line = lab.worker().line_with("cannot use the records");
    assert!(line.contains("in-the-way"), "{line}");
    assert_eq!(lab.admin("/readyz").0, 503);
    fs::remove_file(&file).unwrap();
    lab.settled(1);
    assert_eq!(at_gate(&lab, JANE), "0");
}

/// Events of some people in a random order, some of them twice, with what must be known in the end.
pub fn shuffled(people: usize, events: usize, seed: u64) -> (Vec<Message>, BTreeMap<String, &'static str>) {
    let mut random = Random::new(seed);
    let mut newest: BTreeMap<String, (i64, &'static str)> = BTreeMap::new();
    let mut messages = Vec::new();
    for n in 0..events {
        let person = format!("p{}@example.com", random.below(people));
        let seconds = -i64::try_from(n).unwrap() - 1;
        let on = random.below(2) == 0;
        let text = if on { "1" } else { "0" };
        newest.entry(person.clone()).or_insert((seconds, text));
        let event = news(&person, seconds, on);
        let times = if random.below(20) == 0 { 2 } else { 1 };
        messages.extend((0..times).map(|_| (random.below(usize::MAX), event.clone())));
    }
    messages.sort_by_key(|(place, _)| *place);
    let messages = messages.into_iter().map(|(_, event)| event.into()).collect();
    (messages, newest.into_iter().map(|(person, (_, text))| (person, text)).collect())
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_profile_is_right_after_faults_kills_and_a_replay_of_the_dead() {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "timeout": "300ms" } })]);
    lab.set_delays(&[50, 100, 400]);
    lab.gate(0).faults(json!([
        { "share": 0.06, "status": 503 }, { "share": 0.05, "reset": true }, { "share": 0.04, "lose_answer": true },
        { "share": 0.02, "hang": true }, { "share": 0.03, "execute_after_ms": 350, "status": 504 },
    ]));
    lab.declare();
    let (messages, newest) = shuffled(200, 2_000, 42);
    let published = messages.len();
    lab.publish(messages);
    let executed = |lab: &Lab| lab.gate(0).requests()["executed"].as_u64().unwrap();
    for kill in 1..=4 {
        lab.start();
        poll_until("some progress", || (executed(&lab) > kill * 250).then_some(()));
        lab.worker().signal("KILL");
        lab.worker().ended();
    }
    lab.start();
    quiet(&mut lab);
    lab.gate(0).faults(json!([]));
    let letters = lab.dead();
    assert!(letters.len() < published / 2, "{} of {published} are dead", letters.len());
    let letters = letters.into_iter().map(|letter| Message { body: letter.body, properties: letter.properties });
    lab.bench.publish("", &lab.queue(""), letters.collect());
    quiet(&mut lab);
    let profiles = lab.gate(0).profiles();
    let wrong: Vec<&String> = newest
        .iter()
        .filter(|(person, text)| profiles[*person]["OPTIN_NEWS"] != ***text)
        .map(|(person, _)| person)
        .collect();
    assert!(wrong.is_empty(), "{} of {} profiles are wrong: {wrong:?}", wrong.len(), newest.len());
    assert!(lab.dead().is_empty());
}

/// Waits until all queues are empty and the gate has received nothing for longer than any delay.
pub fn quiet(lab: &mut Lab) {
    let mut last = (u64::MAX, std::time::Instant::now());
    poll_until("quiet", || {
        let total = lab.gate(0).requests()["total"].as_u64().unwrap();
        if total != last.0 || ["", ".retry"].iter().any(|suffix| lab.bench.depth(&lab.queue(suffix)) > 0) {
            last = (total, std::time::Instant::now());
        }
        (last.1.elapsed().as_millis() > 2_000).then_some(())
    });
}

fn offer(n: usize) -> Offer {
    let at = Timestamp::from_second(1_700_000_000 + i64::try_from(n).unwrap()).unwrap();
    let slot = Slot::new("OPTIN_NEWS", "consents_purposes_newsletter_enabled");
    let choices = vec![(slot, Choice::Switch(n.is_multiple_of(2)))];
    Offer { at: Some(at), withdrawn_at: Some(at), event: Some(n.to_string().into()), choices }
}

/// An integration that needs no broker and no gate.
fn integration(folder: &Folder) -> Integration {
    let environment = Environment::from([("ACME_GATE_KEY".to_owned(), "x".to_owned())]);
    let settings = config::load_settings(None, &environment).unwrap();
    let file = folder.write("acme.json", document("https://example.invalid").to_string());
    config::load_document(&file, &settings, &environment).unwrap()
}

fn records_in(directory: &Path) -> Records {
    let retention = Duration::from_secs(10 * 365 * 86_400);
    Records::new(record::RecordsSettings { place: Backend::Directory(directory.to_owned()), retention })
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            // A file that the closing store has just removed need not be copied.
            let _ = fs::copy(entry.path(), target);
        }
    }
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_damaged_store_says_so_or_gives_what_was_once_written() {
    let folder = Folder::new();
    let whole = folder.0.join("whole");
    let integration = integration(&folder);
    let records = records_in(&whole);
    let now = Timestamp::now();
    let mut written = Vec::new();
    let (verified, _) = records.verify(&integration, None).await.unwrap();
    let verified = verified.expect("records are kept");
    for n in 0..40 {
        let turn = verified.begin(JANE, &offer(n).into(), false, now).await.unwrap();
        written.push(records.person(&integration.records, JANE).await.unwrap().record.unwrap());
        let Turn::Taken(taken) = turn else { panic!("{turn:?}") };
        taken.answered(Effect::Accepted, false, now).await.unwrap();
        written.push(records.person(&integration.records, JANE).await.unwrap().record.unwrap());
    }
    drop((records, verified));
    let mut random = Random::new(7);
    let (mut told, mut given) = (0, 0);
    for round in 0..120_u64 {
        let damaged = folder.0.join(format!("damaged-{round}"));
        copy(&whole, &damaged);
        let files = files(&damaged);
        let file = &files[random.below(files.len())];
        let mut bytes = fs::read(file).unwrap();
        // The journal is preallocated; only its beginning matters.
        let length = bytes.len().min(8 * 1024);
        if length == 0 {
            continue;
        }
        let at = random.below(length);
        if round % 2 == 0 {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 0xff;
        }
        fs::write(file, bytes).unwrap();
        match records_in(&damaged).person(&integration.records, JANE).await {
            Err(why) => {
                let why = why.to_string();
                assert!(why.contains("cannot open") || why.contains("damaged"), "{why}");
                told += 1;
            }
            Ok(recorded) => {
                assert!(
                    recorded.record.is_none_or(|record| written.contains(&record)),
                    "never a value that nobody wrote"
                );
                given += 1;
            }
        }
        let _ = fs::remove_dir_all(&damaged);
    }
    assert!(told > 0 && given > 0, "{told} told, {given} given");
}
