//! After a power cut everything that was acked is still known, so nothing older wins.

use super::harness::{Lab, Message, Power, Random, note, poll_until, unacked};
use super::newest::{dated, quiet};
use serde_json::json;
use std::fs;

/// The number of choices of one person: so many that the store has to write sorted tables and delete other
/// files meanwhile.
const PURPOSES: usize = 60;

fn person(n: usize) -> String {
    format!("p{n}@example.com")
}

/// The events of some people: withdrawals dated a minute ago, or grants that are an hour older.
fn events(people: std::ops::Range<usize>, on: bool) -> Vec<Message> {
    let purposes: Vec<String> = (0..PURPOSES).map(|n| format!("purpose-{n}")).collect();
    let chosen: Vec<(&str, bool)> = purposes.iter().map(|id| (id.as_str(), on)).collect();
    people.map(|n| dated(&person(n), if on { -3_660 } else { -60 }, &chosen).into()).collect()
}

/// A lab whose records are on a disk that loses what was not synced.
fn lab() -> Lab {
    let mut lab =
        Lab::with(&[&|document| {
            let mappings = document["mappings"].as_array_mut().unwrap();
            mappings.extend((0..PURPOSES).map(
                |n| json!({ "id": format!("OPTIN_{n}"), "value": format!("consents_purposes_purpose-{n}_enabled") }),
            ));
        }]);
    fs::create_dir(lab.folder.0.join("disk")).unwrap();
    lab.set("CONSENT_GATE_RECORDS__STORE", "disk/records");
    lab.set("CONSENT_GATE_LOG__LEVEL", "info");
    lab
}

/// Starts a worker whose power can be cut.
fn start(lab: &mut Lab) -> Power {
    let power = Power::of(&lab.folder, &lab.folder.0.join("disk"));
    power.connect(&mut lab.environment);
    lab.start();
    power
}

fn cut(lab: &mut Lab, power: Power) {
    lab.worker().signal("KILL");
    lab.worker().ended();
    power.cut();
}

/// How many tables the store has, besides its journal.
fn tables(lab: &Lab) -> usize {
    let keyspaces = fs::read_dir(lab.folder.0.join("disk/records/keyspaces")).unwrap();
    let tables = keyspaces.map(|keyspace| keyspace.unwrap().path().join("tables"));
    tables.map(|tables| fs::read_dir(tables).map_or(0, Iterator::count)).sum()
}

/// How many people are opted in at the gate after older grants of all of them have arrived.
fn opted_in_by_older_grants(lab: &mut Lab, people: usize) -> usize {
    let _power = start(lab);
    quiet(lab);
    lab.publish(events(0..people, true));
    lab.settled(people);
    quiet(lab);
    assert!(lab.dead().is_empty());
    let profiles = lab.gate(0).profiles();
    assert_eq!(profiles.as_object().unwrap().len(), people);
    (0..people).filter(|n| (0..PURPOSES).any(|id| profiles[person(*n)][format!("OPTIN_{id}")] == "1")).count()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_was_acked_is_known_after_the_power_was_cut() {
    let mut lab = lab();
    let mut random = Random::new(11);
    let (cuts, people) = (4, 300);
    let executed = |lab: &Lab| lab.gate(0).requests()["executed"].as_u64().unwrap();
    for number in 0..cuts {
        let power = start(&mut lab);
        let until = executed(&lab) + random.below(people) as u64;
        lab.publish(events(number * people..(number + 1) * people, false));
        poll_until("some progress", || (executed(&lab) > until).then_some(()));
        cut(&mut lab, power);
        let work = lab.queue("");
        poll_until("what was not acked to be back", || (unacked(std::slice::from_ref(&work)) == 0).then_some(()));
        let acked = (number + 1) * people - lab.bench.depth(&work) as usize;
        note(&format!("cut {}: {acked} of {} were acked so far", number + 1, (number + 1) * people));
    }
    assert!(tables(&lab) > 1, "the store had only its journal to write");
    note(&format!("{} files beside the journal", tables(&lab)));
    assert_eq!(opted_in_by_older_grants(&mut lab, cuts * people), 0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn without_syncs_it_is_lost() {
    let mut lab = lab();
    let people = 100;
    let power = start(&mut lab);
    power.lie();
    lab.publish(events(0..people, false));
    lab.settled(people);
    // What the broker has not been told yet comes again, and is recorded then.
    let work = lab.queue("");
    poll_until("all of it acked", || (unacked(std::slice::from_ref(&work)) == 0).then_some(()));
    cut(&mut lab, power);
    assert_eq!(opted_in_by_older_grants(&mut lab, people), people, "or the test above proves nothing");
}
