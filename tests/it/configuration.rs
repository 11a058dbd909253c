//! Configuration: every problem at once, with its place and what to do.

use super::harness::{Finished, Folder, golden, project, run};
use serde_json::{Value, json};

fn check(folder: &Folder, environment: &[(&str, &str)]) -> Finished {
    run(folder, environment, &["check"], b"")
}

fn document() -> Value {
    json!({
        "type_id": "selligent",
        "authentication": { "username": "api_user", "password": "access_key" },
        "properties": { "url": "selligent.example.com", "gate": "didomi" },
        "mappings": [{ "id": "MAIL", "value": "organization_user_id" }],
        "upsert_mode": true,
    })
}

fn check_document(document: &Value) -> Finished {
    let folder = Folder::new();
    folder.write("integrations/acme.json", serde_json::to_string_pretty(document).unwrap());
    check(&folder, &[("GATE_KEY", "from-environment")])
}

#[test]
fn the_documented_document_loads_as_it_stands() {
    let folder = Folder::new();
    let text = std::fs::read_to_string(project().join("tests/fixtures/didomi-selligent.json")).unwrap();
    folder.write("integrations/acme.json", text);
    let checked = check(&folder, &[]);
    assert_eq!(checked.code, 0, "{}", checked.err);
    let [warning, told] = checked.out.lines().collect::<Vec<_>>()[..] else { panic!("{}", checked.out) };
    assert!(warning.starts_with("warning  ") && warning.contains("is the host of Didomi's example"), "{warning}");
    assert_eq!(
        told,
        "ok       integration acme: gate didomi at https://my-selligent-installation.com, 1 mapped, persons by MAIL"
    );
}

#[test]
fn the_older_form_loads() {
    let checked = check_document(&json!({ "config": {
        "url": "https://selligent.example.com/restapi/api/",
        "gate": "didomi",
        "authentication": { "username": "api_user", "password": "access_key" },
        "properties": [{ "id": "MAIL", "value": "organization_user_id" }],
    } }));
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert!(checked.out.contains("at https://selligent.example.com, 1 mapped"), "{}", checked.out);
}

/// Settings with a mistake in every section.
const WRONG_SETTINGS: &str = r#"[broker]
url = "http://localhost"
ca_file = "absent.pem"
[source]
exchange = "a"
queue = "b"
[gate]
timeout = "ten seconds"
max_in_fligth = 3
[retry]
delays = []
on_outage = "wait"
[admin]
listen = "localhost"
[logs]
level = "debug"
"#;

/// A document in which almost everything is wrong.
const WRONG_DOCUMENT: &str = r##"{
  "type_id": "salesforce",
  "authentication": { "password_file": "absent.key", "user": "x" },
  "properties": { "url": "http://gate.example.com", "gate": "", "mode": "sink" },
  "mappings": [
    { "id": "MAIL", "value": "organization_user_id" },
    { "id": "MAIL", "value": "country" },
    { "id": "NEWS", "value": "consent_purposes_newsletter_enabled" },
    { "id": "SMS", "value": "consents_purposes_sms" },
    { "id": "ZIP", "value": "country_zip" },
    { "id": "DATE", "value": "created_at", "date_format": "%Q%" },
    { "id": "DAY", "value": "updated_at", "date_format": "yyyy-MM-dd" },
    { "id": "TIME", "value": "created_at", "date_format": "%Y%m%d %-8é" },
    { "id": "WHEN", "value": "consents_purposes_newsletter_enabled", "date_format": "%Y" },
    { "id": "PUSH", "value": "consents_purposes_newsletter_enable" },
    { "id": "MADE", "value": "create_at" },
    { "id": "ADS", "value": "consents_vendors_google_enable" },
    { "id": "SAME", "value": "consents_purposes_x_enabled", "true": "1", "false": "1" },
    { "id": "BOTH", "value": "id", "constant": "x" },
    { "value": "id" },
  ],
  "upsert_mode": false,
  "bidirectional": true,
  "events": { "types": ["event.create"], "regulations": [], "binding_keys": ["acme*", "#", " acme.#"] },
  "overrides": { "gate": { "timeout": "0s" }, "retries": {} },
  "identifer": "MAIL",
}
"##;

