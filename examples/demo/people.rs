//! People who change their choices, and what their profiles must be in the end.

use anyhow::Context;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How many people there are.
pub const COUNT: usize = 50;
/// The one whom the gate refuses for good in the outage.
pub const UNLUCKY: &str = "unlucky@example.com";
/// The one who opts in during the outage and out after it.
pub const FICKLE: &str = "fickle@example.com";
/// How many others choose during the outage.
const CAUGHT: usize = 10;

/// Samples that become a request, and what they say about the newsletter.
const DELIVERED_SAMPLES: [(&str, Option<bool>); 5] = [
    ("event-bare-v2", Some(true)),
    ("event-created-flattened", Some(true)),
    ("event-created-v1", None),
    ("event-created-v2", Some(true)),
    ("event-updated-confirmed", Some(true)),
];

/// What one person chose so far; `None` if no choice was made.
#[derive(Clone, Copy, Default)]
struct Choices {
    newsletter: Option<bool>,
    sms: Option<bool>,
}

pub struct People {
    random: u64,
    published: u64,
    chosen: BTreeMap<String, Choices>,
}

impl People {
    pub fn new() -> People {
        People { random: 0x2545_f491_4f6c_dd1d, published: 0, chosen: BTreeMap::new() }
    }

    /// How many messages they caused.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// One of each sample message, dated now, each with a person of its own.
    pub fn samples(&mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/events");
        let mut messages = Vec::new();
        let mut paths: Vec<_> = fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a sample without a name")?;
            let person = format!("sample-{stem}@example.com");
            let text = fs::read_to_string(&path)?.replace("jane@example.com", &person);
            messages.push(redated(&text).into_bytes());
            self.published += 1;
            if let Some((_, newsletter)) = DELIVERED_SAMPLES.iter().find(|(name, _)| *name == stem) {
                self.chosen.insert(person, Choices { newsletter: *newsletter, sms: None });
            }
        }
        Ok(messages)
    }

    /// Somebody changes a choice.
    pub fn next_choice(&mut self) -> Vec<u8> {
        let person = format!("person-{:02}@example.com", self.below(COUNT as u64));
        let on = self.below(2) == 0;
        let about_newsletter = self.below(3) > 0;
        let purpose = if about_newsletter { "newsletter" } else { "sms_offers" };
        let other = if about_newsletter { "sms_offers" } else { "newsletter" };
        let chosen = self.chosen.entry(person.clone()).or_default();
        *(if about_newsletter { &mut chosen.newsletter } else { &mut chosen.sms }) = Some(on);
        self.choice(&person, &[(purpose, Some(on)), (other, None)])
    }

    /// People who choose while the gate is down, and one for whom it stays down.
    pub fn caught_in_the_outage(&mut self) -> Vec<Vec<u8>> {
        let caught = (0..CAUGHT).map(|n| format!("caught-{n}@example.com"));
        let messages = caught.map(|person| {
            self.chosen.insert(person.clone(), Choices { newsletter: Some(false), sms: None });
            self.choice(&person, &[("newsletter", Some(false))])
        });
        let mut messages: Vec<Vec<u8>> = messages.collect();
        messages.push(self.choice(UNLUCKY, &[("newsletter", Some(false))]));
        messages.push(self.choice(FICKLE, &[("newsletter", Some(true))]));
        messages
    }

    /// A person who opted in while the gate was down now opts out again.
    pub fn opted_out(&mut self) -> Vec<u8> {
        self.chosen.insert(FICKLE.to_owned(), Choices { newsletter: Some(false), sms: None });
        self.choice(FICKLE, &[("newsletter", Some(false))])
    }

    /// The dead letter was replayed at a time when the gate accepted it.
    pub fn replayed(&mut self) {
        self.chosen.insert(UNLUCKY.to_owned(), Choices { newsletter: Some(false), sms: None });
    }

    fn choice(&mut self, person: &str, choices: &[(&str, Option<bool>)]) -> Vec<u8> {
        self.published += 1;
        let purposes: Vec<Value> = choices.iter().map(|(id, on)| json!({ "id": id, "enabled": on })).collect();
        json!({
            "type": "event.created",
            "parameters": { "entity": {
                "id": format!("00000000-0000-4000-8000-{:012}", self.published),
                "created_at": Timestamp::now().to_string(),
                "status": "confirmed",
                "user": { "organization_user_id": person },
                "consents": { "purposes": purposes },
            } },
            "regulation": "gdpr",
        })
        .to_string()
        .into_bytes()
    }

    /// A small generator (xorshift), so that every demonstration is the same.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 33) % bound
    }

    /// Every difference between the gate's profiles and what people chose.
    pub fn wrong(&self, profiles: &Value, integrations: &[String; 2]) -> Vec<String> {
        let [shop, magazine] = integrations;
        let mut wrong = Vec::new();
        for (person, chosen) in &self.chosen {
            let yes_no = |choice: Option<bool>| choice.map_or(Value::Null, |on| json!(if on { "Y" } else { "N" }));
            let digit = chosen.newsletter.map_or(Value::Null, |on| json!(if on { "1" } else { "0" }));
            for (integration, property, expected) in [
                (shop, "OPTIN_NEWS", yes_no(chosen.newsletter)),
                (shop, "OPTIN_SMS", yes_no(chosen.sms)),
                (magazine, "NEWSLETTER", digit),
            ] {
                let found = &profiles[integration][person][property];
                if *found != expected {
                    wrong.push(format!("{integration} {person} {property}: {found} at the gate, {expected} chosen"));
                }
            }
        }
        for integration in integrations {
            let empty = Map::new();
            for person in profiles[integration]
                .as_object()
                .unwrap_or(&empty)
                .keys()
                .filter(|name| !self.chosen.contains_key(*name))
            {
                wrong.push(format!("{integration} {person}: a profile that no event asked for"));
            }
        }
        wrong
    }
}

/// Samples carry dates in the past; with today's date they show how long a consent takes.
fn redated(text: &str) -> String {
    let now = Timestamp::now().to_string();
    ["2026-11-20T10:45:11Z", "2026-11-20T11:00:00Z"].iter().fold(text.to_owned(), |text, old| text.replace(old, &now))
}
