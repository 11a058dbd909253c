//! Records in a database that fails over behind its pooler, while workers die and a mapping is corrected.
//!
//! Scaled down here; `scripts/chaos failover` runs it in full and prints its figures.

use super::harness::{Lab, Message, PgNode, Random, Running, note, poll_until};
use super::newest::{dated, quiet};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

/// What one event said, and whether a copy of it came after the mapping was corrected.
#[derive(Clone, Copy)]
struct Said {
    what: What,
    is_mended: bool,
}

#[derive(Clone, Copy)]
enum What {
    Choice { mail: bool, sms: bool, newsletter: bool },
    Erasure,
}

/// The messages in two halves, and what each person said, newest first.
struct Script {
    halves: [Vec<Message>; 2],
    said: BTreeMap<String, Vec<Said>>,
}

/// Events of some people, a second apart: the older ones mostly in the first half and the newer ones in the
/// second, each half in a random order; one in twenty twice, one in fifty an erasure.
fn script(people: usize, events: usize, random: &mut Random) -> Script {
    let mut halves: [Vec<(usize, Message)>; 2] = Default::default();
    let mut said: BTreeMap<String, Vec<Said>> = BTreeMap::new();
    for n in 0..events {
        let person = format!("p{}@example.com", random.below(people));
        let seconds = -i64::try_from(n).unwrap() - 1;
        let what = if random.percent(2) {
            What::Erasure
        } else {
            let mut on = || random.percent(50);
            What::Choice { mail: on(), sms: on(), newsletter: on() }
        };
        let event = message(&person, seconds, what);
        let half = usize::from((n < events / 2) != random.percent(10));
        let again = random.percent(5).then(|| random.below(2));
        for half in again.into_iter().chain([half]) {
            halves[half].push((random.below(usize::MAX), event.clone().into()));
        }
        said.entry(person).or_default().push(Said { what, is_mended: half == 1 || again == Some(1) });
    }
    let halves = halves.map(|mut half| {
        half.sort_by_key(|(place, _)| *place);
        half.into_iter().map(|(_, message)| message).collect()
    });
    Script { halves, said }
}

fn message(person: &str, seconds: i64, what: What) -> Value {
    match what {
        What::Choice { mail, sms, newsletter } => {
            dated(person, seconds, &[("mail", mail), ("sms", sms), ("newsletter", newsletter)])
        }
        What::Erasure => {
            let at = Timestamp::now() + SignedDuration::from_secs(seconds);
            let user = json!({ "id": "u", "organization_user_id": person, "updated_at": at.to_string() });
            json!({ "type": "user.deleted", "parameters": { "entity": user } })
        }
    }
}

/// The values that the gate may have for a property in the end. An event counts for the property with
/// `values`: several if it cannot be known under which mapping it was merged.
fn allowed(said: &[Said], values: impl Fn(bool, bool, bool, bool) -> Vec<bool>) -> Vec<Value> {
    let newest = said.iter().enumerate().find_map(|(index, said)| match said.what {
        What::Choice { mail, sms, newsletter } => Some((index, values(mail, sms, newsletter, said.is_mended))),
        What::Erasure => None,
    });
    let Some((index, values)) = newest else { return vec![Value::Null] };
    let is_erased = said[..index].iter().any(|said| matches!(said.what, What::Erasure));
    let text = |on: bool| json!(if on { "1" } else { "0" });
    match (is_erased, values.contains(&true)) {
        (false, _) => values.into_iter().map(text).collect(),
        // A grant at the gate must have been withdrawn; without one, nothing needs to reach the gate.
        (true, false) => vec![text(false), Value::Null],
        // What the gate received of it, or of anything before it, depends on which came first.
        (true, true) => vec![text(true), text(false), Value::Null],
    }
}

/// Two workers that die one after the other.
struct Pair([Option<Running>; 2]);

