//! Random bytes, and bytes as a number.

use ring::rand::{SecureRandom, SystemRandom};

/// Random bytes from the system.
///
/// # Errors
/// The system gives none; the error says so, for people.
pub fn random<const N: usize>() -> Result<[u8; N], &'static str> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random numbers")?;
    Ok(bytes)
}

/// The first eight bytes as a number; for a hash, that is a name that is as good as unique.
#[must_use]
pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
