//! A node that no longer renews its Lease is marked: its conditions become Unknown, its pods not ready, and taints keep new
//! pods away and in the end drive the old ones out ([`crate::eviction`]).
//!
//! Nobody is judged before this master has been up for one grace period: it may be the master that was away. A healthy
//! node costs one look per grace period and no write; that it is well again is its own agent's word.

use crate::{Controller, Cx, Outcome};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use state::record::{self, Note};
use state::{Change, Event, Key, Object, World, Write, rfc3339};

/// Name as the source of events.
const NAME: &str = "node-controller";
/// Namespace of the nodes' Leases.
const LEASES: &str = "kube-node-lease";
/// A new node has this long to say how it is.
const STARTUP_SECONDS: i64 = 60;
/// Conditions that nobody knows when the node is silent.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Taint of a node that says it is not ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of a node that says nothing.
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taint of a node that is cordoned.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The controller.
pub struct NodeLifecycle {
    /// When this master started.
    pub started_at: Timestamp,
    /// Seconds without a renewal after which a node counts as silent.
    pub grace_seconds: i64,
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        let node = event.key().is::<Node>() && event.change != Change::Deleted;
        if node { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).filter(|node| !node.is_deleting()).cloned() else {
            return Outcome::default();
        };
        let silent_at = self.silent_at(cx.world, &object);
        let mut value = object.value();
        let mut writes = Vec::new();
        if silent_at <= cx.now && ready(&object) != Some("Unknown") {
            mark_silent(&mut value, cx.now);
            let message = format!("Node {} status is now: NodeNotReady", key.name);
            writes.push(record::event(cx.world, &mut cx.stamp, &object, &Note::normal(NAME, "NodeNotReady", &message)));
            writes.extend(mark_pods(cx, &key.name));
        }
        taint(&mut value, cx.now);
        if value != object.value() {
            writes.insert(0, Write::update(&object, value));
        }
        let again_at = (silent_at > cx.now).then_some(silent_at);
        Outcome { writes, again_at }
    }
}

impl NodeLifecycle {
    /// When the node counts as silent, if nothing more is heard of it.
    fn silent_at(&self, world: &World, node: &Object) -> Timestamp {
        let after =
            |at: Timestamp, seconds: i64| at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        let renewed = world
            .view::<Lease>(LEASES, &node.meta().name)
            .and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref())
            .map(|time| time.0);
        let heard = heartbeat(node).max(renewed).map(|at| after(at, self.grace_seconds));
        let created = node.meta().creation_timestamp.map(|at| after(at, STARTUP_SECONDS));
        heard.or(created).unwrap_or(Timestamp::MIN).max(after(self.started_at, self.grace_seconds))
    }
}

/// The status of condition Ready.
fn ready(node: &Object) -> Option<&str> {
    let conditions = node.view::<Node>()?.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.as_str())
}

/// When the node last said how it is.
fn heartbeat(node: &Object) -> Option<Timestamp> {
    let conditions = node.view::<Node>()?.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status != "Unknown")?;
    ready.last_heartbeat_time.as_ref().map(|time| time.0)
}

fn mark_silent(node: &mut Value, now: Timestamp) {
    let status = &mut node["status"];
    if !status.is_object() {
        *status = json!({});
    }
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    for type_ in CONDITIONS {
        let old = conditions.iter_mut().find(|condition| condition["type"] == type_);
        match old {
            Some(condition) => {
                condition["status"] = "Unknown".into();
                condition["reason"] = "NodeStatusUnknown".into();
                condition["message"] = "Kubelet stopped posting node status.".into();
                condition["lastTransitionTime"] = rfc3339(now).into();
            }
            None => conditions.push(json!({
                "type": type_, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.",
                "lastHeartbeatTime": rfc3339(now), "lastTransitionTime": rfc3339(now),
            })),
        }
    }
}

/// The pods of a silent node get no traffic: they are said not to be ready.
fn mark_pods(cx: &Cx<'_>, node: &str) -> Vec<Write> {
    let mark = |pod: &std::sync::Arc<Object>| {
        let mut value = pod.value();
        let conditions = value["status"]["conditions"].as_array_mut()?;
        let ready =
            conditions.iter_mut().find(|condition| condition["type"] == "Ready" && condition["status"] == "True")?;
        ready["status"] = "False".into();
        ready["lastTransitionTime"] = rfc3339(cx.now).into();
        Some(Write::update(pod, value))
    };
    cx.world.pods_on(node).filter(|pod| pod.key().is::<Pod>()).filter_map(mark).collect()
}

