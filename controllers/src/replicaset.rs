//! A ReplicaSet keeps a stable set of replica pods running: as many as `spec.replicas` says, of its template.
//!
//! It controls the pods that its selector matches: takes over those that nobody controls, lets go of those that no longer
//! match, replaces those that ended. Too many are deleted in Kubernetes' order: those that lose least first.

use crate::disconnect::{self, Keep};
use crate::{Controller, Cx, Outcome, edit, ownership, pods};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use state::record::{self, Note};
use state::{Change, Deletion, Event, Key, Object, World, Write, selects};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Name as the source of events.
const NAME: &str = "replicaset-controller";
/// Pods made or deleted in one pass; Kubernetes' burst.
const BURST_PODS_MAX: usize = 500;
/// Events told in one pass; Kubernetes' recorder lets 25 through at once.
const BURST_EVENTS_MAX: usize = 25;
/// After this a refused creation is tried again.
const RETRY_SECONDS: i64 = 5;
/// Annotation that says which pods to lose first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The controller.
pub struct ReplicaSets;

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        if event.key().is::<ReplicaSet>() {
            return vec![event.key().clone()];
        }
        if !event.key().is::<Pod>() {
            return Vec::new();
        }
        let mut keys = ownership::controllers_of::<ReplicaSet>(event);
        // a pod that nobody controls is asked about itself: somebody may want it
        if event.change != Change::Deleted && event.object.controller().is_none() {
            keys.push(event.key().clone());
        }
        keys
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).cloned() else { return Outcome::default() };
        if key.is::<Pod>() {
            return Outcome { writes: adopt(cx.world, &object), again_at: None };
        }
        match object.view::<ReplicaSet>().and_then(|set| Some((set.spec.as_ref()?, set.status.clone()))) {
            Some((spec, status)) => Pass::new(cx, &object, spec, status.unwrap_or_default()).run(),
            None => Outcome::default(),
        }
    }
}

/// Gives a pod that nobody controls to the first ReplicaSet of its namespace whose selector matches.
fn adopt(world: &World, pod: &Object) -> Vec<Write> {
    if pod.controller().is_some() || !pods::is_active(pod) {
        return Vec::new();
    }
    let wants = |set: &&Arc<Object>| {
        let spec = set.view::<ReplicaSet>().and_then(|set| set.spec.as_ref());
        !set.is_deleting() && spec.is_some_and(|spec| selects(&spec.selector, &pod.meta().labels))
    };
    let mut sets = world.all::<ReplicaSet>(Some(&pod.key().namespace));
    sets.find(wants).map(|set| ownership::adopt::<ReplicaSet>(pod, set)).into_iter().collect()
}

/// One look at one ReplicaSet.
struct Pass<'a, 'b> {
    cx: &'a mut Cx<'b>,
    set: &'a Object,
    spec: &'a ReplicaSetSpec,
    status: ReplicaSetStatus,
    writes: Vec<Write>,
    events: usize,
    failure: Option<(&'static str, String)>,
}

impl<'a, 'b> Pass<'a, 'b> {
    fn new(cx: &'a mut Cx<'b>, set: &'a Object, spec: &'a ReplicaSetSpec, status: ReplicaSetStatus) -> Self {
        Self { cx, set, spec, status, writes: Vec::new(), events: 0, failure: None }
    }

    fn run(mut self) -> Outcome {
        let (owned, terminating) = self.claim();
        let mut created = Vec::new();
        let mut deleted = Vec::new();
        if !self.set.is_deleting() {
            let wanted = usize::try_from(self.spec.replicas.unwrap_or(1)).unwrap_or(0);
            if owned.len() < wanted {
                created = self.create((wanted - owned.len()).min(BURST_PODS_MAX));
            } else {
                deleted = self.delete(&owned, (owned.len() - wanted).min(BURST_PODS_MAX));
            }
        }
        let kept: Vec<_> = owned.iter().filter(|pod| !deleted.contains(pod.key())).collect();
        let leaving = deleted.iter().filter(|key| self.writes.iter().any(|w| w.key == **key && w.value.is_some()));
        let terminating = terminating + leaving.count();
        let again_at = self.status(&kept, &created, terminating);
        Outcome { writes: self.writes, again_at }
    }

