//! The clock and the source of randomness that the layers below are handed.

use jiff::Timestamp;
use state::Identities;

/// Random identities from the operating system's generator.
pub struct Entropy;

impl Identities for Entropy {
    fn next(&mut self) -> u64 {
        // the kernel's generator fails only before it is seeded at boot, or on kernels without it: then the clock's
        // nanoseconds still tell two objects of one cluster apart
        getrandom::u64().unwrap_or_else(|_| now().as_nanosecond() as u64)
    }
}

/// The system's clock.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// A secret of 256 random bits, hexadecimal.
///
/// # Errors
/// When the kernel's generator fails: a secret is never made of anything less.
pub fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