#[test]
fn every_problem_is_reported_in_one_run() {
    let folder = Folder::new();
    folder.write("consent-gate.toml", WRONG_SETTINGS);
    folder.write("integrations/Acme Shop.json", document().to_string());
    folder.write("integrations/acme.json", WRONG_DOCUMENT);
    folder.write("integrations/empty.json", "{}");
    folder.write(
        "integrations/dollar.json",
        r#"{
  "authentication": { "username": "${GATE_USER", "password": "$GATE_KEY" },
  "properties": { "url": "https://$(GATE_HOST)/", "gate": "didomi" },
  "mappings": [{ "id": "MAIL", "value": "organization_user_id" }],
}
"#,
    );
    folder.write("integrations/broken.json", "{ \"type_id\": \"selligent\",\n \"mappings\": [ }");
    folder.write("integrations/.hidden.json", "not looked at");
    folder.write("integrations/README.md", "not looked at");
    let environment = [
        ("CONSENT_GATE_GATES__TIMEOUT", "5s"),
        ("CONSENT_GATE_GATE__CONNECT_TIMEOUT", "soon"),
        ("CONSENT_GATE_BROKER_URL", "amqp://user:hunter2@broker/%2f"),
        ("CONSENT_GATE_RETRY_ON_OUTAGE", "hold"),
        ("consent_gate_log__level", "debug"),
        ("GATE_KEY", "key"),
        ("GATE_HOST", "selligent.example.com"),
    ];
    let checked = check(&folder, &environment);
    assert_eq!(checked.code, 2);
    assert_eq!(checked.out, "");
    golden("check-problems.txt", &checked.err);
}

#[test]
fn secrets_come_as_literal_variable_or_file() {
    let with_password = |authentication: Value| {
        let mut document = document();
        document["authentication"] = authentication;
        document
    };
    for (authentication, code) in [
        (json!({ "username": "u", "password": "literal" }), 0),
        (json!({ "username": "u", "password": "${GATE_KEY}" }), 0),
        (json!({ "username": "u", "password": "${NOT_SET}" }), 2),
        (json!({ "username": "u", "password": "" }), 2),
        (json!({ "username": "u", "password_file": "absent" }), 2),
        (json!({ "username": "u", "password": "a", "password_file": "b" }), 2),
        (json!({ "username": "u" }), 2),
    ] {
        let checked = check_document(&with_password(authentication.clone()));
        assert_eq!(checked.code, code, "{authentication}: {}", checked.err);
    }
    for (variable, state) in
        [(("OTHER", "x"), "is not set"), (("ACME_KEY", ""), "is empty"), (("ACME_KEY", " \n"), "is empty")]
    {
        let folder = Folder::new();
        let document = with_password(json!({ "username": "u", "password": "${ACME_KEY}" }));
        folder.write("integrations/acme.json", document.to_string());
        let checked = check(&folder, &[variable]);
        let told = format!("environment variable ACME_KEY {state}; set it");
        assert!(checked.code == 2 && checked.err.contains(&told), "{}", checked.err);
    }
    let folder = Folder::new();
    folder.write("integrations/acme.key", "file-key\n");
    let document = with_password(json!({ "username": "u", "password_file": "acme.key" }));
    folder.write("integrations/acme.json", document.to_string());
    assert_eq!(check(&folder, &[]).code, 0, "relative to the document");
}

