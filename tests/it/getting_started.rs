//! `docs/getting-started.md`, typed literally: from nothing to one delivered event.

use super::harness::{Bench, Folder, Message, poll_until, project};
use lapin::BasicProperties;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// Marks the end of a block's output.
const END: &str = "that was the block";

/// A bash like a reader's, but the first error ends it, and then nothing is left running.
struct Shell {
    bash: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn open(folder: &Path, admin: &str) -> Shell {
        let programs = Path::new(env!("CARGO_BIN_EXE_consent-gate")).parent().unwrap();
        let mut bash = Command::new("bash")
            .arg("-em")
            .current_dir(folder)
            .env("PATH", format!("{}:{}", programs.display(), env::var("PATH").unwrap()))
            .env("CONSENT_GATE_ADMIN__LISTEN", admin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(bash.stdout.take().unwrap()).lines();
        let mut shell = Shell { bash, output };
        shell.type_in("trap 'kill $(jobs -p) || :; [ ! -d node ] || scripts/broker remove node' EXIT");
        shell
    }

    /// Runs a block and returns its output.
    fn type_in(&mut self, block: &str) -> String {
        let input = self.bash.stdin.as_mut().unwrap();
        writeln!(input, "{block}\necho '{END}'").unwrap();
        let mut written = String::new();
        for line in self.output.by_ref() {
            let line = line.unwrap();
            if line == END {
                return written;
            }
            written += &line;
            written.push('\n');
        }
        panic!("bash ended in\n{block}\n{written}");
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_reader_gets_from_nothing_to_one_delivered_event() {
    let folder = Folder::new();
    for name in ["integration.example.json", "event.example.json"] {
        fs::copy(project().join(name), folder.0.join(name)).unwrap();
    }
    symlink(project().join("scripts"), folder.0.join("scripts")).unwrap();
    let (gate, admin) = (free_address(), free_address());
    let page = fs::read_to_string(project().join("docs/getting-started.md")).unwrap();
    let page = page.replace("127.0.0.1:8080", &gate).replace("127.0.0.1:9464", &admin);
    let page = page.replace("/tmp/consent-gate-broker", "node");
    let blocks: Vec<&str> = page.split("```bash\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [build, broker, customer, simulator, event, run, publish, seen, end] = blocks[..] else {
        panic!("{} blocks", blocks.len())
    };
    assert!(build.contains("cargo build") && publish.contains("publish.py"));

    let mut shell = Shell::open(&folder.0, &admin);
    shell.type_in(broker);
    shell.type_in(customer);
    shell.type_in(simulator);
    assert!(shell.type_in(event).contains("would be sent"));
    assert!(shell.type_in(run).contains("gate's host"));
    // The page's publisher needs a package from the network; this one does the same.
    let url = shell.type_in("echo \"$CONSENT_GATE_BROKER__URL\"");
    let body = fs::read(folder.0.join("event.json")).unwrap();
    let properties = BasicProperties::default().with_delivery_mode(2);
    Bench::at(url.trim()).publish("consents", "didomi.event", vec![Message { body, properties }]);
    fs::write(folder.0.join("publish.py"), "").unwrap();
    fs::create_dir(folder.0.join("venv")).unwrap();
    // Until the worker has handled the event, there is nothing to see.
    let seen = format!("set +e\n{seen}set -e");
    let arrived = |seen: &String| seen.contains(r#""MAIL":"jane@example.com""#) && seen.contains("delivered\"} 1");
    poll_until("the event", || Some(shell.type_in(&seen)).filter(arrived));
    shell.type_in(end);
    drop(shell.bash.stdin.take());
    assert!(shell.bash.wait().unwrap().success());
    let left = fs::read_dir(&folder.0).unwrap().count();
    assert_eq!(left, 3, "the two examples and the scripts");
}
