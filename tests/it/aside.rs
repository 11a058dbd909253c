//! What a policy does to dead letters: they are moved aside and found there, and missed when they are gone.

use super::dead::{begin, dead, letters, people, put, told};
use super::harness::{Lab, ctl, person, poll_until};
use serde_json::json;
use std::time::{Duration, Instant};

/// A policy on some queues of a lab, removed with it.
struct Policy(String);

impl Policy {
    fn set(lab: &Lab, queues: &str, what: &str) -> Policy {
        let name = format!("{}{queues}", lab.integration());
        let pattern = format!("^{}{queues}$", lab.queue("").replace('.', "[.]"));
        ctl(&["set_policy", &name, &pattern, what, "--apply-to", "queues"]);
        Policy(name)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        ctl(&["clear_policy", &self.0]);
    }
}

const ALL_LETTERS: &str = "[.](dead|aside)";

fn vanished(lab: &mut Lab) -> f64 {
    let series = format!("consent_gate_letters_vanished_total{{integration=\"{}\"}}", lab.integration());
    lab.metric(&series)
}

fn in_queue(lab: &mut Lab, queue: &str) -> f64 {
    let series = format!("consent_gate_queue_messages{{integration=\"{}\",queue=\"{queue}\"}}", lab.integration());
    lab.metric(&series)
}

