//! JSON of small maps.

use litemap::LiteMap;
use serde::{Serialize, Serializer};

/// A map as an object; its own way would write an empty one as a list.
///
/// # Errors
/// The serializer's own.
pub fn object<K: Serialize, V: Serialize, S: Serializer>(
    map: &LiteMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter())
}
