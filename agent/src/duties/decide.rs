//! What the node's own CronJobs and the Jobs that only it knows need now.

use super::is_local;
use controllers::cronjob::{CronJobs, Seat};
use controllers::job::Jobs;
use controllers::{Controller, Cx, Outcome, eviction};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{self, Node, Pod};
use serde_json::{Value, json};
use state::{Deletion, Expect, Identities, Key, Object, Stamp, World, Write, cron, rfc3339};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Jobs of one CronJob that are over and kept while nobody can be told of them.
const ENDED_JOBS_MAX: usize = 10;
/// Taints with which the cluster says how the node is; a node that has work to do by itself is there.
const CONDITION_TAINTS: &str = "node.kubernetes.io/";

/// What is to be done.
#[derive(Debug, Default)]
pub struct Decision {
    /// Changes of what only this node knows.
    pub local: Vec<Write>,
    /// Changes of what the master knows: Jobs that must give way.
    pub master: Vec<Write>,
    /// Events: about what, and what.
    pub told: Vec<(Key, Value)>,
    /// When to look again.
    pub again_at: Option<Timestamp>,
}

/// Decides on a world. `held` are Jobs that are not on the disk yet: they make no pods.
pub fn decide(
    world: &World,
    node: &str,
    held: &HashSet<String>,
    now: Timestamp,
    identities: &mut dyn Identities,
) -> Decision {
    let mut decision = Decision::default();
    dismiss(world, node, now, &mut decision);
    if !decision.local.is_empty() {
        return decision;
    }
    let mut ask = |mind: &dyn Controller, key: &Key| {
        mind.reconcile(&mut Cx { world, now, stamp: Stamp { now, identities: &mut *identities } }, key)
    };
    let crons = CronJobs { seat: Seat::Node(node.into()) };
    let own = world.all::<CronJob>(None).filter(|object| cron::home(object) == Some(node));
    for object in own {
        let outcome = ask(&crons, object.key());
        decision.take(outcome, object.key(), world);
    }
    for job in world.all::<Job>(None).filter(|job| is_local(job) && !held.contains(&job.meta().uid)) {
        let mut outcome = ask(&Jobs, job.key());
        if outcome.writes.iter().any(is_new_pod) && !accepts(job, node, world) {
            continue;
        }
        outcome.writes.iter_mut().filter(|write| is_new_pod(write)).for_each(|write| bind(write, node, now));
        decision.take(outcome, job.key(), world);
    }
    decision
}

impl Decision {
    fn take(&mut self, outcome: Outcome, about: &Key, world: &World) {
        self.again_at = [self.again_at, outcome.again_at].into_iter().flatten().min();
        // what has to go goes first; what takes its place is decided when it is gone
        let must_go = |write: &Write| write.key.is::<Job>() && write.expect != Expect::Absent && write.key != *about;
        let has_to_wait = outcome.writes.iter().any(must_go);
        for write in outcome.writes {
            if write.key.is::<v1::Event>() {
                let is_of_new = write.value.as_ref().is_some_and(|event| event["reason"] == "SuccessfulCreate");
                if !(has_to_wait && is_of_new) {
                    self.told.extend(write.value.map(|event| (about.clone(), event)));
                }
                continue;
            }
            match world.get(&write.key) {
                None if has_to_wait => {}
                Some(object) if !is_local(object) => self.master.push(write),
                _ => self.local.push(write),
            }
        }
    }
}

/// Lets go of Jobs whose CronJob is gone or another node's, of pods whose Job is gone, and of Jobs that are long over.
fn dismiss(world: &World, node: &str, now: Timestamp, decision: &mut Decision) {
    let mut ended: BTreeMap<&str, Vec<&Arc<Object>>> = BTreeMap::new();
    for job in world.all::<Job>(None).filter(|job| is_local(job)) {
        let cron = job.controller().and_then(|owner| world.by_uid(&owner.uid));
        match cron.filter(|object| cron::home(object) == Some(node) && !job.is_deleting()) {
            None => decision.local.push(Write::delete(job)),
            Some(cron) if cron::outcome(job).is_some() => ended.entry(&cron.meta().uid).or_default().push(job),
            Some(_) => {}
        }
    }
    for jobs in ended.values_mut() {
        // the newest stays, since it says what was served
        jobs.sort_by_key(|job| cron::scheduled(job));
        let surplus = jobs.len().saturating_sub(ENDED_JOBS_MAX);
        decision.local.extend(jobs.iter().take(surplus).map(|job| Write::delete(job)));
    }
    for pod in world.all::<Pod>(None).filter(|pod| is_local(pod) && !pod.is_deleting()) {
        let job = pod.controller().and_then(|owner| world.by_uid(&owner.uid));
        if job.is_none_or(|job| job.is_deleting()) {
            decision.local.extend(end(pod, now));
        }
    }
}

/// Asks a pod to go, which nobody counts any more.
pub(super) fn end(pod: &Object, now: Timestamp) -> Option<Write> {
    let mut value = pod.value();
    value["metadata"].as_object_mut()?.remove("finalizers");
    let free = Object::encode(pod.key().resource.clone(), pod.revision(), value).ok()?;
    let how = if controllers::is_finished(pod) {
        Deletion { grace_seconds: Some(0), propagation: None }
    } else {
        Deletion::default()
    };
    Write::delete_gracefully(&free, how, now)
}

fn is_new_pod(write: &Write) -> bool {
    write.key.is::<Pod>() && write.expect == Expect::Absent
}

/// Whether the node may be given the Job's pods: it is not cordoned, and they tolerate its taints. One that is named by its
/// template is not asked, as with Kubernetes.
fn accepts(job: &Object, node: &str, world: &World) -> bool {
    let spec = job.view::<Job>().and_then(|job| job.spec.as_ref()?.template.spec.as_ref());
    let Some(spec) = spec.filter(|spec| spec.node_name.is_none()) else { return true };
    let Some(node) = world.view::<Node>("", node).and_then(|node| node.spec.as_ref()) else { return false };
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut driving = node.taints.iter().flatten().filter(|taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") && !taint.key.starts_with(CONDITION_TAINTS)
    });
    node.unschedulable != Some(true)
        && driving.all(|taint| tolerations.iter().any(|toleration| eviction::tolerates(toleration, taint)))
}

/// What a scheduler would write.
fn bind(write: &mut Write, node: &str, now: Timestamp) {
    let Some(pod) = &mut write.value else { return };
    pod["spec"]["nodeName"] = node.into();
    pod["status"]["conditions"] =
        json!([{"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": rfc3339(now)}]);
}
