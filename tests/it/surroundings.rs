//! The worker's environment may hang or fail: the reader of its log, its disk, its files.

use super::harness::{Folder, Lab, Schema, choice, events, fault_library, note, person, poll_until, unique};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Enough events to produce, at two lines each, more lines than the worker keeps for a slow reader.
const EVENTS: usize = 5_000;

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_standard_error_that_nobody_reads_stops_nothing() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_LOG__LEVEL", "trace");
    let _unread = lab.start_with_pipe();
    lab.publish(events("unread", EVENTS));
    lab.settled(EVENTS);
    assert_eq!(lab.admin("/livez").0, 200);
    assert_eq!(lab.gate(0).outcome("accepted"), EVENTS as u64);
    assert!(lab.metric("consent_gate_log_lines_dropped_total") > 0.0);
    lab.stop();
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_log_that_is_read_again_goes_on_with_whole_lines_to_the_last() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_LOG__LEVEL", "trace");
    let mut unread = lab.start_with_pipe();
    lab.publish(events("unread", EVENTS));
    lab.settled(EVENTS);
    let dropped = lab.metric("consent_gate_log_lines_dropped_total");
    assert!(dropped > 0.0);
    // The oldest lines come first; the lines of the next event come once there is room again.
    let mut line = String::new();
    for _ in 0..EVENTS {
        line.clear();
        unread.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
    }
    lab.publish(events("read", 1));
    lab.settled(EVENTS + 1);
    assert!(lab.metric("consent_gate_log_lines_dropped_total") <= dropped, "there was room");
    lab.worker().signal("TERM");
    let mut rest = String::new();
    unread.read_to_string(&mut rest).unwrap();
    assert_eq!(lab.worker().ended(), Some(0));
    for line in rest.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    }
    assert!(rest.lines().last().unwrap().contains("stopped; nothing was left in hand"), "{rest}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_task_that_ends_by_a_fault_is_named_and_ends_nobody_else() {
    let mut lab = Lab::with(&[&|_| {}, &|_| {}]);
    lab.set("LD_PRELOAD", fault_library());
    // The first thread writes the log. The second one would open the records, and the runtime panics if it
    // cannot be started.
    lab.set("TEST_FAULT_THREAD", "2");
    lab.spawn();
    let line: Value =
        serde_json::from_str(&lab.worker().line_with("a task ended because of a bug in the worker")).unwrap();
    assert_eq!(line["task"], "records");
    lab.worker().line_with("ready: consuming");
    lab.publish(events("both", 1));
    for index in 0..2 {
        let name = lab.simulated[index].integration.clone();
        lab.settled_of(&name, 1);
    }
    assert_eq!(lab.admin("/readyz").0, 200);
    lab.stop();
}

/// Waits until the worker reports that the disk of its records hangs, and that it is therefore not ready.
fn told_of_the_disk(lab: &mut Lab) {
    let line = lab.worker().line_with("the records cannot be written");
    assert!(line.contains("does not answer within 30s"), "{line}");
    poll_until("not to be ready", || {
        let (status, body) = lab.admin("/readyz");
        (status == 503 && body.contains("\"records\":\"not available\"") && body.contains("does not answer"))
            .then_some(())
    });
    assert_eq!(lab.admin("/livez").0, 200, "a restart would not help");
    assert_eq!(lab.metric("consent_gate_store_held"), 0.0);
}

/// Asserts that each of these events was sent once, and counted once.
fn each_once(lab: &mut Lab, count: usize) {
    lab.settled(count);
    let delivered = format!("consent_gate_events_total{{integration=\"{}\",outcome=\"delivered\"}}", lab.integration());
    #[expect(clippy::cast_precision_loss, reason = "tests settle few events")]
    let all = count as f64;
    assert_eq!(lab.metric(&delivered), all);
    assert_eq!(lab.gate(0).outcome("accepted"), count as u64);
    assert!(lab.dead().is_empty());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_disk_that_hangs_makes_the_worker_unready_until_it_answers_and_does_not_hold_up_a_stop() {
    let mut lab = Lab::new();
    let hangs = lab.folder.0.join("hangs");
    lab.set("LD_PRELOAD", fault_library());
    lab.set("TEST_FAULT_DISK", hangs.to_str().unwrap());
    lab.set("CONSENT_GATE_SHUTDOWN__DEADLINE", "2s");
    lab.start();
    lab.publish(events("before", 10));
    lab.settled(10);
    fs::write(&hangs, "").unwrap();
    lab.publish(events("meanwhile", 20));
    told_of_the_disk(&mut lab);
    assert_eq!(lab.gate(0).outcome("accepted"), 10, "nothing is sent that is not on record");
    fs::remove_file(&hangs).unwrap();
    poll_until("to be ready again", || (lab.admin("/readyz").0 == 200).then_some(()));
    each_once(&mut lab, 30);
    fs::write(&hangs, "").unwrap();
    lab.publish(events("at_the_end", 5));
    poll_until("them to be in hand", || (lab.bench.depth(&lab.queue("")) == 0).then_some(()));
    lab.stop();
    fs::remove_file(&hangs).unwrap();
    lab.start();
    lab.settled(5);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 35);
}

