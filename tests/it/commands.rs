//! The command line: help, misspellings, pipes, exit codes.

use super::harness::{Folder, Lab, Schema, choice, golden, run};
use super::newest::{JANE, at_gate, deliver, news};
use super::tls::{address, certificates, in_front_of};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

fn help(arguments: &[&str]) -> String {
    let shown = run(&Folder::new(), &[("COLUMNS", "100")], arguments, b"");
    assert_eq!(shown.code, 0, "{}", shown.err);
    shown.out
}

#[test]
fn help_is_as_it_was_read_over() {
    let mut all = help(&["--help"]);
    let letters = ["list", "show", "replay", "discard", "export", "import"].map(|verb| format!("dead {verb}"));
    let first = ["run", "check", "declare", "map", "send", "dead"].map(str::to_owned);
    let last = ["person show", "person forget", "store show", "store adopt", "healthcheck", "completions", "man"];
    for command in first.into_iter().chain(letters).chain(last.map(str::to_owned)) {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        all = all + "\n--- " + &command + "\n" + &help(&arguments);
    }
    golden("help.txt", &all);
}

#[test]
fn shells_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = help(&["completions", shell]);
        assert!(script.contains("abort-above") && script.contains("healthcheck"), "{shell}");
    }
}

#[test]
fn manual_pages_that_cannot_be_written_are_told() {
    let folder = Folder::new();
    folder.write("file", "");
    for path in ["file", "file/below"] {
        let told = run(&folder, &[], &["man", path], b"");
        assert_eq!(told.code, 2, "what was named can be no directory");
        assert!(told.err.contains(&format!("cannot write to {path}: it is or lies below a file")), "{}", told.err);
    }
    let told = run(&folder, &[], &["man", "/proc/man"], b"");
    assert!(told.code == 1 && told.err.contains("name a directory that you may write"), "{}", told.err);
}

