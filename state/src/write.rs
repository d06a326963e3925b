//! A change that is wanted, with what it was decided on.

use crate::{Key, Object, Revision};
use serde_json::Value;

/// What must hold of the object for a write to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It must not exist.
    Absent,
    /// It must exist at exactly this revision: the one the write was decided on.
    At(Revision),
    /// It must exist with this uid, at whatever revision: for what is true of the object whatever its spec says.
    Uid(String),
}

/// A change that is wanted. `value: None` deletes.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Which object.
    pub key: Key,
    /// Its new JSON whole (`metadata.resourceVersion` is overwritten at commit), or `None` to delete it.
    pub value: Option<Value>,
    /// Precondition.
    pub expect: Expect,
}

impl Write {
    /// Creates an object that must not exist yet. The value carries name, uid and creation time ([`crate::Stamp`]).
    pub fn create(key: Key, value: Value) -> Self {
        Self { key, value: Some(value), expect: Expect::Absent }
    }

    /// Replaces `old` by `value`, if `old` is still current. Counts `metadata.generation` up when the desired state
    /// differs, and becomes the deletion when `value` is one that has finished its deletion ([`is_finished`]).
    pub fn update(old: &Object, mut value: Value) -> Self {
        if let Some(generation) = old.meta().generation {
            let next = generation + i64::from(spec_differs(&old.value(), &value));
            if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("generation".into(), next.into());
            }
        }
        let value = (!is_finished(&value)).then_some(value);
        Self { key: old.key().clone(), value, expect: Expect::At(old.revision()) }
    }

    /// Deletes `old`, if it is still current.
    pub fn delete(old: &Object) -> Self {
        Self { key: old.key().clone(), value: None, expect: Expect::At(old.revision()) }
    }
}

/// Whether the desired state of two values differs: everything but `metadata` and `status`.
pub fn spec_differs(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        return old != new;
    };
    let desired = |name: &str| !matches!(name, "metadata" | "status" | "apiVersion" | "kind");
    old.keys().chain(new.keys()).any(|name| desired(name) && old.get(name) != new.get(name))
}

/// Whether a value is an object whose deletion was asked for and that nothing holds any more: no finalizers, no grace.
pub fn is_finished(value: &Value) -> bool {
    let metadata = &value["metadata"];
    let none_in = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    metadata["deletionTimestamp"].is_string()
        && none_in(&metadata["finalizers"])
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        // a Namespace is held by spec.finalizers; no other kind has that field
        && none_in(&value["spec"]["finalizers"])
}
