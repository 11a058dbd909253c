//! The command line: help, misspellings, pipes, exit codes.

use super::harness::{Folder, Lab, choice, golden, run};
use serde_json::{Value, json};

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
    let told = run(&folder, &[], &["man", "file"], b"");
    assert_eq!(told.code, 1);
    assert!(told.err.contains("cannot write to file"), "{}", told.err);
}

#[test]
fn a_misspelling_gets_a_suggestion_and_exit_code_2() {
    let wrong = run(&Folder::new(), &[], &["chekc"], b"");
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("'check'"), "{}", wrong.err);
}

#[test]
fn an_unknown_integration_is_told_with_those_that_are_there() {
    let lab = Lab::new();
    lab.declare();
    let wrong = lab.run(&["map", "--integration", "acme"], b"{}");
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains(&format!("known: {}", lab.integration())), "{}", wrong.err);
}

#[test]
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
fn an_event_that_cannot_be_read_is_told() {
    let lab = Lab::new();
    lab.declare();
    let wrong = lab.run(&["map", "--integration", lab.integration(), "absent.json"], b"");
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("event absent.json cannot be read"), "{}", wrong.err);
}

/// Without an event, or with a file that is not there.
#[test]
fn what_is_missing_is_told_with_what_to_do() {
    let lab = Lab::new();
    lab.declare();
    let integration = ["--integration", lab.integration()];
    for (arguments, part) in [
        (&["map"][..], "error: no event on standard input; name a file, or pipe one in"),
        (&["send", "-"], "error: no event on standard input; name a file, or pipe one in"),
        (&["dead", "import", "absent.jsonl"], "error: absent.jsonl cannot be read: No such file or directory"),
    ] {
        let told = lab.run(&[arguments, &integration].concat(), b"");
        assert_eq!(told.code, 2, "{}", told.err);
        assert!(told.err.contains(part), "{part} in {}", told.err);
    }
}

#[test]
fn a_broker_that_does_not_let_a_command_in_is_told_with_what_to_look_at() {
    let lab = Lab::new();
    let right = lab.environment["CONSENT_GATE_BROKER__URL"].clone();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, part) in [
        (right.replace("guest:guest", "guest:wrong-secret"), "look at user and password in broker.url"),
        (right.replace("%2f", "nowhere"), "look at the virtual host in broker.url"),
        (format!("amqp://guest:guest@{free}/%2f"), "is the broker running, and is broker.url right?"),
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
fn a_misspelt_secret_key_gets_a_suggestion() {
    let folder = Folder::new();
    folder.write("consent-gate.toml", "[broker]\nurls = \"amqp://localhost\"\n");
    let told = run(&folder, &[], &["check"], b"");
    assert_eq!(told.code, 2);
    assert!(told.err.contains("consent-gate.toml:2: unknown key broker.urls; did you mean url?"), "{}", told.err);
}

#[test]
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
fn send_shows_who_answered_in_the_gates_place() {
    let lab = Lab::new();
    lab.gate(0).faults(json!([{ "in_place": "firewall" }]));
    let arguments = ["send", "--yes", "--integration", lab.integration(), "-"];
    let sent = lab.run(&arguments, choice("jane@example.com", true).to_string().as_bytes());
    assert_eq!(sent.code, 1);
    assert!(sent.out.contains("Request Rejected"), "{}", sent.out);
    assert!(sent.out.contains("result   not_the_gate: status 200, not the gate's answer: a page"), "{}", sent.out);
    assert!(sent.err.contains("a firewall, a proxy or a login page"), "{}", sent.err);
}

#[test]
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
