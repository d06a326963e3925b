//! The two ends of a node's link, and the one that lives in memory.

use crate::{Call, CallError, IncomingAsk, IncomingCall, Input, OutputStream, Welcome};
use state::{Event, Object, Revision, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What goes down to a node, in the order of revisions.
#[derive(Clone, Debug)]
pub enum Down {
    /// The first message of each session.
    Welcome(Welcome),
    /// The node's whole slice, in place of what it knew.
    Reset {
        /// As of.
        revision: Revision,
        /// All of it.
        objects: Vec<Arc<Object>>,
    },
    /// One change of the slice. An object that enters the slice is `Added`, one that leaves it is `Deleted`. Over a
    /// connection an event comes without the object before it, and the object of a deletion has only its name.
    Event(Event),
    /// Nothing else of the slice changed up to here: where to resume ([`crate::Progress`]).
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
    /// Calls of one node that run at once.
    pub calls_running_max: u32,
    /// Asks of one node that are answered at once.
    pub asks_max: u32,
    /// Bytes of one frame of a session, as it is sent.
    pub frame_bytes_max: usize,
    /// Bytes of one frame's body when it is inflated.
    pub body_bytes_max: usize,
    /// Bytes of JSON of a node's whole slice.
    pub snapshot_bytes_max: usize,
    /// Nodes linked to a master at once.
    pub nodes_max: usize,
    /// Bytes asked of the system for each direction of a UDP socket.
    pub udp_buffer_bytes: usize,
    /// Whether several datagrams may leave in one system call: faster, but some mobile links lose such bursts.
    pub segmentation_offload: bool,
    /// How long a node waits for an answer over QUIC before it tries TCP too.
    pub quic_patience: Duration,
    /// How long a node stays on TCP before it tries QUIC again.
    pub quic_again: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            down_messages_max: 1024,
            up_batches_max: 256,
            calls_max: 64,
            calls_running_max: 256,
            asks_max: 8,
            frame_bytes_max: 16 << 20,
            body_bytes_max: 64 << 20,
            snapshot_bytes_max: 256 << 20,
            nodes_max: 4096,
            udp_buffer_bytes: 4 << 20,
            segmentation_offload: true,
            quic_patience: Duration::from_secs(3),
            quic_again: Duration::from_secs(60),
        }
    }
}

/// What a master gets from a node.
pub enum Up {
    /// Something is to be written.
    Writes(IncomingWrites),
    /// The node lives.
    Renew(Renewal),
}

/// A node's heartbeat: the master renews its Lease, with its own clock.
pub struct Renewal {
    pub(crate) reply: oneshot::Sender<Result<(), Rejected>>,
}

impl Renewal {
    /// Answers. A node that left is no error.
    pub fn answer(self, answer: Result<(), Rejected>) {
        drop(self.reply.send(answer));
    }
}

/// Writes as the master gets them.
pub struct IncomingWrites {
    /// To be committed all or not at all.
    pub writes: Vec<Write>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Event>, Rejected>>,
}

impl IncomingWrites {
    /// Answers. A node that left is no error.
    pub fn answer(self, answer: Result<Vec<Event>, Rejected>) {
        drop(self.reply.send(answer));
    }
}

/// The node's end.
pub struct NodeEnd {
    pub(crate) down: mpsc::Receiver<Down>,
    pub(crate) up: mpsc::Sender<Up>,
    pub(crate) asks: mpsc::Sender<IncomingAsk>,
    pub(crate) calls: mpsc::Receiver<IncomingCall>,
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
        Uplink { up: self.up.clone(), asks: self.asks.clone() }
    }

    /// Splits the end so that messages and calls can be awaited apart.
    pub fn split(self) -> (mpsc::Receiver<Down>, mpsc::Receiver<IncomingCall>, Uplink) {
        (self.down, self.calls, Uplink { up: self.up, asks: self.asks })
    }
}

/// A node's way to write and to ask. Clones share the link.
#[derive(Clone)]
pub struct Uplink {
    up: mpsc::Sender<Up>,
    pub(crate) asks: mpsc::Sender<IncomingAsk>,
}

impl Uplink {
    /// Writes, all or none; answered when the cluster holds them durably.
    ///
    /// # Errors
    /// [`Rejected`] says whether to decide again.
    pub async fn write(&self, writes: Vec<Write>) -> Result<Vec<Event>, Rejected> {
        let (reply, answer) = oneshot::channel();
        let batch = Up::Writes(IncomingWrites { writes, reply });
        self.up.send(batch).await.map_err(|_| Rejected::Disconnected)?;
        answer.await.map_err(|_| Rejected::Disconnected)?
    }

    /// Says that the node lives; answered when its Lease is renewed.
    ///
    /// # Errors
    /// [`Rejected::Disconnected`] when the link is down, another one when the master could not renew.
    pub async fn renew(&self) -> Result<(), Rejected> {
        let (reply, answer) = oneshot::channel();
        self.up.send(Up::Renew(Renewal { reply })).await.map_err(|_| Rejected::Disconnected)?;
        answer.await.map_err(|_| Rejected::Disconnected)?
    }
}

/// The master's end.
pub struct MasterEnd {
    /// Messages to the node.
    pub down: mpsc::Sender<Down>,
    /// Writes and heartbeats of the node.
    pub up: mpsc::Receiver<Up>,
    /// Calls to the node.
    pub caller: Caller,
    /// What the node asks for.
    pub asks: mpsc::Receiver<IncomingAsk>,
}

/// A master's way to call a node. Clones share the link.
#[derive(Clone)]
pub struct Caller(pub(crate) mpsc::Sender<IncomingCall>);

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

/// A link in memory: for the node in the master's own process. Who feeds it begins with a [`Down::Welcome`].
pub fn local(limits: Limits) -> (MasterEnd, NodeEnd) {
    let (down, messages) = mpsc::channel(limits.down_messages_max);
    let (up, writes) = mpsc::channel(limits.up_batches_max);
    let (caller, calls) = mpsc::channel(limits.calls_max);
    let (asks, asked) = mpsc::channel(limits.calls_max);
    (MasterEnd { down, up: writes, caller: Caller(caller), asks: asked }, NodeEnd { down: messages, up, asks, calls })
}
