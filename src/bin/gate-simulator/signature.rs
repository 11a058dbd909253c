//! The `Authorization` header of REST v1: `hmac user:SIGNATURE:timestamp`.
//!
//! The signature is HMAC-SHA256 in hex, all upper or all lower case; its key is the password's
//! text, its message `{timestamp}-POST-{path and query}` with the path byte for byte as it was
//! received. The comparison takes constant time. The timestamp is in whole Unix seconds.

use ring::hmac;

use crate::outcome::{Outcome, Refusal};

/// How far the client's clock may be off, in seconds, either way.
const TOLERANCE_SECONDS: i64 = 300;

/// A password, kept only as the HMAC key that is made of it.
pub struct Key(hmac::Key);

impl Key {
    pub fn new(password: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, password.as_bytes()))
    }
}

/// A header that has the right form; nothing in it is proven yet.
pub struct Authorization<'a> {
    pub user: &'a str,
    signature: [u8; 32],
    timestamp: &'a str,
    seconds: i64,
}

impl<'a> Authorization<'a> {
    /// Reads the header's value; anything but the documented form is refused.
    pub fn parse(header: &'a str) -> Result<Self, Refusal> {
        let form = || {
            let error = "Authorization must read `hmac user:SIGNATURE:timestamp`";
            Refusal::new(Outcome::BadAuthorization, error)
        };
        let credentials = header.strip_prefix("hmac ").ok_or_else(form)?;
        let (rest, timestamp) = credentials.rsplit_once(':').ok_or_else(form)?;
        let (user, signature) = rest.rsplit_once(':').ok_or_else(form)?;
        if user.is_empty() || user.starts_with(' ') {
            return Err(form());
        }
        let signature = from_hex(signature).ok_or_else(|| {
            let error = "the signature must be 64 hexadecimal digits of one case";
            Refusal::new(Outcome::BadSignature, error)
        })?;
        let seconds = whole_seconds(timestamp).ok_or_else(|| {
            let error = "the timestamp must be a whole number of Unix seconds";
            Refusal::new(Outcome::BadTimestamp, error)
        })?;
        Ok(Self { user, signature, timestamp, seconds })
    }

    /// Whether this key signed a POST to this path.
    pub fn is_signed_by(&self, key: &Key, path_and_query: &str) -> bool {
        let message = [self.timestamp, "-POST-", path_and_query].concat();
        hmac::verify(&key.0, message.as_bytes(), &self.signature).is_ok()
    }

    /// Refuses a timestamp that is more than five minutes from `now` (Unix seconds).
    pub fn check_time(&self, now: i64) -> Result<(), Refusal> {
        let ahead = self.seconds.saturating_sub(now);
        if (-TOLERANCE_SECONDS..=TOLERANCE_SECONDS).contains(&ahead) {
            return Ok(());
        }
        let error = format!("the timestamp is {ahead} seconds ahead of this clock; 300 either way are allowed");
        Err(Refusal::new(Outcome::BadTimestamp, error))
    }
}

