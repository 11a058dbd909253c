//! A measured process: its processor time and its memory.

use anyhow::Context;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Clock ticks per second in `/proc`, on every Linux that matters.
const TICKS: f64 = 100.0;

pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program in a folder, with its output in a file there.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        folder: &Path,
        environment: &BTreeMap<String, String>,
    ) -> anyhow::Result<Process> {
        let path = folder.join("process.log");
        let log = File::create(&path)?;
        let child = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Process { child, log: path })
    }

    /// Seconds of processor time so far.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        Ok((ticks(11) + ticks(12)) / TICKS)
    }

    /// The most memory that it held, in MB.
    pub fn peak_mb(&self) -> anyhow::Result<f64> {
        Ok(self.status("VmHWM:")? / 1024.0)
    }

    /// The memory that it holds now, in MB.
    pub fn idle_mb(&self) -> anyhow::Result<f64> {
        Ok(self.status("VmRSS:")? / 1024.0)
    }

    /// How many threads it has.
    pub fn threads(&self) -> anyhow::Result<f64> {
        self.status("Threads:")
    }

    /// How many files and connections it has open.
    pub fn descriptors(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    fn status(&self, name: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        Ok(value.split_whitespace().next().context("no value")?.parse()?)
    }

    /// Whether it wrote these words.
    pub fn said(&self, words: &str) -> anyhow::Result<bool> {
        Ok(fs::read_to_string(&self.log)?.contains(words))
    }

    /// Stops it in order, within half a minute.
    pub fn stop(mut self) -> anyhow::Result<()> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let _ = wait(Duration::from_secs(30), || Ok(self.child.try_wait()?.is_some()));
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of the same build, in the folder above the examples.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let examples = own.parent().context("no folder")?;
    Ok(examples.parent().context("no folder")?.join(name))
}

/// Waits until a condition holds.
pub fn wait(patience: Duration, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        anyhow::ensure!(begun.elapsed() < patience, "waited in vain for {patience:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
