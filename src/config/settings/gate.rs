//! `[gate]`: the limits of requests, and how gates are reached.

use super::not_zero;
use crate::broker::link;
use crate::config::fields::Fields;
use crate::config::{Environment, secrets};
use crate::gate::Limits;
use crate::gate::way::{Proxy, Way};
use secrecy::ExposeSecret;
use std::path::Path;

/// `[gate]`, or `overrides.gate` of a document on top of it.
pub(in crate::config) fn limits(
    mut fields: Fields<'_>,
    defaults: &Limits,
    folder: &Path,
    environment: &Environment,
) -> Limits {
    let connect = fields.place_of("connect_timeout");
    let limits = Limits {
        timeout: not_zero(&mut fields, "timeout").unwrap_or(defaults.timeout),
        connect_timeout: not_zero(&mut fields, "connect_timeout").unwrap_or(defaults.connect_timeout),
        max_in_flight: fields.count("max_in_flight", 10_000).map_or(defaults.max_in_flight, |at| at.value),
        is_adaptive: fields.flag("adaptive").map_or(defaults.is_adaptive, |at| at.value),
        requests_per_second: fields.rate("requests_per_second").map(|at| at.value).or(defaults.requests_per_second),
        way: way(&mut fields, &defaults.way, folder, environment),
    };
    if let Some(place) = connect.filter(|_| limits.connect_timeout > limits.timeout) {
        let name = fields.name("connect_timeout");
        fields
            .problems()
            .warn(&place, format!("{name} is longer than the timeout, {:?}, which counts", limits.timeout));
    }
    fields.finish();
    limits
}

/// How gates are reached: `proxy` (`"none"` for a direct connection), `no_proxy`, `ca_file`.
fn way(fields: &mut Fields<'_>, defaults: &Way, folder: &Path, environment: &Environment) -> Way {
    let at = fields.place_of("proxy").or_else(|| fields.place_of("proxy_file"));
    let written = secrets::secret(fields, ("proxy", "proxy_file"), folder, environment, None);
    let proxy = match written {
        None => defaults.proxy.clone(),
        Some(url) if url.expose_secret() == "none" => None,
        Some(url) => {
            let complain = |why| {
                let place = at.unwrap_or_else(|| fields.place().clone());
                fields.problems().add(&place, format!("{} {why}", fields.name("proxy")));
            };
            Proxy::new(&url).map_err(complain).ok()
        }
    };
    let no_proxy = fields.texts("no_proxy").map_or_else(|| defaults.no_proxy.clone(), |at| at.value);
    let ca = fields.bare("ca_file").and_then(|path| {
        let pem = secrets::text_file(&path, "ca_file", folder, fields)?;
        if !link::holds_certificate(&pem) {
            let why = format!("{} contains no certificate; it must be PEM", fields.name("ca_file"));
            fields.problems().add(&path.place, why);
            return None;
        }
        Some(pem.into())
    });
    Way { proxy, no_proxy, ca: ca.or_else(|| defaults.ca.clone()) }
}