/// A file system in a file, mounted where the worker keeps its records.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` if this machine does not allow it.
    fn new(folder: &Folder, name: &str) -> Option<Mounted> {
        let (image, place) = (folder.0.join(format!("{name}.img")), folder.0.join(name));
        fs::create_dir_all(&place).unwrap();
        fs::File::create(&image).unwrap().set_len(512 * 1024 * 1024).unwrap();
        let (image, place_name) = (image.to_str().unwrap(), place.to_str().unwrap());
        let is_mounted = tool("mkfs.ext4", &["-q", "-F", image]) && tool("mount", &["-o", "loop", image, place_name]);
        is_mounted.then_some(Mounted(place))
    }

    fn freeze(&self, how: &str) {
        assert!(tool("fsfreeze", &[how, self.0.to_str().unwrap()]));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let place = self.0.to_str().unwrap();
        // If it is not frozen, the first command fails; the second must run anyway.
        let _ = (tool("fsfreeze", &["--unfreeze", place]), tool("umount", &["--lazy", place]));
    }
}

/// Whether a program of the system exists and succeeded.
fn tool(name: &str, arguments: &[&str]) -> bool {
    Command::new(name).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[test]
#[ignore = "needs root and a loop device: scripts/chaos"]
fn a_file_system_that_is_frozen() {
    let mut lab = Lab::new();
    let Some(disk) = Mounted::new(&lab.folder, &unique()) else {
        return note("SKIPPED: no file system can be mounted from a file here (root, mkfs.ext4, a loop device)");
    };
    lab.set("CONSENT_GATE_RECORDS__STORE", disk.0.join("records").to_str().unwrap());
    lab.set("CONSENT_GATE_SHUTDOWN__DEADLINE", "2s");
    lab.start();
    lab.publish(events("before", 10));
    lab.settled(10);
    disk.freeze("--freeze");
    lab.publish(events("meanwhile", 20));
    told_of_the_disk(&mut lab);
    disk.freeze("--unfreeze");
    poll_until("to be ready again", || (lab.admin("/readyz").0 == 200).then_some(()));
    each_once(&mut lab, 30);
    disk.freeze("--freeze");
    lab.publish(vec![choice(&person("last", 0), true).into()]);
    poll_until("it to be in hand", || (lab.bench.depth(&lab.queue("")) == 0).then_some(()));
    lab.worker().signal("TERM");
    poll_until("it to stop", || {
        let text = lab.worker().text();
        ["stopped; nothing", "stopped with events"].iter().any(|end| text.contains(end)).then_some(())
    });
    note("the worker stopped by its deadline; the system keeps its last thread until the disk answers");
    disk.freeze("--unfreeze");
    assert_eq!(lab.worker().ended(), Some(0));
    lab.start();
    lab.settled(1);
    lab.stop();
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_connection_that_the_gate_closed_meanwhile_costs_no_attempt() {
    let mut lab = Lab::new();
    // One request at a time, so that there is one connection.
    lab.set("CONSENT_GATE_GATE__MAX_IN_FLIGHT", "1");
    lab.start();
    lab.publish(events("before", 1));
    lab.settled(1);
    lab.gate(0).faults(json!([{ "reset": true, "times": 1 }]));
    lab.publish(events("after", 1));
    lab.settled(2);
    let name = lab.integration().to_owned();
    let attempts = |result| format!("consent_gate_attempts_total{{integration=\"{name}\",result=\"{result}\"}}");
    assert_eq!(lab.metric(&attempts("accepted")), 2.0);
    assert_eq!(lab.metric(&attempts("unavailable")), 1.0, "every request that leaves counts");
    for step in ["1", "hold"] {
        let retries = format!("consent_gate_retries_total{{integration=\"{name}\",step=\"{step}\"}}");
        assert_eq!(lab.metric(&retries), 0.0, "no attempt was spent");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn idle_connections_to_a_gate_are_let_go_before_servers_close_them() {
    let mut lab = Lab::new();
    lab.start();
    lab.publish(events("one", 1));
    lab.settled(1);
    let port = lab.gate(0).base().rsplit(':').next().unwrap().parse().unwrap();
    let since = Instant::now();
    assert!(lab.worker().connections_to(port) > 0);
    poll_until("no connection to the gate", || (lab.worker().connections_to(port) == 0).then_some(()));
    assert!(since.elapsed() < Duration::from_secs(58), "servers close them after 60 to 75 s");
}

/// An address that accepts no connection: a client waits as if its packets were dropped. Returns the
/// connections that fill its backlog.
fn swallowing(port: u16) -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
    let waiting = std::iter::from_fn(connect).take(10_000).collect();
    (listener, waiting)
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_broker_is_reached_by_another_address_of_its_name_when_the_first_swallows_packets() {
    let mut lab = Lab::new();
    lab.declare();
    let url = lab.environment["CONSENT_GATE_BROKER__URL"].clone();
    let authority = url.split('@').nth(1).unwrap().split('/').next().unwrap();
    let (host, port) = authority.split_once(':').unwrap();
    let _swallowing = swallowing(port.parse().unwrap());
    let names = lab.folder.write("names", format!("127.0.0.2\n{host}\n"));
    lab.set("LD_PRELOAD", fault_library());
    lab.set("TEST_FAULT_NAME", names.to_str().unwrap());
    lab.set("CONSENT_GATE_BROKER__URL", &url.replace(&format!("@{host}:"), "@host.test:"));
    lab.start();
    assert!(!lab.worker().text().contains("cannot use the broker"), "at the first try");
    lab.publish(events("one", 1));
    lab.settled(1);
    lab.stop();
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn another_role_at_the_same_database_is_used_by_the_next_connection() {
    let schema = Schema::new();
    let (old, new) = (format!("{}_old", schema.name), format!("{}_new", schema.name));
    schema.sql(&format!("CREATE ROLE {old} LOGIN; GRANT CREATE, USAGE ON SCHEMA {} TO {old}", schema.name));
    let url = |role: &str| schema.url().replace("consent_gate@", &format!("{role}@"));
    let mut lab = Lab::new();
    let file = lab.folder.write("store-url", url(&old));
    lab.set("CONSENT_GATE_RECORDS__STORE_FILE", file.to_str().unwrap());
    lab.start();
    lab.publish(events("before", 1));
    lab.settled(1);
    schema.sql(&format!("ALTER ROLE {old} RENAME TO {new}"));
    fs::write(&file, url(&new)).unwrap();
    lab.worker().signal("HUP");
    lab.worker().line_with("\"reloaded\"");
    assert!(!lab.worker().text().contains("take effect at the next start"));
    schema.sql(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN ('{old}', '{new}')"));
    lab.publish(events("after", 1));
    lab.settled(2);
    poll_until("to be ready", || (lab.admin("/readyz").0 == 200).then_some(()));
    lab.stop();
    schema.sql(&format!("REASSIGN OWNED BY {new} TO CURRENT_USER; DROP OWNED BY {new}; DROP ROLE {new}"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn systemd_hears_that_the_worker_is_alive_for_as_long_as_it_moves() {
    let mut lab = Lab::new();
    // The path of a socket is limited to 108 bytes.
    let socket = std::env::temp_dir().join(unique());
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    lab.set("NOTIFY_SOCKET", socket.to_str().unwrap());
    lab.set("WATCHDOG_USEC", "300000");
    let heard = || {
        let mut message = [0; 64];
        systemd.recv(&mut message).map(|length| String::from_utf8_lossy(&message[..length]).trim().to_owned())
    };
    lab.start();
    let mut messages = Vec::new();
    let count = |messages: &[String], wanted: &str| messages.iter().filter(|message| *message == wanted).count();
    while count(&messages, "READY=1") == 0 || count(&messages, "WATCHDOG=1") < 11 {
        messages.push(heard().unwrap());
    }
    assert_eq!(count(&messages, "READY=1"), 1, "{messages:?}");
    assert_eq!(count(&messages, "WATCHDOG=1") + 1, messages.len(), "{messages:?}");
    lab.worker().signal("STOP");
    systemd.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    poll_until("silence", || heard().is_err().then_some(()));
    lab.worker().signal("CONT");
    systemd.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(heard().unwrap(), "WATCHDOG=1");
    lab.worker().signal("TERM");
    poll_until("that it stops", || (heard().unwrap() == "STOPPING=1").then_some(()));
    assert_eq!(lab.worker().ended(), Some(0));
    fs::remove_file(&socket).unwrap();
}
