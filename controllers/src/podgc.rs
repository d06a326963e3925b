//! Pods that nobody is left to end are ended: those of nodes that are gone, those that were asked to go before they had a
//! node, and those on their way out of a node that people have marked as out of service.
//!
//! A pod that was bound to a node which is yet to come is given a little time.

use crate::{Controller, Cx, Outcome, node, pods};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use state::{Change, Event, Key, Object, World, Write};

/// A pod may wait this long for its node; Kubernetes' quarantine.
const QUARANTINE_SECONDS: i64 = 40;
/// Taint with which people say that a node is switched off for good.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Reason of the condition of pods that are ended here.
const REASON: &str = "DeletionByPodGC";

/// The controller.
pub struct PodCollector;

/// Why nobody is left to end a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Its node does not exist.
    Lost,
    /// It was asked to go, and has no node.
    Unscheduled,
    /// It was asked to go, and its node is out of service.
    OutOfService,
}

impl Controller for PodCollector {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let gone = event.change == Change::Deleted;
        if event.key().is::<Node>() && (gone || is_out_of_service(&event.object)) {
            return world.pods_on(&event.key().name).map(|pod| pod.key().clone()).collect();
        }
        let case = event.key().is::<Pod>() && !gone && case(&event.object, world).is_some();
        if case { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(pod) = cx.world.get(key) else { return Outcome::default() };
        let Some(case) = case(pod, cx.world) else { return Outcome::default() };
        let quarantine = SignedDuration::from_secs(QUARANTINE_SECONDS);
        let until = pod.meta().creation_timestamp.and_then(|created| created.checked_add(quarantine).ok());
        match until.filter(|until| case == Case::Lost && *until > cx.now) {
            Some(until) => Outcome { writes: Vec::new(), again_at: Some(until) },
            None => Outcome { writes: collect(pod, case, cx.now).into_iter().collect(), again_at: None },
        }
    }
}

fn case(pod: &Object, world: &World) -> Option<Case> {
    let name = pod.view::<Pod>()?.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty());
    let Some(name) = name else { return pod.is_deleting().then_some(Case::Unscheduled) };
    match world.get(&Key::of::<Node>("", name)) {
        None => Some(Case::Lost),
        Some(node) => (pod.is_deleting() && is_out_of_service(node)).then_some(Case::OutOfService),
    }
}

/// Whether a node is not ready and marked as out of service.
fn is_out_of_service(node: &Object) -> bool {
    let taints = node.view::<Node>().and_then(|node| node.spec.as_ref()?.taints.as_ref());
    let is_marked = taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == OUT_OF_SERVICE));
    is_marked && node::ready(node) != Some("True")
}

/// Ends a pod on paper: it has failed, and nothing waits for it any more.
fn collect(pod: &Object, case: Case, now: Timestamp) -> Option<Write> {
    let mut value = pod.value();
    if !pods::is_finished(pod) {
        value["status"]["phase"] = "Failed".into();
        if case == Case::Lost {
            value["status"]["reason"] = "NodeLost".into();
            pods::disrupt(&mut value, REASON, "PodGC: node no longer exists", now);
        }
    }
    let metadata = &mut value["metadata"];
    if metadata["deletionTimestamp"].is_null() {
        metadata["deletionTimestamp"] = state::rfc3339(now).into();
    }
    metadata["deletionGracePeriodSeconds"] = 0.into();
    (value != pod.value()).then(|| Write::update(pod, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;
    use state::Deletion;

    #[test]
    fn pods_that_nobody_ends_are_ended() {
        let mut sandbox = Sandbox::new(vec![Box::new(PodCollector)]);
        let pod = |name: &str, spec: &str| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, finalizers: [a.example/b]}},
                  spec: {{{spec}}}, status: {{phase: Running}}}}"
            )
        };
        sandbox
            .apply("{apiVersion: v1, kind: Node, metadata: {name: n}, status: {conditions: [{type: Ready, status: 'True'}]}}")
            .apply(&pod("lost", "nodeName: gone"))
            .apply(&pod("loose", ""))
            .apply(&pod("bound", "nodeName: n"))
            .settle();
        let key = |name: &str| Key::of::<Pod>("default", name);
        let value = |sandbox: &Sandbox, name: &str| sandbox.world.get(&key(name)).unwrap().value();
        sandbox.pass(39);
        assert_eq!(value(&sandbox, "lost")["status"]["phase"], "Running");
        sandbox.pass(1);
        let lost = value(&sandbox, "lost");
        assert_eq!((&lost["status"]["phase"], &lost["status"]["reason"]), (&"Failed".into(), &"NodeLost".into()));
        assert_eq!(lost["status"]["conditions"][0]["reason"], REASON);
        sandbox.delete(&key("loose"), Deletion::default()).delete(&key("bound"), Deletion::default()).settle();
        assert_eq!(value(&sandbox, "loose")["status"]["phase"], "Failed");
        assert_eq!(value(&sandbox, "bound")["metadata"]["deletionGracePeriodSeconds"], 30);
        let node = Key::of::<Node>("", "n");
        sandbox.edit(&node, |node| {
            node["spec"]["taints"] = serde_json::json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}])
        });
        sandbox.settle();
        assert_eq!(value(&sandbox, "bound")["metadata"]["deletionGracePeriodSeconds"], 30);
        sandbox.edit(&node, |node| node["status"]["conditions"][0]["status"] = "Unknown".into()).settle();
        assert_eq!(value(&sandbox, "bound")["metadata"]["deletionGracePeriodSeconds"], 0);
    }
}
