//! Frames and their bodies: bytes to values and back. No state, no IO; every size has a bound.
//!
//! A frame is `u32` length (big-endian, of what follows), `u8` kind, `u8` flags, body. A body is JSON; where whole objects
//! travel, it is lines of JSON heads, each followed by the object's own bytes, which are never parsed on the way.

pub(crate) mod ask;
mod body;
pub(crate) mod call;
mod entry;
mod frame;

pub(crate) use body::{
    Answer, Answered, Dial, Goodbye, Join, Made, Reached, Renew, Welcomed, WriteBody, Writes, json, to_json,
};
pub(crate) use entry::{Part, event, read_event, read_snapshot, snapshot};
pub(crate) use frame::{Bounds, Frame, WireError, encode, kind, put_plain};

/// Version of the protocol. It counts up only when an older end could not work with a newer one.
pub const VERSION: u32 = 1;

/// A revision as a number.
pub(crate) mod revision {
    use serde::{Deserialize, Deserializer, Serializer};
    use state::Revision;

    pub(crate) fn serialize<S: Serializer>(revision: &Revision, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(revision.0)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Revision, D::Error> {
        u64::deserialize(deserializer).map(Revision)
    }
}
