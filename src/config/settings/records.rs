//! `[records]`: where records are kept, and for how long.

use super::not_zero;
use crate::config::fields::Fields;
use crate::config::{Environment, secrets};
use crate::record::address::Address;
use crate::record::{self, Backend};
use crate::text::shown::{is_like_address, quoted};
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;

pub(super) fn records(
    mut fields: Fields<'_>,
    base: &Path,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> record::RecordsSettings {
    let defaults = record::RecordsSettings::default();
    let at = fields.place_of("store").or_else(|| fields.place_of("store_file"));
    let store = secrets::secret(&mut fields, ("store", "store_file"), base, environment, None);
    let retention = not_zero(&mut fields, "retention").unwrap_or(defaults.retention);
    let place = match store {
        Some(store) => place(&store, base, warnings).unwrap_or_else(|why| {
            fields.problems().add(&at.unwrap_or_else(|| fields.place().clone()), format!("records.store: {why}"));
            Backend::Off
        }),
        None => match defaults.place {
            Backend::Directory(directory) => {
                let folder = crate::config::state_directory(environment).unwrap_or_else(|| base.to_owned());
                Backend::Directory(folder.join(directory))
            }
            place => place,
        },
    };
    fields.finish();
    record::RecordsSettings { place, retention }
}

/// Where records are kept, as written in the settings; a relative directory is below `base`.
///
/// # Errors
/// What is wrong with it, without a password.
pub fn place(store: &SecretString, base: &Path, warnings: &mut Vec<String>) -> Result<Backend, String> {
    match store.expose_secret().trim() {
        "off" => Ok(Backend::Off),
        url if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
            let address = Address::new(&url.into())?;
            warnings.extend(address.warning());
            Ok(Backend::Postgres(Box::new(address)))
        }
        other if is_like_address(other) || other.eq_ignore_ascii_case("off") => Err(format!(
            "{} is neither postgres://user:password@host:5432/database, nor a directory, nor \"off\"; write one of them",
            quoted(other)
        )),
        directory => Ok(Backend::Directory(secrets::resolve(base, directory))),
    }
}
