//! The two ends of a node's link, and the one that lives in memory.

use crate::{Call, CallError, IncomingCall, Input, OutputStream};
use state::{Event, Object, Revision, Write};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// What goes down to a node, in the order of revisions.
#[derive(Clone, Debug)]
pub enum Down {
    /// The node's whole slice, in place of what it knew.
    Reset {
        /// As of.
        revision: Revision,
        /// All of it.
        objects: Vec<Arc<Object>>,
    },
    /// One change of the slice. An object that enters the slice is `Added`, one that leaves it is `Deleted`.
    Event(Event),
    /// Nothing else of the slice changed up to here: where to resume.
    Reached(Revision),
}

/// Why the master did not take a node's writes. None of them was done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Rejected {
    /// What they were decided on is not true any more: look again, decide again.
    #[error("conflict: {0}")]
    Conflict(String),
    /// They could not be kept.
    #[error("write refused: {0}")]
    Failed(String),
    /// The link is down.
    #[error("the master is not connected")]
    Disconnected,
}

/// A link's bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages under way to the node.
    pub down_messages_max: usize,
    /// Batches of writes under way to the master.
    pub up_batches_max: usize,
    /// Calls waiting for the node to look at them.
    pub calls_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { down_messages_max: 1024, up_batches_max: 256, calls_max: 64 }
    }
}

/// Writes as the master gets them.
pub struct IncomingWrites {
    /// To be committed all or not at all.
    pub writes: Vec<Write>,
    reply: oneshot::Sender<Result<Vec<Event>, Rejected>>,
}

impl IncomingWrites {
    /// Answers. A node that left is no error.
    pub fn answer(self, answer: Result<Vec<Event>, Rejected>) {
        drop(self.reply.send(answer));
    }
}

/// The node's end.
pub struct NodeEnd {
    down: mpsc::Receiver<Down>,
    up: mpsc::Sender<IncomingWrites>,
    calls: mpsc::Receiver<IncomingCall>,
}

impl NodeEnd {
    /// The next message from the master; `None` when the link is down for good.
    pub async fn next(&mut self) -> Option<Down> {
        self.down.recv().await
    }

    /// A message that is there already.
    pub fn try_next(&mut self) -> Option<Down> {
        self.down.try_recv().ok()
    }

    /// The next call from the master.
    pub async fn call(&mut self) -> Option<IncomingCall> {
        self.calls.recv().await
    }

    /// The writing side, to be shared.
    pub fn uplink(&self) -> Uplink {
        Uplink(self.up.clone())
    }

    /// Splits the end so that messages and calls can be awaited apart.
    pub fn split(self) -> (mpsc::Receiver<Down>, mpsc::Receiver<IncomingCall>, Uplink) {
        (self.down, self.calls, Uplink(self.up))
    }
}

/// A node's way to write. Clones share the link.
#[derive(Clone)]
pub struct Uplink(mpsc::Sender<IncomingWrites>);

impl Uplink {
    /// Writes, all or none; answered when the cluster holds them durably.
    ///
    /// # Errors
    /// [`Rejected`] says whether to decide again.
    pub async fn write(&self, writes: Vec<Write>) -> Result<Vec<Event>, Rejected> {
        let (reply, answer) = oneshot::channel();
        self.0.send(IncomingWrites { writes, reply }).await.map_err(|_| Rejected::Disconnected)?;
        answer.await.map_err(|_| Rejected::Disconnected)?
    }
}

/// The master's end.
pub struct MasterEnd {
    /// Messages to the node.
    pub down: mpsc::Sender<Down>,
    /// Writes of the node.
    pub up: mpsc::Receiver<IncomingWrites>,
    /// Calls to the node.
    pub caller: Caller,
}

/// A master's way to call a node. Clones share the link.
#[derive(Clone)]
pub struct Caller(mpsc::Sender<IncomingCall>);

impl Caller {
    /// Asks the node; `input` is what the client sends meanwhile.
    ///
    /// # Errors
    /// [`CallError`] in Kubernetes' words.
    pub async fn call(&self, call: Call, input: mpsc::Receiver<Input>) -> Result<OutputStream, CallError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(IncomingCall { call, input, reply }).await.map_err(|_| CallError::Disconnected)?;
        answer.await.map_err(|_| CallError::Disconnected)?
    }
}

/// The input of a call that takes none: at its end from the start.
pub fn no_input() -> mpsc::Receiver<Input> {
    let (sender, input) = mpsc::channel(1);
    // there is room for one in an empty channel
    drop(sender.try_send(Input::End));
    input
}

/// A link in memory: for the node in the master's own process.
pub fn local(limits: Limits) -> (MasterEnd, NodeEnd) {
    let (down, messages) = mpsc::channel(limits.down_messages_max);
    let (up, writes) = mpsc::channel(limits.up_batches_max);
    let (caller, calls) = mpsc::channel(limits.calls_max);
    (MasterEnd { down, up: writes, caller: Caller(caller) }, NodeEnd { down: messages, up, calls })
}
