//! Records in PostgreSQL behind a pooler, behind which the server is replaced.

use super::harness::{Lab, PgNode, poll_until};
use super::newest::{JANE, at_gate, deliver, news};

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn records_behind_a_pooler_need_nothing_of_the_session() {
    let node = PgNode::start();
    for (mode, size) in [("transaction", 2), ("session", 8)] {
        let mut lab = Lab::new();
        let url = node.pool(mode, size);
        // A pooler refuses options at the start of a session, or drops them silently.
        lab.set("CONSENT_GATE_RECORDS__STORE", &format!("{url}&options=-csearch_path%3Dconsent_gate"));
        lab.start();
        let people: Vec<String> = (0..300).map(|n| format!("{mode}{n}@example.com")).collect();
        let events = |minutes, choice| people.iter().map(move |person| news(person, minutes, choice).into());
        lab.publish(events(-1, false).chain(events(-60, true)).collect());
        lab.settled(600);
        assert!(people.iter().all(|person| at_gate(&lab, person) == "0"));
        let shown = lab.run(&["person", "show", "--integration", lab.integration(), &people[0]], b"");
        assert!(shown.out.contains("OPTIN_NEWS"), "{}{}", shown.out, shown.err);
        lab.stop();
        assert!(!lab.worker().text().contains("cannot use the records"), "{}", lab.worker().text());
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn the_server_itself_parses_a_statement_once_and_a_pooler_is_asked_for_no_such_thing() {
    let (node, cert) = PgNode::start_with_tls();
    node.sql("ALTER ROLE consent_gate SET log_statement = 'all'");
    let encrypted = format!("sslmode=verify-ca&sslrootcert={}", cert.display());
    for (url, is_parsed_once) in [
        (node.url.clone(), true),
        (node.url.replace("sslmode=disable", &encrypted), true),
        (node.pool("transaction", 2), false),
        (node.pool("session", 8), false),
    ] {
        let mut lab = Lab::new();
        lab.set("CONSENT_GATE_RECORDS__STORE", &url);
        lab.start();
        let before = node.log().len();
        for minute in [-3, -2, -1] {
            deliver(&mut lab, news(JANE, minute, true), 1);
        }
        lab.stop();
        let log = node.log().split_off(before);
        let reads: Vec<&str> = log.lines().filter(|line| line.contains("execute ")).collect();
        let (unnamed, named): (Vec<&str>, Vec<&str>) =
            reads.iter().partition(|line| line.contains("execute <unnamed>"));
        assert!(if is_parsed_once { named.len() >= 3 } else { unnamed.len() >= 3 }, "{url}: {log}");
        assert!(is_parsed_once || named.is_empty(), "{url}: {log}");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_pooler_that_is_too_small_for_its_mode_is_refused_with_what_to_do() {
    let node = PgNode::start();
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RECORDS__STORE", &node.pool("session", 2));
    lab.spawn();
    let line = lab.worker().line_with("cannot use the records");
    assert!(line.contains("room for four connections") && line.contains("transaction mode"), "{line}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_server_that_became_another_one_behind_its_pooler_gets_nothing_merged() {
    let node = PgNode::start();
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RECORDS__STORE", &node.pool("transaction", 2));
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    lab.stop();
    node.stop();
    node.save("older");
    node.restart();
    lab.start();
    deliver(&mut lab, news(JANE, -10, false), 1);
    // The worker's own connections, which end at the pooler, stay open.
    node.stop();
    node.replace("older");
    node.restart();
    let state = "SELECT max(revision), (SELECT value FROM consent_gate.consent_gate_notes WHERE name = 'epoch')
        FROM consent_gate.consent_gate_records";
    let before = node.sql(state);
    lab.publish(vec![news(JANE, -30, true).into()]);
    let line = lab.worker().line_with("are older than those of");
    assert!(line.contains("cannot use the records") && line.contains("store adopt"), "{line}");
    poll_until("not ready", || (lab.admin("/readyz").0 == 503).then_some(()));
    assert_eq!(at_gate(&lab, JANE), "0");
    assert_eq!(node.sql(state), before, "nothing was written");
    for arguments in [["person", "show"], ["person", "forget"]] {
        let name = lab.integration().to_owned();
        let yes: &[&str] = if arguments[1] == "forget" { &["--yes"] } else { &[] };
        let refused = lab.run(&[&arguments[..], &["--integration", &name, JANE], yes].concat(), b"");
        assert!(refused.code == 1 && refused.err.contains("are older than those of"), "{}{}", refused.out, refused.err);
    }
    assert_eq!(node.sql(state), before, "nor by a command");
}
