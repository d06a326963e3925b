//! A Job runs pods until enough of them have succeeded, or too many have failed, or its time is over.
//!
//! Every pod carries a finalizer until its end is counted, and counting and letting go are one commit, so that no end is
//! lost or counted twice. Failed pods are replaced after a growing pause. Deliberately absent: pod failure policies, success
//! policies, back-off limits per index.

mod finish;
mod indexes;
mod pace;
#[cfg(test)]
mod tests;

use crate::{Controller, Cx, Outcome, edit, ownership, pods};
use indexes::Indexes;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use state::record::{self, Note};
use state::{Change, Deletion, Event, Key, Object, World, Write};
use std::sync::Arc;

/// Name as the source of events.
const NAME: &str = "job-controller";
/// Finalizer of a pod whose end is not counted yet.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label: which index a pod works on.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Pods made or deleted in one pass.
const BURST_PODS_MAX: usize = 500;
/// Events told in one pass.
const BURST_EVENTS_MAX: usize = 25;
/// After this a refused creation is tried again.
const RETRY_SECONDS: i64 = 5;

/// The controller.
pub struct Jobs;

impl Controller for Jobs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let key = event.key();
        if key.is::<Job>() {
            // the pods of a Job that is gone are let go one by one
            let orphans = (event.change == Change::Deleted).then(|| world.owned_by(&event.object.meta().uid));
            let orphans = orphans.into_iter().flatten().filter(|pod| pod.key().is::<Pod>());
            return orphans.map(|pod| pod.key().clone()).chain([key.clone()]).collect();
        }
        if !key.is::<Pod>() {
            return Vec::new();
        }
        let jobless =
            event.change != Change::Deleted && is_tracked(&event.object) && job_of(world, &event.object).is_none();
        let own = jobless.then(|| key.clone());
        ownership::controllers_of::<Job>(event).into_iter().chain(own).collect()
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).cloned() else { return Outcome::default() };
        if key.is::<Pod>() {
            let lost = is_tracked(&object) && job_of(cx.world, &object).is_none();
            let writes = if lost { vec![untrack(&object)] } else { Vec::new() };
            return Outcome { writes, again_at: None };
        }
        match object.view::<Job>().and_then(|job| Some((job.spec.as_ref()?, job.status.clone()))) {
            // another controller's
            Some((spec, _)) if spec.managed_by.as_deref().is_some_and(|by| by != "kubernetes.io/job-controller") => {
                Outcome::default()
            }
            Some((spec, status)) => Pass::new(cx, &object, spec, status.unwrap_or_default()).run(),
            None => Outcome::default(),
        }
    }
}

fn is_tracked(pod: &Object) -> bool {
    pod.meta().finalizers.iter().any(|finalizer| finalizer == TRACKING)
}

fn job_of<'a>(world: &'a World, pod: &Object) -> Option<&'a Arc<Object>> {
    let owner = pod.controller().filter(|owner| owner.kind == "Job")?;
    world.by_uid(&owner.uid)
}

/// Lets a pod go: its end is counted, or nobody counts any more.
fn untrack(pod: &Object) -> Write {
    let mut value = pod.value();
    drop_tracking(&mut value);
    Write::update(pod, value)
}

fn drop_tracking(value: &mut Value) {
    if let Some(finalizers) = value["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|finalizer| finalizer != TRACKING);
    }
}

/// One look at one Job.
struct Pass<'a, 'b> {
    cx: &'a mut Cx<'b>,
    object: &'a Object,
    spec: &'a JobSpec,
    /// The status as it becomes.
    status: JobStatus,
    /// Its pods, by name.
    pods: Vec<Arc<Object>>,
    /// Indexes that succeeded; of an indexed Job only.
    done: Indexes,
    writes: Vec<Write>,
    events: usize,
    again_at: Option<Timestamp>,
}

impl<'a, 'b> Pass<'a, 'b> {
    fn new(cx: &'a mut Cx<'b>, object: &'a Object, spec: &'a JobSpec, status: JobStatus) -> Self {
        let pods = ownership::children::<Pod>(cx.world, object).into_iter().cloned().collect();
        let done = status.completed_indexes.as_deref().map(Indexes::parse).unwrap_or_default();
        Self { cx, object, spec, status, pods, done, writes: Vec::new(), events: 0, again_at: None }
    }