/// Messages that become letters.
fn broken(count: usize) -> Vec<super::harness::Message> {
    (0..count).map(|n| format!("broken {n}").into_bytes().into()).collect()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_policy_with_a_delivery_limit_puts_letters_aside_where_commands_find_them() {
    let mut lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 3));
    let policy = Policy::set(&lab, "[.]dead", r#"{"delivery-limit":3}"#);
    poll_until("the limit", || {
        dead(&lab, "list", &["--group"]);
        (lab.bench.depth(&lab.queue(".dead")) == 0).then_some(())
    });
    poll_until("all of them aside", || (lab.bench.depth(&lab.queue(".aside")) == 3).then_some(()));
    drop(policy);
    let moved = json!({ "reason": "delivery_limit", "from": lab.queue(".dead") });
    let listed = told(&lab, "list", &["--aside"]);
    assert_eq!(listed[0]["moved"], json!([{ "reason": "delivery_limit", "from": lab.queue(".dead"), "letters": 3 }]));
    assert_eq!((&listed[0]["letters"], &listed[3]["moved"]), (&json!(3), &moved));
    let shown = dead(&lab, "list", &["--aside"]);
    assert!(shown.out.contains("3  moved by the broker: delivery_limit, from consent-gate."), "{}", shown.out);
    let id = listed[1]["letter"].as_str().unwrap();
    assert_eq!(told(&lab, "show", &["--aside", id])[0]["moved"], moved);
    assert_eq!(told(&lab, "list", &[])[0]["letters"], 0);

    // Put back and replayed, a letter carries none of the broker's own headers.
    let exported = told(&lab, "export", &["--aside", "--to", "aside.jsonl", "--limit", "1"]);
    assert_eq!(exported[0]["exported"], 1);
    assert_eq!(told(&lab, "discard", &["--aside", "--yes", "--limit", "1", "--no-export"])[0]["left"], 2);
    assert_eq!(told(&lab, "import", &["aside.jsonl"])[0]["imported"], 1);
    let back = lab.dead().remove(0);
    assert!(back.header_names().iter().all(|name| !name.starts_with("x-")), "{:?}", back.header_names());
    assert_eq!(told(&lab, "replay", &["--aside", "--yes", "--canary", "0"])[0]["sent"], 2);
    let replayed = lab.bench.take_all(&lab.queue(".retry"));
    assert_eq!(replayed.len(), 2);
    for letter in &replayed {
        assert!(letter.header_names().iter().all(|name| !name.starts_with("x-")), "{:?}", letter.header_names());
    }
    assert_eq!(lab.bench.depth(&lab.queue(".aside")), 0);
    lab.start();
    put(&lab, letters("q", 1));
    assert_eq!(told(&lab, "replay", &["--yes", "--wait"])[0]["delivered"], 1);
    assert_eq!(lab.gate(0).profiles()[&person("q", 0)]["OPTIN_NEWS"], "1");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_policy_that_drops_the_oldest_letters_puts_them_aside() {
    let lab = Lab::new();
    lab.declare();
    let _policy = Policy::set(&lab, "[.]dead", r#"{"max-length":2,"overflow":"drop-head"}"#);
    put(&lab, letters("p", 6));
    poll_until("four of them aside", || (lab.bench.depth(&lab.queue(".aside")) == 4).then_some(()));
    let listed = told(&lab, "list", &["--aside"]);
    assert_eq!(listed[0]["moved"], json!([{ "reason": "maxlen", "from": lab.queue(".dead"), "letters": 4 }]));
    assert_eq!(people(&lab).len(), 2);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_person_is_forgotten_with_the_letters_that_were_put_aside() {
    let mut lab = Lab::new();
    lab.start();
    put(&lab, letters("p", 1));
    lab.bench.publish("", &lab.queue(".aside"), letters("p", 2));
    let (name, who) = (lab.integration().to_owned(), person("p", 0));
    let arguments = ["person", "forget", "--integration", &name, &who, "--yes", "--json"];
    let forgotten = lab.run(&arguments, b"");
    assert!(forgotten.out.contains(r#""letters":2"#), "{}{}", forgotten.out, forgotten.err);
    assert_eq!((lab.bench.depth(&lab.queue(".dead")), lab.bench.depth(&lab.queue(".aside"))), (0, 1));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn letters_that_a_policy_moves_show_aside_and_those_that_it_deletes_are_missed() {
    let mut lab = Lab::new();
    lab.start();
    lab.publish(broken(5));
    lab.settled(5);
    poll_until("them to show", || (in_queue(&mut lab, "dead") == 5.0).then_some(()));
    let moving = Policy::set(&lab, "[.]dead", r#"{"message-ttl":500}"#);
    // Messages that were there before may have no TTL.
    lab.publish(broken(3));
    lab.settled(8);
    for queue in [".dead", ".aside"] {
        lab.bench.publish("", &lab.queue(queue), letters(queue, 1));
    }
    poll_until("some to show aside", || (in_queue(&mut lab, "aside") >= 1.0).then_some(()));
    drop(moving);
    let sum = |lab: &mut Lab| in_queue(lab, "dead") + in_queue(lab, "aside");
    poll_until("all to show", || (sum(&mut lab) == 10.0).then_some(()));
    assert_eq!(vanished(&mut lab), 0.0, "nothing is gone");
    let _deleting = Policy::set(&lab, ALL_LETTERS, r#"{"max-length":1,"overflow":"drop-head"}"#);
    for queue in [".dead", ".aside"] {
        lab.bench.publish("", &lab.queue(queue), letters(queue, 1));
    }
    poll_until("the missing to be told", || (vanished(&mut lab) > 0.0).then_some(()));
    lab.worker().line_with("dead letters left .dead or .aside without a command of this program");
    let left = lab.bench.depth(&lab.queue(".dead")) + lab.bench.depth(&lab.queue(".aside"));
    poll_until("each of them", || (vanished(&mut lab) >= f64::from(10 - left)).then_some(()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn letters_that_somebody_purges_are_missed_once() {
    let mut lab = Lab::new();
    lab.start();
    lab.publish(broken(7));
    lab.settled(7);
    poll_until("them to show", || (in_queue(&mut lab, "dead") == 7.0).then_some(()));
    assert_eq!(lab.dead().len(), 7);
    poll_until("the loss to be told", || (vanished(&mut lab) > 0.0).then_some(()));
    assert_eq!(vanished(&mut lab), 7.0);
    assert_eq!(lab.worker().text().matches("without a command of this program").count(), 1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_a_policy_deletes_of_the_unreadable_is_missed() {
    let mut lab = Lab::new();
    lab.start();
    lab.bench.publish("", &lab.queue(".unreadable"), broken(3));
    poll_until("them to show", || (in_queue(&mut lab, "unreadable") == 3.0).then_some(()));
    lab.worker().line_with("the broker itself moved undelivered events to .unreadable");
    let checked = lab.run(&["check", "--connect"], b"");
    assert!(checked.out.contains("3: undelivered that the broker moved to .unreadable"), "{}", checked.out);
    let _deleting = Policy::set(&lab, "[.]unreadable", r#"{"max-length":1,"overflow":"drop-head"}"#);
    lab.bench.publish("", &lab.queue(".unreadable"), broken(1));
    poll_until("the loss to be told", || (vanished(&mut lab) > 0.0).then_some(()));
    let told = lab.worker().line_with("undelivered events left .unreadable");
    assert!(told.contains("list_policies"), "{told}");
    let ready: serde_json::Value = serde_json::from_str(&lab.admin("/readyz").1).unwrap();
    assert!(ready["vanished"][lab.integration()]["messages"].as_u64() >= Some(2), "{ready}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn letters_whose_time_runs_out_while_they_are_looked_at_are_told() {
    let lab = Lab::new();
    lab.declare();
    put(&lab, letters("whole", 1));
    // Behind a letter that stays they wait, whatever their TTL.
    let mut short = letters("short", 3);
    for letter in &mut short {
        letter.properties = letter.properties.clone().with_expiration("1".into());
    }
    put(&lab, short);
    poll_until("them to be there", || (lab.bench.depth(&lab.queue(".dead")) == 4).then_some(()));
    let listed = lab.run(&["dead", "list", "--integration", lab.integration()], b"");
    assert!(listed.out.contains("1 letter, 1 of which matches"), "{}", listed.out);
    assert!(listed.err.contains("3 letters left the queue while it was read"), "{}", listed.err);
    poll_until("them to be aside", || (lab.bench.depth(&lab.queue(".aside")) == 3).then_some(()));
    let listed = lab.run(&["dead", "list", "--integration", lab.integration(), "--aside"], b"");
    assert!(listed.out.contains("3 letters") && listed.err.is_empty(), "{}{}", listed.out, listed.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn commands_in_a_row_are_no_loss() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 400 }]));
    lab.start();
    let count = 300;
    put(&lab, letters("p", count));
    poll_until("them to show", || (in_queue(&mut lab, "dead") == 300.0).then_some(()));
    let (began, mut rounds) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(24) {
        told(&lab, "list", &[]);
        told(&lab, "list", &["--aside"]);
        told(&lab, "export", &["--to", &format!("{rounds}.jsonl")]);
        told(&lab, "discard", &["--yes", "--limit", "20", "--no-export"]);
        told(&lab, "import", &[&format!("{rounds}.jsonl")]);
        told(&lab, "replay", &["--yes", "--canary", "0", "--limit", "30", "--rate", "1000/s", "--abort-above", "100%"]);
        let mut killed = begin(&lab, "list", &[]);
        poll_until("it to be killed or over", || {
            (!killed.is_running() || lab.bench.depth(&lab.queue(".dead")) < 250).then_some(())
        });
        drop(killed);
        rounds += 1;
    }
    // The letters that were removed last are not missed later either.
    let quiet = Instant::now();
    poll_until("two more looks", || (quiet.elapsed() > Duration::from_secs(12)).then_some(()));
    assert!(rounds > 2, "{rounds}");
    assert_eq!(vanished(&mut lab), 0.0, "{}", lab.worker().text());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn many_returns_are_told_with_what_they_may_mean() {
    let lab = Lab::new();
    lab.declare();
    put(&lab, letters("p", 2));
    let mut looks = 0;
    let told = poll_until("the hint", || {
        looks += 1;
        let listed = dead(&lab, "list", &["--group"]);
        assert_eq!(listed.code, 0, "{}", listed.err);
        (!listed.err.is_empty()).then_some(listed.err)
    });
    assert_eq!(looks, 11, "ten looks came before");
    assert!(told.contains("returned 10 times") && told.contains("rabbitmqctl list_policies"), "{told}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_that_forgot_the_records_is_told_them_again_and_says_so() {
    let mut lab = Lab::new();
    let forgotten = "the broker no longer remembers these records";
    lab.start();
    lab.stop();
    assert!(!lab.worker().text().contains(forgotten), "a first start is none");
    lab.start();
    lab.stop();
    assert!(!lab.worker().text().contains(forgotten), "it knows them");
    let policy = Policy::set(&lab, "[.]store", r#"{"message-ttl":1}"#);
    // The message that is there has no TTL; the one that replaces it has.
    lab.start();
    lab.stop();
    poll_until("the message to be gone", || (lab.bench.depth(&lab.queue(".store")) == 0).then_some(()));
    drop(policy);
    let shown = lab.run(&["store", "show"], b"");
    assert!(shown.out.contains("the broker has forgotten these records"), "{}{}", shown.out, shown.err);
    let checked = lab.run(&["check", "--connect"], b"");
    assert!(checked.out.contains("the broker has forgotten these records"), "{}{}", checked.out, checked.err);
    lab.start();
    let vanished = format!("consent_gate_letters_vanished_total{{integration=\"{}\"}}", lab.integration());
    assert_eq!(lab.metric(&vanished), 1.0, "what removed it may remove more");
    assert!(lab.worker().text().contains(forgotten), "{}", lab.worker().text());
    assert_eq!(lab.bench.depth(&lab.queue(".store")), 1);
    let shown = lab.run(&["store", "show"], b"");
    assert!(shown.out.contains(": right"), "{}{}", shown.out, shown.err);
}
