//! Pods of nodes that are gone are deleted, since nobody is left to end them. A pod that was bound to a node which is yet to
//! come is given a little time.

use crate::{Controller, Cx, Outcome};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Node, Pod};
use state::{Change, Event, Key, Object, World, Write};

/// A pod may wait this long for its node; Kubernetes' quarantine.
const QUARANTINE_SECONDS: i64 = 40;

/// The controller.
pub struct PodCollector;

impl Controller for PodCollector {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let gone = event.change == Change::Deleted;
        if event.key().is::<Node>() && gone {
            return world.pods_on(&event.key().name).map(|pod| pod.key().clone()).collect();
        }
        let lost = event.key().is::<Pod>() && !gone && is_lost(&event.object, world);
        if lost { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(pod) = cx.world.get(key).filter(|pod| is_lost(pod, cx.world)) else { return Outcome::default() };
        let quarantine = SignedDuration::from_secs(QUARANTINE_SECONDS);
        let until = pod.meta().creation_timestamp.and_then(|created| created.checked_add(quarantine).ok());
        match until {
            Some(at) if at > cx.now => Outcome { writes: Vec::new(), again_at: Some(at) },
            _ => Outcome { writes: collect(pod, cx.now), again_at: None },
        }
    }
}

/// Whether a pod is bound to a node that does not exist.
fn is_lost(pod: &Object, world: &World) -> bool {
    let node = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
    node.is_some_and(|node| !node.is_empty() && world.get(&Key::of::<Node>("", node)).is_none())
}

/// Ends a pod on paper: it has failed, and nothing waits for it any more.
fn collect(pod: &Object, now: jiff::Timestamp) -> Vec<Write> {
    let mut value = pod.value();
    if !crate::pods::is_finished(pod) {
        value["status"]["phase"] = "Failed".into();
        value["status"]["reason"] = "NodeLost".into();
    }
    let metadata = &mut value["metadata"];
    if metadata["deletionTimestamp"].is_null() {
        metadata["deletionTimestamp"] = state::rfc3339(now).into();
    }
    metadata["deletionGracePeriodSeconds"] = 0.into();
    if value == pod.value() { Vec::new() } else { vec![Write::update(pod, value)] }
}