#[test]
fn the_url_is_read_in_all_its_spellings() {
    let at = |url: &str| {
        let mut document = document();
        document["properties"]["url"] = json!(url);
        check_document(&document)
    };
    for (url, base) in [
        ("example.com", "https://example.com"),
        ("example.com/", "https://example.com"),
        ("https://example.com/restapi", "https://example.com"),
        ("https://example.com/restapi/api", "https://example.com"),
        ("example.com:8443/restapi/api/", "https://example.com:8443"),
        ("http://localhost:9090", "http://localhost:9090"),
        ("http://127.0.0.1:9090/", "http://127.0.0.1:9090"),
        ("http://[::1]:9090/", "http://[::1]:9090"),
    ] {
        let checked = at(url);
        assert!(checked.out.contains(&format!("at {base},")), "{url}: {}{}", checked.out, checked.err);
    }
    for url in [
        "http://example.com",
        "ftp://example.com",
        "https://example.com/other",
        "https://u:p@example.com",
        "https://example.com?a=b",
        "https://",
    ] {
        assert_eq!(at(url).code, 2, "{url}");
    }
    let mut document = document();
    document["properties"] = json!({ "url": "http://simulator:9090", "gate": "g", "allow_http": true });
    assert_eq!(check_document(&document).code, 0);
}

#[test]
fn the_environment_wins_over_the_file() {
    let folder = Folder::new();
    folder.write("integrations/acme.json", document().to_string());
    folder.write(
        "consent-gate.toml",
        "[source]\nexchange = \"from-file\"\nbinding_keys = [\"a\"]\n[gate]\nmax_in_flight = 0\n",
    );
    assert_eq!(check(&folder, &[]).code, 2, "the file alone is wrong");
    let environment =
        [("CONSENT_GATE_GATE__MAX_IN_FLIGHT", "8"), ("CONSENT_GATE_SOURCE__BINDING_KEYS", "[\"x\", \"y\"]")];
    assert_eq!(check(&folder, &environment).code, 0);
    let wrong = [("CONSENT_GATE_GATE__MAX_IN_FLIGHT", "many"), ("CONSENT_GATE_SOURCE__BINDING_KEYS", "x")];
    let checked = check(&folder, &wrong);
    assert!(checked.err.contains("CONSENT_GATE_GATE__MAX_IN_FLIGHT: gate.max_in_flight"), "{}", checked.err);
    assert!(checked.err.contains("CONSENT_GATE_SOURCE__BINDING_KEYS: source.binding_keys"), "{}", checked.err);
}

#[test]
fn relative_paths_start_at_the_files_folder() {
    let folder = Folder::new();
    folder.write("etc/consent-gate.toml", "[broker]\nurl_file = \"broker.url\"\n");
    folder.write("etc/broker.url", "amqps://user:password@broker.example.com/%2f\n");
    folder.write("etc/integrations/acme.json", document().to_string());
    let file = folder.0.join("etc/consent-gate.toml");
    let file = file.to_str().unwrap();
    for arguments in [["--config", file, "check"], ["check", "--config", file]] {
        let checked = run(&folder, &[], &arguments, b"");
        assert_eq!(checked.code, 0, "{}", checked.err);
    }
}

#[test]
fn a_schedule_that_cannot_fit_is_refused() {
    let folder = Folder::new();
    let mut own = document();
    own["overrides"] = json!({ "gate": { "timeout": "30s" }, "retry": { "delays": ["1m", "1m", "1m"] } });
    folder.write("integrations/own.json", own.to_string());
    folder.write("integrations/usual.json", document().to_string());
    folder.write("consent-gate.toml", "[retry]\nwindow = \"2m\"\n[gate]\ntimeout = \"9s\"\n");
    let checked = check(&folder, &[]);
    assert_eq!(checked.code, 2);
    let lines: Vec<&str> = checked.err.lines().collect();
    assert_eq!(lines.len(), 2, "what is inherited is reported once: {}", checked.err);
    assert!(lines[0].contains("consent-gate.toml:2: retry: 5 attempts cannot fit"), "{}", lines[0]);
    assert!(lines[0].contains("220s of delays and 5 timeouts of 9s are 265s, more than 120s"), "{}", lines[0]);
    assert!(lines[1].contains("own.json:1: overrides.retry: 4 attempts cannot fit"), "{}", lines[1]);
}

