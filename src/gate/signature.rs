//! How a request is authenticated by REST v1 (from the vendor's documentation; test vectors below).

use super::Endpoint;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::HeaderValue;
use secrecy::ExposeSecret;
use sha2::Sha256;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Creates `Authorization` headers. All requests of one second have the same one: of a request only the path
/// goes into it.
#[derive(Debug, Default)]
pub struct Signer {
    latest: Mutex<Option<(i64, HeaderValue)>>,
}

impl Signer {
    /// The header for a POST to the endpoint's path at `timestamp` (Unix seconds). A signer signs for
    /// one endpoint.
    pub fn authorization(&self, endpoint: &Endpoint, timestamp: i64) -> HeaderValue {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some((at, header)) if *at == timestamp => header.clone(),
            _ => {
                let header = authorization(endpoint, timestamp);
                *latest = Some((timestamp, header.clone()));
                header
            }
        }
    }
}

fn authorization(endpoint: &Endpoint, timestamp: i64) -> HeaderValue {
    let signature = sign(endpoint.key.expose_secret(), timestamp, endpoint.path());
    let text = format!("hmac {}:{signature}:{timestamp}", endpoint.username);
    // Only a user name with control characters could fail, and a document with one does not load.
    let mut header = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("hmac"));
    header.set_sensitive(true);
    header
}

/// Upper-case hex of HMAC-SHA256, keyed by the password's bytes as text.
fn sign(key: &str, timestamp: i64, path: &str) -> String {
    // HMAC takes a key of any length, so this cannot fail.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return String::new() };
    mac.update(format!("{timestamp}-POST-{path}").as_bytes());
    let mut hex = String::with_capacity(64);
    for byte in mac.finalize().into_bytes() {
        let _ = write!(hex, "{byte:02X}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::super::Mode;
    use super::*;

    #[test]
    fn signs_the_published_vectors() {
        let sync = sign("access_key", 1_700_000_000, "/restapi/api/sync/campaigns/triggerbyjson");
        assert_eq!(sync, "20750D66BCE9A7259C98872656FC32298575B4C500786CC3A7F4A958CDCBE6B7");
        let queued = sign("access_key", 1_700_000_000, "/restapi/api/async/campaigns/triggerbyjson");
        assert_eq!(queued, "22765B9E99ED419E7BF998A198983A0BCE0BAD8430CBA66A131D1B8883676A00");
    }

    #[test]
    fn each_second_has_its_own_header() {
        let (base, key) = ("https://example.com".to_owned(), "access_key".to_owned().into());
        let endpoint = Endpoint::new(base, Mode::Sync, "api_user".to_owned(), key, "didomi".to_owned());
        let signer = Signer::default();
        let first = signer.authorization(&endpoint, 1_700_000_000);
        let signature = "20750D66BCE9A7259C98872656FC32298575B4C500786CC3A7F4A958CDCBE6B7";
        assert_eq!(first, format!("hmac api_user:{signature}:1700000000"));
        assert!(first.is_sensitive());
        assert_eq!(signer.authorization(&endpoint, 1_700_000_000), first);
        let next = signer.authorization(&endpoint, 1_700_000_001);
        assert_eq!(next, authorization(&endpoint, 1_700_000_001));
        assert_ne!(next, first);
        assert_eq!(signer.authorization(&endpoint, 1_700_000_000), first);
    }
}
