//! Random numbers for names and uids: the agent is the one who may be random.

use sha2::{Digest, Sha256};
use state::Identities;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A generator seeded by the operating system.
pub struct Random(RandomState, u64);

impl Random {
    /// A freshly seeded generator.
    pub fn new() -> Self {
        Self(RandomState::new(), 0)
    }
}

impl Identities for Random {
    fn next(&mut self) -> u64 {
        self.1 = self.1.wrapping_add(1);
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(self.1);
        hasher.finish()
    }
}

/// A container ID: 64 hexadecimal digits that no other instance has.
pub fn container_id(pod_uid: &str, container: &str, instance: u32, nanoseconds: i128) -> String {
    let digest = Sha256::digest(format!("{pod_uid}/{container}/{instance}/{nanoseconds}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
