//! The HTTP clients that leave the machine. Servers are verified by the system's authorities, read
//! once for many clients: reading them takes longer than everything else about a client, and each
//! copy of them is memory.

use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long what was read is used for further clients: a changed document meets changed authorities.
const FRESH: Duration = Duration::from_secs(60);

static READ: Mutex<Option<(Instant, ClientConfig)>> = Mutex::new(None);

/// A client in the making, which verifies its servers, follows no redirect, sends nothing twice and
/// asks no proxy.
///
/// # Errors
/// The system has no certificates.
pub fn client() -> anyhow::Result<reqwest::ClientBuilder> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("consent-gate/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(verified()?)
        .redirect(reqwest::redirect::Policy::none())
        // Without this, each request is copied for a second try that never comes.
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .no_proxy();
    Ok(builder)
}

/// A configuration that shares nothing with others but the authorities.
fn verified() -> anyhow::Result<ClientConfig> {
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    let mut config = match &*read {
        Some((at, config)) if at.elapsed() < FRESH => config.clone(),
        _ => {
            let config = from_system()?;
            *read = Some((Instant::now(), config.clone()));
            config
        }
    };
    config.resumption = Resumption::default();
    Ok(config)
}

fn from_system() -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    anyhow::ensure!(!roots.is_empty(), "the system has no certificates of authorities; install ca-certificates");
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}
