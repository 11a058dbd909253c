//! The simulator as its users see it: a process of its own, reached over loopback.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::harness::poll_until;
use ring::hmac;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_gate-simulator");
const SYNC: &str = "/restapi/api/sync/campaigns/triggerbyjson";
const ASYNC: &str = "/restapi/api/async/campaigns/triggerbyjson";
const JSON: &str = "Content-Type: application/json\r\n";

/// A directory with integration documents, removed at the end.
struct Documents(PathBuf);

impl Documents {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("gate-simulator-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(unique);
        fs::create_dir_all(&directory).unwrap();
        let documents = Self(directory);
        documents.write("shop", "shop-user", "shop-gate");
        documents.write("news", "news-user", "news-gate");
        documents
    }

    fn write(&self, name: &str, user: &str, gate: &str) {
        let document = json!({
            "type_id": "selligent",
            "authentication": {"username": user, "password": "access_key"},
            "properties": {"url": "gate.example.com", "gate": gate},
            "mappings": [
                {"id": "MAIL", "value": "organization_user_id"},
                {"id": "OPTIN", "value": "consents_purposes_newsletter_enabled"}
            ],
            "upsert_mode": true
        });
        fs::write(self.path(name), document.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }
}

impl Drop for Documents {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running simulator with the integrations `shop` and `news`.
struct Simulator {
    process: Child,
    address: String,
    _documents: Documents,
}

impl Simulator {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let documents = Documents::new();
        let mut process = Command::new(PROGRAM)
            .args(["--listen", "127.0.0.1:0", "--integration"])
            .args([documents.path("shop"), documents.path("news")])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.strip_prefix("gate-simulator listening on http://").unwrap().trim_end().to_owned();
        Self { process, address, _documents: documents }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client(BufReader::new(stream))
    }

