//! How a gate is reached: through a proxy or directly, and by which certificate authorities it is verified.
//!
//! Nothing is taken from the environment implicitly: `HTTP_PROXY` and the like have no effect.

use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use std::sync::Arc;

/// The settings of `[gate]` about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Way {
    /// `None` connects directly.
    pub proxy: Option<Proxy>,
    /// Hosts and networks that are reached without the proxy; a name includes its subdomains.
    pub no_proxy: Vec<String>,
    /// PEM of authorities that are trusted in addition to the system's.
    pub ca: Option<Arc<str>>,
}

/// A checked address of a proxy; neither user nor password can be printed.
#[derive(Clone)]
pub struct Proxy {
    url: SecretString,
    shown: String,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl PartialEq for Proxy {
    fn eq(&self, other: &Proxy) -> bool {
        self.url.expose_secret() == other.url.expose_secret()
    }
}

impl Proxy {
    /// Checks an address.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it, because it may contain a password.
    pub fn new(url: &SecretString) -> Result<Proxy, String> {
        let form = "write http://user:password@proxy.example.com:3128";
        let parsed =
            reqwest::Url::parse(url.expose_secret()).map_err(|e| format!("is not an address ({e}); {form}"))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(format!("has another scheme; {form}"));
        }
        let host = parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(|| format!("names no host; {form}"))?;
        if parsed.path() != "/" || parsed.query().is_some() || parsed.fragment().is_some() {
            let escapes = "percent-encode user and password (/ is %2F, # is %23, ? is %3F)";
            return Err(format!("has something after the host; {escapes}; {form}"));
        }
        let shown = format!("{host}:{}", parsed.port_or_known_default().unwrap_or_default());
        reqwest::Proxy::all(parsed.as_str()).map_err(|_| format!("cannot be used; {form}"))?;
        Ok(Proxy { url: parsed.as_str().into(), shown })
    }

    /// Host and port, safe to show.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// What must never be shown: user name and password, as written.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let Ok(url) = reqwest::Url::parse(self.url.expose_secret()) else { return Vec::new() };
        [url.username(), url.password().unwrap_or_default()].map(str::to_owned).to_vec()
    }
}

impl Way {
    /// Adds the proxy to a client builder.
    pub(super) fn lead(&self, client: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        let Some(proxy) = &self.proxy else { return client };
        // It was checked in `Proxy::new`.
        let Ok(through) = reqwest::Proxy::all(proxy.url.expose_secret()) else { return client };
        client.proxy(through.no_proxy(reqwest::NoProxy::from_string(&self.no_proxy.join(","))))
    }
}

/// Whether an error says that the proxy refused to connect to the gate, or asks for authentication.
pub(super) fn is_refused_by_proxy(described: &str) -> bool {
    ["tunnel error: proxy authorization required", "tunnel error: unsuccessful"]
        .iter()
        .any(|refusal| described.contains(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_checked_and_its_password_never_shown() {
        let proxy = Proxy::new(&"http://user:hunter2@proxy.example.com:3128".into()).unwrap();
        assert_eq!(proxy.shown(), "proxy.example.com:3128");
        assert!(!format!("{proxy:?}").contains("hunter2"));
        for wrong in ["proxy:3128", "socks5://hunter2@proxy", "http://u:hun/ter2@proxy", "http://proxy/?x=hunter2"] {
            assert!(!Proxy::new(&wrong.into()).unwrap_err().contains("hunter2"), "{wrong}");
        }
    }
}
