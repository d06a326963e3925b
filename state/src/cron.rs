//! CronJobs that belong to a node: whose pods can run there and nowhere else. Their node runs them itself, with or without its
//! master, so that one scheduled time has one decider. Everybody who must agree on that asks here.

use crate::{Key, Object, World};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Node, PodSpec};

/// Annotation of a Job: for which time of its CronJob it is.
pub const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Annotation of a Node whose agent runs the CronJobs that belong to it.
pub const RUNS: &str = "coracle.dev/runs-cronjobs";
/// Label of a Node: its machine's name.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The node to which a CronJob belongs: its template names it by `nodeName` or by `nodeSelector` `kubernetes.io/hostname`.
pub fn home(cron: &Object) -> Option<&str> {
    pinned(template(cron)?)
}

/// The spec of the pods that a CronJob makes.
pub fn template(cron: &Object) -> Option<&PodSpec> {
    let job = &cron.view::<CronJob>()?.spec.job_template;
    job.spec.as_ref()?.template.spec.as_ref()
}

/// The only node on which a pod can run, where its spec names one.
pub fn pinned(spec: &PodSpec) -> Option<&str> {
    let named = spec.node_name.as_deref().filter(|node| !node.is_empty());
    named.or_else(|| spec.node_selector.as_ref()?.get(HOSTNAME).map(String::as_str))
}

/// The node that decides when a CronJob runs; `None`: the master does.
pub fn decider<'a>(cron: &'a Object, world: &World) -> Option<&'a str> {
    let home = home(cron)?;
    let node = world.get(&Key::of::<Node>("", home))?;
    node.meta().annotations.get(RUNS).is_some_and(|runs| runs == "true").then_some(home)
}

/// For which time of its CronJob a Job is.
pub fn scheduled(job: &Object) -> Option<Timestamp> {
    job.meta().annotations.get(SCHEDULED)?.parse().ok()
}

/// How a Job has ended, if it has: `Complete` or `Failed`.
pub fn outcome(job: &Object) -> Option<&str> {
    let conditions = job.view::<Job>()?.status.as_ref()?.conditions.as_ref()?;
    let is_end = |type_: &str| matches!(type_, "Complete" | "Failed");
    let end = conditions.iter().find(|condition| is_end(&condition.type_) && condition.status == "True")?;
    Some(&end.type_)
}