fn whole_seconds(text: &str) -> Option<i64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let padded = text.len() > 1 && text.starts_with('0');
    (plain && !padded).then(|| text.parse().ok()).flatten()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let upper = text.bytes().any(|byte| byte.is_ascii_uppercase());
    let lower = text.bytes().any(|byte| byte.is_ascii_lowercase());
    if text.len() != 64 || (upper && lower) {
        return None;
    }
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: &str = "/restapi/api/sync/campaigns/triggerbyjson";
    const ASYNC: &str = "/restapi/api/async/campaigns/triggerbyjson";
    const SYNC_SIGNATURE: &str = "20750D66BCE9A7259C98872656FC32298575B4C500786CC3A7F4A958CDCBE6B7";
    const ASYNC_SIGNATURE: &str = "22765B9E99ED419E7BF998A198983A0BCE0BAD8430CBA66A131D1B8883676A00";

    fn signed(signature: &str, timestamp: &str, password: &str, path: &str) -> bool {
        let header = format!("hmac api_user:{signature}:{timestamp}");
        Authorization::parse(&header).is_ok_and(|parsed| parsed.is_signed_by(&Key::new(password), path))
    }

    fn refusal(header: &str) -> Outcome {
        Authorization::parse(header).err().unwrap().outcome
    }

    #[test]
    fn the_published_vectors_are_accepted_in_either_case() {
        for (path, signature) in [(SYNC, SYNC_SIGNATURE), (ASYNC, ASYNC_SIGNATURE)] {
            assert!(signed(signature, "1700000000", "access_key", path));
            let lower = signature.to_lowercase();
            assert!(signed(&lower, "1700000000", "access_key", path));
        }
    }

    #[test]
    fn another_key_path_or_timestamp_is_not_signed() {
        let signature = SYNC_SIGNATURE;
        assert!(!signed(signature, "1700000000", "another_key", SYNC));
        assert!(!signed(signature, "1700000000", "access_key", ASYNC));
        let query = format!("{SYNC}?a=1");
        assert!(!signed(signature, "1700000000", "access_key", &query));
        assert!(!signed(signature, "1700000001", "access_key", SYNC));
    }

    #[test]
    fn a_signature_for_another_method_or_with_the_whole_url_is_not_accepted() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"access_key");
        for message in [
            format!("1700000000-post-{SYNC}"),
            format!("1700000000-GET-{SYNC}"),
            format!("1700000000-POST-https://gate.example.com{SYNC}"),
        ] {
            let tag = hmac::sign(&key, message.as_bytes());
            let hex: String = tag.as_ref().iter().map(|b| format!("{b:02X}")).collect();
            assert!(!signed(&hex, "1700000000", "access_key", SYNC), "{message}");
        }
    }

    #[test]
    fn the_signature_must_be_64_digits_of_one_case() {
        let mixed = SYNC_SIGNATURE.replacen('D', "d", 1);
        let not_hex = SYNC_SIGNATURE.replacen('D', "G", 1);
        for signature in ["", &SYNC_SIGNATURE[2..], &mixed, &not_hex] {
            let header = format!("hmac api_user:{signature}:1700000000");
            assert_eq!(refusal(&header), Outcome::BadSignature, "{signature}");
        }
    }

    #[test]
    fn the_header_must_have_its_three_parts() {
        let signature = SYNC_SIGNATURE;
        for header in [
            String::new(),
            "hmac".to_owned(),
            format!("hmac api_user:{signature}"),
            format!("hmac :{signature}:1700000000"),
            format!("HMAC api_user:{signature}:1700000000"),
            format!("hmac  api_user:{signature}:1700000000"),
            "Basic YXBpX3VzZXI6YWNjZXNzX2tleQ==".to_owned(),
        ] {
            assert_eq!(refusal(&header), Outcome::BadAuthorization, "{header}");
        }
    }

    #[test]
    fn a_user_may_contain_colons() {
        let header = format!("hmac corp:api:{SYNC_SIGNATURE}:1700000000");
        assert_eq!(Authorization::parse(&header).ok().unwrap().user, "corp:api");
    }

    #[test]
    fn the_timestamp_must_be_whole_seconds() {
        for timestamp in ["", "17e8", "1700000000.5", "+1700000000", "-1", "01700000000", " 1"] {
            let header = format!("hmac api_user:{SYNC_SIGNATURE}:{timestamp}");
            assert_eq!(refusal(&header), Outcome::BadTimestamp, "{timestamp}");
        }
    }

    #[test]
    fn the_timestamp_may_be_five_minutes_off_but_not_more() {
        let header = format!("hmac api_user:{SYNC_SIGNATURE}:1700000000");
        let parsed = Authorization::parse(&header).ok().unwrap();
        for (now, ok) in [
            (1_699_999_699, false),
            (1_699_999_700, true),
            (1_700_000_000, true),
            (1_700_000_300, true),
            (1_700_000_301, false),
        ] {
            assert_eq!(parsed.check_time(now).is_ok(), ok, "{now}");
        }
        let header = format!("hmac api_user:{SYNC_SIGNATURE}:1700000000000");
        let milliseconds = Authorization::parse(&header).ok().unwrap();
        assert!(milliseconds.check_time(1_700_000_000).is_err());
    }
}
