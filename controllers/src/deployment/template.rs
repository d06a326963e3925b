//! When two pod templates are the same version: compared and hashed without what writers add or leave out at will.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use manifests::quantity;
use serde_json::{Map, Value};
use state::record::fnv1a_64;

/// Label that tells the pods of one template from those of another.
pub(super) const HASH_LABEL: &str = "pod-template-hash";
/// Fields where empty says something else than absent.
const EMPTY_MATTERS: [&str; 4] = ["emptyDir", "labelSelector", "namespaceSelector", "matchLabels"];
/// Kubernetes' alphabet for generated names.
const ALPHANUMS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A template in the form that is compared: no nulls, nothing empty, amounts as numbers, no [`HASH_LABEL`]. A client that
/// decodes and encodes a template (as `kubectl rollout undo` does) leaves this form as it was.
pub(super) fn normal(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH_LABEL);
    }
    tidy("", template).unwrap_or(Value::Null)
}

fn tidy(field: &str, value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Array(items) => {
            // items keep their places
            let items: Vec<Value> = items.into_iter().map(|item| tidy("", item).unwrap_or(Value::Null)).collect();
            (!items.is_empty()).then_some(Value::Array(items))
        }
        Value::Object(fields) => {
            let amounts = matches!(field, "limits" | "requests");
            let fields: Map<String, Value> = fields
                .into_iter()
                .filter_map(|(name, value)| {
                    let value = if amounts { amount(value) } else { tidy(&name, value)? };
                    Some((name, value))
                })
                .collect();
            (!fields.is_empty() || EMPTY_MATTERS.contains(&field)).then_some(Value::Object(fields))
        }
        other => Some(other),
    }
}

fn amount(value: Value) -> Value {
    let text = match &value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    quantity::milli(&Quantity(text)).map_or(value, |milli| milli.to_string().into())
}

/// The value of [`HASH_LABEL`] for a template. `collisions` counts the names that were taken by something else.
pub(super) fn hash(template: &Value, collisions: Option<i32>) -> String {
    let mut text = Vec::new();
    canonical(&normal(template), &mut text);
    if let Some(collisions) = collisions {
        text.extend(collisions.to_le_bytes());
    }
    let hash = fnv1a_64(text);
    let folded = (hash >> 32) ^ (hash & 0xffff_ffff);
    folded.to_string().bytes().map(|digit| char::from(ALPHANUMS[usize::from(digit) % ALPHANUMS.len()])).collect()
}

/// A value as bytes that do not depend on the order of fields.
fn canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            out.push(b'{');
            for (name, value) in fields {
                out.extend(name.as_bytes());
                out.push(b':');
                canonical(value, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            items.iter().for_each(|item| canonical(item, out));
            out.push(b']');
        }
        other => out.extend(other.to_string().as_bytes()),
    }
    out.push(b',');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_template_stays_the_same_through_a_go_client() {
        let ours = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
            {"name": "a", "resources": {"limits": {"memory": "1024Mi"}}, "args": []}, {"name": "b"}],
            "volumes": [{"name": "v", "emptyDir": {}}]}});
        let theirs = json!({"metadata": {"creationTimestamp": null, "labels": {"app": "web", HASH_LABEL: "x"}},
            "spec": {"containers": [{"name": "a", "resources": {"limits": {"memory": "1Gi"}}},
            {"name": "b", "resources": {}}], "volumes": [{"name": "v", "emptyDir": {}}]}});
        assert_eq!(normal(&ours), normal(&theirs));
        assert_eq!(hash(&ours, None), hash(&theirs, None));
        assert_ne!(hash(&ours, None), hash(&ours, Some(1)));
    }
}
