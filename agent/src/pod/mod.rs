//! One pod, one worker: observes, plans, acts, publishes.
//!
//! `state` is what is observed, `plan` decides, `act` carries out, `status` is what the cluster is told and `publish` tells
//! it. The worker's loop is in `worker`. Deliberately absent: other pods; a worker knows only its own.

mod act;
mod adopt;
pub mod blueprint;
mod jobs;
pub mod plan;
mod publish;
pub mod state;
pub mod status;
#[cfg(test)]
mod tests;
mod worker;

pub use adopt::docker_id;
pub use worker::{Past, Worker};

use crate::body::Session;
use ::state::Object;
use std::sync::Arc;

/// What the inbox tells a worker. Only the latest counts, so nothing queues up.
#[derive(Clone)]
pub struct Mail {
    /// The pod as last seen.
    pub object: Arc<Object>,
    /// It is not in the world any more.
    pub gone: bool,
    /// Counts changes of the objects that the pod refers to.
    pub sources: u64,
    /// The newest session with the master.
    pub session: Session,
}
