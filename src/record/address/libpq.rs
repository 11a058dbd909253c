//! What libpq allows in an address: several hosts, and its parameters, as far as they are supported.

use crate::text::suggest::did_you_mean;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The placeholder for the hosts; in a user name or password it would be percent-encoded.
pub(super) const ONE_HOST: &str = "[::1]";

/// The address with the placeholder for its hosts, and the hosts: libpq allows several, each with a port, but
/// a URL only one.
pub(super) fn with_one_host(address: &str) -> (String, String) {
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
pub(super) fn understood(pairs: &[(String, String)]) -> Result<(), String> {
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
            (word, _) => {
                // Anything else is not quoted: it could be a part of the password.
                let known = KNOWN.iter().chain(&REFUSED).chain(&["sslmode", "sslrootcert", "options"]);
                let meant = did_you_mean(word, known.copied());
                let meant = if meant.is_empty() { ", which is not quoted here" } else { &meant };
                return Err(format!("names a parameter that is not supported{meant}"));
            }
        }
    }
    Ok(())
}

/// The schema that `options` names. It is not sent as an option, because a pooler refuses options, or drops
/// them silently. Instead the names of the tables are qualified with it.
pub(super) fn schema_of(options: &str) -> Result<String, String> {
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

pub(super) fn percent_encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}
