//! Hands each change to the feeds of the nodes that it may concern: the others are not woken by it.
//!
//! A feed that is behind by more than its queue holds loses the queue, and catches up from the log ([`super::feed`]).

use state::{Event, Revision, World};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sync::slice::{self, Audience};
use tokio::sync::mpsc;

/// Changes that wait for one feed.
const QUEUE_EVENTS_MAX: usize = 512;

/// Where feeds wait for changes. Clones share it.
#[derive(Clone)]
pub struct Router(Arc<Mutex<Board>>);

struct Board {
    /// The last durable change that was handed out.
    durable: Revision,
    /// What comes after this is handed out.
    handed: Revision,
    /// Of a node with two sessions, both.
    queues: HashMap<String, Vec<mpsc::Sender<Arc<Event>>>>,
}

/// A feed's place.
pub struct Queue {
    /// Changes that may concern the node; it ends when one of them had no room.
    pub events: mpsc::Receiver<Arc<Event>>,
    /// What the feed has to look up itself: the log up to here.
    pub after: Revision,
}

impl Router {
    /// Nobody waits. `durable` is where the log ended at the start.
    pub fn new(durable: Revision) -> Self {
        Self(Arc::new(Mutex::new(Board { durable, handed: durable, queues: HashMap::new() })))
    }

    /// A place for a feed of a node.
    pub fn enter(&self, node: &str) -> Queue {
        let (sender, events) = mpsc::channel(QUEUE_EVENTS_MAX);
        let mut board = self.board();
        let queues = board.queues.entry(node.to_owned()).or_default();
        queues.retain(|queue| !queue.is_closed());
        queues.push(sender);
        Queue { events, after: board.handed }
    }

    /// Hands out a durable change; `world` contains it.
    pub fn hand_out(&self, event: &Arc<Event>, world: &World) {
        let audience = slice::audience(event, world);
        let mut board = self.board();
        match audience {
            Audience::Everybody => board.queues.retain(|_, queues| put(queues, event)),
            Audience::Nodes(nodes) => {
                for node in nodes {
                    if board.queues.get_mut(&node).is_some_and(|queues| !put(queues, event)) {
                        board.queues.remove(&node);
                    }
                }
            }
        }
        (board.durable, board.handed) = (event.revision, event.revision);
    }

    /// The last durable change: whoever finds the queue empty afterwards knows of everything up to it.
    pub fn durable(&self) -> Revision {
        self.board().durable
    }

    /// What comes after this is handed out.
    pub fn handed(&self) -> Revision {
        self.board().handed
    }

    /// Changes up to `handed` were missed: everybody looks them up.
    pub fn skip(&self, handed: Revision) {
        let mut board = self.board();
        board.queues.clear();
        board.handed = board.handed.max(handed);
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts a change into queues and drops those that have no room or no reader; says whether any is left.
fn put(queues: &mut Vec<mpsc::Sender<Arc<Event>>>, event: &Arc<Event>) -> bool {
    queues.retain(|queue| queue.try_send(event.clone()).is_ok());
    !queues.is_empty()
}
