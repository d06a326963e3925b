//! Adds up what comes down the link.
//!
//! Pure. A master that was restored from older data goes back to smaller revisions; that shows only as a [`Down::Reset`], so
//! everybody who compares revisions starts anew when `era` has changed.

use super::Saved;
use crate::duties;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use state::{Key, Object, Revision, World};
use std::collections::BTreeSet;
use std::sync::Arc;
use sync::{ClusterFacts, Down, Position, Progress, peers};

/// What a node knows.
#[derive(Default)]
pub struct Replica {
    /// The objects that concern it.
    pub world: World,
    /// What it was told of the cluster.
    pub facts: Option<ClusterFacts>,
    /// Sessions with the master so far.
    pub sessions: u64,
    /// Counts the times the world was replaced whole: revisions of different eras do not compare.
    pub era: u64,
    /// In this agent's life it has known once all that the master had to tell. A master that has nothing new to tell in a
    /// session says nothing, so whoever has heard nothing for a while may set this.
    pub is_current: bool,
    progress: Progress,
}

/// What a burst of messages changed.
#[derive(Default)]
pub struct Folded {
    /// Objects that are others now.
    pub touched: BTreeSet<Key>,
    /// A session has begun.
    pub session: bool,
    /// The world was replaced whole.
    pub reset: bool,
    /// What was told of the cluster is new.
    pub facts: bool,
}

impl Replica {
    /// What an earlier agent knew.
    pub fn saved(saved: &Saved) -> Self {
        Self {
            world: saved.world.clone(),
            facts: Some(saved.facts.clone()),
            progress: Progress::new(saved.position.clone()),
            ..Self::default()
        }
    }

    /// From where the master may continue.
    pub fn position(&self) -> Option<Position> {
        self.progress.position()
    }

    /// Adds a burst of messages.
    pub fn fold(&mut self, burst: Vec<Down>) -> Folded {
        let mut folded = Folded::default();
        for message in burst {
            self.progress.see(&message);
            match message {
                Down::Welcome(welcome) => {
                    self.sessions += 1;
                    folded.session = true;
                    folded.facts |= self.facts.as_ref() != Some(&welcome.cluster);
                    self.facts = Some(welcome.cluster);
                }
                Down::Reset { revision, objects } => {
                    folded.touched.extend(self.refill(revision, objects));
                    folded.reset = true;
                    self.era += 1;
                    self.is_current = true;
                }
                Down::Event(event) => {
                    folded.touched.insert(event.key().clone());
                    self.world.fold(&event);
                    if event.key().is::<NetworkPolicy>() {
                        folded.touched.extend(peers::forget(&mut self.world));
                    }
                }
                Down::Reached(revision) => {
                    self.world.advance(revision);
                    self.is_current |= self.sessions > 0;
                }
            }
        }
        folded
    }

    /// Takes a whole slice in place of what was there; returns what differs.
    fn refill(&mut self, revision: Revision, objects: Vec<Arc<Object>>) -> BTreeSet<Key> {
        let old = std::mem::take(&mut self.world);
        let mut touched: BTreeSet<Key> = old.iter().map(|object| object.key().clone()).collect();
        for object in objects {
            // the same revision of another history may be something else
            let is_same =
                |before: &&Arc<Object>| before.revision() == object.revision() && before.json() == object.json();
            if old.get(object.key()).is_some_and(|before| is_same(&before)) {
                touched.remove(object.key());
            } else {
                touched.insert(object.key().clone());
            }
            self.world.put(object);
        }
        // what only this node knows stays, unless the master has it by now
        for object in old.iter().filter(|object| duties::is_local(object)) {
            let is_known = self.world.get(object.key()).is_some() || self.world.by_uid(&object.meta().uid).is_some();
            if !is_known {
                self.world.put(object.clone());
                touched.remove(object.key());
            }
        }
        self.world.advance(revision);
        touched
    }
}
