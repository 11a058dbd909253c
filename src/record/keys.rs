//! The keys of records: keyed hashes, which do not reveal who is on record.

use crate::bytes::number;
use crate::integration::Name;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The length in bytes of the key with which identifiers are hashed, and of a store's identity.
pub(super) const SECRET_BYTES: usize = 32;
pub(super) const IDENTITY_BYTES: usize = 16;

/// A person's key: a keyed hash of the integration's records, and one of the person among them.
pub type Key = [u8; 16];
/// The prefix of all keys of an integration's records.
pub(super) type Prefix = [u8; 4];

/// The prefix of a key.
pub(super) fn prefix_of(key: &[u8]) -> Prefix {
    let mut prefix = Prefix::default();
    prefix.iter_mut().zip(key).for_each(|(byte, of_key)| *byte = *of_key);
    prefix
}

/// The key of a suspect's note; it reveals nothing of the message.
pub(super) fn suspect_key(secret: &[u8], integration: &Name, body: &[u8]) -> Key {
    keyed(secret, [b"suspect", integration.as_str().as_bytes(), body])
}

/// The prefix of all keys of an integration's records.
pub(super) fn prefix(secret: &[u8], records: &Name) -> Prefix {
    prefix_of(&keyed(secret, [b"records".as_slice(), records.as_str().as_bytes()]))
}

/// A person's key: without the store's secret nobody can tell whether somebody is in the store.
pub(super) fn key(secret: &[u8], prefix: Prefix, identifier: &str) -> Key {
    let person = crate::record::sequencer::person(identifier);
    let mut key = keyed(secret, [b"person".as_slice(), &prefix, person.as_bytes()]);
    key.iter_mut().zip(prefix).for_each(|(byte, of_prefix)| *byte = of_prefix);
    key
}

/// Identifies a message among those of one person; it reveals nothing of the message.
pub(super) fn message_number(secret: &[u8], [published, id, body]: [&[u8]; 3]) -> u64 {
    number(&keyed(secret, [b"message", published, id, body]))
}

fn keyed<const N: usize>(secret: &[u8], parts: [&[u8]; N]) -> Key {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return Key::default() };
    for (index, part) in parts.into_iter().enumerate() {
        if index > 0 {
            mac.update(b"\0");
        }
        mac.update(part);
    }
    let mut key = Key::default();
    key.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    key
}
