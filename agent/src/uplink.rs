//! The way up: writes of this node, answered when the cluster has taken or refused them.
//!
//! A thin room around the link's writing side, so that every other room can hold a clone. Deliberately absent: retries and
//! queues; whoever writes knows what a refusal means.

use futures::future::BoxFuture;
use state::{Event, Write};
use std::sync::Arc;

type Carrier = dyn Fn(Vec<Write>) -> BoxFuture<'static, Result<Vec<Event>, Rejected>> + Send + Sync;

/// Writes to the cluster. Clones share the link.
#[derive(Clone)]
pub struct Uplink(Arc<Carrier>);

/// Why a write was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Rejected {
    /// What it was decided on is not true any more.
    #[error("conflict: {0}")]
    Conflict(String),
    /// It could not be carried to the master, or not be kept there.
    #[error("write not taken: {0}")]
    Failed(String),
}

impl Rejected {
    /// Whether the writer must look again before it writes again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }
}

impl Uplink {
    /// A way up over any carrier.
    pub fn new<F>(send: F) -> Self
    where
        F: Fn(Vec<Write>) -> BoxFuture<'static, Result<Vec<Event>, Rejected>> + Send + Sync + 'static,
    {
        Self(Arc::new(send))
    }

    /// All of them or none; the events are theirs.
    pub async fn write(&self, writes: Vec<Write>) -> Result<Vec<Event>, Rejected> {
        (self.0)(writes).await
    }
}
