//! Programs of this project, run to their end or in the background.

use super::{Folder, poll_until};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

/// The result of a program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A command with the test's environment and nothing of the caller's own settings.
fn clean(program: &str, folder: &Path, environment: &BTreeMap<String, String>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CONSENT_GATE_")) {
        command.env_remove(name);
    }
    command.envs(environment);
    command
}

/// Runs `consent-gate` in a folder with standard input, to its end.
pub fn run(folder: &Folder, environment: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Finished {
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut child = clean(env!("CARGO_BIN_EXE_consent-gate"), &folder.0, &environment)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input may close it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Finished {
        code: output.status.code().expect("no exit code: ended by a signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A program in the background, ended with the test.
pub struct Running {
    child: Child,
    pub log: PathBuf,
}

impl Running {
    /// Starts a program whose output goes to files in `folder`.
    pub fn start(
        program: &str,
        folder: &Folder,
        environment: &BTreeMap<String, String>,
        arguments: &[&str],
    ) -> Running {
        let log = folder.0.join(format!("{}.log", super::unique()));
        let file = File::create(&log).unwrap();
        let child = clean(program, &folder.0, environment)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Running { child, log }
    }

    /// Starts a program whose standard error is a pipe. It is read up to the first line that contains
    /// `part`, which goes to the log; the rest is for the caller to read, or not.
    pub fn start_with_pipe(
        program: &str,
        folder: &Folder,
        environment: &BTreeMap<String, String>,
        arguments: &[&str],
        part: &str,
    ) -> (Running, BufReader<ChildStderr>) {
        let log = folder.0.join(format!("{}.log", super::unique()));
        let mut file = OpenOptions::new().create_new(true).append(true).open(&log).unwrap();
        let mut child = clean(program, &folder.0, environment)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            assert!(errors.read_line(&mut line).unwrap() > 0, "it ended without \"{part}\"");
            file.write_all(line.as_bytes()).unwrap();
        }
        (Running { child, log }, errors)
    }

    /// Everything that it has written so far.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line that contains `part`, and returns it.
    pub fn line_with(&mut self, part: &str) -> String {
        poll_until(&format!("\"{part}\" in {}", self.text()), || {
            let text = self.text();
            let line = text.lines().find(|line| line.contains(part)).map(str::to_owned);
            assert!(line.is_some() || self.child.try_wait().unwrap().is_none(), "it ended without \"{part}\":\n{text}");
            line
        })
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end and returns the exit code; `None` after a signal.
    pub fn ended(&mut self) -> Option<i32> {
        poll_until("its end", || self.child.try_wait().unwrap()).code()
    }

    /// Its peak memory so far, in KiB; `None` once it has ended.
    pub fn peak_memory(&self) -> Option<u64> {
        self.status("VmHWM:")?.strip_suffix(" kB")?.parse().ok()
    }

    /// Its current memory, in KiB.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:").unwrap().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// The names of its threads, except the runtime's helper threads, which come and go as needed.
    pub fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(self.proc("task")).unwrap();
        let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        let mut names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
        names.retain(|name| !name.starts_with("tokio-"));
        names.sort();
        names
    }

    fn status(&self, name: &str) -> Option<String> {
        let status = fs::read_to_string(self.proc("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    }

    /// How many file descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// How many connections it has to a port of this machine.
    pub fn connections_to(&self, port: u16) -> usize {
        self.sockets(2, port)
    }

    /// How many sockets it has on a port of its own, the listening one included.
    pub fn connections_at(&self, port: u16) -> usize {
        self.sockets(1, port)
    }

    /// Its sockets with this port in a column of `/proc/net/tcp`.
    fn sockets(&self, column: usize, port: u16) -> usize {
        let links = fs::read_dir(self.proc("fd")).unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let own: BTreeSet<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
        let port = format!(":{port:04X}");
        let table = fs::read_to_string(self.proc("net/tcp")).unwrap();
        let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|line| line[column].ends_with(&port) && own.contains(&format!("socket:[{}]", line[9]))).count()
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- {}\n{}", self.log.display(), self.text());
        }
    }
}
