//! `healthcheck`: asks the local worker's `/readyz`, for containers without a shell.

use super::Failure;
use crate::config::{self, Environment};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// The longest that a worker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks once.
///
/// # Errors
/// The worker is not there or not ready (exit code 1).
pub async fn healthcheck(file: Option<&Path>, environment: &Environment) -> Result<(), Failure> {
    let settings = config::load_settings(file, environment)?;
    let url = format!("http://{}/readyz", reachable(settings.admin));
    let failed = |why: String| Failure::Failed(format!("{url}: {why}"));
    let client = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().tls_certs_only([]).build();
    let client = client.map_err(|e| failed(e.to_string()))?;
    let response = client.get(&url).send().await.map_err(|_| failed("no worker answers".to_owned()))?;
    if response.status().is_success() {
        Ok(())
    } else {
        Err(failed(format!("not ready (status {})", response.status().as_u16())))
    }
}

/// An address that listens everywhere is asked on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
