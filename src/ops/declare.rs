//! `declare`: makes exchange, queues and bindings and ends.

use super::{Failure, print};
use crate::broker::topology::{self, Queues, Source};
use crate::config::{self, Environment};
use crate::integration::Integration;
use serde_json::json;
use std::path::Path;

/// Declares everything that `run` would declare.
///
/// # Errors
/// Problems of configuration (exit code 2), or the broker refuses (1).
pub async fn declare(file: Option<&Path>, environment: &Environment, as_json: bool) -> Result<(), Failure> {
    let config = config::load(file, environment)?;
    let source = &config.settings.source;
    let integrations: Vec<_> = config.integrations.iter().collect();
    let refused = topology::declare(&config.settings.broker, source, &integrations).await;
    let refused = refused.map_err(|error| Failure::Failed(error.to_string()))?;
    let mut text = String::new();
    let mut line = |kind: &str, name: &str| {
        let line = if as_json { json!({ "kind": kind, "name": name }).to_string() } else { format!("{kind:9} {name}") };
        text.push_str(&(line + "\n"));
    };
    match source {
        Source::Exchange { name, .. } => line("exchange", name),
        Source::Queue(name) => line("source", name),
    }
    let is_declared = |integration: &&&Integration| refused.iter().all(|r| r.integration != integration.name);
    for integration in integrations.iter().filter(is_declared) {
        let queues = Queues::of(&integration.name);
        for queue in [&queues.work, &queues.dead, &queues.unreadable] {
            line("queue", queue);
        }
    }
    print(&text)?;
    if refused.is_empty() {
        return Ok(());
    }
    let why: Vec<String> = refused.iter().map(|refused| refused.error.to_string()).collect();
    Err(Failure::Failed(why.join("\nerror: ")))
}
