//! The node's own duties: the CronJobs that belong to it ([`state::cron`]), with or without a master.
//!
//! The node asks the master's own minds, on its own world. What they make exists here first: an object of revision 0, which is
//! on the disk before its pods start, and is reported as soon as there is a link. From then on it is the cluster's, as any
//! other. So one scheduled time has one decider, whatever becomes of the link or of this agent, and runs once. `decide` is pure;
//! `report` tells. Deliberately absent: pods, which are run as all are, and the Jobs of the master's making.

mod decide;
mod report;
#[cfg(test)]
mod tests;

pub use decide::decide;
pub use report::{Reports, send};

use state::{Event, Object, Revision, World, Write};
use std::sync::Arc;
use sync::Rejected;
use tokio::sync::oneshot;

/// Notes to the inbox that may wait.
pub const NOTES_MAX: usize = 256;

/// What the rest of the node tells the one who holds its world.
pub enum Note {
    /// A change of what only this node knows.
    Write(Vec<Write>, oneshot::Sender<Result<Vec<Event>, Rejected>>),
    /// A Job is on the disk.
    Kept(String),
    /// What was reported, and what the master said.
    Reported(Vec<Arc<Object>>, Result<Vec<Event>, Rejected>),
}

/// Whether only this node knows an object.
pub fn is_local(object: &Object) -> bool {
    object.revision() == Revision(0)
}

/// Whether a write is about something that only this node knows.
pub fn is_about_local(write: &Write, world: &World) -> bool {
    world.get(&write.key).is_some_and(|object| is_local(object))
}
