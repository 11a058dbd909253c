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
/// With fewer rows, half of the profiles are shown: the lines that stay need rows, too.
const FEW_ROWS: usize = 30;
/// The size of a terminal that does not report its own.
const USUAL: Size = Size { columns: 80, rows: 24 };
/// What to do next with a gate of one's own: the commands from README.md, "Start", and what they are for.
const NEXT: [(&str, &str); 5] = [
    ("PATH=\"$PWD/target/release:$PATH\"", ""),
    ("mkdir integrations", ""),
    ("cp integration.example.json integrations/acme.json", ""),
    ("consent-gate check --connect", "says what is missing, and what to do"),
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

    /// Redraws the live page from time to time, on a terminal only.
    pub async fn update(&mut self, stage: &Stage, people: &People, last: bool) -> anyhow::Result<()> {
        if !self.terminal || (!last && self.last.is_some_and(|last| last.elapsed() < REFRESH)) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let page = page(&stage.numbers().await?, &stage.profiles().await?, stage, people, self.shown());
        put(&self.screen.draw(page, size()));
        Ok(())
    }

    /// The end: what was published, what became of it, what is wrong, and what to do next.
    pub async fn summary(&mut self, stage: &Stage, people: &People, wrong: &[String]) -> anyhow::Result<()> {
        if self.terminal {
            self.update(stage, people, true).await?;
            self.screen.leave();
        } else {
            put(&page(&stage.numbers().await?, &stage.profiles().await?, stage, people, self.shown()));
        }
        for line in wrong.iter().take(10) {
            self.say(&format!("wrong     {line}"));
        }
        if !wrong.is_empty() {
            self.say(&format!("result    {} values at the gate are not what the events say", wrong.len()));
            self.say("next      scripts/demo --keep    again, and everything is left running, with its logs");
            return Ok(());
        }
        self.say("result    every profile at the gate is what the events say");
        for line in next() {
            self.say(&line);
        }
        Ok(())
    }

    fn shown(&self) -> usize {
        if self.terminal && size().rows < FEW_ROWS { SHOWN_PROFILES / 2 } else { SHOWN_PROFILES }
    }

    /// Where to look while everything is left running.
    pub fn kept(&mut self, stage: &Stage) {
        self.say("kept      everything is left running; Ctrl-C ends it");
        self.say(&format!("          curl {}/profiles", stage.gate_url()));
        self.say(&format!("          curl {}/metrics", stage.worker_url()));
        self.say(&format!("          less {}", stage.worker_log().display()));
    }
}

fn next() -> Vec<String> {
    let named = [
        "next      scripts/demo --keep             the same, left running to look at".to_owned(),
        "          for a gate of yours, as README.md explains at \"Start\":".to_owned(),
    ];
    let line = |(command, purpose)| format!("          {command:<30}  {purpose}").trim_end().to_owned();
    named.into_iter().chain(NEXT.map(line)).collect()
}

fn size() -> Size {
    let told = terminal_size::terminal_size_of(std::io::stdout());
    told.map_or(USUAL, |(Width(columns), Height(rows))| Size { columns: columns.into(), rows: rows.into() })
}

/// A closed standard output changes nothing.
fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn page(numbers: &Numbers, profiles: &Value, stage: &Stage, people: &People, shown: usize) -> String {
    let mut page = String::new();
    let mut line = |name: &str, text: String| page.push_str(&format!("{name:<9} {text}\n"));
    line("published", format!("{} messages, each for two integrations", people.published()));
    line("delivered", numbers.sum("events_total", "\"delivered\"").to_string());
    line("skipped", counted(numbers.sum("events_total", "\"skipped\""), &numbers.by("skipped_total", "reason")));
    let mut steps = numbers.by("retries_total", "step");
    let held = steps.remove("hold").unwrap_or_default();
    line("retried", counted(steps.values().sum(), &steps).replace('(', "(after attempt "));
    line("held", format!("{held} times, spending no attempt"));
    line(
        "dead",
        counted(numbers.sum("events_total", "\"dead_lettered\""), &numbers.by("dead_lettered_total", "reason")),
    );
    let latency = |share| numbers.latency(share).map_or_else(|| "-".to_owned(), |s| format!("≤ {} ms", s * 1000.0));
    line("latency", format!("from choice to acceptance: p50 {}, p99 {}", latency(0.5), latency(0.99)));
    for integration in stage.integrations() {
        let empty = Map::new();
        let known = profiles[integration].as_object().unwrap_or(&empty);
        line("profiles", format!("{} at the gate of {integration}", known.len()));
        for (person, properties) in known.iter().take(shown) {
            line("", format!("{person:<22} {}", described(properties)));
        }
    }
    page
}

fn counted(total: u64, by_reason: &BTreeMap<String, u64>) -> String {
    let reasons: Vec<String> = by_reason.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
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
        assert!(next().iter().all(|line| line.chars().count() < USUAL.columns), "{:?}", next());
    }
}
