//! `healthcheck`: asks the local worker's `/readyz`, for containers without a shell.

use super::{Failure, talk};
use crate::config::{self, Environment};
use crate::text::shown::quoted;
use reqwest::StatusCode;
use serde_json::Value;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// The longest that a worker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 1024 * 1024;

/// What to do when nothing answers there, or something other than a worker.
const CHECK: &str = "check whether [admin] listen is the worker's here";

/// Asks the local worker once.
///
/// # Errors
/// The worker is not there or not ready (exit code 1).
pub async fn healthcheck(file: Option<&Path>, environment: &Environment) -> Result<(), Failure> {
    let settings = config::load_settings(file, environment)?;
    let (status, body) = ask(settings.admin).await.map_err(Failure::Failed)?;
    let url = url(settings.admin);
    let told: Value = serde_json::from_slice(&body).unwrap_or_default();
    if told.get("ready").is_none() {
        return Err(Failure::Failed(format!("{url}: another program answers there; {CHECK}")));
    }
    if !status.is_success() {
        return Err(Failure::Failed(format!("{url}: not ready (status {}){}", status.as_u16(), why(&told))));
    }
    if told["configuration"] == "refused" {
        talk(
            "ready, but the configuration as it is in its files is refused: the next start would fail; consent-gate check says why",
        );
    }
    Ok(())
}

/// The state and the reasons that the worker gives.
fn why(told: &Value) -> String {
    let state = told["state"].as_str().map(|state| format!(": {}", quoted(state)));
    let reasons = told["reasons"].as_object().into_iter().flatten();
    let reasons = reasons.filter_map(|(name, why)| Some(format!("; {}: {}", quoted(name), quoted(why.as_str()?))));
    state.into_iter().chain(reasons).collect()
}

/// The local worker's `/readyz`: status and body.
///
/// # Errors
/// Nothing answers there.
pub(super) async fn ask(admin: SocketAddr) -> Result<(StatusCode, Vec<u8>), String> {
    let url = url(admin);
    let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().tls_certs_only([]).build();
    let client = client.map_err(|e| format!("{url}: {e}"))?;
    let nobody = |_| format!("{url}: no worker answers; does one run? {CHECK}");
    let mut response = client.get(&url).send().await.map_err(nobody)?;
    let mut body = Vec::new();
    while body.len() < LONGEST_ANSWER
        && let Some(chunk) = response.chunk().await.map_err(nobody)?
    {
        body.extend_from_slice(&chunk);
    }
    Ok((response.status(), body))
}

fn url(admin: SocketAddr) -> String {
    format!("http://{}/readyz", reachable(admin))
}

/// The address to connect to: loopback if the worker listens on all addresses.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
