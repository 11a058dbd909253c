//! Changed documents are picked up while the worker runs; bad ones are refused.

use super::harness::{Folder, Lab, Message, PASSWORD, choice, events, poll_until};
use super::newest::deliver;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// After this many reloads the worker has warmed up: caches, pages, arenas of the allocator.
const WARM_RELOADS: usize = 10;
const RELOADS: usize = 100;
/// How much memory may grow in [`RELOADS`] reloads: the records of 5,000 more people, and fragmentation.
const MOST_GROWN_KIB: u64 = 24 * 1024;

/// Changes an integration's document and has it reloaded.
pub fn change(lab: &mut Lab, index: usize, change: impl Fn(&mut Value)) {
    lab.edit(index, change);
    lab.worker().signal("HUP");
}

/// How many times the worker logged these words.
pub fn said(lab: &mut Lab, words: &str) -> usize {
    lab.worker().text().matches(words).count()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_changed_document_is_served_and_a_bad_one_is_refused() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, choice("a@example.com", true), 1);
    change(&mut lab, 0, |document| document["mappings"][1]["true"] = json!("YES"));
    lab.worker().line_with("\"changed\":1");
    poll_until("to consume again", || (said(&mut lab, "ready: consuming") == 2).then_some(()));
    deliver(&mut lab, choice("b@example.com", true), 2);
    assert_eq!(lab.gate(0).profiles()["b@example.com"]["OPTIN_NEWS"], "YES");
    change(&mut lab, 0, |document| drop(document.as_object_mut().unwrap().remove("mappings")));
    let line = lab.worker().line_with("reload refused");
    assert!(line.contains("mappings is missing"), "{line}");
    assert_eq!(lab.metric("consent_gate_reload_failures_total"), 1.0);
    deliver(&mut lab, choice("c@example.com", true), 3);
    assert_eq!(lab.gate(0).profiles()["c@example.com"]["OPTIN_NEWS"], "YES", "the old one stays in force");
    assert_eq!(lab.admin("/readyz").0, 200);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_rotated_secret_is_used_without_a_restart_or_a_signal() {
    let mut lab = Lab::new();
    let key = lab.folder.write("integrations/.key", "wrong");
    let path = lab.file(0);
    let mut document: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    document["authentication"] = json!({ "username": "api_user", "password_file": ".key" });
    fs::write(&path, document.to_string()).unwrap();
    lab.set_delays(&[2_000, 2_000, 2_000, 2_000, 2_000, 2_000, 2_000, 2_000, 2_000]);
    lab.start();
    lab.publish(events("p", 1));
    lab.worker().line_with("misconfigured");
    fs::write(&key, format!("{}\n", super::harness::PASSWORD)).unwrap();
    lab.settled(1);
    assert_eq!(lab.gate(0).outcome("accepted"), 1);
    lab.worker().line_with("\"changed\":1");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_integration_comes_and_goes_and_others_do_not_notice() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    let (here, aside) = (lab.file(1), lab.folder.0.join("aside.json"));
    fs::rename(&here, &aside).unwrap();
    lab.start();
    let second = lab.simulated[1].integration.clone();
    fs::rename(&aside, &here).unwrap();
    lab.worker().signal("HUP");
    lab.worker().line_with("\"added\":1,\"changed\":0");
    poll_until("both", || (said(&mut lab, "\"consuming\"") == 2).then_some(()));
    lab.publish(events("p", 1));
    lab.settled_of(&second, 1);
    fs::rename(&here, &aside).unwrap();
    lab.worker().signal("HUP");
    lab.worker().line_with("\"removed\":1");
    poll_until("it to be let go", || {
        let (status, body) = lab.admin("/readyz");
        (status == 200 && !body.contains(&second)).then_some(())
    });
    lab.publish(events("q", 1));
    lab.settled(2);
    assert_eq!(lab.bench.depth(&format!("consent-gate.{second}")), 1, "it waits for its return");
    assert_eq!(said(&mut lab, "\"consuming\""), 2, "the first one was never disturbed");
    fs::rename(&aside, &here).unwrap();
    lab.worker().signal("HUP");
    lab.settled_of(&second, 2);
}

/// A folder as a kubelet mounts a `ConfigMap` or a `Secret`: every name is a link through `..data`, which
/// leads to the current files and is replaced in one step.
struct Mounted {
    path: PathBuf,
    versions: usize,
}

impl Mounted {
    fn at(folder: &Folder, name: &str) -> Mounted {
        let path = folder.0.join(name);
        fs::create_dir(&path).unwrap();
        Mounted { path, versions: 0 }
    }

    /// Replaces the files that are there by these.
    fn show(&mut self, files: &BTreeMap<String, String>) {
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        fs::create_dir(self.path.join(&version)).unwrap();
        for (name, content) in files {
            fs::write(self.path.join(&version).join(name), content).unwrap();
        }
        symlink(&version, self.path.join("..data_tmp")).unwrap();
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        for name in files.keys().filter(|name| !self.path.join(name).is_symlink()) {
            symlink(Path::new("..data").join(name), self.path.join(name)).unwrap();
        }
        let names = fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        for name in names.filter(|name| !name.starts_with("..") && !files.contains_key(name)) {
            fs::remove_file(self.path.join(name)).unwrap();
        }
        fs::remove_dir_all(self.path.join(format!("..version_{}", self.versions - 1))).ok();
    }
}