impl Pair {
    /// Starts the workers that died.
    fn complete(&mut self, lab: &mut Lab) {
        for worker in &mut self.0 {
            if worker.is_none() {
                lab.spawn();
                *worker = lab.worker.take();
            }
        }
    }

    fn kill(&mut self, which: usize) {
        let mut killed = self.0[which].take().unwrap();
        killed.signal("KILL");
        killed.ended();
    }

    /// Makes both reload a corrected document, and waits until they use it.
    fn reload(&mut self, lab: &mut Lab, mend: impl Fn()) {
        self.complete(lab);
        for worker in self.0.iter_mut().flatten() {
            worker.line_with("ready: consuming");
        }
        mend();
        for worker in self.0.iter_mut().flatten() {
            worker.signal("HUP");
            worker.line_with("\"changed\":1");
            poll_until("to consume again", || (worker.text().matches("ready: consuming").count() > 1).then_some(()));
        }
    }
}

/// Maps the property whose mapping is wrong at first to this purpose.
fn map_news(document: &mut Value, purpose: &str) {
    let value = format!("consents_purposes_{purpose}_enabled");
    let mappings = document["mappings"].as_array_mut().unwrap();
    mappings[1] = json!({ "id": "OPTIN_NEWS", "value": value });
}

/// A lab in which news is mapped to this purpose.
fn lab(news: &str) -> Lab {
    let mut lab = Lab::with(&[&|document| {
        map_news(document, news);
        let mappings = document["mappings"].as_array_mut().unwrap();
        mappings.push(json!({ "id": "OPTIN_MAIL", "value": "consents_purposes_mail_enabled" }));
        document["overrides"] = json!({ "gate": { "timeout": "300ms" } });
    }]);
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab.set_delays(&[50, 100, 400]);
    lab.gate(0).faults(json!([
        { "share": 0.06, "status": 503 }, { "share": 0.05, "reset": true }, { "share": 0.04, "lose_answer": true },
        { "share": 0.02, "hang": true }, { "share": 0.03, "execute_after_ms": 350, "status": 504 },
    ]));
    lab.declare();
    lab
}

fn executed(lab: &Lab) -> usize {
    lab.gate(0).requests()["executed"].as_u64().unwrap().try_into().unwrap()
}

/// Publishes one half while workers die, `kills` times in all, until most of it was executed; `midst` is
/// called after half of the kills.
fn disturbed(
    lab: &mut Lab,
    pair: &mut Pair,
    half: Vec<Message>,
    kills: usize,
    random: &mut Random,
    midst: impl FnOnce(&Lab),
) {
    let (before, count) = (executed(lab), half.len());
    lab.publish(half);
    let mut midst = Some(midst);
    for kill in 1..=kills {
        pair.complete(lab);
        let until = before + (kill * count + random.below(count)) / (kills + 2) * 3 / 4;
        poll_until("some progress", || (executed(lab) > until).then_some(()));
        if let Some(midst) = midst.take_if(|_| kill > kills / 2) {
            midst(lab);
        }
        pair.kill(random.below(2));
    }
    pair.complete(lab);
}

