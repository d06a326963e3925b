//! The sessions that are open, by their names and by their nodes.

use super::session::Who;
use super::{Admit, Session};
use crate::node::Transport;
use crate::session::EventCache;
use crate::transport::{Frames, Sender};
use crate::{Bulk, IncomingAsk, Limits};
use rustls::server::danger::ClientCertVerifier;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections of one node: two, and as many again while it reconnects, and its calls over TCP share what is left.
const CONNECTIONS_PER_NODE: usize = 8;

/// What all connections of a master share.
pub(super) struct Shared {
    pub(super) admit: Admit,
    /// Checks certificates of streams from the API's listener.
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) limits: Limits,
    /// To the server, until the shutdown.
    sessions: Mutex<Option<mpsc::Sender<Session>>>,
    pub(super) events: EventCache,
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// One for each connection.
    pub(super) slots: Arc<Semaphore>,
    open: Mutex<HashMap<String, Arc<Open>>>,
}

/// An open session, as its further connections see it.
pub(super) struct Open {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) over: Transport,
    pub(super) bulk: Bulk,
    pub(super) closed: CancellationToken,
    /// The bulk connection, over QUIC.
    pub(super) connection: watch::Sender<Option<quinn::Connection>>,
    /// To the server.
    pub(super) asks: mpsc::Sender<IncomingAsk>,
    /// As many as may be answered at once; QUIC counts its streams itself.
    pub(super) asks_room: Semaphore,
    /// Calls that wait for the node to dial, over TCP.
    waiting: Mutex<Waiting>,
}

/// Calls of a session over TCP that wait for their connections.
#[derive(Default)]
struct Waiting {
    /// The newest number.
    last: u64,
    calls: HashMap<u64, oneshot::Sender<Arrival>>,
}

/// A call's connection, as the node has dialled it.
pub(super) type Arrival = (Sender, Frames);

impl Shared {
    pub(super) fn new(
        admit: Admit,
        verifier: Arc<dyn ClientCertVerifier>,
        limits: Limits,
        sessions: mpsc::Sender<Session>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            admit,
            verifier,
            limits,
            sessions: Mutex::new(Some(sessions)),
            events: EventCache::default(),
            shutdown,
            tasks: TaskTracker::new(),
            slots: Arc::new(Semaphore::new(limits.nodes_max.saturating_mul(CONNECTIONS_PER_NODE))),
            open: Mutex::default(),
        }
    }

    /// Opens a session, and ends what the node had open before.
    pub(super) fn open(&self, open: Arc<Open>) -> Result<(), &'static str> {
        let mut sessions = self.lock();
        for before in sessions.values().filter(|before| before.node == open.node) {
            before.closed.cancel();
        }
        sessions.retain(|_, before| before.node != open.node);
        if sessions.len() >= self.limits.nodes_max {
            return Err("the master has as many nodes as it may have");
        }
        sessions.insert(open.name.clone(), open);
        Ok(())
    }

    /// Where sessions go; `None` after the shutdown.
    pub(super) fn sessions(&self) -> Option<mpsc::Sender<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that no session comes any more.
    pub(super) fn finish(&self) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn close(&self, name: &str) {
        self.lock().remove(name);
    }

    /// The session that a connection of `node` wants to join.
    pub(super) fn find(&self, name: &str, node: &str) -> Option<Arc<Open>> {
        self.lock().get(name).filter(|open| open.node == node).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    pub(super) fn new(
        name: String,
        who: &Who,
        closed: CancellationToken,
        asks: mpsc::Sender<IncomingAsk>,
        asks_max: u32,
    ) -> Self {
        Self {
            name,
            node: who.node.clone(),
            over: who.over,
            bulk: Bulk::new(),
            closed,
            connection: watch::Sender::new(None),
            asks,
            asks_room: Semaphore::new(asks_max as usize),
            waiting: Mutex::default(),
        }
    }

    /// A number for a call, and what comes when the node has dialled for it.
    pub(super) fn expect(&self) -> (u64, oneshot::Receiver<Arrival>) {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.last += 1;
        let number = waiting.last;
        // callers that have left do not wait any more
        waiting.calls.retain(|_, waiting| !waiting.is_closed());
        waiting.calls.insert(number, sender);
        (number, receiver)
    }

    /// Hands a call's connection to whoever waits for it.
    pub(super) fn arrive(&self, number: u64, stream: Arrival) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting.calls.remove(&number) {
            // dropping the stream tells the node
            drop(sender.send(stream));
        }
    }
}