    /// The active pods of this set, and how many are terminating. Adopts at the first look; later, a pod that nobody
    /// controls comes with its own event.
    fn claim(&mut self) -> (Vec<Arc<Object>>, usize) {
        let world = self.cx.world;
        let meta = self.set.meta();
        let (mut active, mut terminating) = (Vec::new(), 0);
        for pod in ownership::children::<Pod>(world, self.set) {
            if !selects(&self.spec.selector, &pod.meta().labels) {
                if !self.set.is_deleting() && !pod.is_deleting() {
                    self.writes.push(ownership::release(pod, &meta.uid));
                }
            } else if pods::is_active(pod) {
                // one that a silent node may run on is replaced, and counts again when it is back
                if !disconnect::is_written_off(pod) {
                    active.push(pod.clone());
                }
            } else if !pods::is_finished(pod) {
                terminating += 1;
            }
        }
        if self.status.observed_generation.is_none() && !self.set.is_deleting() {
            for pod in ownership::orphans::<Pod>(world, &self.set.key().namespace) {
                if pods::is_active(pod) && selects(&self.spec.selector, &pod.meta().labels) {
                    self.writes.push(ownership::adopt::<ReplicaSet>(pod, self.set));
                    active.push(pod.clone());
                }
            }
        }
        (active, terminating)
    }

    fn create(&mut self, count: usize) -> Vec<Value> {
        let template = self.set.value()["spec"]["template"].take();
        let prefix = format!("{}-", self.set.meta().name);
        let mut created = Vec::new();
        for _ in 0..count {
            let (world, stamp) = (self.cx.world, &mut self.cx.stamp);
            match pods::from_template::<ReplicaSet>(world, stamp, self.set, &template, &prefix) {
                Ok(pod) => created.push(pod),
                Err(refused) => {
                    self.failure = Some(("FailedCreate", format!("pods \"{prefix}\" is forbidden: {refused}")));
                    break;
                }
            }
        }
        for pod in &created {
            let key = pods::key(pod);
            self.writes.push(Write::create(key.clone(), pod.clone()));
            self.tell("SuccessfulCreate", &format!("Created pod: {}", key.name));
        }
        created
    }

    fn delete(&mut self, owned: &[Arc<Object>], count: usize) -> Vec<Key> {
        if count == 0 {
            return Vec::new();
        }
        let neighbours = self.neighbours(owned);
        let mut ranked: Vec<&Arc<Object>> = owned.iter().collect();
        ranked.sort_by(|a, b| lose_first(a, b, &neighbours).then_with(|| a.key().cmp(b.key())));
        self.prefer_by_policy(&mut ranked);
        let mut deleted = Vec::new();
        for pod in ranked.into_iter().take(count) {
            let Some(write) = Write::delete_gracefully(pod, Deletion::default(), self.cx.now) else { continue };
            // a pod adopted in this pass is adopted only: it is deleted on the next look
            if self.writes.iter().any(|earlier| earlier.key == write.key) {
                continue;
            }
            self.writes.push(write);
            self.tell("SuccessfulDelete", &format!("Deleted pod: {}", pod.meta().name));
            deleted.push(pod.key().clone());
        }
        deleted
    }

    /// Where a copy is back from a node that was silent, its policy says who stays: the sort keeps the order of the others.
    fn prefer_by_policy(&self, ranked: &mut [&Arc<Object>]) {
        let returned = |pod: &Object| disconnect::returned(pod, self.cx.now, self.cx.world);
        if ranked.iter().any(|pod| returned(pod) == Some(Keep::LongestRunning)) {
            let started =
                |pod: &Object| pod.view::<Pod>().and_then(|pod| Some(pod.status.as_ref()?.start_time.as_ref()?.0));
            // one that is not ready is lost before all that are, and one that never started too
            ranked.sort_by_key(|pod| (pods::is_ready(pod), std::cmp::Reverse(started(pod))));
        }
        ranked.sort_by_key(|pod| returned(pod) == Some(Keep::Original));
    }

    /// How many active pods of the same application each node has: pods on crowded nodes are lost first. As in
    /// Kubernetes, the application is everything that the owner of this set (a Deployment) owns.
    fn neighbours(&self, owned: &[Arc<Object>]) -> BTreeMap<String, usize> {
        let owner = self.set.controller().and_then(|owner| self.cx.world.by_uid(&owner.uid));
        let mut nodes = BTreeMap::new();
        let mut count = |pod: &Object| {
            if let Some(node) = node(pod) {
                *nodes.entry(node.to_owned()).or_insert(0) += 1;
            }
        };
        match owner {
            None => owned.iter().for_each(|pod| count(pod)),
            Some(owner) => {
                for set in ownership::children::<ReplicaSet>(self.cx.world, owner) {
                    let pods = ownership::children::<Pod>(self.cx.world, set);
                    pods.into_iter().filter(|pod| pods::is_active(pod)).for_each(|pod| count(pod));
                }
            }
        }
        nodes
    }