    fn run(mut self) -> Outcome {
        if self.is_finished() {
            return self.rest();
        }
        self.count_ended();
        if !self.object.is_deleting() {
            self.suspend_or_start();
            self.judge();
            if self.is_ending() || self.spec.suspend == Some(true) {
                self.stop_all();
            } else {
                self.manage();
            }
        }
        self.conclude();
        Outcome { writes: self.writes, again_at: self.again_at }
    }

    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// How many pods must succeed; `None` for a work queue, where one success says that all is done.
    fn completions(&self) -> Option<i32> {
        self.spec.completions.or(if self.spec.parallelism.is_none() { Some(1) } else { None })
    }

    /// Pods that are at work.
    fn active(&self) -> Vec<Arc<Object>> {
        self.pods.iter().filter(|pod| pods::is_active(pod) && !self.is_written(pod)).cloned().collect()
    }

    /// Pods that were asked to end and have not.
    fn terminating(&self) -> usize {
        self.pods.iter().filter(|pod| pod.is_deleting() && !pods::is_finished(pod)).count()
    }

    fn is_written(&self, pod: &Object) -> bool {
        self.writes.iter().any(|write| write.key == *pod.key())
    }

    /// Counts the pods that ended and lets them go. A pod that was asked to end counts as failed at once, unless the Job
    /// waits for ends (`podReplacementPolicy: Failed`).
    fn count_ended(&mut self) {
        let wait = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        for pod in self.pods.clone().iter().filter(|pod| is_tracked(pod)) {
            let phase = pod.view::<Pod>().map_or("", pods::phase);
            let succeeded = phase == "Succeeded";
            let failed = phase == "Failed" || (pod.is_deleting() && !wait && !succeeded);
            if !succeeded && !failed {
                continue;
            }
            if failed {
                self.status.failed = Some(self.status.failed.unwrap_or(0).saturating_add(1));
            } else if !self.is_indexed() {
                self.status.succeeded = Some(self.status.succeeded.unwrap_or(0).saturating_add(1));
            } else if let Some(index) = index_of(pod) {
                self.done.insert(index);
            }
            self.writes.push(untrack(pod));
        }
        if self.is_indexed() {
            self.status.completed_indexes = Some(self.done.to_string()).filter(|text| !text.is_empty());
            self.status.succeeded = edit::nonzero(self.done.len());
        }
    }

