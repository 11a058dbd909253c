//! `[broker]`: how the broker is reached.

use crate::broker::link;
use crate::config::fields::Fields;
use crate::config::{Environment, secrets};
use std::path::Path;

pub(super) fn broker(
    mut fields: Fields<'_>,
    base: &Path,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> link::BrokerSettings {
    let place = fields.place().clone();
    let url_place = fields.place_of("url").or_else(|| fields.place_of("url_file")).unwrap_or_else(|| place.clone());
    let url = secrets::secret(&mut fields, ("url", "url_file"), base, environment, None);
    let mut file = |key| {
        let path = fields.bare(key)?;
        if key == "client_key_file" {
            secrets::warn_of_others(&path, key, base, &fields);
        }
        secrets::text_file(&path, key, base, &fields)
    };
    let (ca, cert, key) = (file("ca_file"), file("client_cert_file"), file("client_key_file"));
    for (name, pem) in [("ca_file", &ca), ("client_cert_file", &cert)] {
        if pem.as_ref().is_some_and(|pem| !link::holds_certificate(pem)) {
            fields.problems().add(&place, format!("broker.{name} contains no certificate; it must be PEM"));
        }
    }
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key.into())),
        (None, None) => None,
        _ => {
            let why = "broker.client_cert_file and broker.client_key_file belong together; write both or none";
            fields.problems().add(&place, why);
            None
        }
    };
    let problems = fields.problems();
    fields.finish();
    let url = url.unwrap_or_else(|| link::DEFAULT_URL.into());
    match link::BrokerSettings::new(&url, ca, identity) {
        Ok(settings) => {
            warnings.extend(settings.warning());
            settings
        }
        Err(why) => {
            problems.add(&url_place, format!("broker.url: {why}"));
            link::BrokerSettings::default()
        }
    }
}
