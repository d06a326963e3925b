//! A decision as writes: the binding or the refusal, and what is told about it.

use crate::{NAME, Refused};
use jiff::Timestamp;
use serde_json::{Value, json};
use state::record::{self, Note};
use state::{Object, Stamp, World, Write, rfc3339};

/// Binds a pod to a node.
pub(crate) fn binding(pod: &Object, node: &str, now: Timestamp) -> Write {
    let mut value = pod.value();
    value["spec"]["nodeName"] = node.into();
    set_scheduled(&mut value, json!({"status": "True"}), now);
    Write::update(pod, value)
}

/// The binding, and the event that tells it.
pub(crate) fn placed(pod: &Object, node: &str, world: &World, stamp: &mut Stamp<'_>) -> Vec<Write> {
    let message = format!("Successfully assigned {}/{} to {node}", pod.key().namespace, pod.key().name);
    let write = binding(pod, node, stamp.now);
    vec![write, record::event(world, stamp, pod, &Note::normal(NAME, "Scheduled", &message))]
}

/// The refusal, and the event that tells it; nothing when the pod says the same already.
pub(crate) fn refused(pod: &Object, refused: &Refused, world: &World, stamp: &mut Stamp<'_>) -> Vec<Write> {
    let before = pod.value();
    let mut value = before.clone();
    let condition = json!({"status": "False", "reason": "Unschedulable", "message": refused.message});
    set_scheduled(&mut value, condition, stamp.now);
    if value == before {
        return Vec::new();
    }
    let note = Note::warning(NAME, "FailedScheduling", &refused.message);
    vec![Write::update(pod, value), record::event(world, stamp, pod, &note)]
}

/// Sets condition PodScheduled. Its transition time is that of its status.
fn set_scheduled(pod: &mut Value, mut condition: Value, now: Timestamp) {
    let generation = pod["metadata"]["generation"].clone();
    let status = &mut pod["status"];
    if !status.is_object() {
        *status = json!({});
    }
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    condition["type"] = "PodScheduled".into();
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = rfc3339(now).into();
    if generation.is_number() {
        condition["observedGeneration"] = generation;
    }
    match conditions.iter_mut().find(|old| old["type"] == "PodScheduled") {
        Some(old) => {
            if old["status"] == condition["status"] {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
}
