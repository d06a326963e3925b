//! What a Deployment says about itself: counts, and the conditions Available, Progressing and ReplicaFailure.

use super::Pass;
use crate::edit;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSetCondition};

/// Kubernetes' default of `spec.progressDeadlineSeconds`.
const DEADLINE_SECONDS: i32 = 600;
/// The reason of a rollout that is done.
const DONE: &str = "NewReplicaSetAvailable";
/// The reason of a rollout that took too long.
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

impl Pass<'_, '_> {
    /// Whether a rollout is watched for progress at all.
    pub(super) fn has_deadline(&self) -> bool {
        self.deadline_seconds() != i32::MAX
    }

    fn deadline_seconds(&self) -> i32 {
        self.spec.progress_deadline_seconds.unwrap_or(DEADLINE_SECONDS)
    }

    pub(super) fn condition(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
    }

    fn drop_condition(&mut self, type_: &str) {
        if let Some(conditions) = &mut self.status.conditions {
            conditions.retain(|condition| condition.type_ != type_);
        }
    }

    /// Sets a condition; the same status for the same reason stays as it was.
    pub(super) fn set_condition(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let old = self.condition(type_);
        if old.is_some_and(|old| old.status == status && old.reason.as_deref() == Some(reason)) {
            return;
        }
        self.put_condition(type_, status, reason, message);
    }

    /// Sets a condition even if only its update time is news. Its transition time is that of its status.
    fn put_condition(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let now = edit::time(self.cx.now);
        let old = self.condition(type_).filter(|old| old.status == status);
        let since = old.and_then(|old| old.last_transition_time.clone()).unwrap_or_else(|| now.clone());
        self.drop_condition(type_);
        self.status.conditions.get_or_insert_default().push(DeploymentCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_update_time: Some(now),
            last_transition_time: Some(since),
        });
    }

    /// Says that the rollout is paused, or goes on. One that timed out stays so.
    pub(super) fn note_paused(&mut self) {
        if !self.has_deadline() {
            return;
        }
        let reason = self.condition("Progressing").and_then(|condition| condition.reason.as_deref());
        if reason == Some(TIMED_OUT) {
            return;
        }
        match (self.spec.paused == Some(true), reason == Some("DeploymentPaused")) {
            (true, false) => self.set_condition("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused"),
            (false, true) => self.set_condition("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed"),
            _ => {}
        }
    }

    /// Counts what the ReplicaSets report, and whether that is enough to be available.
    pub(super) fn count(&mut self) {
        let statuses = || self.sets.iter().map(|set| set.status());
        let total = |count: &dyn Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
            statuses().map(count).fold(0, i32::saturating_add)
        };
        let some = |count: i32| (count != 0).then_some(count);
        let replicas = total(&|status| status.replicas);
        let available = total(&|status| status.available_replicas.unwrap_or(0));
        let terminating = total(&|status| status.terminating_replicas.unwrap_or(0));
        self.status = DeploymentStatus {
            observed_generation: self.object.meta().generation,
            replicas: some(replicas),
            updated_replicas: self.new.and_then(|new| some(self.sets[new].status().replicas)),
            ready_replicas: some(total(&|status| status.ready_replicas.unwrap_or(0))),
            available_replicas: some(available),
            unavailable_replicas: some((replicas - available).max(0)),
            terminating_replicas: Some(terminating),
            collision_count: self.status.collision_count,
            conditions: self.status.conditions.take(),
        };
        if available >= self.replicas - self.max_unavailable() {
            let message = "Deployment has minimum availability.";
            self.set_condition("Available", "True", "MinimumReplicasAvailable", message);
        } else {
            let message = "Deployment does not have minimum availability.";
            self.set_condition("Available", "False", "MinimumReplicasUnavailable", message);
        }
    }

    /// Whether the rollout is done, by what the ReplicaSets report now.
    pub(super) fn is_complete(&self) -> bool {
        let Some(new) = self.new.map(|new| self.sets[new].status()) else { return false };
        let all: i32 = self.sets.iter().map(|set| set.status().replicas).sum();
        let available: i32 = self.sets.iter().map(|set| set.available()).sum();
        new.replicas == self.replicas && all == self.replicas && available == self.replicas
    }

    /// Counts, and says how the rollout gets on. Answers when its deadline ends.
    pub(super) fn progress(&mut self) -> Option<Timestamp> {
        let before = self.status.clone();
        self.count();
        if !self.has_deadline() {
            self.drop_condition("Progressing");
        } else if !self.was_done() {
            self.note_progress(&before);
        }
        match self.failure() {
            Some(failure) => {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let (reason, message) = (text(&failure.reason), text(&failure.message));
                self.set_condition("ReplicaFailure", &failure.status, &reason, &message);
            }
            None => self.drop_condition("ReplicaFailure"),
        }
        self.deadline().filter(|at| *at > self.cx.now)
    }

    /// Whether the rollout was done before and nothing but new pods runs.
    fn was_done(&self) -> bool {
        let reason = self.condition("Progressing").and_then(|condition| condition.reason.as_deref());
        self.status.replicas == self.status.updated_replicas && reason == Some(DONE)
    }

    fn note_progress(&mut self, before: &DeploymentStatus) {
        let who = match self.new {
            Some(new) => format!("ReplicaSet \"{}\"", self.sets[new].name()),
            None => format!("Deployment \"{}\"", self.object.meta().name),
        };
        if self.is_complete() {
            self.set_condition("Progressing", "True", DONE, &format!("{who} has successfully progressed."));
        } else if is_progress(before, &self.status) {
            self.put_condition("Progressing", "True", "ReplicaSetUpdated", &format!("{who} is progressing."));
        } else if self.deadline().is_some_and(|at| at <= self.cx.now) {
            self.set_condition("Progressing", "False", TIMED_OUT, &format!("{who} has timed out progressing."));
        }
    }

    /// When a rollout that is under way has taken too long.
    fn deadline(&self) -> Option<Timestamp> {
        let condition = self.condition("Progressing").filter(|_| self.has_deadline())?;
        if matches!(condition.reason.as_deref(), Some(DONE | TIMED_OUT)) {
            return None;
        }
        let last = condition.last_update_time.as_ref()?.0;
        last.checked_add(SignedDuration::from_secs(self.deadline_seconds().into())).ok()
    }

    /// Why pods cannot be made: the new ReplicaSet's reason before the others'.
    fn failure(&self) -> Option<ReplicaSetCondition> {
        let order = self.new.into_iter().chain(self.old());
        let mut conditions = order.flat_map(|index| self.sets[index].status().conditions.iter().flatten());
        conditions.find(|condition| condition.type_ == "ReplicaFailure").cloned()
    }
}

/// Whether more of the new, or less of the old, is there than before.
fn is_progress(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let count = |count: Option<i32>| count.unwrap_or(0);
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(after.updated_replicas) > count(before.updated_replicas)
        || old(after) < old(before)
        || count(after.ready_replicas) > count(before.ready_replicas)
        || count(after.available_replicas) > count(before.available_replicas)
}
