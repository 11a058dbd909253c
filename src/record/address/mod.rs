//! The address of the shared store.

mod connect;
mod libpq;
mod tls;

pub(super) use connect::{CALL_TIMEOUT, describe};

use libpq::{ONE_HOST, percent_encoded, schema_of, understood, with_one_host};
use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_postgres::config::{Host, SslMode};

/// How far the server is verified; the words are libpq's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// `disable`: no TLS.
    Plain,
    /// `allow`, `prefer`, `require` without a root certificate: TLS if possible or always, but with any
    /// server.
    Anybody(SslMode),
    /// `verify-ca`, and `require` with a root certificate: the certificate is verified, but not its name.
    Authority,
    /// `verify-full`: the certificate and its name are verified.
    Name,
}

/// A checked `postgres://…` URL; the password in it cannot be printed. Clones share their credentials: a new
/// connection uses those that were read last.
#[derive(Clone)]
pub struct Address {
    url: Arc<Mutex<SecretString>>,
    shown: String,
    verify: Verify,
    is_beyond_loopback: bool,
    root: Option<PathBuf>,
    schema: Option<String>,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("shown", &self.shown).field("verify", &self.verify).finish_non_exhaustive()
    }
}

impl Address {
    /// Checks a URL. `sslmode` and `sslrootcert` mean the same as in libpq; without `sslmode` the server's
    /// name is verified, but on loopback there is no TLS.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it, because it contains a password.
    pub fn new(url: &SecretString) -> Result<Address, String> {
        let form = "write postgres://user:password@host:5432/database";
        let (one, named) = with_one_host(url.expose_secret().trim());
        let mut parsed = reqwest::Url::parse(&one).map_err(|error| format!("is not an address ({error}); {form}"))?;
        let is_ours = |key: &str| matches!(key, "sslmode" | "sslrootcert" | "options");
        let (ours, theirs): (Vec<_>, Vec<_>) =
            parsed.query_pairs().into_owned().partition(|(key, _)| is_ours(key.as_str()));
        understood(&theirs)?;
        if theirs.is_empty() {
            parsed.set_query(None);
        } else {
            // libpq takes + literally, so blanks must not be encoded as one.
            let pairs = theirs.iter().map(|(key, value)| format!("{key}={}", percent_encoded(value)));
            parsed.set_query(Some(&pairs.collect::<Vec<_>>().join("&")));
        }
        let whole = parsed.as_str().replacen(ONE_HOST, &named, 1);
        let config: tokio_postgres::Config =
            whole.parse().map_err(|error| format!("cannot be read ({error}); {form}"))?;
        if config.get_hosts().is_empty() {
            return Err(format!("names no host; {form}"));
        }
        if !matches!(config.get_hostaddrs().len(), count if count == 0 || count == config.get_hosts().len()) {
            return Err("hostaddr needs one address for each host".to_owned());
        }
        if config.get_user().is_none_or(str::is_empty) || config.get_dbname().is_none_or(str::is_empty) {
            return Err(format!("names no user or no database; {form}"));
        }
        let of = |wanted: &str| ours.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
        let schema = of("options").map(schema_of).transpose()?;
        let is_system = of("sslrootcert") == Some("system");
        let root = of("sslrootcert").filter(|_| !is_system).map(PathBuf::from);
        // The connection goes to `hostaddr` if there is one; the host name is then only verified.
        let is_beyond_loopback = match config.get_hostaddrs() {
            [] => !config.get_hosts().iter().all(is_local),
            addresses => !addresses.iter().all(std::net::IpAddr::is_loopback),
        };
        let verify = match of("sslmode") {
            None if is_system => Verify::Name,
            Some(mode) if is_system && mode != "verify-full" => {
                return Err("sslrootcert=system works only with sslmode=verify-full: anybody can get a certificate \
                    from some public authority"
                    .to_owned());
            }
            None if is_beyond_loopback => Verify::Name,
            None | Some("disable") => Verify::Plain,
            Some("allow" | "prefer") => Verify::Anybody(SslMode::Prefer),
            Some("require") if root.is_none() => Verify::Anybody(SslMode::Require),
            Some("require" | "verify-ca") => Verify::Authority,
            Some("verify-full") => Verify::Name,
            Some(_) => {
                return Err(
                    "sslmode is not one of disable, allow, prefer, require, verify-ca, verify-full; verify-full is safe"
                        .to_owned(),
                );
            }
        };
        let shown = format!("{}/{}", hosts(&config), config.get_dbname().unwrap_or_default());
        let url = Arc::new(Mutex::new(whole.into()));
        Ok(Address { url, shown, verify, is_beyond_loopback, root, schema })
    }

    /// Whether it leads to the same place in the same way, whatever the role and its password.
    #[must_use]
    pub fn leads_to(&self, other: &Address) -> bool {
        let without_role = |address: &Address| {
            let mut url = reqwest::Url::parse(address.url().expose_secret()).ok()?;
            url.set_username("").and_then(|()| url.set_password(None)).ok()?;
            Some(url)
        };
        self.verify == other.verify
            && self.root == other.root
            && self.schema == other.schema
            && without_role(self) == without_role(other)
    }

    /// Takes over the role and the password from another address of the same place, for the next connection
    /// of every clone.
    pub fn renew(&self, other: &Address) {
        let url = other.url();
        *self.url.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }

    fn url(&self) -> SecretString {
        self.url.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hosts, ports and database, safe to show.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The schema of the tables, if one is named.
    pub(super) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// A warning about a setting that is allowed but risky.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let is_risky = matches!(self.verify, Verify::Plain | Verify::Anybody(_)) && self.is_beyond_loopback;
        is_risky.then(|| {
            format!(
                "records.store: {} is reached without verified TLS: consents can be read and changed in transit; sslmode=verify-full protects them",
                self.shown
            )
        })
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => crate::gate::endpoint::is_loopback(name),
        Host::Unix(_) => true,
    }
}

fn hosts(config: &tokio_postgres::Config) -> String {
    let ports = config.get_ports();
    let named = config.get_hosts().iter().enumerate().map(|(index, host)| {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    });
    named.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