    /// Counts what there is, and says when the next pod becomes available by waiting alone.
    fn status(&mut self, kept: &[&Arc<Object>], created: &[Value], terminating: usize) -> Option<jiff::Timestamp> {
        let template = self.spec.template.as_ref().and_then(|template| template.metadata.as_ref());
        let labels = template.and_then(|meta| meta.labels.clone()).unwrap_or_default();
        let full = |pod: &&&Arc<Object>| {
            let own = &pod.meta().labels;
            labels.iter().all(|(key, value)| own.get(key) == Some(value))
        };
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        let moments: Vec<_> = kept.iter().filter_map(|pod| pods::available_at(pod, min_ready)).collect();
        let available = moments.iter().filter(|at| **at <= self.cx.now).count();
        let status = ReplicaSetStatus {
            replicas: i32::try_from(kept.len() + created.len()).unwrap_or(i32::MAX),
            fully_labeled_replicas: edit::nonzero(kept.iter().filter(full).count() + created.len()),
            ready_replicas: edit::nonzero(moments.len()),
            available_replicas: edit::nonzero(available),
            terminating_replicas: i32::try_from(terminating).ok(),
            observed_generation: self.set.meta().generation,
            conditions: self.conditions(),
        };
        self.writes.extend(edit::status(self.set, &status));
        let retry = self.failure.as_ref().map(|_| self.cx.now + jiff::SignedDuration::from_secs(RETRY_SECONDS));
        moments.into_iter().filter(|at| *at > self.cx.now).chain(retry).min()
    }

    /// Condition ReplicaFailure, told as an event when it is news.
    fn conditions(&mut self) -> Option<Vec<ReplicaSetCondition>> {
        let mut conditions = self.status.conditions.clone().unwrap_or_default();
        let old = conditions.iter().position(|condition| condition.type_ == "ReplicaFailure");
        match (self.failure.clone(), old) {
            (None, None) => {}
            (None, Some(index)) => drop(conditions.remove(index)),
            (Some((_, message)), Some(index)) if conditions[index].message.as_ref() == Some(&message) => {}
            (Some((reason, message)), old) => {
                old.map(|index| conditions.remove(index));
                let text = format!("Error creating: {message}");
                let note = Note::warning(NAME, reason, &text);
                self.writes.push(record::event(self.cx.world, &mut self.cx.stamp, self.set, &note));
                conditions.push(ReplicaSetCondition {
                    type_: "ReplicaFailure".into(),
                    status: "True".into(),
                    reason: Some(reason.into()),
                    message: Some(message),
                    last_transition_time: Some(edit::time(self.cx.now)),
                });
            }
        }
        (!conditions.is_empty()).then_some(conditions)
    }