/// As `deploy/kubernetes` mounts them: another customer is another key of the `ConfigMap` and of the `Secret`.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_customer_comes_and_goes_in_folders_as_kubernetes_mounts_them_without_a_restart() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    let mut documents = Mounted::at(&lab.folder, "documents");
    let mut keys = Mounted::at(&lab.folder, "keys");
    lab.edit(1, |document| {
        let key = keys.path.join("second-key");
        document["authentication"] = json!({ "username": "api_user", "password_file": key });
    });
    let [first, second] = [0, 1].map(|index| lab.simulated[index].integration.clone());
    let [one, other] = [0, 1].map(|index| {
        let name = format!("{}.json", lab.simulated[index].integration);
        (name, fs::read_to_string(lab.file(index)).unwrap())
    });
    keys.show(&BTreeMap::new());
    documents.show(&BTreeMap::from([one.clone()]));
    lab.set("CONSENT_GATE_INTEGRATIONS__DIRECTORY", "documents");
    lab.start();
    keys.show(&BTreeMap::from([("second-key".to_owned(), PASSWORD.to_owned())]));
    documents.show(&BTreeMap::from([one.clone(), other]));
    lab.worker().line_with("\"added\":1,\"changed\":0,\"removed\":0");
    poll_until("both", || (said(&mut lab, "\"consuming\"") == 2).then_some(()));
    lab.publish(events("p", 1));
    lab.settled_of(&first, 1);
    lab.settled_of(&second, 1);
    assert_eq!(lab.gate(1).outcome("accepted"), 1);
    documents.show(&BTreeMap::from([one]));
    lab.worker().signal("HUP");
    lab.worker().line_with("\"removed\":1");
    assert_eq!(said(&mut lab, "\"consuming\""), 2, "the first one was never disturbed");
    assert_eq!(said(&mut lab, "reload refused"), 0);
    lab.stop();
}

/// What a worker holds, except the pooled connections to its gates and those of its admin clients.
#[derive(Debug, PartialEq)]
struct Held {
    broker_connections: usize,
    descriptors: usize,
    threads: Vec<String>,
}

fn held(lab: &mut Lab) -> Held {
    let admin = lab.admin_address();
    let worker = lab.worker.as_ref().unwrap();
    let passing = worker.connections_at(port(&admin));
    Held {
        broker_connections: worker.connections_to(port(&lab.environment["CONSENT_GATE_BROKER__URL"])),
        descriptors: worker.descriptors() - worker.connections_to(port(lab.gate(0).base())) - passing,
        threads: worker.threads(),
    }
}

fn port(url: &str) -> u16 {
    let authority = url.split("//").nth(1).unwrap().split('/').next().unwrap();
    authority.rsplit(':').next().unwrap().parse().unwrap()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_hundred_reloads_under_load_lose_nothing_and_leave_nothing_behind() {
    let mut lab = Lab::new();
    // What docs/configuration.md advises for glibc: without this, buffers are reused that have been written to.
    lab.set("MALLOC_MMAP_THRESHOLD_", "1048576");
    lab.gate(0).faults(json!([{ "latency_ms": 20 }]));
    lab.start();
    reload_under_load(&mut lab, 0..WARM_RELOADS);
    // The last reload may still be under way, and a connection may be closed between two counts of one look.
    let before = poll_until("two connections", || {
        let (one, other) = (held(&mut lab), held(&mut lab));
        (one == other && one.broker_connections == 2).then_some(one)
    });
    assert!(before.threads.len() > 2, "{before:?}");
    let memory = lab.worker().memory();
    reload_under_load(&mut lab, WARM_RELOADS..WARM_RELOADS + RELOADS);
    let mut after = held(&mut lab);
    poll_until(&format!("{before:?}, as before; now {after:?}"), || {
        after = held(&mut lab);
        (after == before).then_some(())
    });
    let grown = lab.worker().memory().saturating_sub(memory);
    super::harness::note(&format!("{RELOADS} reloads: {after:?}, {memory} KiB before, {grown} KiB more"));
    assert!(grown < MOST_GROWN_KIB, "{grown} KiB more than before");
}

/// Changes the document again and again while events arrive; all of them are delivered, each once.
fn reload_under_load(lab: &mut Lab, rounds: std::ops::Range<usize>) {
    let until = rounds.end;
    for n in rounds {
        let served = said(lab, "\"consuming\"");
        lab.publish(events(&format!("r{n}"), 50));
        change(lab, 0, |document| document["mappings"][1]["true"] = json!(format!("Y{n}")));
        poll_until("to be taken", || (said(lab, "\"changed\":1") == n + 1).then_some(()));
        // Otherwise the next change comes before this one is served.
        if n % 3 == 2 {
            poll_until("to be served anew", || (said(lab, "\"consuming\"") > served).then_some(()));
        }
    }
    lab.settled(until * 50);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), until * 50);
    assert_eq!(lab.gate(0).outcome("accepted"), until as u64 * 50, "each once: nothing in hand was given up");
    assert!(lab.dead().is_empty());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_trace_goes_through_to_the_gate_and_into_the_log() {
    let mut lab = Lab::new();
    lab.start();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(trace.into()));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    let body = choice("jane@example.com", true).to_string().into_bytes();
    lab.publish(vec![Message { body, properties }]);
    lab.settled(1);
    let line = lab.worker().line_with("\"delivered\"");
    assert!(line.contains("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\""), "{line}");
    let requests = lab.gate(0).requests().to_string();
    assert!(requests.contains(trace), "{requests}");
}
