//! Worlds of a while ago, for the next page of a list that began then. A world shares with its successors what did not
//! change, so keeping some costs what changed since.

use state::{Revision, World};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// The last worlds that a list was cut short at.
pub struct Snapshots {
    worlds: Mutex<VecDeque<Arc<World>>>,
    worlds_max: usize,
}

impl Snapshots {
    /// Keeps at most so many.
    pub fn new(worlds_max: usize) -> Self {
        Self { worlds: Mutex::new(VecDeque::new()), worlds_max }
    }

    /// Keeps a world for later pages; the one kept longest makes room.
    pub fn keep(&self, world: &Arc<World>) {
        let mut worlds = self.worlds.lock().unwrap_or_else(PoisonError::into_inner);
        if worlds.iter().any(|kept| kept.revision() == world.revision()) {
            return;
        }
        if worlds.len() >= self.worlds_max {
            worlds.pop_front();
        }
        worlds.push_back(world.clone());
    }

    /// The world at exactly this revision, if it is still there.
    pub fn at(&self, revision: Revision) -> Option<Arc<World>> {
        let worlds = self.worlds.lock().unwrap_or_else(PoisonError::into_inner);
        worlds.iter().find(|kept| kept.revision() == revision).cloned()
    }
}
