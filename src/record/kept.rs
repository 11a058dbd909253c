//! What both kinds of store keep beside records, and show of them.

use super::Record;
use super::keys::{IDENTITY_BYTES, SECRET_BYTES};
use crate::bytes::hex;
use jiff::Timestamp;

/// What a store showed of a record, so that the next change need not ask again.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Of the shared store: how often the record was written.
    pub revision: i64,
    pub record: Option<Record>,
    /// Up to when persons may have been forgotten who are not on record.
    pub swept: Option<Timestamp>,
}

/// The note of a copy that is not whole yet.
pub(super) const UNFINISHED: &str = "copy of";
/// The note of where a store was copied to.
pub(super) const MOVED: &str = "copied to";
/// The note of how far the store got.
pub(super) const EPOCH: &str = "epoch";
/// Notes that are each store's own.
pub(super) const OWN_NOTES: [&str; 6] = [EPOCH, "identity", "secret", "version", UNFINISHED, MOVED];

/// What makes a copy the same store.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub secret: [u8; SECRET_BYTES],
    pub identity: [u8; IDENTITY_BYTES],
}

impl Origin {
    /// What is noted of a copy from its beginning.
    pub fn mark(&self) -> (&'static str, String) {
        (UNFINISHED, hex(&self.identity))
    }
}
