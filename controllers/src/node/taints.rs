//! The taints of a node that follow from its conditions.
//!
//! `NoSchedule` taints follow at once. `NoExecute` taints drive pods out, so they are only taken away or exchanged here; who
//! gets one, and when, is [`super::zones`]' to say.

use jiff::Timestamp;
use serde_json::{Value, json};
use state::rfc3339;

/// Taint of a node that says it is not ready.
pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of a node that says nothing.
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taint of a node that is cordoned.
pub(super) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, its status, and the taint they make.
const CONDITIONS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// Gives a node the `NoSchedule` taints of its conditions and takes away those of others; a `NoExecute` taint goes when the
/// node is ready, and becomes the other one when it is in the other trouble. One that was there keeps its time.
pub(super) fn follow(node: &mut Value, now: Timestamp) {
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let status = |type_: &str| conditions.iter().find(|c| c["type"] == type_).and_then(|c| c["status"].as_str());
    let ready = status("Ready");
    let mut wanted: Vec<&str> =
        CONDITIONS.iter().filter(|(type_, is, _)| status(type_) == Some(is)).map(|(_, _, key)| *key).collect();
    // a node that has not said yet how it is takes no pods
    if ready.is_none() {
        wanted.push(NOT_READY);
    }
    if node["spec"]["unschedulable"] == true {
        wanted.push(UNSCHEDULABLE);
    }
    let mut taints = list(node);
    taints.retain(|taint| !is_ours(taint, "NoSchedule") || wanted.iter().any(|key| taint["key"] == *key));
    for key in wanted {
        if !taints.iter().any(|taint| taint["key"] == key && taint["effect"] == "NoSchedule") {
            taints.push(json!({"key": key, "effect": "NoSchedule", "timeAdded": rfc3339(now)}));
        }
    }
    match driving(ready) {
        Some(key) => {
            for taint in taints.iter_mut().filter(|taint| is_driving(taint)) {
                taint["key"] = key.into();
            }
        }
        None if ready.is_some() => taints.retain(|taint| !is_driving(taint)),
        None => {}
    }
    set(node, taints);
}

/// Which taint drives pods out of a node that is in this state, if any does.
pub(super) fn driving(ready: Option<&str>) -> Option<&'static str> {
    match ready {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    }
}

/// Whether a taint is one of those that we add to drive pods out.
pub(super) fn is_driving(taint: &Value) -> bool {
    taint["effect"] == "NoExecute" && matches!(taint["key"].as_str(), Some(NOT_READY | UNREACHABLE))
}

fn is_ours(taint: &Value, effect: &str) -> bool {
    let key = taint["key"].as_str().unwrap_or("");
    let known = key == UNSCHEDULABLE || CONDITIONS.iter().any(|(_, _, known)| *known == key);
    known && taint["effect"] == effect
}

/// The taints of a node.
pub(super) fn list(node: &Value) -> Vec<Value> {
    node["spec"]["taints"].as_array().cloned().unwrap_or_default()
}

/// Gives a node these taints.
pub(super) fn set(node: &mut Value, taints: Vec<Value>) {
    if taints == list(node) {
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