    fn get(&self, path: &str) -> Value {
        let answer = self.connect().ask("GET", path, "", "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()
    }

    fn delete(&self, path: &str) {
        assert_eq!(self.connect().ask("DELETE", path, "", "").status, 204);
    }

    fn faults(&self, rules: Value) {
        let answer = self.connect().ask("PUT", "/faults", "", &rules.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    fn requests(&self) -> Value {
        self.get("/requests")
    }

    /// The choice that the shop's gate knows of a person.
    fn optin(&self, identifier: &str) -> Value {
        self.get("/profiles?integration=shop")["shop"][identifier]["OPTIN"].clone()
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let status = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(status.success());
    }

    fn exit_code(mut self) -> Option<i32> {
        let ended = poll_until("the end of the process", || self.process.try_wait().unwrap());
        ended.code()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// One connection, with as little between the test and the wire as possible.
struct Client(BufReader<TcpStream>);

impl Client {
    fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: gate\r\n{headers}");
        let request = format!("{head}Content-Length: {length}\r\n\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    fn receive(&mut self) -> std::io::Result<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        let head = head.to_lowercase();
        let length = head.split("content-length: ").nth(1);
        let length = length.and_then(|rest| rest.lines().next()).unwrap_or("0");
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body)?;
        Ok(Answer { status: head[9..12].parse().unwrap(), head, body: String::from_utf8(body).unwrap() })
    }

    fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        self.send(method, path, headers, body);
        self.receive().unwrap()
    }

    fn send_trigger(&mut self, path: &str, body: &str) {
        let headers = format!("{JSON}{}", signature(path));
        self.send("POST", path, &headers, body);
    }

    /// Sends a valid trigger: the shop's gate, this person, this choice.
    fn trigger(&mut self, identifier: &str, optin: &str) -> Answer {
        self.send_trigger(SYNC, &shop(identifier, optin));
        self.receive().unwrap()
    }

    /// Whether nothing has come back so far.
    fn is_silent(&mut self) -> bool {
        self.0.get_ref().set_nonblocking(true).unwrap();
        let mut byte = [0];
        let read = self.0.get_ref().peek(&mut byte);
        self.0.get_ref().set_nonblocking(false).unwrap();
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

fn shop(identifier: &str, optin: &str) -> String {
    json!({"Gate": "shop-gate", "GateInput": {"MAIL": identifier, "OPTIN": optin}}).to_string()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn signed(user: &str, password: &str, timestamp: u64, message: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, password.as_bytes());
    let tag = hmac::sign(&key, message.as_bytes());
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02X}")).collect();
    format!("Authorization: hmac {user}:{hex}:{timestamp}\r\n")
}

fn signature(path: &str) -> String {
    let now = now();
    signed("shop-user", "access_key", now, &format!("{now}-POST-{path}"))
}

#[test]
fn triggers_fill_profiles_over_both_paths() {
    let simulator = Simulator::start();
    let mut client = simulator.connect();
    let answer = client.trigger("jane+1@example.com", "1");
    assert_eq!(answer.status, 200);
    let envelope = answer.json();
    assert_eq!((&envelope["IsSuccess"], &envelope["Error"]), (&json!(true), &Value::Null));
    client.send_trigger(ASYNC, &shop("jane+1@example.com", "0"));
    assert_eq!(client.receive().unwrap().status, 200);
    let query = format!("{SYNC}?lang=en");
    client.send_trigger(&query, &shop("joe", "1"));
    assert_eq!(client.receive().unwrap().status, 200);

    let jane = json!({"MAIL": "jane+1@example.com", "OPTIN": "0"});
    let joe = json!({"MAIL": "joe", "OPTIN": "1"});
    let expected = json!({"shop": {"jane+1@example.com": jane, "joe": joe}, "news": {}});
    assert_eq!(simulator.get("/profiles"), expected);
    assert_eq!(simulator.get("/profiles?integration=news"), json!({"news": {}}));
    let found = json!({"shop": {"properties": jane, "triggers": 2}});
    assert_eq!(simulator.get("/profiles/jane+1%40example.com"), found);
    for path in ["/profiles/jane", "/profiles/joe?integration=news"] {
        let absent = simulator.connect().ask("GET", path, "", "");
        assert_eq!((absent.status, absent.body.as_str()), (404, "{}"));
    }
    simulator.delete("/profiles");
    assert_eq!(simulator.get("/profiles"), json!({"shop": {}, "news": {}}));
}

#[test]
fn requests_are_counted_listed_and_reset() {
    let simulator = Simulator::start_with(&["--keep", "3"]);
    let mut client = simulator.connect();
    for number in 0..5 {
        client.trigger(&format!("person-{number}"), "1");
    }
    let requests = simulator.requests();
    assert_eq!((&requests["total"], &requests["executed"]), (&json!(5), &json!(5)));
    assert_eq!((&requests["in_flight"], &requests["max_in_flight"]), (&json!(0), &json!(1)));
    assert_eq!(requests["outcomes"]["accepted"], 5);
    assert_eq!(requests["by_integration"]["shop"], json!({"total": 5, "executed": 5}));
    assert_eq!(requests["by_integration"]["news"], json!({"total": 0, "executed": 0}));
    let recent = requests["recent"].as_array().unwrap();
    let identifiers: Vec<&Value> = recent.iter().map(|entry| &entry["identifier"]).collect();
    assert_eq!(identifiers, ["person-2", "person-3", "person-4"]);
    let last = &recent[2];
    assert_eq!(last["properties"], json!({"MAIL": "person-4", "OPTIN": "1"}));
    assert_eq!((&last["status"], &last["outcome"]), (&json!(200), &json!("accepted")));
    assert_eq!((&last["integration"], last["at"].as_str().unwrap().len()), (&json!("shop"), 24));
    let limited = simulator.get("/requests?limit=1");
    assert_eq!(limited["recent"], json!([last]));

    simulator.delete("/requests");
    let requests = simulator.requests();
    assert_eq!((&requests["total"], &requests["recent"]), (&json!(0), &json!([])));
    assert_eq!(simulator.get("/profiles")["shop"].as_object().unwrap().len(), 5);
}

#[test]
fn whatever_is_wrong_is_named() {
    let simulator = Simulator::start();
    let now = now();
    let message = format!("{now}-POST-{SYNC}");
    let good = signed("shop-user", "access_key", now, &message);
    let with_json = |authorization: &str| format!("{JSON}{authorization}");
    let old = signed("shop-user", "access_key", now - 400, &format!("{}-POST-{SYNC}", now - 400));
    let body = shop("jane", "1");
    let large = shop("jane", &"x".repeat(1024 * 1024));
    let other_gate = body.replace("shop-gate", "news-gate");
    let unmapped = body.replace("OPTIN", "OPTOUT");
    let anonymous = shop("", "1");
    let number = body.replace("\"1\"", "1");
    let cases = [
        ("POST", SYNC, JSON.to_owned(), body.as_str(), 401, "bad_authorization"),
        ("POST", SYNC, with_json(&signed("me", "access_key", now, &message)), &body, 401, "unknown_user"),
        ("POST", SYNC, with_json(&signed("shop-user", "key", now, &message)), &body, 401, "bad_signature"),
        ("POST", SYNC, with_json(&signed("news-user", "key", now, &message)), &body, 401, "bad_signature"),
        ("POST", ASYNC, with_json(&good), &body, 401, "bad_signature"),
        ("POST", "/restapi/api/sync/campaigns/triggerbyjson?a=1", with_json(&good), &body, 401, "bad_signature"),
        ("POST", SYNC, with_json(&old), &body, 401, "bad_timestamp"),
        ("PUT", SYNC, with_json(&good), &body, 405, "wrong_method"),
        ("POST", "/restapi/api/sync/campaigns/triggerbyjson/", with_json(&good), &body, 404, "unknown_path"),
        ("POST", SYNC, good.clone(), &body, 415, "wrong_content_type"),
        ("POST", SYNC, with_json(&good), &large, 413, "too_large"),
        ("POST", SYNC, with_json(&good), &number, 400, "malformed"),
        ("POST", SYNC, with_json(&good), "", 400, "malformed"),
        ("POST", SYNC, with_json(&good), &other_gate, 404, "unknown_gate"),
        ("POST", SYNC, with_json(&good), &unmapped, 400, "unknown_property"),
        ("POST", SYNC, with_json(&good), &anonymous, 400, "no_identifier"),
    ];
    let total = cases.len();
    for (method, path, headers, body, status, outcome) in cases {
        let answer = simulator.connect().ask(method, path, &headers, body);
        assert_eq!(answer.status, status, "{outcome}: {}", answer.body);
        let envelope = answer.json();
        assert_eq!((&envelope["IsSuccess"], &envelope["Result"]), (&json!(false), &Value::Null));
        assert!(!envelope["Error"].as_str().unwrap().is_empty());
        let requests = simulator.get("/requests?limit=1");
        assert_eq!(requests["recent"][0]["outcome"], outcome);
        assert_eq!(requests["recent"][0]["status"], status);
    }
    let requests = simulator.requests();
    assert_eq!(requests["total"], total);
    assert_eq!(requests["executed"], 0);
    assert_eq!(simulator.get("/profiles"), json!({"shop": {}, "news": {}}));
}

#[test]
fn a_client_that_leaves_before_the_end_of_its_request_is_counted_as_such() {
    let simulator = Simulator::start();
    let mut client = simulator.connect();
    let head = format!("POST {SYNC} HTTP/1.1\r\nHost: gate\r\nContent-Length: 9\r\n\r\n{{");
    client.0.get_mut().write_all(head.as_bytes()).unwrap();
    poll_until("the request", || (simulator.requests()["in_flight"] == 1).then_some(()));
    drop(client);
    poll_until("its end", || {
        let requests = simulator.requests();
        (requests["in_flight"] == 0 && requests["outcomes"]["abandoned"] == 1).then_some(())
    });
}

#[test]
fn a_status_is_answered_without_executing_as_often_as_asked() {
    let simulator = Simulator::start();
    let mut client = simulator.connect();
    simulator.faults(json!({
        "status": 429, "error": "slow down", "headers": {"Retry-After": "45"}, "times": 2
    }));
    for _ in 0..2 {
        let answer = client.trigger("jane", "1");
        assert_eq!(answer.status, 429);
        assert!(answer.head.contains("retry-after: 45\r\n"), "{}", answer.head);
        let envelope = json!({"IsSuccess": false, "Error": "slow down", "Result": null});
        assert_eq!(answer.json(), envelope);
    }
    assert_eq!(simulator.get("/profiles")["shop"], json!({}));
    assert_eq!(simulator.get("/faults")[0]["affected"], 2);
    assert_eq!(client.trigger("jane", "1").status, 200);
    let requests = simulator.requests();
    assert_eq!((&requests["outcomes"]["fault"], &requests["executed"]), (&json!(2), &json!(1)));

    simulator.faults(json!([{"status": 200, "is_success": false}]));
    let answer = client.trigger("jane", "0");
    assert_eq!((answer.status, answer.json()["IsSuccess"].clone()), (200, json!(false)));
    assert_eq!(simulator.optin("jane"), "1");
    simulator.delete("/faults");
    assert_eq!(simulator.get("/faults"), json!([]));
    assert_eq!(client.trigger("jane", "0").status, 200);
}

#[test]
fn quota_hides_a_wrong_key_and_other_faults_do_not() {
    let simulator = Simulator::start();
    let mut client = simulator.connect();
    let headers = format!("{JSON}{}", signed("shop-user", "key", now(), "anything"));
    let body = shop("jane", "1");
    let mut status = |rule: Value| {
        simulator.faults(rule);
        client.ask("POST", SYNC, &headers, &body).status
    };
    assert_eq!(status(json!({"status": 429})), 429);
    assert_eq!(status(json!({"status": 503, "identifier": "jane"})), 503);
    assert_eq!(status(json!({"status": 503, "integration": "news"})), 401);
    assert_eq!(status(json!({"status": 500})), 401);
}

#[test]
fn a_hang_lasts_until_the_client_goes() {
    let simulator = Simulator::start();
    simulator.faults(json!({"hang": true, "identifier": "jane"}));
    let mut client = simulator.connect();
    client.send_trigger(SYNC, &shop("jane", "1"));
    poll_until("the hang", || (simulator.requests()["outcomes"]["fault"] == 1).then_some(()));
    assert!(client.is_silent());
    assert_eq!(simulator.requests()["in_flight"], 1);
    assert_eq!(simulator.connect().trigger("joe", "1").status, 200);
    assert_eq!(simulator.requests()["max_in_flight"], 2);
    drop(client);
    poll_until("its end", || (simulator.requests()["in_flight"] == 0).then_some(()));
    assert_eq!(simulator.optin("jane"), Value::Null);
}

#[test]
fn a_reset_executes_nothing_and_a_lost_answer_executes() {
    let simulator = Simulator::start();
    for (rule, optin, outcome) in
        [(json!({"reset": true}), Value::Null, "fault"), (json!({"lose_answer": true}), json!("1"), "accepted")]
    {
        simulator.faults(rule);
        let mut client = simulator.connect();
        client.send_trigger(SYNC, &shop("jane", "1"));
        let error = client.receive().err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{outcome}");
        assert_eq!(simulator.optin("jane"), optin);
        let requests = simulator.requests();
        assert_eq!(requests["recent"].as_array().unwrap().last().unwrap()["outcome"], outcome);
        assert_eq!(requests["recent"][0]["status"], Value::Null);
        assert_eq!(requests["in_flight"], 0);
    }
}

#[test]
fn latency_delays_execution_and_who_leaves_meanwhile_is_not_executed() {
    let simulator = Simulator::start();
    simulator.faults(json!([
        {"latency_ms": 50, "identifier": "joe"}, {"latency_ms": 3_600_000}
    ]));
    let started = Instant::now();
    assert_eq!(simulator.connect().trigger("joe", "1").status, 200);
    assert!(started.elapsed() >= Duration::from_millis(50));
    let mut client = simulator.connect();
    client.send_trigger(SYNC, &shop("jane", "1"));
    poll_until("the request", || (simulator.requests()["in_flight"] == 1).then_some(()));
    drop(client);
    poll_until("its end", || (simulator.requests()["outcomes"]["fault"] == 1).then_some(()));
    assert_eq!(simulator.optin("jane"), Value::Null);
}

#[test]
fn a_late_execution_overwrites_what_came_before_it() {
    let simulator = Simulator::start();
    simulator.faults(json!({"execute_after_ms": 300, "times": 1}));
    let mut first = simulator.connect();
    first.send_trigger(SYNC, &shop("jane", "late"));
    poll_until("the request", || (simulator.requests()["waiting_to_execute"] == 1).then_some(()));
    assert!(first.is_silent());
    drop(first);
    assert_eq!(simulator.connect().trigger("jane", "in time").status, 200);
    assert_eq!(simulator.optin("jane"), "in time");
    poll_until("the late execution", || (simulator.optin("jane") == "late").then_some(()));
    let requests = simulator.requests();
    assert_eq!((&requests["total"], &requests["executed"]), (&json!(2), &json!(2)));
    let (before, late) = (&requests["recent"][0], &requests["recent"][1]);
    assert_eq!((&before["status"], &late["status"]), (&json!(200), &Value::Null));
    assert!(late["at"].as_str() <= before["at"].as_str());
    assert!(late["executed_at"].as_str() > before["executed_at"].as_str());
    assert_eq!(simulator.get("/profiles/jane")["shop"]["triggers"], 2);
}

#[test]
fn a_late_execution_may_be_answered_at_once() {
    let simulator = Simulator::start();
    simulator.faults(json!({"execute_after_ms": 100, "status": 504, "body": "too slow"}));
    let answer = simulator.connect().trigger("jane", "1");
    assert_eq!((answer.status, answer.body.as_str()), (504, "too slow"));
    poll_until("the late execution", || (simulator.optin("jane") == "1").then_some(()));
}

#[test]
fn a_raw_body_and_headers_replace_the_envelope_of_an_executed_trigger() {
    let simulator = Simulator::start();
    let mut client = simulator.connect();
    simulator.faults(json!({"body": "", "headers": {"X-RateLimit-Reset": 7}}));
    let answer = client.trigger("jane", "1");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert!(answer.head.contains("x-ratelimit-reset: 7\r\n"));
    assert!(!answer.head.contains("content-type"));
    assert_eq!(simulator.optin("jane"), "1");
    simulator.faults(json!({
        "status": 502, "body": "<html>", "headers": {"Content-Type": "text/html"}
    }));
    let answer = client.trigger("jane", "0");
    assert_eq!((answer.status, answer.body.as_str()), (502, "<html>"));
    assert!(answer.head.contains("content-type: text/html\r\n"));
    assert_eq!(simulator.optin("jane"), "1");
    simulator.faults(json!({"status": 204}));
    assert_eq!(client.trigger("jane", "0").status, 204);
    assert_eq!(simulator.requests()["total"], 3);
}

#[test]
fn a_share_of_the_requests_repeats_with_the_seed() {
    let simulator = Simulator::start_with(&["--seed", "7"]);
    let mut client = simulator.connect();
    let mut run = || {
        simulator.faults(json!({"status": 500, "share": 0.5}));
        let statuses = (0..100).map(|_| client.trigger("jane", "1").status);
        statuses.collect::<Vec<u16>>()
    };
    let first = run();
    let struck = first.iter().filter(|status| **status == 500).count();
    assert!((30..70).contains(&struck), "{struck}");
    assert_eq!(run(), first);
}

#[test]
fn mistakes_on_its_own_paths_are_named_and_change_nothing() {
    let simulator = Simulator::start();
    simulator.faults(json!({"status": 500}));
    let rules = json!([{"hang": true}, {"hang": true, "statsu": 1}, {"share": 2}]).to_string();
    for (method, path, body, status, words) in [
        ("PUT", "/faults", rules.as_str(), 400, vec!["rule 2: statsu", "rule 3: "]),
        ("PUT", "/faults", "{", 400, vec!["not JSON"]),
        ("GET", "/requests?last=3", "", 400, vec!["limit"]),
        ("GET", "/requests?limit=many", "", 400, vec!["limit"]),
        ("GET", "/profiles?integration=mail", "", 400, vec!["`mail`"]),
        ("GET", "/profiles/%zz", "", 400, vec!["percent"]),
        ("POST", "/faults", "[]", 405, vec!["GET, PUT, DELETE"]),
        ("DELETE", "/profiles/jane", "", 405, vec!["GET"]),
    ] {
        let answer = simulator.connect().ask(method, path, "", body);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert_eq!(simulator.get("/faults"), json!([{"status": 500, "affected": 0}]));
    assert_eq!(simulator.requests()["total"], 0);
}

#[test]
fn either_signal_ends_it_promptly_with_code_0() {
    for name in ["-TERM", "-INT"] {
        let simulator = Simulator::start();
        simulator.faults(json!({"hang": true}));
        let mut client = simulator.connect();
        client.send_trigger(SYNC, &shop("jane", "1"));
        poll_until("the hang", || (simulator.requests()["in_flight"] == 1).then_some(()));
        simulator.signal(name);
        assert_eq!(simulator.exit_code(), Some(0), "{name}");
    }
}

#[test]
fn streams_that_nobody_reads_do_not_end_it() {
    let documents = Documents::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut process = Command::new(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--integration"])
        .arg(documents.path("shop"))
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    let pid = process.id();
    // Since its output cannot be read, only the system can tell whether it listens.
    poll_until("the listener", || is_listening(pid).then_some(()));
    assert!(process.try_wait().unwrap().is_none());
    process.kill().unwrap();
    process.wait().unwrap();
}

/// Whether one of the process's sockets is in the state LISTEN.
fn is_listening(pid: u32) -> bool {
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            let text = link.to_str()?.strip_prefix("socket:[")?;
            Some(text.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[3] == "0A" && sockets.iter().any(|socket| socket == fields[9])
    })
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

#[test]
fn wrong_documents_and_arguments_are_all_listed() {
    let documents = Documents::new();
    fs::write(documents.path("one"), "{}").unwrap();
    let (one, absent) = (documents.path("one"), documents.path("absent"));
    let (one, absent) = (one.to_str().unwrap(), absent.to_str().unwrap());
    let output = run(&["--listen", "nowhere", "--integration", one, "--integration", absent]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let talk = String::from_utf8(output.stderr).unwrap();
    for word in ["one.json: properties.gate", "one.json: mappings", "absent.json", "--listen nowhere"] {
        assert!(talk.contains(word), "{word}\n{talk}");
    }
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["--integration", one, "--keep", "all"]).status.code(), Some(2));
}

#[test]
fn a_port_in_use_is_said_and_help_shows_an_example() {
    let simulator = Simulator::start();
    let documents = Documents::new();
    let shop = documents.path("shop");
    let output = run(&["--listen", &simulator.address, "--integration", shop.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&simulator.address));
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().contains("Example:"));
}
