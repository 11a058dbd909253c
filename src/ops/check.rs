//! `check`: is the configuration valid and, with `--connect`, can what it names be reached?

use super::finding::Finding;
use super::{Failure, print, worker};
use crate::broker::link;
use crate::broker::source::{UnreadableFate, unreadable};
use crate::broker::topology::EventSource;
use crate::config::{self, Config, Environment};
use crate::integration::Integration;
use crate::text::{remedy, shown};
use jiff::Timestamp;
use serde_json::json;
use std::path::Path;

/// Clocks that are further apart than this, in seconds, are reported: a signature is valid for minutes.
const CLOCK_WARNING_SECONDS: i64 = 60;

/// Validates the configuration and, with `connect`, tries to reach what it names.
///
/// # Errors
/// Problems of configuration (exit code 2), or something that cannot be reached (1).
pub async fn check(
    file: Option<&Path>,
    environment: &Environment,
    connect: bool,
    as_json: bool,
) -> Result<(), Failure> {
    // What is wrong with one document keeps nobody from looking at the rest, and is told at the end.
    let (config, problems) = if connect {
        config::load_readable(file, environment)?
    } else {
        (config::load(file, environment)?, Vec::new())
    };
    let mut findings: Vec<Finding> = config.integrations.iter().map(described).collect();
    if connect {
        let broker = broker(&config).await;
        let is_broker_reached = broker.result.is_ok();
        findings.push(broker);
        if let EventSource::Queue(queue) = &config.settings.source {
            findings.push(source(&config, queue).await);
        }
        findings.push(super::store::reach(&config, is_broker_reached).await);
        for integration in &config.integrations {
            findings.push(gate(integration).await);
        }
        let (workers, others) = worker::local(&config, !problems.is_empty()).await;
        findings.extend(workers);
        let names = config.integrations.iter().map(|integration| &integration.name).chain(&others);
        for name in names.filter(|_| is_broker_reached) {
            findings.push(worker::letters(&config, name).await);
        }
    }
    report(&config, &findings, as_json)?;
    if !problems.is_empty() {
        return Err(problems.into());
    }
    let failed = findings.iter().filter(|finding| finding.result.is_err()).count();
    if failed == 0 { Ok(()) } else { Err(Failure::Failed(format!("{failed} of {} checks failed", findings.len()))) }
}

fn described(integration: &Integration) -> Finding {
    let mappings = integration.mappings.iter().count();
    let endpoint = &integration.endpoint;
    let described = format!(
        "gate {} at {}, {mappings} mapped, persons by {}",
        endpoint.gate(),
        endpoint.base(),
        integration.mappings.identifier_id()
    );
    Finding::new(format!("integration {}", integration.name), Ok(described))
}

async fn broker(config: &Config) -> Finding {
    let settings = &config.settings.broker;
    let result = match link::dial(settings, "check").await {
        Ok(connection) => {
            // An orderly close. If it fails, the broker was reached all the same.
            let _ = connection.close(200, "done".into()).await;
            Ok("reached and logged in".to_owned())
        }
        Err(error) => Err(error.to_string()),
    };
    Finding::new(format!("broker {}", settings.shown()), result)
}

/// Whether the source queue, which is somebody else's, would delete messages that the client cannot read.
async fn source(config: &Config, queue: &str) -> Finding {
    let what = format!("source queue \"{queue}\"");
    let look = format!("see rabbitmqctl list_queues name type arguments policy, row {queue}");
    let unreadable = match unreadable(&config.settings.broker, queue).await {
        Ok(unreadable) => unreadable,
        Err(error) => return Finding::new(what, Err(error.to_string())),
    };
    let told = match unreadable {
        UnreadableFate::Kept => "found; messages that no client can read go to its dead-letter exchange".to_owned(),
        UnreadableFate::Deleted => format!(
            "found, but its arguments name no dead-letter exchange: RabbitMQ from 4.0 on silently deletes messages there that no client can read, at their 21st return; give it one, with x-dead-letter-strategy at-least-once; {look}"
        ),
        UnreadableFate::Returned => format!(
            "found, but it is a classic queue without a dead-letter exchange: messages that no client can read come back without end and block those behind them; use a quorum queue with a dead-letter exchange; {look}"
        ),
        UnreadableFate::Unknown => format!(
            "found; whether it deletes messages that no client can read is visible only to users who may configure it: a quorum queue needs a dead-letter exchange, {look}"
        ),
    };
    Finding { what, result: Ok(told), is_doubtful: unreadable != UnreadableFate::Kept }
}

async fn gate(integration: &Integration) -> Finding {
    let what = format!("gate's host {}", integration.endpoint.base());
    let gate = match integration.gate() {
        Ok(gate) => gate,
        Err(error) => return Finding::new(what, Err(format!("{error:#}"))),
    };
    let what = gate.proxy().map_or(what.clone(), |proxy| format!("{what} through the proxy {proxy}"));
    let result = match gate.reach(Timestamp::now()).await {
        Ok((_, Some(off))) if off.abs() > CLOCK_WARNING_SECONDS => Err(format!(
            "reached, but its clock is {off} s from this one; signatures are valid for minutes, so set the clock"
        )),
        Ok((status, _)) => Ok(format!("reached (status {status}); only send proves the key and the gate's name")),
        Err(why) => Err(remedy::of_gate(&why, gate.proxy().is_some())),
    };
    Finding::new(what, result)
}

fn report(config: &Config, findings: &[Finding], as_json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for warning in &config.warnings {
        let line = if as_json {
            json!({ "warning": warning }).to_string()
        } else {
            format!("warning  {}", shown::value(warning))
        };
        text.push_str(&(line + "\n"));
    }
    for Finding { what, result, is_doubtful } in findings {
        let ok = result.is_ok();
        let detail = shown::value(result.as_ref().map_or_else(String::as_str, String::as_str));
        let what = shown::value(what);
        let line = if as_json {
            json!({ "check": what, "ok": ok, "doubtful": is_doubtful, "detail": detail }).to_string()
        } else {
            let word = match (ok, is_doubtful) {
                (true, false) => "ok     ",
                (true, true) => "warning",
                (false, _) => "failed ",
            };
            format!("{word}  {what}: {detail}")
        };
        text.push_str(&(line + "\n"));
    }
    print(&text)
}