    fn tell(&mut self, reason: &str, message: &str) {
        self.events += 1;
        if self.events <= BURST_EVENTS_MAX {
            let note = Note::normal(NAME, reason, message);
            self.writes.push(record::event(self.cx.world, &mut self.cx.stamp, self.set, &note));
        }
    }
}

fn node(pod: &Object) -> Option<&str> {
    let node = pod.view::<Pod>()?.spec.as_ref()?.node_name.as_deref()?;
    (!node.is_empty()).then_some(node)
}

/// Kubernetes' order of deletion: unassigned, pending, not ready, cheaper, crowded, ready for a shorter time, more
/// restarts, younger.
fn lose_first(a: &Object, b: &Object, neighbours: &BTreeMap<String, usize>) -> Ordering {
    let phase_rank = |pod: &Object| match pod.view::<Pod>().map(pods::phase) {
        Some("Running") => 2,
        Some("Unknown") => 1,
        _ => 0,
    };
    let cost = |pod: &Object| pod.meta().annotations.get(DELETION_COST).and_then(|cost| cost.parse::<i32>().ok());
    let crowd = |pod: &Object| node(pod).and_then(|node| neighbours.get(node)).copied().unwrap_or(0);
    let by = |f: &dyn Fn(&Object) -> i64| f(a).cmp(&f(b));
    by(&|pod| i64::from(node(pod).is_some()))
        .then_with(|| by(&phase_rank))
        .then_with(|| by(&|pod| i64::from(pods::is_ready(pod))))
        .then_with(|| by(&|pod| i64::from(cost(pod).unwrap_or(0))))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        // ready for a shorter time is lost first
        .then_with(|| pods::ready_since(b).cmp(&pods::ready_since(a)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| b.meta().creation_timestamp.cmp(&a.meta().creation_timestamp))
}

fn restarts(pod: &Object) -> i32 {
    let status = pod.view::<Pod>().and_then(|pod| pod.status.as_ref());
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    containers.into_iter().flatten().map(|container| container.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;
    use expect_test::expect;
    use serde_json::json;

    fn set(replicas: u32) -> String {
        format!(
            "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: r, namespace: default}}, spec: {{replicas: {replicas},
            selector: {{matchLabels: {{app: r}}}}, template: {{metadata: {{labels: {{app: r}}}}, spec: {{containers: [{{name: a}}]}}}}}}}}"
        )
    }

    fn sandbox(replicas: u32) -> Sandbox {
        let mut sandbox = Sandbox::new(vec![Box::new(ReplicaSets)]);
        sandbox.apply(&set(replicas));
        sandbox
    }

    fn key() -> Key {
        Key::of::<ReplicaSet>("default", "r")
    }

    fn pod(name: &str, spec: &str, status: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, labels: {{app: r}}}}, spec: {spec}, status: {status}}}"
        )
    }

    #[test]
    fn those_that_lose_least_are_deleted_first() {
        let mut sandbox = Sandbox::new(vec![Box::new(ReplicaSets)]);
        let ready = |at: &str| {
            format!("{{phase: Running, conditions: [{{type: Ready, status: 'True', lastTransitionTime: '{at}'}}]}}")
        };
        let (early, late) = (ready("2026-01-01T00:00:00Z"), ready("2026-01-01T00:01:00Z"));
        sandbox
            .apply(&pod("f-ready-early", "{nodeName: n1}", &early))
            .apply(&pod("e-ready-late", "{nodeName: n1}", &late))
            .apply(&pod("d-crowded", "{nodeName: n2}", &early))
            .apply(&pod("d-crowding", "{nodeName: n2}", &early))
            .apply(&pod("d-crowder", "{nodeName: n2}", &early))
            .apply(&pod("c-not-ready", "{nodeName: n1}", "{phase: Running}"))
            .apply(&pod("b-pending", "{nodeName: n1}", "{phase: Pending}"))
            .apply(&pod("a-unassigned", "{}", "{phase: Pending}"));
        let mut order = Vec::new();
        sandbox.apply(&set(8)).settle();
        for replicas in (0..8).rev() {
            sandbox.told();
            sandbox.edit(&key(), |value| value["spec"]["replicas"] = replicas.into()).settle();
            order.extend(sandbox.told());
        }
        expect![[r#"
            SuccessfulDelete: Deleted pod: a-unassigned
            SuccessfulDelete: Deleted pod: b-pending
            SuccessfulDelete: Deleted pod: c-not-ready
            SuccessfulDelete: Deleted pod: d-crowded
            SuccessfulDelete: Deleted pod: e-ready-late
            SuccessfulDelete: Deleted pod: d-crowder
            SuccessfulDelete: Deleted pod: d-crowding
            SuccessfulDelete: Deleted pod: f-ready-early
        "#]]
        .assert_eq(&(order.join("\n") + "\n"));
    }

    #[test]
    fn pods_are_adopted_released_and_replaced() {
        let mut sandbox = sandbox(2);
        sandbox.apply(&pod("stray", "{nodeName: n}", "{phase: Running}")).settle();
        let names = |sandbox: &Sandbox| -> usize {
            let set = sandbox.world.get(&key()).unwrap().clone();
            ownership::children::<Pod>(&sandbox.world, &set).len()
        };
        assert_eq!((names(&sandbox), sandbox.values::<Pod>().len()), (2, 2));
        // a pod that stops matching is let go and replaced; a later stray is one too many
        sandbox
            .edit(&Key::of::<Pod>("default", "stray"), |pod| pod["metadata"]["labels"] = json!({"app": "x"}))
            .settle();
        assert_eq!((names(&sandbox), sandbox.values::<Pod>().len()), (2, 3));
        sandbox.apply(&pod("late", "{}", "{phase: Pending}")).settle();
        assert_eq!((names(&sandbox), sandbox.values::<Pod>().len()), (2, 3));
        // one that has ended is kept and replaced
        let first = sandbox.world.all::<Pod>(None).find(|pod| pod.controller().is_some()).unwrap().key().clone();
        sandbox.edit(&first, |pod| pod["status"]["phase"] = "Failed".into()).settle();
        assert_eq!((names(&sandbox), sandbox.values::<Pod>().len()), (3, 4));
    }

    #[test]
    fn a_pod_that_may_not_be_made_is_told_once_and_tried_again() {
        let mut sandbox = sandbox(1);
        sandbox.edit(&key(), |value| value["spec"]["template"]["spec"]["serviceAccountName"] = "robot".into()).settle();
        sandbox.pass(5).pass(5);
        let told = sandbox.told();
        let condition = sandbox.world.get(&key()).unwrap().value()["status"]["conditions"][0].clone();
        expect![[r#"
            FailedCreate: Error creating: pods "r-" is forbidden: error looking up service account default/robot: serviceaccount "robot" not found
            "pods \"r-\" is forbidden: error looking up service account default/robot: serviceaccount \"robot\" not found"
        "#]].assert_eq(&format!("{}\n{}\n", told.join("\n"), condition["message"]));
        sandbox.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot, namespace: default}}").pass(5);
        assert_eq!(sandbox.values::<Pod>().len(), 1);
        assert!(sandbox.world.get(&key()).unwrap().value()["status"]["conditions"].is_null());
    }
}
