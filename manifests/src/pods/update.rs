//! What may change in a pod that exists.

use crate::field::{At, FieldError};
use serde_json::{Map, Value};

const FIXED: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What is wrong with `new` in place of `old`.
pub fn validate(new: &At<'_>, old: &At<'_>) -> Vec<FieldError> {
    let (spec, before) = (new.field("spec"), old.field("spec"));
    if spec.value == before.value {
        return Vec::new();
    }
    let mut errors = Vec::new();
    for list in ["containers", "initContainers"] {
        if spec.field(list).len() != before.field(list).len() {
            let what = if list == "containers" { "containers" } else { "init containers" };
            errors.push(spec.field(list).forbidden(&format!("pod updates may not add or remove {what}")));
            return errors;
        }
    }
    let (deadline, deadline_before) = (spec.field("activeDeadlineSeconds"), before.field("activeDeadlineSeconds"));
    match (deadline.int(), deadline_before.int()) {
        (Some(after), Some(before)) if after > before => {
            errors.push(deadline.invalid(format!("must be less than or equal to previous value: {before}")));
        }
        (None, Some(_)) => errors.push(deadline.invalid("must not update from a positive integer to nil value")),
        _ => {}
    }
    let had = before.field("tolerations");
    if !had
        .items()
        .all(|toleration| spec.field("tolerations").items().any(|kept| is_same(kept.value, toleration.value)))
    {
        errors.push(
            spec.field("tolerations").forbidden("existing toleration can not be modified except its tolerationSeconds"),
        );
    }
    let kept = |spec: &At<'_>| fixed(spec.value, before.field("nodeName").text().is_empty());
    let (after, before) = (kept(&spec), kept(&before));
    if errors.is_empty() && after != before {
        let differs: Vec<&str> = after
            .keys()
            .chain(before.keys().filter(|name| !after.contains_key(*name)))
            .filter(|name| after.get(*name) != before.get(*name))
            .map(String::as_str)
            .collect();
        errors.push(spec.forbidden(&format!("{FIXED}\n  changed: {}", differs.join(", "))));
    }
    errors
}

/// Tolerations that differ only in how long they tolerate.
fn is_same(one: &Value, other: &Value) -> bool {
    let is_empty = |value: &Value| value.is_null() || value == "";
    ["key", "operator", "value", "effect"].iter().all(|name| {
        let (one, other) = (&one[*name], &other[*name]);
        one == other || (is_empty(one) && is_empty(other))
    })
}

/// A spec without what may change. A pod that is not bound yet may be bound.
fn fixed(spec: &Value, is_unbound: bool) -> Map<String, Value> {
    let mut fields = spec.as_object().cloned().unwrap_or_default();
    for name in ["activeDeadlineSeconds", "tolerations", "ephemeralContainers"] {
        fields.remove(name);
    }
    if is_unbound {
        fields.remove("nodeName");
    }
    if fields.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|seconds| seconds < 0) {
        fields.insert("terminationGracePeriodSeconds".into(), 1.into());
    }
    for list in ["containers", "initContainers"] {
        for container in fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    fields
}