#[test]
fn a_misspelling_gets_a_suggestion_and_exit_code_2() {
    let wrong = run(&Folder::new(), &[], &["chekc"], b"");
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("'check'"), "{}", wrong.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_unknown_integration_is_told_with_those_that_are_there() {
    let lab = Lab::new();
    lab.declare();
    let absent = lab.run(&["map", "--integration", "absent.json"], b"{}");
    assert!(absent.code == 2 && absent.err.contains("name a document that exists"), "{}", absent.err);
    let wrong = lab.run(&["map", "--integration", "acme"], b"{}");
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains(&format!("known: {}", lab.integration())), "{}", wrong.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_wrong_with_one_document_keeps_no_command_from_another() {
    let lab = Lab::new();
    lab.declare();
    lab.folder.write("integrations/broken.json", "{ \"type_id\": ");
    let event = choice("jane@example.com", true).to_string();
    for arguments in [&["map"][..], &["dead", "list"], &["dead", "export", "--to", "-"]] {
        let done = lab.run(&[arguments, &["--integration", lab.integration()]].concat(), event.as_bytes());
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.err);
    }
    let checked = lab.run(&["check"], b"");
    assert!(checked.code == 2 && checked.err.contains("broken.json"), "{}", checked.err);
    let wrong = lab.run(&["dead", "list", "--integration", "broken"], b"");
    assert!(wrong.code == 2 && wrong.err.contains("broken.json"), "{}", wrong.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_empty_identifier_is_nobody() {
    let lab = Lab::new();
    for arguments in [&["person", "forget", "--yes"][..], &["person", "show"]] {
        for nobody in ["", "   "] {
            let more = ["--integration", lab.integration(), nobody];
            let wrong = lab.run(&[arguments, &more].concat(), b"");
            assert!(wrong.code == 2 && wrong.err.contains("the identifier is empty"), "{}{}", wrong.out, wrong.err);
        }
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_event_that_cannot_be_read_is_told() {
    let lab = Lab::new();
    lab.declare();
    let wrong = lab.run(&["map", "--integration", lab.integration(), "absent.json"], b"");
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("event absent.json cannot be read"), "{}", wrong.err);
}

/// Without an event, or with a file that is not there.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_is_missing_is_told_with_what_to_do() {
    let lab = Lab::new();
    lab.declare();
    let integration = ["--integration", lab.integration()];
    for (arguments, part) in [
        (&["map"][..], "error: no event on standard input; name a file, or pipe one in"),
        (&["send", "-"], "error: no event on standard input; name a file, or pipe one in"),
        (&["dead", "import", "absent.jsonl"], "error: absent.jsonl cannot be read: No such file or directory"),
        (&["dead", "import", "integrations"], "error: integrations cannot be read: it is a directory"),
        (
            &["dead", "import", "/dev/null"],
            "line 1: the file ends here; it was truncated; name a file that dead export",
        ),
    ] {
        let told = lab.run(&[arguments, &integration].concat(), b"");
        assert_eq!(told.code, 2, "{}", told.err);
        assert!(told.err.contains(part), "{part} in {}", told.err);
    }
}

/// A port that answers everything as a web server would.
fn web_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    address
}

/// A port on which nobody listens: one that was free a moment ago.
fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_that_does_not_let_a_command_in_is_told_with_what_to_look_at() {
    let lab = Lab::new();
    let right = lab.environment["CONSENT_GATE_BROKER__URL"].clone();
    let (closed, web) = (closed_port(), web_server());
    let (_, config) = certificates();
    let tls = in_front_of(&lab, address(&right), config);
    for (url, part) in [
        (right.replace("guest:guest", "guest:wrong-secret"), "check user and password in broker.url"),
        (right.replace("%2f", "nowhere"), "check the virtual host in broker.url"),
        (format!("amqp://guest:guest@{closed}/%2f"), "is the broker running, and is broker.url right?"),
        (format!("amqp://guest:guest@{web}/%2f"), "does not speak AMQP 0-9-1; check host and port in broker.url"),
        (format!("amqps://guest:guest@localhost:{}/%2f", web.port()), "does not speak TLS; write amqp://"),
        (right.replace("amqp://", "amqps://").replace("127.0.0.1", "localhost"), "does not speak TLS; write amqp://"),
        (format!("amqp://guest:guest@localhost:{tls}/%2f"), "needs amqps://"),
        (format!("amqps://guest:guest@localhost:{tls}/%2f"), "signed it in broker.ca_file"),
        ("amqp://guest:guest@nowhere.invalid/%2f".to_owned(), "no address is known for the name nowhere.invalid"),
    ] {
        let told = lab.run_with(
            &[("CONSENT_GATE_BROKER__URL", &url)],
            &["dead", "list", "--integration", lab.integration()],
            b"",
        );
        assert_eq!(told.code, 1, "{}", told.err);
        assert!(told.err.contains(part) && !told.err.contains("wrong-secret"), "{part} in {}", told.err);
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn records_that_cannot_be_reached_are_told_with_what_to_look_at() {
    let lab = Lab::new();
    let (closed, web) = (closed_port(), web_server());
    lab.folder.write("file", "");
    let mut missing: reqwest::Url = Schema::new().url().parse().unwrap();
    missing.set_path("/missing_database");
    for (store, part) in [
        (
            format!("postgres://acme:secret-word@{closed}/x"),
            "is PostgreSQL running, and are host and port in records.store",
        ),
        (format!("postgres://acme:secret-word@{web}/x"), "what listens there may not be PostgreSQL"),
        ("postgres://acme:secret-word@nowhere.invalid/x".to_owned(), "is the host in records.store spelled correctly?"),
        (missing.to_string(), "name one that exists in records.store, or create it"),
        ("file".to_owned(), "a file is in its place; set records.store to a directory"),
        ("file/below".to_owned(), "a file is in its path; set records.store to a directory"),
    ] {
        let more = [("CONSENT_GATE_RECORDS__STORE", &*store)];
        let told = lab.run_with(&more, &["store", "show"], b"");
        assert!(told.code == 1 && told.err.contains(part), "{part} in {}", told.err);
        let checked = lab.run_with(&more, &["check", "--connect"], b"");
        assert!(checked.code == 1 && checked.out.contains(part), "{part} in {}", checked.out);
        assert!(!format!("{}{}{}", told.err, checked.out, checked.err).contains("secret-word"));
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_event_that_would_be_a_dead_letter_is_a_failure_of_map() {
    let lab = Lab::new();
    let map = ["map", "--integration", lab.integration()];
    let told = lab.run(&map, b"{\"type\":");
    assert_eq!(told.code, 1, "{}", told.out);
    assert!(told.err.starts_with("error: this event would be a dead letter: undecodable: body:"), "{}", told.err);
    let mut skipped = choice("jane@example.com", true);
    skipped["parameters"]["entity"]["status"] = "pending_approval".into();
    let told = lab.run(&map, skipped.to_string().as_bytes());
    assert!(told.code == 0 && told.out.contains("would be skipped"), "{}{}", told.out, told.err);
}

#[test]
fn a_misspelt_secret_key_gets_a_suggestion() {
    let folder = Folder::new();
    folder.write("consent-gate.toml", "[broker]\nurls = \"amqp://localhost\"\n");
    let told = run(&folder, &[], &["check"], b"");
    assert_eq!(told.code, 2);
    assert!(told.err.contains("consent-gate.toml:2: broker.urls is unknown; did you mean url?"), "{}", told.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn send_asks_and_without_anybody_to_ask_wants_yes() {
    let lab = Lab::new();
    lab.declare();
    let event = choice("jane@example.com", true).to_string();
    let unasked = lab.run(&["send", "--integration", lab.integration(), "-"], event.as_bytes());
    assert_eq!(unasked.code, 2);
    assert!(unasked.err.contains("add --yes"), "{}", unasked.err);
    assert_eq!(lab.gate(0).outcome("accepted"), 0);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn send_undoes_nothing_that_is_on_record() {
    let mut lab = Lab::new();
    let arguments = ["send", "--yes", "--integration", lab.integration(), "-"].map(str::to_owned);
    let send = |lab: &Lab, event: serde_json::Value| {
        lab.run(&arguments.each_ref().map(String::as_str), event.to_string().as_bytes())
    };
    lab.start();
    deliver(&mut lab, news(JANE, -10, false), 1);
    for is_running in [true, false] {
        if !is_running {
            lab.stop();
        }
        let older = send(&lab, news(JANE, -60, true));
        assert!(older.code == 1 && older.err.contains("newer choices of this person are on record"), "{}", older.err);
        assert!(older.err.contains("use a test person"), "{}", older.err);
        assert_eq!(at_gate(&lab, JANE), "0");
    }
    assert_eq!(send(&lab, news("test@example.com", -60, true)).code, 0, "nothing is on record of a test person");
    let forget = ["person", "forget", "--yes", "--integration", lab.integration(), JANE];
    assert_eq!(lab.run(&forget, b"").code, 0);
    let erased = send(&lab, news(JANE, -5, true));
    assert!(erased.code == 1 && erased.err.contains("would be skipped (erased)"), "{}", erased.err);
    assert_eq!(lab.gate(0).outcome("accepted"), 2);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn send_shows_who_answered_in_the_gates_place() {
    let lab = Lab::new();
    lab.gate(0).faults(json!([{ "in_place": "firewall" }]));
    let arguments = ["send", "--yes", "--integration", lab.integration(), "-"];
    let sent = lab.run(&arguments, choice("jane@example.com", true).to_string().as_bytes());
    assert_eq!(sent.code, 1);
    assert!(sent.out.contains("Request Rejected"), "{}", sent.out);
    assert!(sent.out.contains("result   not_the_gate: status 200, not the gate's answer: a page"), "{}", sent.out);
    assert!(sent.out.contains("verdict  an event would be retried"), "nothing was sent twice: {}", sent.out);
    assert!(sent.err.contains("a firewall, a proxy or a login page"), "{}", sent.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn send_tells_a_wrong_key_from_a_good_one() {
    let lab = Lab::new();
    lab.declare();
    let event = choice("jane@example.com", true).to_string();
    let arguments = ["send", "--json", "--yes", "--integration", lab.integration(), "-"];
    let sent = lab.run(&arguments, event.as_bytes());
    assert_eq!(sent.code, 0, "{}", sent.err);
    let told: Value = serde_json::from_str(&sent.out).unwrap();
    assert_eq!(
        (&told["result"], &told["status"], &told["verdict"]),
        (&json!("accepted"), &json!(200), &json!("delivered"))
    );
    let file = format!("integrations/{}.json", lab.integration());
    let document = std::fs::read_to_string(lab.folder.0.join(&file)).unwrap().replace("s3cr3t-encryption-key", "wrong");
    lab.folder.write(&file, document);
    let refused = lab.run(&arguments, event.as_bytes());
    assert_eq!(refused.code, 1);
    let told: Value = serde_json::from_str(&refused.out).unwrap();
    assert_eq!((&told["result"], &told["status"]), (&json!("misconfigured"), &json!(401)));
    assert!(refused.err.contains("check user, key"), "{}", refused.err);
    assert_eq!(lab.gate(0).outcome("bad_signature"), 1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_event_that_is_not_for_the_gate_is_not_sent() {
    let lab = Lab::new();
    lab.declare();
    let mut event = choice("jane@example.com", true);
    event["parameters"]["entity"]["status"] = json!("pending_approval");
    let arguments = ["send", "--yes", "--integration", lab.integration(), "-"];
    let sent = lab.run(&arguments, event.to_string().as_bytes());
    assert_eq!(sent.code, 1);
    assert!(sent.err.contains("skipped (pending)"), "{}", sent.err);
}
