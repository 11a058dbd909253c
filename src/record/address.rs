//! The address of the shared store, how its server is verified, and how to connect to it.

use super::Failed;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The longest wait for one answer of the database.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest wait for a connection, for each host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// After how long without traffic a connection is probed, unless the URL says otherwise.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(30);

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

    /// Connects. The task drives the connection; aborting it ends the connection.
    ///
    /// # Errors
    /// The server cannot be reached or verified, or it refuses.
    pub(super) async fn connect(&self) -> Result<(Client, JoinHandle<()>), Failed> {
        let at = |why: &dyn fmt::Display| Failed::new(format!("cannot connect to PostgreSQL at {}: {why}", self.shown));
        let url = self.url();
        let mut config: tokio_postgres::Config = url.expose_secret().parse().map_err(|_| at(&"unreadable URL"))?;
        if config.get_application_name().is_none() {
            config.application_name("consent-gate");
        }
        if !url.expose_secret().contains("keepalives_idle=") {
            config.keepalives_idle(KEEPALIVES_IDLE);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        let connected = async {
            Ok(match self.verify {
                Verify::Plain => {
                    let (client, connection) = config.ssl_mode(SslMode::Disable).connect(NoTls).await?;
                    (client, tokio::spawn(async move { drop(connection.await) }))
                }
                verify => {
                    let mode = if let Verify::Anybody(mode) = verify { mode } else { SslMode::Require };
                    let address = self.clone();
                    // This reads files, and their disk may hang.
                    let tls = tokio::task::spawn_blocking(move || address.tls()).await;
                    let tls = tls.unwrap_or_else(|error| Err(error.to_string())).map_err(|why| at(&why))?;
                    let (client, connection) = config.ssl_mode(mode).connect(MakeRustlsConnect::new(tls)).await?;
                    (client, tokio::spawn(async move { drop(connection.await) }))
                }
            })
        };
        let many = u32::try_from(config_hosts(&url)).unwrap_or(u32::MAX);
        match tokio::time::timeout(CALL_TIMEOUT.saturating_mul(many.max(1)), connected).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(Trouble::Told(failed))) => Err(failed),
            Ok(Err(Trouble::Client(error))) => Err(at(&describe(&error))),
            Err(_) => Err(at(&"no answer")),
        }
    }

    fn tls(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous();
        let verifier: Arc<dyn ServerCertVerifier> = match self.verify {
            Verify::Plain | Verify::Anybody(_) => Arc::new(Trusting { inner: None, provider }),
            Verify::Authority => Arc::new(Trusting { inner: Some(self.verifier(&provider)?), provider }),
            Verify::Name => self.verifier(&provider)?,
        };
        Ok(builder.with_custom_certificate_verifier(verifier).with_no_client_auth())
    }

    fn verifier(&self, provider: &Arc<rustls::crypto::CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, String> {
        let mut roots = RootCertStore::empty();
        match &self.root {
            Some(file) => {
                let why = |why: &dyn fmt::Display| format!("sslrootcert {}: {why}", file.display());
                for certificate in CertificateDer::pem_file_iter(file).map_err(|e| why(&e))? {
                    roots.add(certificate.map_err(|e| why(&e))?).map_err(|e| why(&e))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| format!("no certificates to verify it with: {error}"))
    }
}

enum Trouble {
    Told(Failed),
    Client(tokio_postgres::Error),
}

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Trouble {
        Trouble::Told(failed)
    }
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Trouble {
        Trouble::Client(error)
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => crate::gate::endpoint::is_loopback(name),
        Host::Unix(_) => true,
    }
}

/// The placeholder for the hosts; in a user name or password it would be percent-encoded.
const ONE_HOST: &str = "[::1]";

/// The address with the placeholder for its hosts, and the hosts: libpq allows several, each with a port, but
/// a URL only one.
fn with_one_host(address: &str) -> (String, String) {
    let start = address.find("://").map_or(0, |at| at + 3);
    let end = address[start..].find(['/', '?', '#']).map_or(address.len(), |at| start + at);
    let start = address[start..end].rfind('@').map_or(start, |at| start + at + 1);
    let hosts = &address[start..end];
    if hosts.is_empty() {
        return (address.to_owned(), String::new());
    }
    (format!("{}{ONE_HOST}{}", &address[..start], &address[end..]), hosts.to_owned())
}

/// Refuses parameters that would mean something else here than in libpq.
fn understood(pairs: &[(String, String)]) -> Result<(), String> {
    const KNOWN: [&str; 16] = [
        "application_name",
        "channel_binding",
        "connect_timeout",
        "dbname",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "password",
        "port",
        "sslnegotiation",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    ];
    const REFUSED: [&str; 11] = [
        "client_encoding",
        "gssencmode",
        "krbsrvname",
        "passfile",
        "require_auth",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslkey",
    ];
    for (key, value) in pairs {
        match (key.as_str(), value.as_str()) {
            ("target_session_attrs", "any" | "read-write") | ("sslnegotiation", "postgres") => {}
            ("target_session_attrs", _) => {
                return Err("target_session_attrs can be read-write, or any: records are written".to_owned());
            }
            ("sslnegotiation", _) => return Err("sslnegotiation can be postgres only; leave it out".to_owned()),
            (known, _) if KNOWN.contains(&known) => {}
            (word, _) if REFUSED.contains(&word) => return Err(format!("{word} is not supported; leave it out")),
            // Not quoted: it could be a part of the password.
            _ => return Err("names something that is not supported".to_owned()),
        }
    }
    Ok(())
}

/// The schema that `options` names. It is not sent as an option, because a pooler refuses options, or drops
/// them silently. Instead the names of the tables are qualified with it.
fn schema_of(options: &str) -> Result<String, String> {
    let path =
        options.trim().strip_prefix("-c").map(str::trim_start).and_then(|rest| rest.strip_prefix("search_path="));
    let is_plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    match path {
        Some(name) if is_plain(name) => Ok(name.to_lowercase()),
        _ => Err("options can name one schema, options=-csearch_path%3Dmine, and nothing else: \
            a pooler drops them; set others at the role (ALTER ROLE … SET …)"
            .to_owned()),
    }
}

/// An error with its cause. Of a server's error only its message and code are used: its details can quote
/// rows.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} ({})", said.message(), said.code().code());
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
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

fn config_hosts(url: &SecretString) -> usize {
    url.expose_secret().parse().map_or(1, |config: tokio_postgres::Config| config.get_hosts().len())
}

fn percent_encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Accepts any certificate, or any that is signed by a trusted authority, whatever its name.
#[derive(Debug)]
struct Trusting {
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Result<Address, String> {
        Address::new(&url.into())
    }

    #[test]
    fn the_server_is_verified_beyond_loopback_unless_somebody_says_otherwise() {
        let verify = |url| address(url).unwrap().verify;
        assert_eq!(verify("postgres://gate:x@localhost/db"), Verify::Plain);
        assert_eq!(verify("postgres://gate:x@127.0.0.1:5433/db"), Verify::Plain);
        assert_eq!(verify("postgres://gate:x@db.example.com/db"), Verify::Name);
        assert_eq!(verify("postgres://gate:x@127.0.0.1,db.example.com/db"), Verify::Name);
        assert_eq!(verify("postgres://gate@127.0.0.1/db?sslmode=verify-full"), Verify::Name);
        assert_eq!(verify("postgres://gate@db.example.com/db?sslmode=require"), Verify::Anybody(SslMode::Require));
        assert_eq!(verify("postgres://gate@db/db?sslmode=require&sslrootcert=ca.pem"), Verify::Authority);
        assert!(address("postgres://gate@db/db?sslmode=disable").unwrap().warning().is_some());
        assert!(address("postgres://gate@db/db").unwrap().warning().is_none());
    }

    #[test]
    fn words_of_libpq_mean_what_they_mean_to_libpq_or_are_refused() {
        let verify = |url| address(url).unwrap().verify;
        assert_eq!(verify("postgres://gate@db/db?sslrootcert=system"), Verify::Name);
        assert_eq!(verify("postgres://gate@localhost/db?sslrootcert=system"), Verify::Name);
        assert!(address("postgres://gate@db/db?sslrootcert=system").unwrap().root.is_none());
        assert_eq!(verify("postgres://gate@localhost/db?hostaddr=192.0.2.7"), Verify::Name);
        assert_eq!(verify("postgres://gate@db/db?hostaddr=127.0.0.1"), Verify::Plain);
        assert!(address("postgres://gate@a,b/db?target_session_attrs=read-write").is_ok());
        let several =
            address("postgres://gate:p[::1]w@a:5433,b,[::2]:5434/db?target_session_attrs=read-write").unwrap();
        assert_eq!(several.shown(), "a:5433,b:5432,[::2]:5434/db");
        assert!(
            several.url.lock().unwrap().expose_secret().starts_with("postgres://gate:p%5B%3A%3A1%5Dw@a:5433,b,[::2]")
        );
        assert!(address("postgres://gate@a:5433,b:x/db").unwrap_err().contains("cannot be read"));
        for (query, words) in [
            ("sslrootcert=system&sslmode=require", "only with sslmode=verify-full"),
            ("target_session_attrs=read-only", "records are written"),
            ("target_session_attrs=prefer-standby", "target_session_attrs"),
            ("hostaddr=127.0.0.1,127.0.0.2", "one address for each host"),
            ("sslnegotiation=direct", "sslnegotiation"),
            ("sslcert=client.pem", "sslcert"),
            ("gssencmode=require", "gssencmode"),
            ("require_auth=scram-sha-256", "require_auth"),
        ] {
            let why = address(&format!("postgres://gate@db/db?{query}")).unwrap_err();
            assert!(why.contains(words), "{query}: {why}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for url in [
            "postgres://gate:s3cr3t@/db",
            "postgres://gate:s3cr3t@db",
            "postgres://:s3cr3t@db/db",
            "postgres://gate:s3cr3t@db/db?sslmode=on",
            "postgres://gate:s3cr3t@db/db?unknown=1",
            "postgres://gate:s3cr3t@db:port/db",
        ] {
            let why = address(url).unwrap_err();
            assert!(!why.contains("s3cr3t"), "{url}: {why}");
        }
        let shown = format!("{:?}", address("postgres://gate:s3cr3t@db/db").unwrap());
        assert!(shown.contains("db:5432/db") && !shown.contains("s3cr3t"), "{shown}");
    }

    #[test]
    fn another_password_or_role_leads_to_the_same_place_and_anything_else_does_not() {
        let known = address("postgres://gate:old@db/db?options=-csearch_path%3Dmine").unwrap();
        let clone = known.clone();
        let rotated = address("postgres://other:new@db/db?options=-csearch_path%3Dmine").unwrap();
        assert!(known.leads_to(&rotated));
        known.renew(&rotated);
        assert!(clone.url().expose_secret().contains("other:new@"));
        for elsewhere in [
            "postgres://gate:old@db2/db?options=-csearch_path%3Dmine",
            "postgres://gate:old@db/db2?options=-csearch_path%3Dmine",
            "postgres://gate:old@db/db?options=-csearch_path%3Dyours",
            "postgres://gate:old@db/db?options=-csearch_path%3Dmine&sslmode=require",
            "postgres://gate:old@db/db?options=-csearch_path%3Dmine&sslrootcert=ca.pem",
        ] {
            assert!(!known.leads_to(&address(elsewhere).unwrap()), "{elsewhere}");
        }
    }

    #[test]
    fn a_schema_is_no_option_of_the_session() {
        let known = address("postgres://gate@127.0.0.1/db?options=-csearch_path%3DMine&sslmode=disable").unwrap();
        let config: tokio_postgres::Config = known.url().expose_secret().parse().unwrap();
        assert_eq!((config.get_options(), known.schema()), (None, Some("mine")));
        for others in ["-cstatement_timeout%3D1", "-csearch_path%3Da,b", "-csearch_path%3Da%20-cwork_mem%3D1", ""] {
            let why = address(&format!("postgres://gate@127.0.0.1/db?options={others}")).unwrap_err();
            assert!(why.contains("one schema"), "{others}: {why}");
        }
    }
}
