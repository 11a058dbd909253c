//! What both kinds of store keep besides records, and the state of a record that they return.

use super::Record;
use super::keys::{IDENTITY_BYTES, SECRET_BYTES};
use jiff::Timestamp;

/// The state of a record as last read from or written to a store, so that the next change need not read it
/// again.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredState {
    /// In the shared store: how often the record was written.
    pub revision: i64,
    pub record: Option<Record>,
    /// The time up to which persons who are not on record may have been forgotten.
    pub swept: Option<Timestamp>,
}

/// The note of a copy that is not complete yet.
pub(super) const UNFINISHED: &str = "copy of";
/// The note of where a store was copied to.
pub(super) const MOVED: &str = "copied to";
/// The note of the store's epoch.
pub(super) const EPOCH: &str = "epoch";
/// Notes that are not copied, because each store has its own.
pub(super) const OWN_NOTES: [&str; 6] = [EPOCH, "identity", "secret", "version", UNFINISHED, MOVED];

/// What a copy takes over to be the same store.
#[derive(Clone, Debug)]
pub(super) struct StoreOrigin {
    pub secret: [u8; SECRET_BYTES],
    pub identity: [u8; IDENTITY_BYTES],
}

impl StoreOrigin {
    /// The note that marks a copy from its beginning.
    pub fn mark(&self) -> (&'static str, String) {
        (UNFINISHED, hex::encode(self.identity))
    }
}
