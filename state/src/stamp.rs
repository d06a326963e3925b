//! What the master writes into a new object: who it is and since when.

use jiff::Timestamp;
use serde_json::{Value, json};

/// A source of identities. Randomness is an argument: the caller owns the generator.
pub trait Identities {
    /// A fresh random number.
    fn next(&mut self) -> u64;
}

/// The moment and the identities of new objects.
pub struct Stamp<'a> {
    /// Now.
    pub now: Timestamp,
    /// Where uids and name suffixes come from.
    pub identities: &'a mut dyn Identities,
}

/// Kubernetes' alphabet for generated names: no vowels, nothing that looks like another character.
const ALPHANUMS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the generated part of a name.
const SUFFIX_CHARS: usize = 5;
/// Kubernetes cuts the prefix so that prefix and suffix fit a label value.
const PREFIX_CHARS_MAX: usize = 63 - SUFFIX_CHARS;

impl Stamp<'_> {
    /// Completes a new object: a name from `metadata.generateName` where there is no name, `uid`, `creationTimestamp`.
    /// With `counts_generation`, `generation` starts at 1.
    pub fn complete(&mut self, value: &mut Value, counts_generation: bool) {
        let uid = self.uid();
        let suffix = self.suffix();
        let now = rfc3339(self.now);
        let Some(object) = value.as_object_mut() else { return };
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        let Some(metadata) = metadata.as_object_mut() else { return };
        let nameless = metadata.get("name").and_then(Value::as_str).is_none_or(str::is_empty);
        if let (true, Some(prefix)) = (nameless, metadata.get("generateName").and_then(Value::as_str)) {
            let prefix: String = prefix.chars().take(PREFIX_CHARS_MAX).collect();
            metadata.insert("name".into(), format!("{prefix}{suffix}").into());
        }
        metadata.insert("uid".into(), uid.into());
        metadata.insert("creationTimestamp".into(), now.into());
        if counts_generation {
            metadata.insert("generation".into(), 1.into());
        }
    }

    /// A random (version 4) UUID.
    fn uid(&mut self) -> String {
        let (a, b) = (self.identities.next(), self.identities.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            0x8000 | (b >> 48) & 0x3fff,
            b & 0xffff_ffff_ffff
        )
    }

    fn suffix(&mut self) -> String {
        let mut rest = self.identities.next();
        let base = ALPHANUMS.len() as u64;
        (0..SUFFIX_CHARS)
            .map(|_| {
                let digit = (rest % base) as usize;
                rest /= base;
                char::from(ALPHANUMS[digit])
            })
            .collect()
    }
}

/// A moment as Kubernetes' `Time` writes it: UTC, whole seconds.
pub fn rfc3339(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}
