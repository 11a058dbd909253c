//! `check`: is everything written as it must be, and with `--connect` within reach?

use super::{Failure, print};
use crate::broker::link;
use crate::config::{self, Config, Environment};
use crate::integration::Integration;
use jiff::Timestamp;
use serde_json::json;
use std::path::Path;

/// Clocks further apart than this, in seconds, deserve a word: a signature is good for minutes.
const CLOCK_WARNING_SECONDS: i64 = 60;

/// One thing that was looked at.
struct Finding {
    what: String,
    result: Result<String, String>,
}

/// Validates and, with `connect`, reaches out.
///
/// # Errors
/// Problems of configuration (exit code 2), or something that cannot be reached (1).
pub async fn check(
    file: Option<&Path>,
    environment: &Environment,
    connect: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let config = config::load(file, environment)?;
    let mut findings: Vec<Finding> = config.integrations.iter().map(described).collect();
    if connect {
        findings.push(broker(&config).await);
        let records = format!("records {}", config.settings.records.place);
        findings.push(Finding { what: records, result: super::store::reach(&config.settings).await });
        for integration in &config.integrations {
            findings.push(gate(integration).await);
        }
    }
    report(&config, &findings, as_json)?;
    let failed = findings.iter().filter(|finding| finding.result.is_err()).count();
    if failed == 0 { Ok(()) } else { Err(Failure::Failed(format!("{failed} of {} checks failed", findings.len()))) }
}

fn described(integration: &Integration) -> Finding {
    let mappings = integration.mappings.iter().count();
    let endpoint = &integration.endpoint;
    Finding {
        what: format!("integration {}", integration.name),
        result: Ok(format!(
            "gate {} at {}, {mappings} mapped, persons by {}",
            endpoint.gate(),
            endpoint.base(),
            integration.mappings.identifier_id()
        )),
    }
}

async fn broker(config: &Config) -> Finding {
    let settings = &config.settings.broker;
    let result = match link::dial(settings, "check").await {
        Ok(connection) => {
            // Politely; that it was reached is what counts.
            let _ = connection.close(200, "done".into()).await;
            Ok("reached and logged in".to_owned())
        }
        Err(error) => Err(error.to_string()),
    };
    Finding { what: format!("broker {}", settings.shown()), result }
}

async fn gate(integration: &Integration) -> Finding {
    let what = format!("gate's host {}", integration.endpoint.base());
    let gate = match integration.gate() {
        Ok(gate) => gate,
        Err(error) => return Finding { what, result: Err(format!("{error:#}")) },
    };
    let result = match gate.reach(Timestamp::now()).await {
        Ok((_, Some(off))) if off.abs() > CLOCK_WARNING_SECONDS => Err(format!(
            "reached, but its clock is {off} s from this one; signatures hold for minutes, so set the clock"
        )),
        Ok((status, _)) => Ok(format!("reached (status {status}); only send proves the key and the gate's name")),
        Err(why) => Err(why),
    };
    Finding { what, result }
}

fn report(config: &Config, findings: &[Finding], as_json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for warning in &config.warnings {
        let line = if as_json { json!({ "warning": warning }).to_string() } else { format!("warning  {warning}") };
        text.push_str(&(line + "\n"));
    }
    for Finding { what, result } in findings {
        let ok = result.is_ok();
        let detail = result.as_ref().map_or_else(String::as_str, String::as_str);
        let line = if as_json {
            json!({ "check": what, "ok": ok, "detail": detail }).to_string()
        } else {
            format!("{}  {what}: {detail}", if ok { "ok     " } else { "failed " })
        };
        text.push_str(&(line + "\n"));
    }
    print(&text)
}
