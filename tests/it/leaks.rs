//! Nothing leaks: no secret and no personal value in a log, a metric or an error.

use super::harness::{Lab, choice, run};
use serde_json::json;

const PERSON: &str = "jane.doe+private@mail.example.com";

fn assert_clean(what: &str, text: &str) {
    for secret in
        ["s3cr3t-encryption-key", "jane.doe", "mail.example.com", "private@", "hmac api_user", "brok3r-passw0rd"]
    {
        assert!(!text.to_lowercase().contains(secret), "{secret} is in {what}:\n{text}");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn nothing_personal_or_secret_is_in_logs_at_level_trace_or_in_metrics() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_LOG__LEVEL", "trace");
    lab.start();
    let good = choice(PERSON, true);
    let mut odd_id = choice(PERSON, true);
    odd_id["parameters"]["entity"]["id"] = json!(PERSON);
    let mut odd_type = choice(PERSON, true);
    odd_type["type"] = json!(PERSON);
    let mut wrong = choice(PERSON, true);
    wrong["parameters"]["entity"]["status"] = json!(PERSON);
    let not_json = format!("{{\"user\": {PERSON}").into_bytes();
    lab.publish(vec![good.clone().into(), odd_id.into(), odd_type.into(), wrong.into(), not_json.into()]);
    lab.settled(5);
    let faults = [
        json!({ "status": 400, "error": format!("no profile {PERSON}") }),
        json!({ "status": 200, "is_success": false, "error": PERSON }),
        json!({ "body": format!("<html>{PERSON}</html>") }),
        json!({ "status": 400, "error": "bad \\u006aane.doe%2Bprivate%40mail.example.com" }),
        json!({ "reset": true }),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        lab.gate(0).faults(json!([fault]));
        lab.publish(vec![good.clone().into()]);
        lab.settled(6 + index);
    }
    let (_, metrics) = lab.admin("/metrics");
    let (_, ready) = lab.admin("/readyz");
    assert_clean("/metrics", &metrics);
    assert_clean("/readyz", &ready);
    for letter in lab.dead() {
        for name in letter.header_names() {
            assert_clean(&name, &letter.header(&name).unwrap());
        }
    }
    lab.worker().signal("TERM");
    lab.worker().ended();
    let log = lab.worker().text();
    assert!(log.contains("\"TRACE\""), "the level is in force:\n{log}");
    assert_clean("the log", &log);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_brokers_password_is_not_shown_when_it_cannot_be_used() {
    let mut lab = Lab::new();
    lab.declare();
    let url = lab.environment["CONSENT_GATE_BROKER__URL"].replace("guest:guest@", "guest:brok3r-passw0rd@");
    lab.set("CONSENT_GATE_BROKER__URL", &url);
    lab.set("CONSENT_GATE_LOG__LEVEL", "trace");
    lab.spawn();
    let line = lab.worker().line_with("cannot use the broker");
    assert!(line.contains("ACCESS") || line.contains("refused"), "it says why: {line}");
    assert_clean("the log", &lab.worker().text());
    let checked = lab.run(&["check", "--connect"], b"");
    assert_eq!(checked.code, 1);
    assert_clean("check", &(checked.out + &checked.err));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn send_masks_every_value_and_the_signature() {
    let lab = Lab::new();
    lab.declare();
    let event = choice(PERSON, true).to_string();
    let arguments = ["send", "--integration", lab.integration(), "-", "--yes"];
    let sent = lab.run(&arguments, event.as_bytes());
    assert_eq!(sent.code, 0, "{}", sent.err);
    assert!(sent.out.contains("status   200"), "{}", sent.out);
    assert!(sent.err.contains("properties MAIL, OPTIN_NEWS, SOURCE"), "{}", sent.err);
    assert_clean("send", &(sent.out + &sent.err).replace("hmac api_user:***", ""));
    lab.gate(0).faults(json!([{ "status": 400, "error": format!("{PERSON} is refused") }]));
    let refused = lab.run(&arguments, event.as_bytes());
    assert_eq!(refused.code, 1);
    assert_clean("send", &(refused.out + &refused.err).replace("hmac api_user:***", ""));
}

#[test]
fn problems_of_configuration_do_not_quote_secrets() {
    let folder = super::harness::Folder::new();
    folder.write(
        "integrations/acme.json",
        r#"{ "authentication": { "username": "u ser", "password": "s3cr3t-encryption-key", "passwort": "s3cr3t-encryption-key" },
             "properties": { "url": "https://jane.doe:s3cr3t-encryption-key@mail.example.com" } "#,
    );
    folder.write(
        "consent-gate.toml",
        "[broker]\nurl = \"amqp://guest:brok3r-passw0rd@[::1]:5672/\"\nurl = brok3r-passw0rd\n",
    );
    let checked = run(&folder, &[], &["check"], b"");
    assert_eq!(checked.code, 2);
    assert_clean("check", &checked.err);
}
