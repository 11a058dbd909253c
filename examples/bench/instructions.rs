//! Instructions by layer, from what callgrind wrote: a count, so it can be compared between machines.

use anyhow::Context;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

/// The layers, and what the path of a source file, or else the name of a function, contains if it belongs to one.
/// The first that matches counts.
const LAYERS: [(&str, &[&str]); 11] = [
    (
        "records",
        &["src/record", "fjall", "lsm-tree", "lsm_tree", "skiplist", "postcard", "quick_cache", "byteview", "record::"],
    ),
    (
        "HTTP client",
        &[
            "reqwest",
            "hyper",
            "/http-",
            "http::",
            "httparse",
            "/url-",
            "url::",
            "tower",
            "want-",
            "idna",
            "sync_wrapper",
        ],
    ),
    (
        "AMQP client",
        &[
            "lapin",
            "amq-protocol",
            "amq_protocol",
            "cookie",
            "nom-",
            "nom::",
            "flume",
            "async-rs",
            "async_rs",
            "tcp-stream",
        ],
    ),
    ("TLS", &["rustls", "/ring-", "ring_core", "aes_", "x86_64-mont", "aesni", "ghash", "chacha"]),
    (
        "event, mapping, request",
        &[
            "serde",
            "src/event",
            "src/mapping",
            "src/plan",
            "src/text",
            "jiff",
            "event::",
            "mapping::",
            "plan::",
            "itoa",
        ],
    ),
    ("hashes (signature, keys of records)", &["sha2", "hmac", "digest", "hex-", "xxh"]),
    ("gate: permits, answer", &["src/gate", "gate::"]),
    (
        "worker, verdict, settling",
        &["src/worker", "src/verdict", "src/broker", "src/schedule", "src/serve", "src/task", "worker::", "broker::"],
    ),
    ("metrics and logs", &["src/observe", "prometheus", "tracing", "observe::"]),
    ("runtime", &["tokio", "mio", "futures", "parking_lot", "crossbeam", "polling"]),
    ("allocator", &["jemalloc", "malloc", "_rjem", "je_", "free"]),
];
const OTHER: &str = "standard library, libc and other";

/// Instructions by layer, of one run.
#[derive(Clone, Debug, Default)]
pub struct Instructions(BTreeMap<&'static str, u64>);

impl Instructions {
    /// Reads callgrind's output.
    pub fn read(file: &Path) -> anyhow::Result<Instructions> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut found = Instructions::default();
        let (mut files, mut functions) = (HashMap::new(), HashMap::new());
        let (mut own_file, mut current_file, mut function) = (String::new(), String::new(), String::new());
        let mut is_inclusive = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fl=") {
                own_file = named(name, &mut files);
                current_file.clone_from(&own_file);
            } else if let Some(name) = line.strip_prefix("fi=").or_else(|| line.strip_prefix("fe=")) {
                current_file = named(name, &mut files);
            } else if let Some(name) = line.strip_prefix("fn=") {
                function = named(name, &mut functions);
                current_file.clone_from(&own_file);
            } else if let Some(name) = line.strip_prefix("cfi=").or_else(|| line.strip_prefix("cfl=")) {
                named(name, &mut files);
            } else if let Some(name) = line.strip_prefix("cfn=") {
                named(name, &mut functions);
            } else if line.starts_with("calls=") {
                // The next line is the cost of the call: what it calls is counted where it is.
                is_inclusive = true;
            } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
                let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok());
                if let (Some(cost), false) = (cost, is_inclusive) {
                    *found.0.entry(layer(&current_file, &own_file, &function)).or_default() += cost;
                }
                is_inclusive = false;
            }
        }
        anyhow::ensure!(!found.0.is_empty(), "{} has no costs", file.display());
        Ok(found)
    }

    /// For each of the events by which another run was longer.
    pub fn per_event(&self, longer: &Instructions, events: u64) -> Vec<(&'static str, f64)> {
        let names = LAYERS.iter().map(|(name, _)| *name).chain([OTHER]);
        let of = |all: &Instructions, name| all.0.get(name).copied().unwrap_or_default() as f64;
        names.map(|name| (name, (of(longer, name) - of(self, name)) / events as f64)).collect()
    }
}

/// The name behind `(number)`, which is written out at its first use only.
fn named(text: &str, known: &mut HashMap<String, String>) -> String {
    let Some((number, name)) = text.split_once(')') else { return text.to_owned() };
    if name.is_empty() {
        return known.get(number).cloned().unwrap_or_default();
    }
    known.insert(number.to_owned(), name.trim().to_owned());
    name.trim().to_owned()
}

/// What was inlined counts for the file that it is written in, unless that is the standard library's; then the
/// function counts into which it was inlined.
fn layer(current_file: &str, own_file: &str, function: &str) -> &'static str {
    let is_std = |file: &str| file.contains("/library/") || file == "???";
    let places = [current_file, own_file].into_iter().filter(|file| !is_std(file)).chain([function]);
    let of = |place: &str| LAYERS.iter().find(|(_, signs)| signs.iter().any(|sign| place.contains(sign)));
    places.into_iter().find_map(of).map_or(OTHER, |(name, _)| name)
}