/// Two workers with records behind a pooler, killed again and again under faults of every kind; between the
/// halves the mapping is corrected, and during the second the database fails over. Returns what is wrong.
fn disrupt(seed: u64, (people, events, kills): (usize, usize, usize)) -> Vec<String> {
    let mut random = Random::new(seed);
    let node = PgNode::start();
    let replica = node.replica();
    let mut lab = lab("sms");
    let store = format!("{}&options=-csearch_path%3Dconsent_gate", node.pool("transaction", 4));
    lab.set("CONSENT_GATE_RECORDS__STORE", &store);
    let Script { halves: [first, second], said } = script(people, events, &mut random);
    let published = first.len() + second.len();
    let mut pair = Pair([None, None]);
    disturbed(&mut lab, &mut pair, first, kills / 2, &mut random, |_| {});
    let document = lab.folder.0.join(format!("integrations/{}.json", lab.integration()));
    pair.reload(&mut lab, || {
        let mut mended: Value = serde_json::from_str(&fs::read_to_string(&document).unwrap()).unwrap();
        map_news(&mut mended, "newsletter");
        fs::write(&document, mended.to_string()).unwrap();
    });
    disturbed(&mut lab, &mut pair, second, kills / 2, &mut random, |lab| {
        let (began, before) = (Instant::now(), executed(lab));
        node.kill();
        replica.promote();
        node.lead_to(&replica);
        poll_until("to go on at the replica", || (executed(lab) > before + 20).then_some(()));
        note(&format!("the database failed over; twenty more were sent {:.1?} after it died", began.elapsed()));
    });
    let letters = settle(&mut lab);
    note(&format!(
        "seed {seed}: {published} messages of {people} people, {kills} kills, {letters} dead letters replayed"
    ));
    drop(pair);
    judge(&lab, &said)
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn records_that_fail_over_know_every_newest_choice() {
    let wrong = disrupt(1, (50, 500, 4));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `CONSENT_GATE_CHAOS_RUNS` runs.
#[test]
#[ignore = "a minute a run: scripts/chaos"]
fn records_whole() {
    let number = |name: &str, otherwise: u64| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (runs, first) = (number("CONSENT_GATE_CHAOS_RUNS", 6), number("CONSENT_GATE_CHAOS_SEED", 1));
    let wrong: Vec<String> = (first..first + runs).flat_map(|seed| disrupt(seed, (2_000, 20_000, 12))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn without_records_profiles_are_wrong() {
    let mut random = Random::new(1);
    let mut lab = lab("newsletter");
    lab.set("CONSENT_GATE_RECORDS__STORE", "off");
    let Script { halves: [first, second], said } = script(50, 500, &mut random);
    let mut pair = Pair([None, None]);
    disturbed(&mut lab, &mut pair, first, 1, &mut random, |_| {});
    disturbed(&mut lab, &mut pair, second, 1, &mut random, |_| {});
    settle(&mut lab);
    assert!(judge(&lab, &said).len() > 10, "or the tests above prove nothing");
}

/// Waits until everything is settled and the dead letters were replayed at a gate that works again; returns
/// how many there were.
fn settle(lab: &mut Lab) -> usize {
    quiet(lab);
    lab.gate(0).faults(json!([]));
    let letters = lab.dead();
    let count = letters.len();
    let letters = letters.into_iter().map(|letter| Message { body: letter.body, properties: letter.properties });
    lab.bench.publish("", &lab.queue(""), letters.collect());
    quiet(lab);
    assert!(lab.dead().is_empty());
    count
}

/// Every property with a value at the gate that is not allowed.
fn judge(lab: &Lab, said: &BTreeMap<String, Vec<Said>>) -> Vec<String> {
    let profiles = lab.gate(0).profiles();
    let (mut wrong, mut known, mut erased) = (Vec::new(), 0, 0);
    for (person, said) in said {
        let mail = allowed(said, |mail, _, _, _| vec![mail]);
        let news = allowed(
            said,
            |_, sms, newsletter, is_mended| {
                if is_mended || sms == newsletter { vec![newsletter] } else { vec![newsletter, sms] }
            },
        );
        known += usize::from(mail.len() == 1) + usize::from(news.len() == 1);
        erased += said.iter().filter(|said| matches!(said.what, What::Erasure)).count();
        for (property, allowed) in [("OPTIN_MAIL", mail), ("OPTIN_NEWS", news)] {
            let has = &profiles[person][property];
            if !allowed.contains(has) {
                wrong.push(format!("{person} {property} is {has}, not one of {allowed:?}"));
            }
        }
    }
    let all = said.len() * 2;
    note(&format!("{erased} erasures; {known} of {all} properties can have one value only; {} are wrong", wrong.len()));
    assert!(known * 10 > all * 8, "{known} of {all} prove little");
    wrong
}
