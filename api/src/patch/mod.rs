//! Patches, as pure functions of values: JSON patch, merge patch, strategic merge patch, and the making of patches for
//! client-side apply. The API's PATCH and the command line's `apply` share them.

mod diff;
pub mod json;
pub mod merge;
pub mod strategic;

pub use diff::{three_way_merge, three_way_strategic};
pub use strategic::{Rules, rules_of};

/// The annotation that client-side apply keeps its last input in.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Values deeper than this are not descended into.
pub const DEPTH_MAX: usize = 128;

/// Why a patch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is not one.
    #[error("{0}")]
    Malformed(String),
    /// The patch is one, but not for this object (a `test` failed, a path is not there).
    #[error("{0}")]
    Inapplicable(String),
    /// Applying it would make the object too large.
    #[error("the patch makes the object larger than {bytes_max} bytes")]
    TooLarge {
        /// The bound.
        bytes_max: usize,
    },
}
