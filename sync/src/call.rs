//! What a master asks of a node: one kind of call for logs, exec, attach, forwarded ports and figures of use.
//!
//! A call has bytes both ways. What goes to the node is [`Input`], what comes back is [`Output`]; dropping the answer's
//! stream ends the call.

use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// What a node answers, in the order it came; an error ends it.
pub type OutputStream = BoxStream<'static, Result<Output, CallError>>;

/// What a node is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A container's log: pieces of [`Output::Stdout`].
    Logs(Logs),
    /// A further command in a running container: its outputs, then [`Output::Exit`].
    Exec(Exec),
    /// What a running container says from now on, and its input: its outputs, then [`Output::Exit`].
    Attach(Attach),
    /// One connection to a port of a pod: [`Input::Data`] to it, [`Output::Stdout`] from it; the end of either is half of
    /// the connection's end.
    PortForward(PortForward),
    /// What the node and its pods use: one [`Output::Stdout`] with the JSON of a [`NodeUsage`].
    Usage,
}

/// Which log, and which part of it: Kubernetes' `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
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

/// A command in a container: Kubernetes' `PodExecOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exec {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod; a successor of the same name is not meant.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// There will be input; without it, the input is at its end from the start.
    pub stdin: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted; never with `tty`.
    pub stderr: bool,
    /// The command gets a terminal.
    pub tty: bool,
}

/// A container's own input and outputs: Kubernetes' `PodAttachOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attach {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod; a successor of the same name is not meant.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// There will be input.
    pub stdin: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted; never with `tty`.
    pub stderr: bool,
    /// The container has a terminal.
    pub tty: bool,
}

/// A port of a pod, for one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortForward {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod; a successor of the same name is not meant.
    pub uid: String,
    /// TCP port, on the pod's own localhost.
    pub port: u16,
}

/// What a call sends to the node. The sender's drop without an [`Input::End`] means that the client is gone.
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

/// What a call gets from the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes of standard output, or of whatever has only one output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// What the process ended with; the last of exec and attach, and of nothing else.
    Exit(i32),
}

/// What a node and its pods use, at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUsage {
    /// When it was measured.
    pub timestamp: Timestamp,
    /// The time that the CPU figures are the mean of, milliseconds.
    pub window_ms: u64,
    /// CPU of the whole node, billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory of the whole node in use, bytes.
    pub memory_bytes: u64,
    /// Its pods that run.
    pub pods: Vec<PodUsage>,
}

/// What a pod uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUsage {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Its containers that run.
    pub containers: Vec<ContainerUsage>,
}

/// What a container uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    /// Name of the container.
    pub name: String,
    /// CPU, billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

/// Why a node did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// What the client sends; its end without an [`Input::End`] means that the client is gone.
    pub input: mpsc::Receiver<Input>,
    pub(crate) reply: oneshot::Sender<Result<OutputStream, CallError>>,
}

impl IncomingCall {
    /// The call's parts: what is asked, what the client sends, and where the answer goes.
    pub fn split(self) -> (Call, mpsc::Receiver<Input>, Reply) {
        (self.call, self.input, Reply(self.reply))
    }

    /// Answers. A caller that left is no error.
    pub fn answer(self, answer: Result<OutputStream, CallError>) {
        drop(self.reply.send(answer));
    }
}

/// Where a call's answer goes.
pub struct Reply(oneshot::Sender<Result<OutputStream, CallError>>);

impl Reply {
    /// Answers. A caller that left is no error.
    pub fn answer(self, answer: Result<OutputStream, CallError>) {
        drop(self.0.send(answer));
    }

    /// Waits until the caller has left without an answer.
    pub async fn closed(&mut self) {
        self.0.closed().await;
    }
}