/// Gives a node the taints of its state, and takes away those of others. One that was there keeps its time.
fn taint(node: &mut Value, now: Timestamp) {
    let ready = node["status"]["conditions"].as_array().into_iter().flatten();
    let ready =
        ready.filter(|condition| condition["type"] == "Ready").find_map(|condition| condition["status"].as_str());
    let trouble = match ready {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        Some(_) => None,
        // it has not said yet, and what it brought with it stays
        None => return,
    };
    let cordoned = (node["spec"]["unschedulable"] == true).then_some((UNSCHEDULABLE, "NoSchedule"));
    let wanted: Vec<(&str, &str)> =
        trouble.into_iter().flat_map(|key| [(key, "NoSchedule"), (key, "NoExecute")]).chain(cordoned).collect();
    let old = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let is_ours = |taint: &Value| matches!(taint["key"].as_str(), Some(NOT_READY | UNREACHABLE | UNSCHEDULABLE));
    let same = |taint: &Value, (key, effect): &(&str, &str)| taint["key"] == *key && taint["effect"] == *effect;
    let mut taints: Vec<Value> =
        old.iter().filter(|taint| !is_ours(taint) || wanted.iter().any(|want| same(taint, want))).cloned().collect();
    for want in &wanted {
        if !taints.iter().any(|taint| same(taint, want)) {
            taints.push(json!({"key": want.0, "effect": want.1, "timeAdded": rfc3339(now)}));
        }
    }
    if taints == old {
        return;
    }
    let Some(spec) = node["spec"].as_object_mut() else {
        node["spec"] = json!({"taints": taints});
        return;
    };
    match taints.is_empty() {
        true => drop(spec.remove("taints")),
        false => drop(spec.insert("taints".into(), taints.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Eviction;
    use crate::harness::Sandbox;
    use crate::podgc::PodCollector;

    const WORLD: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n}, status: {conditions: [{type: Ready, status: 'True', lastHeartbeatTime: '2026-01-01T00:00:00Z'}]}}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: n, namespace: kube-node-lease}, spec: {renewTime: '2026-01-01T00:00:00.000000Z'}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: default}, spec: {nodeName: n, tolerations: [
  {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]},
  status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: stays, namespace: default}, spec: {nodeName: n, tolerations: [{operator: Exists}]},
  status: {phase: Running}}
";

    fn sandbox() -> Sandbox {
        let started_at = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut sandbox = Sandbox::new(vec![
            Box::new(NodeLifecycle { started_at, grace_seconds: 40 }),
            Box::new(Eviction),
            Box::new(PodCollector),
        ]);
        sandbox.apply(WORLD).settle();
        sandbox
    }

    fn node(sandbox: &Sandbox) -> Value {
        sandbox.world.get(&Key::of::<Node>("", "n")).unwrap().value()
    }

    #[test]
    fn a_silent_node_is_marked_and_loses_its_pods_in_time() {
        let mut sandbox = sandbox();
        let lease = Key::of::<Lease>("kube-node-lease", "n");
        sandbox.pass(30).edit(&lease, |lease| lease["spec"]["renewTime"] = "2026-01-01T00:00:30.000000Z".into());
        sandbox.told();
        sandbox.pass(39);
        assert!(sandbox.log.is_empty(), "a healthy node costs no write: {:?}", sandbox.log);
        sandbox.pass(1);
        let value = node(&sandbox);
        assert_eq!(value["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(value["spec"]["taints"][1]["key"], UNREACHABLE);
        let pod = Key::of::<Pod>("default", "p");
        assert_eq!(sandbox.world.get(&pod).unwrap().value()["status"]["conditions"][0]["status"], "False");
        sandbox.pass(299);
        assert!(!sandbox.world.get(&pod).unwrap().is_deleting());
        sandbox.pass(1);
        assert!(sandbox.world.get(&pod).unwrap().is_deleting());
        assert!(!sandbox.world.get(&Key::of::<Pod>("default", "stays")).unwrap().is_deleting());
    }

    #[test]
    fn a_node_that_is_back_is_untainted_and_keeps_its_pods() {
        let mut sandbox = sandbox();
        sandbox.pass(40);
        assert!(node(&sandbox)["spec"]["taints"].is_array());
        let key = Key::of::<Node>("", "n");
        sandbox.edit(&key, |node| {
            node["status"]["conditions"][0]["status"] = "True".into();
            node["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T00:00:41Z".into();
        });
        sandbox.settle().pass(30);
        assert!(node(&sandbox)["spec"]["taints"].is_null());
        sandbox.edit(&key, |node| node["spec"]["unschedulable"] = true.into()).settle();
        assert_eq!(node(&sandbox)["spec"]["taints"][0]["key"], UNSCHEDULABLE);
    }

    #[test]
    fn pods_of_a_vanished_node_go() {
        let mut sandbox = sandbox();
        sandbox.pass(10).delete(&Key::of::<Node>("", "n"), state::Deletion::default()).settle().pass(60);
        assert_eq!(sandbox.world.all::<Pod>(None).count(), 0);
    }
}
