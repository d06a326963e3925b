//! How a Job ends: when it has succeeded or failed, what becomes of its pods, and when it is cleaned away.

use super::Pass;
use crate::{Outcome, edit, pods};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::Pod;
use state::{Deletion, Propagation, Write};

/// Kubernetes' default of `spec.backoffLimit`.
const BACKOFF_LIMIT: i32 = 6;

impl Pass<'_, '_> {
    fn condition(&self, type_: &str) -> Option<&JobCondition> {
        let mut conditions = self.status.conditions.iter().flatten();
        conditions.find(|condition| condition.type_ == type_ && condition.status == "True")
    }

    fn set_condition(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let now = Some(edit::time(self.cx.now));
        let conditions = self.status.conditions.get_or_insert_default();
        conditions.retain(|condition| condition.type_ != type_);
        conditions.push(JobCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_probe_time: now.clone(),
            last_transition_time: now,
        });
    }

    /// Whether all is over.
    pub(super) fn is_finished(&self) -> bool {
        self.condition("Complete").or(self.condition("Failed")).is_some()
    }

    /// Whether the outcome is known, though pods may still run.
    pub(super) fn is_ending(&self) -> bool {
        self.condition("SuccessCriteriaMet").or(self.condition("FailureTarget")).is_some()
    }

    /// A finished Job lets its last pods go, and itself when its time to live is over.
    pub(super) fn rest(mut self) -> Outcome {
        let tracked: Vec<_> = self.pods.iter().filter(|pod| super::is_tracked(pod)).cloned().collect();
        self.writes.extend(tracked.iter().map(|pod| super::untrack(pod)));
        if let (Some(seconds), false) = (self.spec.ttl_seconds_after_finished, self.object.is_deleting()) {
            let ended = self.condition("Complete").or(self.condition("Failed"));
            let ended = ended.and_then(|condition| condition.last_transition_time.as_ref());
            let ended = ended.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            match ended.checked_add(SignedDuration::from_secs(seconds.into())) {
                Ok(at) if at > self.cx.now => self.ask_again(at),
                Ok(_) => {
                    let how = Deletion { grace_seconds: None, propagation: Some(Propagation::Foreground) };
                    self.writes.extend(Write::delete_gracefully(self.object, how, self.cx.now));
                }
                Err(_) => {}
            }
        }
        Outcome { writes: self.writes, again_at: self.again_at }
    }

    /// Follows `spec.suspend`; a Job that is not suspended has a start.
    pub(super) fn suspend_or_start(&mut self) {
        let suspended = self.condition("Suspended").is_some();
        if self.spec.suspend == Some(true) {
            if !suspended && !self.is_ending() {
                self.set_condition("Suspended", "True", "JobSuspended", "Job suspended");
                self.status.start_time = None;
                self.tell(false, "Suspended", "Job suspended");
            }
            return;
        }
        if suspended {
            self.set_condition("Suspended", "False", "JobResumed", "Job resumed");
            self.status.start_time = None;
            self.tell(false, "Resumed", "Job resumed");
        }
        if self.status.start_time.is_none() {
            self.status.start_time = Some(edit::time(self.cx.now));
        }
    }

    /// Finds out whether the Job has succeeded or failed.
    pub(super) fn judge(&mut self) {
        if self.is_ending() {
            return;
        }
        let limit = self.spec.backoff_limit.unwrap_or(BACKOFF_LIMIT);
        let failed = self.status.failed.unwrap_or(0);
        if failed > limit || self.restarts() >= limit.max(1) {
            let message = "Job has reached the specified backoff limit";
            return self.set_condition("FailureTarget", "True", "BackoffLimitExceeded", message);
        }
        if let (Some(seconds), Some(start)) = (self.spec.active_deadline_seconds, &self.status.start_time) {
            match start.0.checked_add(SignedDuration::from_secs(seconds)) {
                Ok(at) if at > self.cx.now => self.ask_again(at),
                Ok(_) => {
                    let message = "Job was active longer than specified deadline";
                    return self.set_condition("FailureTarget", "True", "DeadlineExceeded", message);
                }
                Err(_) => {}
            }
        }
        let succeeded = self.status.succeeded.unwrap_or(0);
        let enough = match self.completions() {
            Some(completions) => succeeded >= completions,
            None => succeeded > 0 && self.active().is_empty(),
        };
        if enough && self.spec.suspend != Some(true) {
            let message = "Reached expected number of succeeded pods";
            self.set_condition("SuccessCriteriaMet", "True", "CompletionsReached", message);
        }
    }

    /// Restarts of the containers at work; they count as failures where pods are restarted in place.
    fn restarts(&self) -> i32 {
        let active = self.active();
        let count = |pod: &std::sync::Arc<state::Object>| -> i32 {
            let pod = pod
                .view::<Pod>()
                .filter(|pod| pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("OnFailure"));
            let status = pod.and_then(|pod| pod.status.as_ref());
            let lists = status.map(|status| [&status.init_container_statuses, &status.container_statuses]);
            let containers = lists.into_iter().flatten().flatten().flatten();
            containers.map(|container| container.restart_count).sum()
        };
        active.iter().map(count).sum()
    }

    /// Stops every pod: they are not needed any more, or the Job has failed, and then they have too.
    pub(super) fn stop_all(&mut self) {
        let failed = self.condition("FailureTarget").is_some();
        for pod in self.active().into_iter().take(super::BURST_PODS_MAX) {
            if !failed {
                self.drop_pod(&pod);
            } else if let Some(write) = Write::delete_gracefully(&pod, Deletion::default(), self.cx.now) {
                // kept by its finalizer until it is counted
                self.writes.push(write);
                self.tell(false, "SuccessfulDelete", &format!("Deleted pod: {}", pod.meta().name));
            }
        }
    }

    /// Says that the Job is over, once its outcome is known and no pod is left.
    pub(super) fn finish(&mut self, quiet: bool) {
        let uncounted =
            self.pods.iter().any(|pod| super::is_tracked(pod) && !self.is_written(pod) && pods::is_active(pod));
        if !quiet || uncounted || self.is_finished() {
            return;
        }
        let text = |condition: &JobCondition| {
            (condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default())
        };
        if let Some((reason, message)) = self.condition("SuccessCriteriaMet").map(text) {
            self.set_condition("Complete", "True", &reason, &message);
            self.status.completion_time = Some(edit::time(self.cx.now));
            self.tell(false, "Completed", "Job completed");
        } else if let Some((reason, message)) = self.condition("FailureTarget").map(text) {
            self.set_condition("Failed", "True", &reason, &message);
            self.tell(true, &reason, &message);
        } else {
            return;
        }
        if let Some(seconds) = self.spec.ttl_seconds_after_finished {
            self.again_at = self.cx.now.checked_add(SignedDuration::from_secs(i64::from(seconds).max(1))).ok();
        }
    }
}
