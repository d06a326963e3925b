//! A node that no longer renews its Lease is marked: its conditions become Unknown, its pods not ready, and taints keep new
//! pods away and in the end drive the old ones out ([`zones`] says when, [`crate::eviction`] does it).
//!
//! The Lease alone is judged, by the master's clock: nodes' clocks may be wrong. Nobody is judged before this master has
//! been up for one grace period: it may be the master that was away. A healthy node costs one look per grace period and no
//! write; that it is well again is its own agent's word.

mod leftovers;
mod taints;
#[cfg(test)]
mod tests;
pub mod zones;

pub use leftovers::NodeLeftovers;
pub use zones::{NodeEviction, Pace};

use crate::{Controller, Cx, Outcome};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use state::record::{self, Note};
use state::{Change, Event, Expect, Key, Object, World, Write, rfc3339};

/// Name as the source of events.
const NAME: &str = "node-controller";
/// Namespace of the nodes' Leases.
const LEASES: &str = "kube-node-lease";
/// A new node has this long to say how it is.
const STARTUP_SECONDS: i64 = 60;
/// Conditions that nobody knows when the node is silent.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

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
        let mut writes: Vec<Write> = greet(cx, &object).into_iter().collect();
        if silent_at <= cx.now && ready(&object) != Some("Unknown") {
            mark_silent(&mut value, cx.now);
            let message = format!("Node {} status is now: NodeNotReady", key.name);
            writes.push(record::event(cx.world, &mut cx.stamp, &object, &Note::normal(NAME, "NodeNotReady", &message)));
            writes.extend(mark_pods(cx, &key.name));
        }
        taints::follow(&mut value, cx.now);
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
            .map(|time| after(time.0, self.grace_seconds));
        let created = node.meta().creation_timestamp.map(|at| after(at, STARTUP_SECONDS));
        renewed.or(created).unwrap_or(Timestamp::MIN).max(after(self.started_at, self.grace_seconds))
    }
}

/// Tells once that a node is new here.
fn greet(cx: &mut Cx<'_>, node: &Object) -> Option<Write> {
    let new = SignedDuration::from_secs(STARTUP_SECONDS);
    node.meta().creation_timestamp.filter(|created| cx.now.duration_since(*created) < new)?;
    let name = &node.meta().name;
    let message = format!("Node {name} event: Registered Node {name} in Controller");
    let write = record::event(cx.world, &mut cx.stamp, node, &Note::normal(NAME, "RegisteredNode", &message));
    (write.expect == Expect::Absent).then_some(write)
}

/// The status of condition Ready.
pub(crate) fn ready(node: &Object) -> Option<&str> {
    let conditions = node.view::<Node>()?.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.as_str())
}

/// Since when condition Ready is as it is.
pub(crate) fn ready_since(node: &Object) -> Option<Timestamp> {
    let conditions = node.view::<Node>()?.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")?.last_transition_time.as_ref().map(|time| time.0)
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
            Some(condition) if condition["status"] == "Unknown" => {}
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

/// The pods of a silent node get no traffic: they are said not to be ready. Their own node says otherwise when it is back.
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
