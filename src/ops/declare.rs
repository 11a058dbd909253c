//! `declare`: declares the exchange, the queues and the bindings, and exits.

use super::{Failure, print};
use crate::broker::topology::{self, Declared, EventSource, Queues};
use crate::config::{self, Environment};
use serde_json::json;
use std::path::Path;

/// Declares everything that `run` would declare.
///
/// # Errors
/// Problems of configuration (exit code 2), or the broker refuses (1).
pub async fn declare(file: Option<&Path>, environment: &Environment, as_json: bool) -> Result<(), Failure> {
    let config = config::load(file, environment)?;
    let source = &config.settings.source;
    let mut refused = Vec::new();
    let mut declared = Vec::new();
    for integration in &config.integrations {
        match topology::declare(&config.settings.broker, source, integration).await {
            Ok(Declared { connection, .. }) => {
                topology::close(&connection).await;
                declared.push(integration);
            }
            Err(error) if error.is_refusal() => refused.push(error.to_string()),
            Err(error) => return Err(Failure::Failed(error.to_string())),
        }
    }
    let mut text = String::new();
    let mut line = |kind: &str, name: &str| {
        let line = if as_json { json!({ "kind": kind, "name": name }).to_string() } else { format!("{kind:9} {name}") };
        text.push_str(&(line + "\n"));
    };
    match source {
        EventSource::Exchange { name, .. } => line("exchange", name),
        EventSource::Queue(name) => line("source", name),
    }
    for integration in declared {
        for (queue, _) in Queues::of(&integration.name).all(&integration.schedule) {
            line("queue", &queue);
        }
    }
    print(&text)?;
    refused.dedup();
    if refused.is_empty() { Ok(()) } else { Err(Failure::Failed(refused.join("\nerror: "))) }
}
