//! The node's copy of what concerns it: in memory as a [`World`], and, for a node whose master is elsewhere, on disk.
//!
//! `fold` adds up what comes down the link, `log` is the file, `keeper` decides when it is written. With the copy on disk an
//! agent starts all its pods and serves all its routes without any link, and on its return it asks only for what changed.
//! What the master has not been told yet of its pods is kept beside the objects. Deliberately absent: what is done with it.

mod fold;
mod keeper;
mod log;

pub use fold::{Folded, Replica};
pub use keeper::Keeper;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use state::World;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use sync::{ClusterFacts, Position};

/// Where the copy is kept, below the agent's data directory.
const DIRECTORY: &str = "replica";

/// What an earlier agent knew when it wrote last.
#[derive(Clone)]
pub struct Saved {
    facts: ClusterFacts,
    position: Option<Position>,
    world: World,
    /// Uid of a pod to its status, where the master has not been told it.
    statuses: HashMap<String, PodStatus>,
    log: log::Place,
}

impl Saved {
    /// From where the master may continue; what [`sync::node::Config::from`] wants.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// What was known of the cluster.
    pub fn facts(&self) -> &ClusterFacts {
        &self.facts
    }

    /// Objects in it.
    pub fn objects(&self) -> usize {
        self.world.iter().count()
    }

    /// The statuses that the master has not been told of, given what is known `now`. Where the master shows another status of
    /// this node's making than the one known when this was written, it has been told since.
    pub(crate) fn untold(mut self, now: &Replica, keeper: &Keeper) -> HashMap<String, PodStatus> {
        let own = |world: &World, uid: &str| -> Option<Option<PodStatus>> {
            let status = world.by_uid(uid)?.view::<Pod>()?.status.clone();
            // what other parts of the cluster write into a status is left out
            Some(status.map(|status| PodStatus {
                phase: status.phase,
                pod_ip: status.pod_ip,
                start_time: status.start_time,
                init_container_statuses: status.init_container_statuses,
                container_statuses: status.container_statuses,
                ephemeral_container_statuses: status.ephemeral_container_statuses,
                ..PodStatus::default()
            }))
        };
        let mut statuses = std::mem::take(&mut self.statuses);
        statuses.retain(|uid, _| {
            let is_untold = own(&self.world, uid).is_some_and(|then| own(&now.world, uid) == Some(then));
            if !is_untold {
                keeper.forget(uid);
            }
            is_untold
        });
        statuses
    }
}

/// Reads what an earlier agent left in `data_dir` ([`crate::AgentConfig::data_dir`]). `None` when there is nothing, or nothing
/// that can be relied on, which is logged.
pub fn load(data_dir: &Path) -> Option<Saved> {
    let path = file(data_dir);
    match log::read(&path) {
        Ok(saved) => saved,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            let why = crate::container::chain(error);
            tracing::warn!(file = %path.display(), error = why, "the copy of the cluster on disk is not used");
            None
        }
    }
}

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join(DIRECTORY).join("world")
}