#[test]
fn what_may_surprise_is_a_warning() {
    let folder = Folder::new();
    let mut first = document();
    first["properties"]["mode"] = json!("async");
    first["mappings"] = json!([{ "id": "MAIL", "value": "organization_user_id" }, { "id": "NEWS", "value": "consents_purposes_n_enabled" }]);
    first["events"] = json!({ "regulations": ["GDPR", "cpra"], "types": ["event.created", "user.deleted"] });
    let mut second = first.clone();
    second["properties"]["mode"] = json!("sync");
    second["authentication"]["password"] = json!("$SECRET_KEY");
    second["mappings"].as_array_mut().unwrap().extend([
        json!({ "id": "YES", "value": "consents_purposes_y_enabled", "true": "Y" }),
        json!({ "id": "NO", "value": "consents_purposes_z_enabled", "false": "N" }),
        json!({ "id": "SAME", "value": "consents_purposes_s_enabled", "true": "1" }),
        json!({ "id": "DAY", "value": "created_at", "date_format": "%d.%m.%Y", "true": "Y", "none": "-" }),
        json!({ "id": "FIX", "constant": "didomi", "false": "N" }),
    ]);
    second["events"] = json!({ "regulations": ["gpdr", "lgpd"], "binding_keys": ["acme.>", "", "#"] });
    folder.write("integrations/a.json", first.to_string());
    folder.write("integrations/b.json", second.to_string());
    folder.write("integrations/c.JSON", second.to_string());
    folder.write(
        "consent-gate.toml",
        "[broker]\nurl = \"amqp://u:p@broker.example.com/%2f\"\n[retry]\nwindow = \"5m\"\n",
    );
    let environment = [
        ("CONSENT_GATE_BROKER_ULR", "amqp://user:hunter2@broker/%2f"),
        ("CONSENT_GATE_COLOUR", "blue"),
        // What Kubernetes sets for a service of that name.
        ("CONSENT_GATE_SERVICE_HOST", "10.0.0.1"),
        ("CONSENT_GATE_PORT_9464_TCP_ADDR", "10.0.0.1"),
    ];
    let checked = check(&folder, &environment);
    assert_eq!(checked.code, 0, "{}", checked.err);
    golden("check-warnings.txt", &checked.out);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn check_reaches_out_only_when_asked() {
    let mut lab = super::harness::Lab::new();
    lab.declare();
    let reached = lab.run(&["check", "--connect"], b"");
    assert_eq!(reached.code, 0, "{}{}", reached.out, reached.err);
    assert!(reached.out.contains("reached and logged in") && reached.out.contains("gate's host"), "{}", reached.out);
    assert_eq!(lab.gate(0).outcome("accepted"), 0, "nothing was triggered");
    // A port on which nobody listens: one that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let document =
        std::fs::read_to_string(lab.folder.0.join(format!("integrations/{}.json", lab.integration()))).unwrap();
    let mut document: Value = serde_json::from_str(&document).unwrap();
    document["properties"]["url"] = json!(format!("http://{free}"));
    lab.folder.write(&format!("integrations/{}.json", lab.integration()), document.to_string());
    lab.set("CONSENT_GATE_BROKER__URL", &format!("amqp://guest:guest@{free}/%2f"));
    assert_eq!(lab.run(&["check"], b"").code, 0, "without --connect nobody is asked");
    let failed = lab.run(&["check", "--connect"], b"");
    assert_eq!(failed.code, 1);
    assert!(failed.err.contains("2 of 4 checks failed"), "{}{}", failed.out, failed.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn one_broken_document_keeps_nobody_from_looking_at_the_rest() {
    let lab = super::harness::Lab::new();
    lab.folder.write("integrations/broken.json", "{ \"name\": broken }");
    let checked = lab.run(&["check", "--connect"], b"");
    assert_eq!(checked.code, 2, "{}{}", checked.out, checked.err);
    for part in ["ok       broker", "ok       records", "ok       gate's host"] {
        assert!(checked.out.contains(part), "{part}: {}", checked.out);
    }
    assert!(
        checked.err.contains("broken.json:1: not JSON") && checked.err.contains("double quotes"),
        "{}",
        checked.err
    );
}

#[test]
fn a_key_that_is_only_the_beginning_of_a_required_one_is_to_be_renamed() {
    let mut document = document();
    document["authentication"] = json!({ "user": "api_user", "password": "access_key" });
    let checked = check_document(&document);
    assert!(checked.err.contains("authentication.username is missing; rename user, or write"), "{}", checked.err);
}

#[test]
fn what_is_wrong_is_told_from_top_to_bottom_with_what_would_be_right() {
    let folder = Folder::new();
    folder
        .write("wrong.toml", "[shutdown]\ndeadline = 30\n[gate]\ntimeout = 10\nmax_in_flight = 0\n[broker]\nbad = 1\n");
    let checked = run(&folder, &[], &["check", "--config", "wrong.toml"], b"");
    let lines: Vec<&str> = checked.err.lines().filter(|line| line.contains("wrong.toml:")).collect();
    let at: Vec<usize> =
        (2..8).filter(|line| lines.iter().any(|told| told.contains(&format!("wrong.toml:{line}:")))).collect();
    assert_eq!(at, [2, 4, 5, 7], "{}", checked.err);
    assert!(lines.is_sorted(), "{}", checked.err);
    assert!(lines[0].contains("a duration with its unit, such as \"10s\""), "{}", checked.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn check_tells_what_the_running_worker_and_its_dead_letters_say() {
    let mut lab = super::harness::Lab::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    lab.set("CONSENT_GATE_ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
    let check = |lab: &super::harness::Lab| lab.run(&["check", "--connect"], b"");
    let before = check(&lab);
    assert_eq!(before.code, 0, "{}{}", before.out, before.err);
    for told in ["none answers here", "none yet: the worker's first start", "its queues are not declared"] {
        assert!(before.out.contains(told), "{told}: {}", before.out);
    }
    assert!(!lab.folder.0.join("records").exists(), "a look makes no records");
    assert!(check(&lab).out.contains("are not declared"), "nor queues");
    lab.start();
    let well = check(&lab);
    assert_eq!(well.code, 0, "{}{}", well.out, well.err);
    assert!(
        well.out.contains("no proper answer from its gate since it started") && well.out.contains(": none\n"),
        "{}",
        well.out
    );
    lab.publish(super::harness::events("well", 1));
    lab.settled(1);
    assert!(check(&lab).out.contains("its gate accepts what it sends"));
    lab.gate(0).faults(json!([{ "status": 401 }]));
    lab.publish(super::harness::events("refused", 1));
    lab.settled(2);
    let refused = check(&lab);
    assert_eq!(refused.code, 1, "{}", refused.out);
    assert!(refused.out.contains("its gate refuses it (401"), "{}", refused.out);
    assert!(refused.out.contains("dead list --integration"), "{}", refused.out);
    // The worker goes on with the former document, and is looked at all the same.
    let file = lab.file(0);
    let right = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, right.replacen("\"mappings\"", "\"mapings\"", 1)).unwrap();
    let broken = check(&lab);
    assert_eq!(broken.code, 2, "{}", broken.out);
    assert!(broken.out.contains("its gate refuses it (401"), "{}", broken.out);
    assert!(broken.out.contains("dead list --integration"), "{}", broken.out);
    std::fs::write(&file, right).unwrap();
    lab.stop();
    // Other records, as after the loss of a disk: check refuses what run refuses.
    std::fs::rename(lab.folder.0.join("records"), lab.folder.0.join("away")).unwrap();
    let lost = check(&lab);
    assert_eq!(lost.code, 1, "{}", lost.out);
    assert!(lost.out.contains("new records would be refused"), "{}", lost.out);
    assert!(!lab.folder.0.join("records").exists());
    std::fs::rename(lab.folder.0.join("away"), lab.folder.0.join("records")).unwrap();
    assert!(!check(&lab).out.contains("failed   records"));
    lab.set("CONSENT_GATE_RECORDS__STORE", "off");
    let off = check(&lab);
    assert!(off.out.contains("the broker knows records, store "), "{}", off.out);
}

#[test]
fn what_has_the_right_type_and_cannot_be_meant_is_told() {
    let folder = Folder::new();
    let document = |identifier: &str, format: &str| {
        json!({
            "type_id": "selligent", "authentication": { "username": "u", "password": "key" },
            "properties": { "url": "gate.example.net", "gate": "g" }, "identifier": identifier,
            "mappings": [
                { "id": "MAIL", "value": "organization_user_id" },
                { "id": "SOURCE", "constant": "didomi" },
                { "id": "AT", "value": "created_at", "date_format": format },
            ],
        })
    };
    folder.write("integrations/acme.json", document("MAIL", "%Y-%m-%d %H:%m").to_string());
    folder.write("integrations/shop.json", document("SOURCE", "%Y").to_string());
    folder.write("consent-gate.toml", "[gate]\nmax_in_flight = 0\nrequests_per_second = 0\n");
    let checked = run(&folder, &[], &["check"], b"");
    for told in [
        "gate.max_in_flight is 0; it must be from 1 to 10000",
        "gate.requests_per_second is 0; it must be from 0.001 to 1000000",
        "\"SOURCE\" is a constant, which cannot identify a person",
        "\"%Y-%m-%d %H:%m\" has an hour, the month (%m) twice, and no minutes, which are %M",
    ] {
        assert!(checked.code == 2 && checked.err.contains(told), "{told}: {}", checked.err);
    }
    for (name, format) in [("acme", "%H:%M %d.%m.%Y"), ("shop", "%Hh %d.%m.%Y"), ("news", "Id %d.%m. %Hh")] {
        folder.write(&format!("integrations/{name}.json"), document("MAIL", format).to_string());
    }
    folder.write("consent-gate.toml", "[gate]\ntimeout = \"10s\"\nconnect_timeout = \"20s\"\n");
    let checked = run(&folder, &[], &["check"], b"");
    assert_eq!(checked.code, 0, "{}", checked.err);
    let told = checked.out + &checked.err;
    assert!(told.contains("gate.connect_timeout is longer than the timeout, 10s, which counts"), "{told}");
}

#[test]
fn what_could_not_work_is_refused_before_the_start() {
    let with = |toml: &str| {
        let folder = Folder::new();
        folder.write("integrations/acme.json", document().to_string());
        folder.write("consent-gate.toml", toml);
        folder.write("not.pem", "not a certificate");
        check(&folder, &[("RABBIT", "amqp://guest:guest@localhost:5672/%2f")])
    };
    let long = "x".repeat(256);
    for (toml, why) in [
        ("[source]\nqueue = \"consent-gate.acme.dead\"", "source.queue names one of the worker's own queues"),
        ("[gate]\nrequests_per_second = 1e-20", "requests_per_second is 0.00000000000000000001; it must be from 0.001"),
        (&format!("[source]\nexchange = \"{long}\""), "source.exchange is longer than 255 bytes"),
        (&format!("[source]\nbinding_keys = [\"{long}\"]"), "source.binding_keys is longer than 255 bytes"),
        ("[broker]\nca_file = \"not.pem\"", "broker.ca_file contains no certificate"),
        ("[broker]\nurl = \"amqp://guest:p@ss/w0rd@localhost:5672/%2f\"", "percent-encode user and password"),
        ("[broker]\nurl = \"s3cretpw:x@host:5672\"", "broker.url: "),
    ] {
        let checked = with(toml);
        assert!(checked.code == 2 && checked.err.contains(why), "{toml}: {}{}", checked.out, checked.err);
        assert!(!checked.err.contains("w0rd") && !checked.err.contains("s3cretpw"), "{}", checked.err);
    }
    assert_eq!(with("[broker]\nurl = \"${RABBIT}\"").code, 0, "variables are expanded");
    let mut document = document();
    document["mappings"] = json!([{ "id": "X", "value": "consents_purposes_n_enabled" }]);
    document["identifier"] = json!("X");
    assert!(check_document(&document).err.contains("cannot identify a person"));
}

#[test]
fn spans_go_to_another_machine_only_by_tls_or_when_that_is_allowed() {
    let folder = Folder::new();
    folder.write("integrations/acme.json", document().to_string());
    let endpoint = ("CONSENT_GATE_TRACES__ENDPOINT", "http://collector.example.com:4318/v1/traces");
    let refused = check(&folder, &[endpoint]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("traces.allow_http = true"), "{}", refused.err);
    let allowed = check(&folder, &[endpoint, ("CONSENT_GATE_TRACES__ALLOW_HTTP", "true")]);
    assert_eq!(allowed.code, 0, "{}", allowed.err);
}

#[test]
fn an_address_that_is_misspelt_or_misplaced_is_refused_and_never_shown() {
    let wrong = [
        "postgre://worker:hunter2@db/consents",
        "Postgres://worker:hunter2@db/consents",
        "mysql://worker:hunter2@db/consents",
        "postgres:/worker:hunter2@db/consents",
        "worker:hunter2@db/consents",
        "host=db user=worker password=hunter2",
    ];
    for url in wrong {
        let folder = Folder::new();
        folder.write("integrations/acme.json", document().to_string());
        let checked = check(&folder, &[("CONSENT_GATE_RECORDS__STORE", url)]);
        assert_eq!(checked.code, 2, "{url}: {}", checked.out);
        assert!(checked.err.contains("records.store") && checked.err.contains("write one of them"), "{}", checked.err);
        assert!(!(checked.out + &checked.err).contains("hunter2"), "{url}");
    }
    let right = "\u{feff} postgresql://worker:hunter2@localhost/consents\r\n";
    let folder = Folder::new();
    folder.write("integrations/acme.json", document().to_string());
    assert_eq!(check(&folder, &[("CONSENT_GATE_RECORDS__STORE", right)]).code, 0);
    for key in [
        "ADMIN__LISTEN",
        "BROKER__URL",
        "BROKER__URL_FILE",
        "BROKER__CA_FILE",
        "GATE__TIMEOUT",
        "INTEGRATIONS__DIRECTORY",
        "LOG__LEVEL",
        "RECORDS__STORE_FILE",
        "RETRY__DELAYS",
        "TRACES__ENDPOINT",
    ] {
        for url in wrong {
            let checked = check(&folder, &[(&format!("CONSENT_GATE_{key}"), url)]);
            assert_eq!(checked.code, 2, "{key} {url}: {}", checked.out);
            assert!(!(checked.out + &checked.err).contains("hunter2"), "{key} {url}");
        }
    }
    for (pointer, url) in ["type_id", "identifier", "records"].into_iter().flat_map(|key| wrong.map(|url| (key, url))) {
        let mut document = document();
        document[pointer] = json!(url);
        let checked = check_document(&document);
        assert_eq!(checked.code, 2, "{pointer} {url}");
        assert!(!(checked.out + &checked.err).contains("hunter2"), "{pointer} {url}: {}", checked.err);
    }
    for url in wrong {
        let mut document = document();
        document["properties"]["url"] = json!(url);
        document["mappings"][0]["value"] = json!(url);
        document["authentication"]["password"] = json!(format!("${{{url}}}"));
        let checked = check_document(&document);
        assert_eq!(checked.code, 2);
        assert!(!checked.err.contains("hunter2"), "{url}: {}", checked.err);
    }
}

#[test]
fn what_an_editor_leaves_around_a_value_is_dropped() {
    let folder = Folder::new();
    let mut document = document();
    document["authentication"] = json!({ "username": "user ", "password_file": "acme.key" });
    document["properties"]["url"] = json!("\u{feff}example.com \r\n");
    folder.write("integrations/acme.json", format!("\u{feff}{document}\r\n"));
    folder.write("integrations/acme.key", "\u{feff} file-key \r\n");
    folder.write("consent-gate.toml", "\u{feff}[broker]\r\nurl_file = \"broker.url\"\r\n");
    folder.write("broker.url", "\u{feff}amqp://guest:guest@localhost:5672/%2f\r\n");
    let checked = check(&folder, &[("CONSENT_GATE_GATE__TIMEOUT", " 10s\r\n")]);
    assert_eq!(checked.code, 0, "{}", checked.err);
    folder.write("integrations/acme.key", "one\r\ntwo\r\n");
    let checked = check(&folder, &[]);
    assert_eq!(checked.code, 2);
    assert!(checked.err.contains("password_file contains a line end"), "{}", checked.err);
}

#[test]
fn a_file_that_powershell_wrote_is_named_as_such() {
    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    for mark in [&b"\xff\xfe"[..], b""] {
        let folder = Folder::new();
        folder.write("integrations/acme.json", [mark, &utf16(&document().to_string())].concat());
        folder.write("consent-gate.toml", [mark, &utf16("[gate]\n")].concat());
        let checked = check(&folder, &[]);
        assert_eq!(checked.code, 2);
        assert_eq!(checked.err.matches("saved as UTF-16; save it as UTF-8").count(), 2, "{}", checked.err);
    }
}

#[test]
fn a_key_that_everybody_may_read_deserves_a_word() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let mut document = document();
    document["authentication"] = json!({ "username": "u", "password_file": "acme.key" });
    folder.write("integrations/acme.json", document.to_string());
    let key = folder.write("integrations/acme.key", "file-key\n");
    for (mode, is_told) in [(0o644, true), (0o640, false), (0o600, false)] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let checked = check(&folder, &[]);
        assert_eq!((checked.code, checked.out.contains("can be read by everybody")), (0, is_told), "{}", checked.out);
    }
}

#[test]
fn the_host_of_the_example_deserves_a_word() {
    let mut document = document();
    document["properties"]["url"] = json!("https://my-selligent-installation.com");
    let told = "properties.url: my-selligent-installation.com is the host of Didomi's example";
    let checked = check_document(&document);
    assert!(checked.code == 0 && checked.out.contains(told), "{}", checked.out);
    document["properties"]["url"] = json!("selligent.acme.example");
    let checked = check_document(&document);
    assert!(checked.code == 0 && !checked.out.contains("is the host of"), "{}", checked.out);
}

#[test]
fn a_document_as_didomis_api_gives_it_back_loads() {
    let mut document = document();
    for key in ["id", "organization_id", "created_at", "updated_at", "status", "name", "version", "enabled"] {
        document[key] = json!("x");
    }
    document["mappings"][0]["created_at"] = json!("x");
    document["properties"]["secret_id"] = json!("x");
    let checked = check_document(&document);
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert_eq!(checked.out.matches("is unknown and changes nothing").count(), 10, "{}", checked.out);
    document["identifer"] = json!("MAIL");
    let checked = check_document(&document);
    assert_eq!(checked.code, 2);
    assert!(checked.err.contains("identifer is unknown; did you mean identifier?"), "{}", checked.err);
}

#[test]
fn a_key_that_is_misspelt_is_told_once() {
    let mut document = document();
    let url = document["properties"].as_object_mut().unwrap().remove("url").unwrap();
    document["properties"]["ulr"] = url;
    let checked = check_document(&document);
    assert_eq!((checked.code, checked.err.lines().count()), (2, 1), "{}", checked.err);
    assert!(checked.err.contains("properties.ulr is unknown; did you mean url?"), "{}", checked.err);
}

#[test]
fn a_setting_that_is_not_utf_8_is_an_error_and_another_variable_is_not() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new();
    folder
        .write("integrations/acme.json", std::fs::read_to_string(project().join("integration.example.json")).unwrap());
    let latin = std::ffi::OsStr::from_bytes(b"amqp://gate:pa\xdf@localhost:5672");
    let checked = |name: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_consent-gate"))
            .arg("check")
            .current_dir(&folder.0)
            .env_clear()
            .env("ACME_GATE_KEY", "key")
            .env(name, latin)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = checked("CONSENT_GATE_BROKER__URL");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("the value of CONSENT_GATE_BROKER__URL is not UTF-8"), "{said}");
    assert!(!said.contains("pa"), "{said}");
    assert_eq!(checked("SOMETHING_ELSE").0, 0);
}
