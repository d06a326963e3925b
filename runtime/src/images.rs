//! Image references, as far as they are resolved on the node itself: `file://`.

use std::path::PathBuf;

/// Why an image cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Reason `InvalidImageName`.
    #[error("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {detail}")]
    InvalidName {
        /// As written in the pod.
        image: String,
        /// Why.
        detail: String,
    },
    /// Reason `ErrImagePull`.
    #[error("failed to pull image {image:?}: {detail}")]
    Pull {
        /// As written in the pod.
        image: String,
        /// Why.
        detail: String,
    },
}

impl ImageError {
    /// `state.waiting.reason` in Kubernetes' words.
    pub fn reason(&self) -> &'static str {
        match self {
            ImageError::InvalidName { .. } => "InvalidImageName",
            ImageError::Pull { .. } => "ErrImagePull",
        }
    }
}

/// The file an image reference stands for: `file:///abs.wasm`, or `file://rel.wasm` from the process's working directory.
pub fn resolve(image: &str) -> Result<PathBuf, ImageError> {
    todo!()
}
