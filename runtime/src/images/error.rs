//! Why an image cannot be had, in the words of the kubelet and of containerd.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why an image cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// Reason `InvalidImageName`: no retry will help.
    #[error("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {detail}")]
    InvalidName {
        /// As written in the pod.
        image: String,
        /// Why.
        detail: String,
    },
    /// Reason `ErrImageNeverPull`: it is not here and must not be fetched.
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull {
        /// As written in the pod.
        image: String,
    },
    /// Reason `ErrImagePull`, then `ImagePullBackOff`.
    #[error("failed to pull and unpack image {image:?}")]
    Pull {
        /// The complete reference.
        image: String,
        /// What went wrong.
        #[source]
        source: Arc<PullError>,
    },
    /// A push was refused or broke off.
    #[error("failed to push {image:?}")]
    Push {
        /// The complete reference.
        image: String,
        /// What went wrong.
        #[source]
        source: Arc<PullError>,
    },
    /// Reason `ImageInspectError`: the node's own store cannot be read or written.
    #[error("image store {path:?}")]
    Store {
        /// The file or directory concerned.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: Arc<io::Error>,
    },
    /// A file cannot be imported or pushed.
    #[error("cannot read {path:?}")]
    Import {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Arc<PullError>,
    },
    /// Nothing in the store has this name.
    #[error("No such image: {image}")]
    Absent {
        /// As asked for.
        image: String,
    },
}

impl ImageError {
    /// `state.waiting.reason` in Kubernetes' words.
    pub fn reason(&self) -> &'static str {
        match self {
            ImageError::InvalidName { .. } => "InvalidImageName",
            ImageError::NeverPull { .. } => "ErrImageNeverPull",
            ImageError::Pull { .. } | ImageError::Push { .. } => "ErrImagePull",
            ImageError::Store { .. } | ImageError::Import { .. } | ImageError::Absent { .. } => "ImageInspectError",
        }
    }

    pub(super) fn store(path: impl Into<PathBuf>, source: io::Error) -> ImageError {
        ImageError::Store { path: path.into(), source: Arc::new(source) }
    }
}

/// What can go wrong between a registry and the store.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry's answer for this reference is no.
    #[error("failed to resolve reference {reference:?}")]
    Resolve {
        /// The complete reference.
        reference: String,
        /// What the registry said.
        #[source]
        source: Box<PullError>,
    },
    /// It is not there.
    #[error("{what}: not found")]
    NotFound {
        /// The reference or digest.
        what: String,
    },
    /// The registry wants credentials, or better ones.
    #[error("pull access denied, repository does not exist or may require authorization: {detail}")]
    Denied {
        /// The answer.
        detail: String,
    },
    /// Any other answer that is not the wanted one.
    #[error("unexpected status from {method} request to {url}: {status}")]
    Status {
        /// The request's method.
        method: String,
        /// The request's address.
        url: String,
        /// Code, words, and what the registry says of it.
        status: String,
    },
    /// No answer.
    #[error("failed to do request: {method} {url:?}: {detail}")]
    Transport {
        /// The request's method.
        method: String,
        /// The request's address.
        url: String,
        /// Why.
        detail: String,
    },
    /// The bytes are not those that were asked for.
    #[error("{what}: unexpected digest {found}, expected {expected}")]
    Digest {
        /// Manifest, config, or a layer.
        what: String,
        /// As referred to.
        expected: String,
        /// Of the bytes received.
        found: String,
    },
    /// More than is taken.
    #[error("{what} has more than the {bytes_max} bytes that are taken")]
    TooBig {
        /// Manifest, config, or a layer.
        what: String,
        /// The bound.
        bytes_max: u64,
    },
    /// Something the registry sent, or a file holds, is not what it claims to be.
    #[error("{what}: {detail}")]
    Malformed {
        /// Manifest, config, layer, answer.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// It is an image, and no Wasm program.
    #[error("no match for platform wasi/wasm in {what}: not found")]
    NotWasm {
        /// The manifest's digest and what it holds instead.
        what: String,
    },
    /// The images in use leave no room.
    #[error("{bytes} bytes do not fit into the image store: {used} of {bytes_max} bytes are in use or imported")]
    Full {
        /// Wanted.
        bytes: u64,
        /// What cannot be removed.
        used: u64,
        /// The store's bound.
        bytes_max: u64,
    },
    /// The disk.
    #[error("{what}")]
    Disk {
        /// What was being done.
        what: String,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// The master hands the image on, and broke off.
    #[error("the master hands the image on, and after {bytes} bytes: {detail}")]
    Origin {
        /// What has come, which stays for the next try.
        bytes: u64,
        /// Why it ended.
        detail: String,
    },
    /// The whole took too long.
    #[error("{what} took more than {seconds} s")]
    Slow {
        /// What did.
        what: &'static str,
        /// The bound.
        seconds: u64,
    },
}

impl PullError {
    pub(super) fn malformed(what: impl Into<String>, detail: impl ToString) -> PullError {
        PullError::Malformed { what: what.into(), detail: detail.to_string() }
    }

    pub(super) fn disk(what: impl Into<String>) -> impl FnOnce(io::Error) -> PullError {
        let what = what.into();
        move |source| PullError::Disk { what, source }
    }
}
