//! From the old ReplicaSets to the new: RollingUpdate within `maxSurge` and `maxUnavailable`, or Recreate.
//!
//! One step a pass: the new one grows, or the old ones shrink; the step's events wake the next.

use super::Pass;
use crate::{ownership, pods};
use k8s_openapi::api::apps::v1::RollingUpdateDeployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

impl Pass<'_, '_> {
    /// One step of a rolling update.
    pub(super) fn roll(&mut self) {
        match self.new {
            Some(_) => self.sync_new(),
            None => {
                let size = self.new_size(0);
                self.make_new(size);
                return;
            }
        }
        if !self.grow_new() && !self.shrink_old() && self.is_complete() {
            self.clean_up();
        }
    }

    /// One step of a Recreate: everything old is gone before anything new starts.
    pub(super) fn recreate(&mut self) {
        self.sync_new();
        let active: Vec<usize> = self.old().filter(|index| self.sets[*index].replicas() > 0).collect();
        if !active.is_empty() {
            for index in active {
                self.resize(index, 0);
            }
            return;
        }
        if self.old_pods_run() {
            return;
        }
        match self.new {
            None => self.make_new(self.replicas),
            Some(new) => {
                if !self.resize(new, self.replicas) && self.is_complete() {
                    self.clean_up();
                }
            }
        }
    }

    fn old_pods_run(&self) -> bool {
        let objects = self.old().filter_map(|index| self.sets[index].object());
        objects.into_iter().any(|set| {
            let pods = ownership::children::<Pod>(self.cx.world, set);
            pods.iter().any(|pod| !pods::is_finished(pod))
        })
    }

    /// The size the new ReplicaSet may have now, given its size: no more pods in all than replicas + maxSurge.
    fn new_size(&self, size: i32) -> i32 {
        let pods: i32 = self.sets.iter().map(|set| set.replicas()).fold(0, i32::saturating_add);
        let room = self.replicas.saturating_add(self.max_surge()).saturating_sub(pods);
        if room <= 0 { size } else { size.saturating_add(room.min(self.replicas - size)) }
    }

    fn grow_new(&mut self) -> bool {
        let Some(new) = self.new else { return false };
        let size = self.sets[new].replicas();
        match size.cmp(&self.replicas) {
            std::cmp::Ordering::Equal => false,
            // scaled down meanwhile
            std::cmp::Ordering::Greater => self.resize(new, self.replicas),
            std::cmp::Ordering::Less => self.resize(new, self.new_size(size)),
        }
    }

    /// Shrinks the old ReplicaSets as far as enough pods stay available; unhealthy pods go first, since they hold up
    /// the rollout and serve nobody.
    fn shrink_old(&mut self) -> bool {
        let old: Vec<usize> = self.old().collect();
        let Some(new) = self.new else { return false };
        if old.iter().all(|index| self.sets[*index].replicas() == 0) {
            return false;
        }
        let pods: i32 = self.sets.iter().map(|set| set.replicas()).sum();
        let min_available = self.replicas - self.max_unavailable();
        let new_unavailable = self.sets[new].replicas() - self.sets[new].available();
        let max_down = pods - min_available - new_unavailable;
        if max_down <= 0 {
            return false;
        }
        let unhealthy = |pass: &Self, index: usize| pass.sets[index].replicas() - pass.sets[index].available();
        let cleaned = self.shrink(&old, max_down, unhealthy);
        let available: i32 = self.sets.iter().map(|set| set.available()).sum();
        let shrunk = self.shrink(&old, available - min_available, |pass, index| pass.sets[index].replicas());
        cleaned || shrunk
    }

    /// Takes up to `budget` pods from the ReplicaSets in order, from each at most what `surplus` says.
    fn shrink(&mut self, sets: &[usize], mut budget: i32, surplus: impl Fn(&Self, usize) -> i32) -> bool {
        let mut shrunk = false;
        for index in sets {
            let down = surplus(self, *index).min(self.sets[*index].replicas()).min(budget);
            if down > 0 {
                budget -= down;
                shrunk |= self.resize(*index, self.sets[*index].replicas() - down);
            }
        }
        shrunk
    }

    fn rolling(&self) -> Option<&RollingUpdateDeployment> {
        self.spec.strategy.as_ref()?.rolling_update.as_ref()
    }

    /// Pods above the desired number that an update may add.
    pub(super) fn max_surge(&self) -> i32 {
        if self.is_recreate() { 0 } else { self.bounds().0 }
    }

    /// Pods below the desired number that an update may be missing.
    pub(super) fn max_unavailable(&self) -> i32 {
        if self.is_recreate() || self.replicas == 0 { 0 } else { self.bounds().1.min(self.replicas) }
    }

    /// maxSurge is rounded up, maxUnavailable down; if both come to nothing, one may be missing, or nothing would move.
    fn bounds(&self) -> (i32, i32) {
        let rolling = self.rolling();
        let surge = scaled(rolling.and_then(|rolling| rolling.max_surge.as_ref()), self.replicas, true);
        let missing = scaled(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), self.replicas, false);
        if surge == 0 && missing == 0 { (0, 1) } else { (surge, missing) }
    }
}

/// A number, or a percentage of the replicas; Kubernetes' default is 25%.
fn scaled(value: Option<&IntOrString>, replicas: i32, up: bool) -> i32 {
    let quarter = IntOrString::String("25%".into());
    manifests::int_or_percent(value.unwrap_or(&quarter), replicas.max(0), up).unwrap_or(0).max(0)
}
