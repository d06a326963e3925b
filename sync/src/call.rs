//! What a master asks of a node: today a container's log; exec, attach and port-forward will be further variants.

use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::oneshot;

/// The bytes of an answer; an error ends them.
pub type ByteStream = BoxStream<'static, Result<Bytes, CallError>>;

/// What a node is asked for.
#[derive(Clone, Debug)]
pub enum Call {
    /// A container's log.
    Logs(Logs),
}

/// Which log, and which part of it: Kubernetes' `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logs {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// Stay and send what comes.
    pub follow: bool,
    /// Of the instance before the current one.
    pub previous: bool,
    /// Only what was written since then.
    pub since: Option<Timestamp>,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// End after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Each line begins with its RFC 3339 time.
    pub timestamps: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// Why a node did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The link is down.
    #[error("the node is not connected")]
    Disconnected,
    /// The pod or container is not on the node.
    #[error("{0}")]
    NotFound(String),
    /// It is, but cannot be asked this now.
    #[error("{0}")]
    BadRequest(String),
    /// The node tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// A call as the node gets it.
pub struct IncomingCall {
    /// What is asked.
    pub call: Call,
    pub(crate) reply: oneshot::Sender<Result<ByteStream, CallError>>,
}

impl IncomingCall {
    /// Answers. A caller that left is no error.
    pub fn answer(self, answer: Result<ByteStream, CallError>) {
        drop(self.reply.send(answer));
    }
}
