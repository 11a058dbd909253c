//! What a person sees: a live page on a terminal, a few plain lines elsewhere.

use super::people::People;
use super::stage::{Numbers, Stage};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

const REFRESH: Duration = Duration::from_millis(500);
const SHOWN_PROFILES: usize = 4;

pub struct View {
    terminal: bool,
    drawn: usize,
    last: Option<Instant>,
}

impl View {
    pub fn new(terminal: bool) -> View {
        View { terminal, drawn: 0, last: None }
    }

    /// One line that stays.
    pub fn say(&mut self, line: &str) {
        self.drawn = 0;
        put(&format!("{line}\n"));
    }

    /// Draws the live page anew, now and then, on a terminal only.
    pub async fn update(&mut self, stage: &Stage, people: &People, last: bool) -> anyhow::Result<()> {
        if !self.terminal || (!last && self.last.is_some_and(|last| last.elapsed() < REFRESH)) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let page = page(&stage.numbers().await?, &stage.profiles().await?, stage, people);
        let up = if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() };
        self.drawn = page.lines().count();
        put(&format!("{up}{page}"));
        Ok(())
    }

    /// The end: what was published, what became of it, and what is wrong.
    pub async fn summary(&mut self, stage: &Stage, people: &People, wrong: &[String]) -> anyhow::Result<()> {
        let numbers = stage.numbers().await?;
        if !self.terminal {
            put(&page(&numbers, &stage.profiles().await?, stage, people));
        }
        self.drawn = 0;
        for line in wrong.iter().take(10) {
            put(&format!("wrong     {line}\n"));
        }
        put(&if wrong.is_empty() {
            "result    every profile at the gate is what the events say\n".to_owned()
        } else {
            format!("result    {} values at the gate are not what the events say\n", wrong.len())
        });
        Ok(())
    }
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
