//! What a person sees: a live page on a terminal, a few plain lines elsewhere.

use super::people::People;
use super::screen::{Screen, Size};
use super::stage::{Numbers, Stage};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};
use terminal_size::{Height, Width};

const REFRESH: Duration = Duration::from_millis(500);
const SHOWN_PROFILES: usize = 4;
/// Of a terminal that does not tell its own.
const USUAL: Size = Size { columns: 80, rows: 24 };
/// What to do next: the commands of README.md's "Start", as they are there, and what they are for.
const NEXT: [(&str, &str); 4] = [
    ("PATH=\"$PWD/target/release:$PATH\"", ""),
    ("mkdir integrations && cp integration.example.json integrations/acme.json", ""),
    ("consent-gate check --connect", "  what is missing or wrong, where, what to do"),
    ("consent-gate run", ""),
];

pub struct View {
    terminal: bool,
    screen: Screen,
    last: Option<Instant>,
}

impl View {
    pub fn new() -> View {
        View { terminal: std::io::stdout().is_terminal(), screen: Screen::default(), last: None }
    }

    /// One line that stays.
    pub fn say(&mut self, line: &str) {
        put(&if self.terminal { self.screen.say(line, size()) } else { format!("{line}\n") });
    }

    /// Draws the live page anew, now and then, on a terminal only.
    pub async fn update(&mut self, stage: &Stage, people: &People, last: bool) -> anyhow::Result<()> {
        if !self.terminal || (!last && self.last.is_some_and(|last| last.elapsed() < REFRESH)) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let page = page(&stage.numbers().await?, &stage.profiles().await?, stage, people);
        put(&self.screen.draw(page, size()));
        Ok(())
    }

    /// The end: what was published, what became of it, what is wrong, and what to do next.
    pub async fn summary(&mut self, stage: &Stage, people: &People, wrong: &[String]) -> anyhow::Result<()> {
        if self.terminal {
            self.update(stage, people, true).await?;
            self.screen.leave();
        } else {
            put(&page(&stage.numbers().await?, &stage.profiles().await?, stage, people));
        }
        for line in wrong.iter().take(10) {
            self.say(&format!("wrong     {line}"));
        }
        if !wrong.is_empty() {
            self.say(&format!("result    {} values at the gate are not what the events say", wrong.len()));
            self.say("next      scripts/demo --keep plays it again and leaves the programs running, and their logs");
            return Ok(());
        }
        self.say("result    every profile at the gate is what the events say");
        self.say("next      scripts/demo --keep leaves it running, to look around; with a gate of yours:");
        for (command, purpose) in NEXT {
            self.say(&format!("          {command}{purpose}"));
        }
        self.say("          README.md, \"Start\", explains each of them, and what comes between");
        Ok(())
    }

    /// Where to look while everything is left running.
    pub fn kept(&mut self, stage: &Stage) {
        self.say("kept      everything is left running; Ctrl-C ends it");
        self.say(&format!("          curl {}/profiles", stage.gate_url()));
        self.say(&format!("          curl {}/metrics", stage.worker_url()));
        self.say(&format!("          less {}", stage.worker_log().display()));
    }
}

fn size() -> Size {
    let told = terminal_size::terminal_size_of(std::io::stdout());
    told.map_or(USUAL, |(Width(columns), Height(rows))| Size { columns: columns.into(), rows: rows.into() })
}

/// A reader that went away changes nothing.
fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn page(numbers: &Numbers, profiles: &Value, stage: &Stage, people: &People) -> String {
    let mut page = String::new();
    let mut line = |name: &str, text: String| page.push_str(&format!("{name:<9} {text}\n"));
    line("published", format!("{} messages, each for two integrations", people.published()));
    line("delivered", numbers.sum("events_total", "\"delivered\"").to_string());
    line("skipped", counted(numbers.sum("events_total", "\"skipped\""), &numbers.by("skipped_total", "reason")));
    line("retried", counted(numbers.sum("retries_total", "step="), &numbers.by("retries_total", "step")));
    line(
        "dead",
        counted(numbers.sum("events_total", "\"dead_lettered\""), &numbers.by("dead_lettered_total", "reason")),
    );
    let latency = |share| numbers.latency(share).map_or_else(|| "-".to_owned(), |s| format!("≤ {} ms", s * 1000.0));
    line("latency", format!("from the choice to the gate's acceptance: p50 {}, p99 {}", latency(0.5), latency(0.99)));
    for integration in stage.integrations() {
        let empty = Map::new();
        let known = profiles[integration].as_object().unwrap_or(&empty);
        line("profiles", format!("{} at the gate of {integration}", known.len()));
        for (person, properties) in known.iter().take(SHOWN_PROFILES) {
            line("", format!("{person:<22} {}", described(properties)));
        }
    }
    page
}

fn counted(total: u64, by_reason: &BTreeMap<String, u64>) -> String {
    let reasons: Vec<String> = by_reason.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if reasons.is_empty() { total.to_string() } else { format!("{total}  ({})", reasons.join(", ")) }
}

fn described(properties: &Value) -> String {
    let empty = Map::new();
    let pairs = properties
        .as_object()
        .unwrap_or(&empty)
        .iter()
        .filter(|(_, value)| !value.as_str().is_some_and(|v| v.contains('@')));
    pairs.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_next_is_what_the_readme_says() {
        let readme = include_str!("../../README.md");
        let start = readme.split("\n## Start\n").nth(1).unwrap().split("```").nth(1).unwrap();
        for (command, _) in NEXT {
            assert!(start.contains(command), "{command} is not in README.md");
        }
    }
}
