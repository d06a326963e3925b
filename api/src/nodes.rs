//! What the API asks of nodes: the door to a pod's logs (and later exec, attach, port-forward).
//!
//! `server` implements it over the link to each node; the API never dials a node itself.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use state::Object;
use std::sync::Arc;

/// Bytes as they come from a node; an error ends the stream.
pub type ByteStream = BoxStream<'static, Result<Bytes, CallError>>;

/// Why a node did not answer a call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The node has no link to the master now.
    #[error("node {node} is not connected")]
    Unreachable {
        /// Its name.
        node: String,
    },
    /// The node does not know the container or the instance that was asked for.
    #[error("{message}")]
    NotFound {
        /// In Kubernetes' words.
        message: String,
    },
    /// The node knows it, but it cannot be done now.
    #[error("{message}")]
    Refused {
        /// In Kubernetes' words.
        message: String,
    },
    /// The node tried and failed.
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
    },
}

/// Which of a container's outputs is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogStreamKind {
    /// Both, in the order they were written.
    #[default]
    All,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// `PodLogOptions`, validated: the container is named and is one of the pod's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogsOptions {
    /// Container of the pod.
    pub container: String,
    /// Stay and send what comes.
    pub follow: bool,
    /// Of the instance before the current one.
    pub previous: bool,
    /// Only what was written since then (`sinceSeconds` is resolved by the API).
    pub since: Option<Timestamp>,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// End after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Each line begins with its RFC 3339 time.
    pub timestamps: bool,
    /// Which output.
    pub stream: LogStreamKind,
}

/// The nodes, as the API sees them.
pub trait Nodes: Send + Sync {
    /// The log of a container of `pod`, which is bound to a node (`spec.nodeName`).
    fn logs(&self, pod: Arc<Object>, options: LogsOptions) -> BoxFuture<'static, Result<ByteStream, CallError>>;
}
