//! What the API asks of nodes: the door to a pod's logs, to its programs and ports, and to what it uses.
//!
//! `server` implements it over the link to each node; the API never dials a node itself.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use state::Object;
use std::sync::Arc;
use tokio::sync::mpsc;

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

/// What a client sends to a program or a port. The sender's drop without an [`Input::End`] means that the client is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes.
    Data(Bytes),
    /// No bytes follow.
    End,
    /// The client's terminal is this large now.
    Resize {
        /// Characters of a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes of standard output, or from a port.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// What the program ended with; the last of exec and attach.
    Exit(i32),
}

/// What comes back, in order; an error ends it. Dropping it ends the call.
pub type OutputStream = BoxStream<'static, Result<Output, CallError>>;
/// A node's answer to a call with bytes both ways.
pub type Opening = BoxFuture<'static, Result<OutputStream, CallError>>;

/// `PodExecOptions`, validated: the container is named and is one of the pod's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// Container of the pod.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Which streams.
    pub streams: Streams,
}

/// `PodAttachOptions`, validated as those of exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// Container of the pod.
    pub container: String,
    /// Which streams.
    pub streams: Streams,
}

/// Which streams of a program are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; never with `tty`.
    pub stderr: bool,
    /// They are a terminal.
    pub tty: bool,
}

/// What a node and its pods use, at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUsage {
    /// When it was measured.
    pub timestamp: Timestamp,
    /// The time that the CPU figures are the mean of.
    pub window: std::time::Duration,
    /// Of the whole node.
    pub total: Usage,
    /// Its pods that run.
    pub pods: Vec<PodUsage>,
}

/// What a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUsage {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Its containers that run, by name.
    pub containers: Vec<(String, Usage)>,
}

/// Use of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU, billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

/// The nodes, as the API sees them. Every `pod` is bound to a node (`spec.nodeName`).
pub trait Nodes: Send + Sync {
    /// The log of a container of `pod`.
    fn logs(&self, pod: Arc<Object>, options: LogsOptions) -> BoxFuture<'static, Result<ByteStream, CallError>>;

    /// A command in a container of `pod`.
    fn exec(&self, pod: Arc<Object>, options: ExecOptions, input: mpsc::Receiver<Input>) -> Opening;

    /// What a container of `pod` says from now on, and its input.
    fn attach(&self, pod: Arc<Object>, options: AttachOptions, input: mpsc::Receiver<Input>) -> Opening;

    /// One connection to a port of `pod`.
    fn port_forward(&self, pod: Arc<Object>, port: u16, input: mpsc::Receiver<Input>) -> Opening;

    /// What a node and its pods use now.
    fn usage(&self, node: String) -> BoxFuture<'static, Result<NodeUsage, CallError>>;
}