    /// Makes pods that are missing and deletes those that are too many.
    fn manage(&mut self) {
        let mut active = self.active();
        if self.is_indexed() {
            active = self.drop_duplicates(active);
        }
        let parallelism = usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0);
        let succeeded = usize::try_from(self.status.succeeded.unwrap_or(0)).unwrap_or(0);
        let wanted = match self.completions() {
            Some(completions) => parallelism.min(usize::try_from(completions).unwrap_or(0).saturating_sub(succeeded)),
            None if succeeded > 0 => active.len().min(parallelism),
            None => parallelism,
        };
        if active.len() > wanted {
            let mut surplus = active;
            // those that got least far
            surplus.sort_by_key(|pod| {
                (pods::ready_since(pod).is_some(), std::cmp::Reverse(pod.meta().creation_timestamp))
            });
            surplus.truncate(surplus.len().min(BURST_PODS_MAX) - wanted.min(BURST_PODS_MAX));
            surplus.iter().for_each(|pod| self.drop_pod(pod));
            return;
        }
        let waiting = match self.spec.pod_replacement_policy.as_deref() {
            Some("Failed") => self.terminating(),
            _ => 0,
        };
        let missing = wanted.saturating_sub(active.len() + waiting).min(BURST_PODS_MAX);
        if missing == 0 {
            return;
        }
        match pace::next_at(&self.pods, self.cx.now) {
            Some(at) => self.ask_again(at),
            None => self.create(missing, &active),
        }
    }

    fn drop_duplicates(&mut self, active: Vec<Arc<Object>>) -> Vec<Arc<Object>> {
        let completions = u32::try_from(self.spec.completions.unwrap_or(0)).unwrap_or(0);
        let mut taken = Indexes::default();
        let (kept, surplus): (Vec<_>, Vec<_>) = active.into_iter().partition(|pod| {
            let index = index_of(pod).filter(|index| *index < completions && !self.done.contains(*index));
            index.is_some_and(|index| taken.insert(index))
        });
        surplus.iter().for_each(|pod| self.drop_pod(pod));
        kept
    }

    fn create(&mut self, count: usize, active: &[Arc<Object>]) {
        let template = self.template();
        let indexes: Vec<Option<u32>> = if self.is_indexed() {
            let completions = u32::try_from(self.spec.completions.unwrap_or(0)).unwrap_or(0);
            let taken: Indexes = active.iter().filter_map(|pod| index_of(pod)).collect();
            let free = (0..completions).filter(|index| !self.done.contains(*index) && !taken.contains(*index));
            free.take(count).map(Some).collect()
        } else {
            vec![None; count]
        };
        for index in indexes {
            let name = &self.object.meta().name;
            let prefix = index.map_or_else(|| format!("{name}-"), |index| format!("{name}-{index}-"));
            let (world, stamp) = (self.cx.world, &mut self.cx.stamp);
            let mut own = template.clone();
            if let Some(index) = index {
                indexes::mark(&mut own, name, index);
            }
            match pods::from_template::<Job>(world, stamp, self.object, &own, &prefix) {
                Ok(pod) => {
                    let key = pods::key(&pod);
                    self.tell(false, "SuccessfulCreate", &format!("Created pod: {}", key.name));
                    self.writes.push(Write::create(key, pod));
                }
                Err(refused) => {
                    let message = format!("Error creating: pods \"{prefix}\" is forbidden: {refused}");
                    if !self.has_told(&message) {
                        self.tell(true, "FailedCreate", &message);
                    }
                    return self.ask_again(self.cx.now + jiff::SignedDuration::from_secs(RETRY_SECONDS));
                }
            }
        }
    }

    /// Whether there is an event that says this; the Job has no condition for it.
    fn has_told(&mut self, message: &str) -> bool {
        let note = Note::warning(NAME, "FailedCreate", message);
        let write = record::event(self.cx.world, &mut self.cx.stamp, self.object, &note);
        self.cx.world.get(&write.key).is_some()
    }

    /// The template with the labels that find a Job's pods, and the finalizer that counts them.
    fn template(&self) -> Value {
        let mut template = self.object.value()["spec"]["template"].take();
        let (name, uid) = (&self.object.meta().name, &self.object.meta().uid);
        let labels = &mut template["metadata"]["labels"];
        if !labels.is_object() {
            *labels = json!({});
        }
        let own = [
            ("batch.kubernetes.io/controller-uid", uid),
            ("batch.kubernetes.io/job-name", name),
            ("controller-uid", uid),
            ("job-name", name),
        ];
        for (key, text) in own {
            labels[key] = text.as_str().into();
        }
        match &mut template["metadata"]["finalizers"] {
            Value::Array(finalizers) => finalizers.push(TRACKING.into()),
            other => *other = json!([TRACKING]),
        }
        template
    }

    /// Deletes a pod that is not needed; it counts neither as succeeded nor as failed.
    fn drop_pod(&mut self, pod: &Arc<Object>) {
        let Some(mut write) = Write::delete_gracefully(pod, Deletion::default(), self.cx.now) else { return };
        if let Some(value) = &mut write.value {
            drop_tracking(value);
            if state::is_finished(value) {
                write.value = None;
            }
        }
        self.writes.push(write);
        self.tell(false, "SuccessfulDelete", &format!("Deleted pod: {}", pod.meta().name));
    }

    fn tell(&mut self, warning: bool, reason: &str, message: &str) {
        self.events += 1;
        if self.events <= BURST_EVENTS_MAX {
            let note = Note { warning, ..Note::normal(NAME, reason, message) };
            self.writes.push(record::event(self.cx.world, &mut self.cx.stamp, self.object, &note));
        }
    }

    fn ask_again(&mut self, at: Timestamp) {
        self.again_at = Some(self.again_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Counts the pods that are left or were made now, and writes the status.
    fn conclude(&mut self) {
        let active = self.active();
        let made = self.writes.iter().filter(|write| write.key.is::<Pod>() && write.expect == state::Expect::Absent);
        self.status.active = edit::nonzero(active.len() + made.count());
        self.status.ready = Some(i32::try_from(active.iter().filter(|pod| pods::is_ready(pod)).count()).unwrap_or(0));
        let dropped = self.writes.iter().filter(|write| {
            let grace = write.value.as_ref().map(|value| &value["metadata"]["deletionTimestamp"]);
            let old = self.pods.iter().find(|pod| *pod.key() == write.key);
            grace.is_some_and(Value::is_string) && old.is_some_and(|pod| !pod.is_deleting() && !pods::is_finished(pod))
        });
        let terminating = self.terminating() + dropped.count();
        self.status.terminating = i32::try_from(terminating).ok();
        self.status.uncounted_terminated_pods = Some(UncountedTerminatedPods::default());
        self.finish(active.is_empty() && terminating == 0);
        self.writes.extend(edit::status(self.object, &self.status));
    }
}

fn index_of(pod: &Object) -> Option<u32> {
    pod.meta().annotations.get(INDEX)?.parse().ok()
}
