//! A change that happened.

use crate::{Key, Object, Revision};
use std::sync::Arc;

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object is new.
    Added,
    /// The object was there and is different now.
    Modified,
    /// The object is gone; the event carries its last state.
    Deleted,
}

/// One committed change. Events of a cluster are totally ordered by revision.
#[derive(Clone, Debug)]
pub struct Event {
    /// The revision this change made.
    pub revision: Revision,
    /// What it did.
    pub change: Change,
    /// The object after the change; for a deletion its last state, at the deletion's revision.
    pub object: Arc<Object>,
    /// The object before the change, where there was one.
    pub previous: Option<Arc<Object>>,
}

impl Event {
    /// The name of the object that changed.
    pub fn key(&self) -> &Key {
        self.object.key()
    }
}
