//! What controllers ask of pods, and how they make them.

use crate::ownership;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
pub(crate) use manifests::pods::phase;
use serde_json::{Value, json};
use state::admission::{self, Forbidden};
use state::{Key, Object, Stamp, World};

/// Condition `type` of a pod that may be sent traffic.
const READY: &str = "Ready";
/// Condition `type` of a pod that the cluster ends.
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Whether a pod has ended for good.
pub fn is_finished(pod: &Object) -> bool {
    pod.view::<Pod>().is_some_and(|pod| matches!(phase(pod), "Succeeded" | "Failed"))
}

/// Whether a pod counts as a replica: it has not ended and is not asked to.
pub(crate) fn is_active(pod: &Object) -> bool {
    !pod.is_deleting() && !is_finished(pod)
}

/// Since when a pod is ready; `None` when it is not.
pub(crate) fn ready_since(pod: &Object) -> Option<Timestamp> {
    let conditions = pod.view::<Pod>()?.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == READY && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Object) -> bool {
    ready_since(pod).is_some()
}

/// When a ready pod counts as available; `None` when it is not ready.
pub(crate) fn available_at(pod: &Object, min_ready_seconds: i32) -> Option<Timestamp> {
    let since = ready_since(pod)?;
    since.checked_add(SignedDuration::from_secs(min_ready_seconds.max(0).into())).ok()
}

/// Says in a pod's status that the cluster, not its program, ends it: condition `DisruptionTarget`. Said once.
pub(crate) fn disrupt(pod: &mut Value, reason: &str, message: &str, now: Timestamp) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
    if conditions.iter().any(|condition| condition["type"] == DISRUPTION_TARGET && condition["status"] == "True") {
        return;
    }
    conditions.retain(|condition| condition["type"] != DISRUPTION_TARGET);
    conditions.push(json!({
        "type": DISRUPTION_TARGET, "status": "True", "reason": reason, "message": message,
        "lastProbeTime": null, "lastTransitionTime": state::rfc3339(now),
    }));
}

/// A new pod of an owner's template, named after `prefix`, admitted and completed.
///
/// # Errors
/// [`Forbidden`] when the template names something that does not exist.
pub(crate) fn from_template<T: k8s_openapi::Resource>(
    world: &World,
    stamp: &mut Stamp<'_>,
    owner: &Object,
    template: &Value,
    prefix: &str,
) -> Result<Value, Forbidden> {
    let namespace = owner.meta().namespace.as_deref().unwrap_or("");
    let mut metadata = json!({
        "generateName": prefix, "namespace": namespace, "ownerReferences": [ownership::reference::<T>(owner)],
    });
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(own) = template["metadata"].get(field).filter(|own| !own.is_null()) {
            metadata[field] = own.clone();
        }
    }
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]});
    manifests::pods::default(&mut pod);
    admission::pod(&mut pod, namespace, world)?;
    stamp.complete(&mut pod, true);
    Ok(pod)
}

/// The key of a pod made by [`from_template`].
pub(crate) fn key(pod: &Value) -> Key {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or("");
    Key::of::<Pod>(text("namespace"), text("name"))
}
