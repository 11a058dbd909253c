//! JSON of small maps.

use litemap::LiteMap;
use serde::{Serialize, Serializer};

/// Serializes a map as an object; its own implementation would write an empty map as a list.
///
/// # Errors
/// The serializer's own.
pub fn object<K: Serialize, V: Serialize, S: Serializer>(
    map: &LiteMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter())
}
