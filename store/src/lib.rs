//! The hand that holds the disk: the cluster's revisioned log, on redb.
//!
//! Layer 2. Takes [`state::Write`]s with their preconditions, orders them, makes them durable in groups, folds them into
//! the head [`World`] and tells every watcher. A watch resumes at any revision of a bounded history, across restarts too.
//!
//! Deliberately absent: policy of any kind (what may be written, what follows from it), and threads: [`Writer::run`]
//! blocks, and the caller gives it a thread.

mod error;
mod history;
mod log;
mod writer;

pub use error::{CommitError, OpenError, WatchError};
pub use history::Watch;
pub use writer::Writer;

use arc_swap::ArcSwap;
use history::History;
use manifests::Resource;
use state::{Event, Revision, World, Write};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use writer::Request;

/// The store's bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events that stay on disk and in memory for watches to resume from.
    pub history_events_max: usize,
    /// JSON bytes of the events kept in memory; the oldest go first.
    pub history_bytes_max: usize,
    /// JSON bytes of one object; etcd's 1.5 MiB.
    pub object_bytes_max: usize,
    /// Commits waiting for the writer; more wait outside.
    pub queue_commits_max: usize,
    /// Commits made durable together.
    pub group_commits_max: usize,
    /// Bytes of redb's page cache.
    pub cache_bytes: usize,
    /// Which resources are kept in memory only: they are gone after a restart.
    pub volatile: fn(&Resource) -> bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history_events_max: 10_000,
            history_bytes_max: 8 << 20,
            object_bytes_max: 3 << 19,
            queue_commits_max: 1024,
            group_commits_max: 512,
            cache_bytes: 4 << 20,
            volatile: |resource| manifests::by_resource(resource).is_some_and(|kind| kind.volatile),
        }
    }
}

/// The cluster's state. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

/// What stores, watches and the writer share.
struct Shared {
    world: ArcSwap<World>,
    history: History,
    requests: mpsc::Sender<Request>,
}

impl Store {
    /// Opens or makes the log in `file` and reads the world out of it. Nothing is written until [`Writer::run`] runs.
    ///
    /// # Errors
    /// [`OpenError`] when the file is locked by another process, is not a log, is damaged, or cannot be read.
    pub fn open(file: &Path, limits: Limits) -> Result<(Self, Writer), OpenError> {
        let (disk, loaded) = log::open(file, &limits)?;
        let (requests, inbox) = mpsc::channel(limits.queue_commits_max);
        let window = loaded.events.iter().map(|event| event.revision).collect();
        let shared = Arc::new(Shared {
            world: ArcSwap::from_pointee(loaded.world),
            history: History::new(loaded.events, loaded.floor, loaded.head, limits),
            requests,
        });
        let writer = Writer::new(shared.clone(), inbox, disk, loaded.superseded, window, limits);
        Ok((Self(shared), writer))
    }

    /// The cluster now. Lock-free.
    pub fn world(&self) -> Arc<World> {
        self.0.world.load_full()
    }

    /// Commits writes, all of them or none, in this order. When it returns they are durable (but for volatile
    /// resources) and [`Store::world`] shows them.
    ///
    /// # Errors
    /// [`CommitError`] names the first write whose precondition does not hold, or why the disk did not take them.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Event>, CommitError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Commit { writes, reply };
        self.0.requests.send(request).await.map_err(|_| CommitError::Closed)?;
        answer.await.map_err(|_| CommitError::Closed)?
    }

    /// Every event after `from`, in order.
    ///
    /// # Errors
    /// [`WatchError::Expired`] when the history does not reach back so far.
    pub fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
        History::watch(&self.0, from)
    }

    /// Gives back memory that typed views take which nobody asked for since this was asked before; to be asked now and then.
    pub fn rest(&self) {
        // who is too busy for that rests another time
        let _ = self.0.requests.try_send(Request::Rest);
    }

    /// Ends the writer and all watches; commits that wait are answered [`CommitError::Closed`].
    pub async fn close(&self) {
        // an error means that the writer has ended already
        let _ = self.0.requests.send(Request::Close).await;
    }
}
