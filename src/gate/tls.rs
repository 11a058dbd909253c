//! The TLS settings of the HTTP clients. Servers are verified by the system's certificate authorities, which
//! are read once for all clients: reading them takes longer than everything else about a client, and each
//! copy takes memory. From time to time the worker checks whether they have changed.

use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static TRUSTED: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Returns a client builder that verifies its servers, follows no redirect, sends nothing twice and ignores
/// proxies from the environment; and the number of the system's authorities that it trusts, as in
/// [`authorities`]. The authorities in `ca`, as PEM, are trusted as well.
///
/// # Errors
/// The system has no certificates.
pub fn client(ca: Option<&str>) -> anyhow::Result<(reqwest::ClientBuilder, u64)> {
    let number = authorities();
    let trusted = match ca {
        None => trusted()?,
        Some(pem) => Arc::new(with(trusted().ok().as_deref(), pem)?),
    };
    let verified = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    let builder = reqwest::Client::builder()
        .user_agent(concat!("consent-gate/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(verified)
        .redirect(reqwest::redirect::Policy::none())
        // Without this, each request is copied for a second try that never comes.
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .no_proxy();
    Ok((builder, number))
}

/// How many times the authorities have changed: a client with another number trusts outdated ones.
pub fn authorities() -> u64 {
    CHANGES.load(Ordering::Relaxed)
}

/// Checks whether the system's authorities have changed. Reads files, so it must run on a thread of its own.
pub fn look() {
    let Some(read) = from_system() else { return };
    let mut trusted = lock();
    if trusted.as_ref().is_some_and(|trusted| trusted.roots != read.roots) {
        *trusted = Some(Arc::new(read));
        CHANGES.fetch_add(1, Ordering::Relaxed);
        tracing::info!("the system's CA certificates changed; new connections are verified with them");
    }
}

fn lock() -> MutexGuard<'static, Option<Arc<RootCertStore>>> {
    TRUSTED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn trusted() -> anyhow::Result<Arc<RootCertStore>> {
    let mut trusted = lock();
    if let Some(trusted) = &*trusted {
        return Ok(Arc::clone(trusted));
    }
    let none = "the system has no CA certificates; install ca-certificates";
    let read = Arc::new(from_system().ok_or_else(|| anyhow::anyhow!(none))?);
    Ok(Arc::clone(trusted.insert(read)))
}

/// The system's authorities, if there are any, and those of a file.
fn with(system: Option<&RootCertStore>, pem: &str) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.extend(system.iter().flat_map(|system| system.roots.iter().cloned()));
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// `None` if there are none.
fn from_system() -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (!roots.is_empty()).then_some(roots)
}
