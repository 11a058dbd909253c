//! The HTTP clients that leave the machine. Servers are verified by the system's authorities, read
//! once for all clients: reading them takes longer than everything else about a client, and each
//! copy of them is memory. The worker looks from time to time whether they changed.

use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static TRUSTED: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// A client in the making, which verifies its servers, follows no redirect, sends nothing twice and
/// asks no proxy of the environment's; and which authorities of the system's it trusts, as
/// [`authorities`] numbers them. Those of `ca`, as PEM, are trusted as well.
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

/// How often the authorities changed: a client that knows another number trusts the wrong ones.
pub fn authorities() -> u64 {
    CHANGES.load(Ordering::Relaxed)
}

/// Looks whether the system's authorities changed. Reads files, and so belongs on a thread of its own.
pub fn look() {
    let Some(read) = from_system() else { return };
    let mut trusted = lock();
    if trusted.as_ref().is_some_and(|trusted| trusted.roots != read.roots) {
        *trusted = Some(Arc::new(read));
        CHANGES.fetch_add(1, Ordering::Relaxed);
        tracing::info!("the system's certificates of authorities changed; new connections are verified by them");
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
    let none = "the system has no certificates of authorities; install ca-certificates";
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

/// `None` where there are none.
fn from_system() -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (!roots.is_empty()).then_some(roots)
}
