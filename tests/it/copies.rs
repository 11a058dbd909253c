//! Records that are copied to another place, with what the broker remembers about them.

use super::harness::{Finished, Folder, Lab, Message, Running, Schema, choice, person, poll_until};
use super::newest::{JANE, at_gate, deliver, news};
use consent_gate::record::copy::Copying;
use consent_gate::record::{Backend, Records, RecordsSettings};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::path::Path;

/// Copies the records from there to the place in the lab's settings.
fn copy(lab: &Lab, from: &str, more: &[&str]) -> Finished {
    lab.run(&[&["store", "copy", "--json", "--from", from][..], more].concat(), b"")
}

fn copied(lab: &Lab, from: &str) -> Value {
    let done = copy(lab, from, &[]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    serde_json::from_str(&done.out).unwrap()
}

/// Asserts that the copy is refused with these words.
fn not_copied(lab: &Lab, from: &str, more: &[&str], words: &str) {
    let done = copy(lab, from, more);
    assert!(done.code != 0 && done.err.contains(words), "not {words}: {}{}", done.out, done.err);
}

/// Asserts that the worker may no longer use its records, or not yet.
fn refused(lab: &mut Lab, words: &str) {
    lab.spawn();
    let line = lab.worker().line_with("cannot use the records");
    assert!(line.contains(words), "{line}");
    lab.stop();
}

fn settle_in(lab: &mut Lab, place: &str) {
    lab.set("CONSENT_GATE_RECORDS__STORE", place);
}

/// Asserts that the copy knows what the former records knew: an older opt-in changes nothing, and who was
/// erased.
fn knows_what_the_former_knew(lab: &mut Lab, forgotten: &str) {
    lab.start();
    deliver(lab, news(JANE, -60, true), 1);
    assert_eq!(at_gate(lab, JANE), "0", "the opt-out was later");
    let before = lab.gate(0).outcome("accepted");
    deliver(lab, news(forgotten, -3_600, true), 2);
    assert_eq!(lab.gate(0).outcome("accepted"), before, "an event from before the erasure is skipped");
    lab.stop();
    let shown = lab.run(&["store", "show"], b"");
    assert!(shown.code == 0 && shown.out.contains(": right"), "{}{}", shown.out, shown.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn records_go_from_a_directory_to_a_database_and_back_with_all_that_they_know() {
    let mut lab = Lab::new();
    let (directory, schema) = (lab.folder.0.join("records"), Schema::new());
    let directory = directory.to_str().unwrap();
    let forgotten = person("forgotten", 0);
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    deliver(&mut lab, news(&forgotten, -7_200, true), 2);
    let name = lab.integration().to_owned();
    assert_eq!(lab.run(&["person", "forget", "--integration", &name, &forgotten, "--yes"], b"").code, 0);
    settle_in(&mut lab, &schema.url());
    not_copied(&lab, directory, &[], "stop every worker first");
    lab.stop();
    // The first start with other settings creates empty records, and does not use them.
    refused(&mut lab, "not those of this integration's earlier events");

    let done = copied(&lab, directory);
    assert_eq!((&done["copied"], done["to"].as_str().unwrap().starts_with("PostgreSQL at")), (&json!(2), true));
    assert!(!done.to_string().contains("password"), "{done}");
    knows_what_the_former_knew(&mut lab, &forgotten);
    let again = lab.run(&["store", "copy", "--from", directory], b"");
    assert!(again.code == 0 && again.out.contains("already"), "{}{}", again.out, again.err);

    settle_in(&mut lab, directory);
    refused(&mut lab, "they were copied to PostgreSQL at");
    not_copied(&lab, &schema.url(), &[], "older state");
    lab.folder.write("former", schema.url());
    settle_in(&mut lab, "back");
    let back = lab.run(&["store", "copy", "--from-file", "former"], b"");
    assert!(back.code == 0 && back.out.contains("copied   2 persons"), "{}{}", back.out, back.err);
    knows_what_the_former_knew(&mut lab, &forgotten);
    settle_in(&mut lab, &schema.url());
    refused(&mut lab, "they were copied to");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn without_a_copy_a_new_place_knows_nothing() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    lab.stop();
    settle_in(&mut lab, "new");
    assert_eq!(lab.run(&["store", "adopt", "--yes", "--lose-records"], b"").code, 1, "nothing is there to adopt");
    refused(&mut lab, "not those of this integration's earlier events");
    assert_eq!(lab.run(&["store", "adopt", "--yes", "--lose-records"], b"").code, 0);
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    assert_eq!(at_gate(&lab, JANE), "1", "or the test above proves nothing");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_copy_that_is_killed_leaves_one_place_that_can_be_used_and_goes_on() {
    let mut lab = Lab::new();
    let (directory, schema) = (lab.folder.0.join("records"), Schema::new());
    let directory = directory.to_str().unwrap().to_owned();
    let people = 3_000;
    lab.start();
    lab.publish((0..people).map(|n| Message::from(choice(&person("p", n), n % 2 == 0))).collect());
    lab.settled(people);
    lab.stop();
    let arguments = ["store", "copy", "--from", &directory];
    for least in [1, 1_001, 2_001] {
        settle_in(&mut lab, &schema.url());
        let mut copying = Running::start(env!("CARGO_BIN_EXE_consent-gate"), &lab.folder, &lab.environment, &arguments);
        poll_until("some of them to be there", || {
            let count = "SELECT count(*) FROM consent_gate_records";
            let there = schema.sql("SELECT to_regclass('consent_gate_records') IS NOT NULL").contains('t');
            (there && schema.sql(count).lines().last()?.trim().parse::<u32>().ok()? >= least).then_some(())
        });
        copying.signal("KILL");
        copying.ended();
        refused(&mut lab, "the copy is incomplete");
        lab.environment.remove("CONSENT_GATE_RECORDS__STORE");
        let shown = lab.run(&["store", "show"], b"");
        assert!(shown.code == 0 && shown.out.contains(": right"), "{}{}", shown.out, shown.err);
        // Events that come in between do not make the copy begin again.
        lab.start();
        lab.publish(vec![choice(&person("p", 0), false).into()]);
        lab.settled(1);
        lab.stop();
    }
    settle_in(&mut lab, &schema.url());
    assert_eq!(copied(&lab, &directory)["copied"], people);
    lab.start();
    lab.publish((0..people).map(|n| Message::from(news(&person("p", n), -3_600, true))).collect());
    lab.settled(people);
    let profiles = lab.gate(0).profiles();
    for n in 0..people {
        let right = if n % 2 == 0 && n > 0 { "1" } else { "0" };
        assert_eq!(profiles[person("p", n)]["OPTIN_NEWS"], right, "{n}");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn whatever_would_leave_something_behind_is_refused() {
    let mut lab = Lab::with_many(2);
    let directory = lab.folder.0.join("records");
    let directory = directory.to_str().unwrap().to_owned();
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    lab.stop();
    not_copied(&lab, &directory, &[], "both name");
    settle_in(&mut lab, "new");
    not_copied(&lab, "nowhere", &[], "nowhere: there is no such directory; check what [records] store was");
    not_copied(&lab, "integrations", &[], "integrations: the directory holds no records; check what");
    not_copied(&lab, lab.file(0).to_str().unwrap(), &[], "it is a file; check what");
    let elsewhere = "postgres://acme@nowhere.invalid/x?sslmode=disable";
    not_copied(&lab, elsewhere, &[], "warning  --from: nowhere.invalid:5432/x is reached without verified TLS");
    not_copied(&lab, elsewhere, &[], "is the host in --from spelled correctly?");
    not_copied(&lab, "mysql://root:secret@db/x", &[], "is neither postgres://");
    not_copied(&lab, "off", &[], "nothing to copy");
    // Workers with other settings for an integration would continue with the former records.
    let second = lab.file(1);
    let document = std::fs::read_to_string(&second).unwrap();
    std::fs::remove_file(&second).unwrap();
    let name = lab.simulated[1].integration.clone();
    not_copied(&lab, &directory, &[], &format!("also those of {name}"));
    std::fs::write(&second, document).unwrap();
    // Records that are in use are not overwritten.
    settle_in(&mut lab, "other");
    refused(&mut lab, "not those of this integration's earlier events");
    assert_eq!(lab.run(&["store", "adopt", "--yes", "--lose-records"], b"").code, 0);
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    lab.stop();
    not_copied(&lab, &directory, &[], "other records, which are in use");
    // And records that the broker does not know are not copied anywhere.
    settle_in(&mut lab, "new");
    not_copied(&lab, &directory, &[], "are not the ones to copy");
    assert_eq!(copied(&lab, "other")["copied"], 2);
}

fn records_in(directory: &Path) -> Records {
    Records::new(RecordsSettings { place: Backend::Directory(directory.to_owned()), ..RecordsSettings::default() })
}

/// Creates a store with one person on record, and closes it.
async fn store_at(directory: &Path) {
    let records = records_in(directory);
    let name = consent_gate::integration::Name::new("acme").unwrap();
    records.forget(&name, JANE, SignedDuration::from_mins(10), Timestamp::now()).await.unwrap();
}

async fn opens(directory: &Path) -> Result<u64, String> {
    let claim = records_in(directory).claim().await.map_err(|failed| failed.to_string())?;
    Ok(claim.epoch)
}

#[test]
fn between_any_two_steps_of_a_copy_no_more_than_one_place_can_be_used() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // Ends after this many steps, and then continues.
        for steps in 0..=3 {
            let folder = Folder::new();
            let (from, to) = (folder.0.join("from"), folder.0.join("to"));
            store_at(&from).await;
            let place = |directory: &Path| Backend::Directory(directory.to_owned());
            let open = async || Copying::open(place(&from), place(&to)).await.unwrap();
            let copying = open().await;
            let next = copying.claim().await.unwrap();
            if steps > 0 {
                assert_eq!(copying.carry(|_| {}).await.unwrap(), 1);
            }
            if steps > 1 {
                copying.set_claim().await.unwrap();
            }
            if steps > 2 {
                copying.finish().await.unwrap();
            }
            copying.close().await;
            let (former, copy) = (opens(&from).await, opens(&to).await);
            assert_eq!((former.is_ok(), copy.is_ok()), (steps < 3, steps == 3), "{steps}: {former:?} {copy:?}");
            let mut copying = open().await;
            assert_eq!(copying.is_done().await.unwrap(), steps == 3);
            if steps < 3 {
                copying.carry(|_| {}).await.unwrap();
                copying = copying.verify(|_| {}).await.unwrap();
                assert_eq!(copying.set_claim().await.unwrap(), next, "the same as an earlier try told the broker");
                copying.finish().await.unwrap();
            }
            copying.close().await;
            assert_eq!(opens(&to).await, Ok(next.epoch));
            assert!(opens(&from).await.is_err());
        }
    });
}
