//! Damaged input gives a defined result, never a panic. The damage is generated from a seed, so that a
//! failure can be repeated.

use super::harness::{Folder, Random, fixture, project};
use consent_gate::config::{self, Environment};
use consent_gate::plan::{Plan, plan};
use jiff::Timestamp;
use std::fs;

/// Cuts, duplicates, swaps or replaces a few pieces.
fn damage(random: &mut Random, text: &[u8]) -> Vec<u8> {
    const PIECES: [&[u8]; 14] = [
        b"null",
        b"true",
        b"-1e999",
        b"\"\"",
        b"[]",
        b"{}",
        b"\\u0000",
        b"\xff",
        b"__",
        b"_",
        b"\"id\":",
        b"9999999999999999999",
        b"\"2026-13-45T99:99:99Z\"",
        b"\"\\ud800\"",
    ];
    let mut text = text.to_vec();
    for _ in 0..=random.below(4) {
        let from = random.below(text.len().max(1));
        let to = (from + random.below(40)).min(text.len());
        match random.below(4) {
            0 => drop(text.drain(from.min(to)..to)),
            1 => {
                text.splice(from.min(text.len())..to, PIECES[random.below(PIECES.len())].iter().copied())
                    .for_each(drop);
            }
            2 => {
                let piece = text[from.min(to)..to].to_vec();
                let at = random.below(text.len() + 1);
                drop(text.splice(at..at, piece));
            }
            _ => text.truncate(to.max(1)),
        }
    }
    text
}

#[test]
fn no_damaged_message_panics() {
    let folder = Folder::new();
    let file = folder.write("acme.json", fs::read(project().join("integration.example.json")).unwrap());
    let environment = Environment::from([("ACME_GATE_KEY".to_owned(), "key".to_owned())]);
    let settings = config::load_settings(None, &Environment::new()).unwrap();
    let integration = config::load_document(&file, &settings, &environment).unwrap();
    let samples: Vec<Vec<u8>> = fs::read_dir(project().join("tests/fixtures/events"))
        .unwrap()
        .map(|entry| fixture(entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    let mut random = Random::new(0);
    let now = Timestamp::now();
    let mut sent = 0;
    let mut stopped = 0;
    for round in 0..30_000 {
        let damaged = damage(&mut random, &samples[round % samples.len()]);
        match plan(&damaged, &integration, now).1 {
            Ok(Plan::Trigger(plan)) => {
                sent += 1;
                assert!(!plan.identifier.trim().is_empty());
                let request = plan.own_request(&integration);
                serde_json::from_slice::<serde_json::Value>(request.body()).unwrap();
            }
            Ok(Plan::Erase { identifier, .. }) => assert!(!identifier.trim().is_empty()),
            Err(_) => stopped += 1,
        }
    }
    assert!(sent > 500 && stopped > 5_000, "the damage reaches both ends: {sent} sent, {stopped} stopped");
}

#[test]
fn no_damaged_document_panics() {
    let folder = Folder::new();
    let environment = Environment::from([("ACME_GATE_KEY".to_owned(), "key".to_owned())]);
    let settings = config::load_settings(None, &Environment::new()).unwrap();
    let example = fs::read(project().join("integration.example.json")).unwrap();
    let toml = fs::read(project().join("consent-gate.example.toml")).unwrap();
    let mut random = Random::new(1);
    let mut refused = 0;
    for _ in 0..3_000 {
        let file = folder.write("acme.json", damage(&mut random, &example));
        refused += u32::from(config::load_document(&file, &settings, &environment).is_err());
        let file = folder.write("consent-gate.toml", damage(&mut random, &toml));
        refused += u32::from(config::load_settings(Some(&file), &environment).is_err());
    }
    assert!(refused > 1_000, "{refused} refused");
}
