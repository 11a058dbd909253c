//! Where a customer's gate is, and the credentials to trigger it.

use super::answer::{Belief, Manner, Mode};
use secrecy::{ExposeSecret, SecretString};
use std::net::IpAddr;

/// A checked address with its credentials; the key cannot be printed.
#[derive(Clone, Debug)]
pub struct Endpoint {
    base: String,
    mode: Mode,
    pub(super) username: String,
    pub(super) key: SecretString,
    gate: String,
    belief: Belief,
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Endpoint) -> bool {
        let shown = |endpoint: &Endpoint| {
            (endpoint.base.clone(), endpoint.manner(), endpoint.username.clone(), endpoint.gate.clone())
        };
        shown(self) == shown(other) && self.key.expose_secret() == other.key.expose_secret()
    }
}

impl Endpoint {
    /// Puts a checked base address (see [`base`]) and credentials together.
    #[must_use]
    pub fn new(base: String, mode: Mode, username: String, key: SecretString, gate: String) -> Endpoint {
        Endpoint { base, mode, username, key, gate, belief: Belief::default() }
    }

    /// The same endpoint with another way to recognize its answers.
    #[must_use]
    pub fn believed(self, belief: Belief) -> Endpoint {
        Endpoint { belief, ..self }
    }

    /// How the endpoint answers.
    #[must_use]
    pub fn manner(&self) -> Manner {
        Manner { mode: self.mode, belief: self.belief }
    }

    /// Scheme and host, for example `https://example.com`.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The gate's name as written in the document.
    #[must_use]
    pub fn gate(&self) -> &str {
        &self.gate
    }

    /// How Selligent executes the triggers.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The path that is requested and signed, byte for byte.
    #[must_use]
    pub fn path(&self) -> &'static str {
        match self.mode {
            Mode::Sync => "/restapi/api/sync/campaigns/triggerbyjson",
            Mode::Async => "/restapi/api/async/campaigns/triggerbyjson",
        }
    }

    /// The whole address of a trigger.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}{}", self.base, self.path())
    }

    /// The `Authorization` header as it may be shown.
    #[must_use]
    pub fn masked_authorization(&self) -> String {
        format!("hmac {}:***:{{timestamp}}", self.username)
    }

    /// What must never be shown: the key and the user name.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        [self.key.expose_secret(), self.username.as_str()].into_iter()
    }
}

/// Reads `url` in all its spellings (without a scheme, with a trailing slash, up to `/restapi` or
/// `/restapi/api`) and returns scheme and host.
///
/// # Errors
/// What is wrong and what to write instead, for people.
pub fn base(url: &str, allow_http: bool) -> Result<String, String> {
    let url = url.trim();
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let parsed = reqwest::Url::parse(&with_scheme)
        .map_err(|e| format!("not an address ({e}); write the host, such as \"example.com\""))?;
    let host = parsed.host_str().filter(|host| !host.is_empty()).ok_or("names no host; write \"example.com\"")?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("carries credentials; put them under authentication".to_owned());
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err("carries a query or a fragment; write the host alone".to_owned());
    }
    if !matches!(parsed.path().trim_end_matches('/'), "" | "/restapi" | "/restapi/api") {
        return Err("its path is not Selligent's; write the host alone, or end in /restapi".to_owned());
    }
    match parsed.scheme() {
        "https" => {}
        "http" if allow_http || is_loopback(host) => {}
        "http" => {
            return Err("plain http:// beyond loopback shows consents to the network; use https://, or set \"allow_http\": true".to_owned());
        }
        _ => return Err("its scheme is not supported; use https://".to_owned()),
    }
    let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{}://{host}{port}", parsed.scheme()))
}

/// Whether a URL's host is this machine; a name other than `localhost` could resolve to any address.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
