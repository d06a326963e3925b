//! A ReplicaSet of a Deployment while it is being decided about: what it is, and what it becomes.

use super::revision::{DESIRED, MAX, REVISION};
use crate::edit;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use serde_json::{Value, json};
use state::{Key, Object, Write};
use std::sync::Arc;

/// A ReplicaSet and its changes.
pub(super) struct Set {
    /// As it is in the world; `None` for one that is made now.
    object: Option<Arc<Object>>,
    value: Value,
    status: ReplicaSetStatus,
}

impl Set {
    /// One of the world.
    pub(super) fn of(object: Arc<Object>) -> Self {
        let status = object.view::<ReplicaSet>().and_then(|set| set.status.clone()).unwrap_or_default();
        Self { value: object.value(), status, object: Some(object) }
    }

    /// One that is made now.
    pub(super) fn made(value: Value) -> Self {
        Self { object: None, value, status: ReplicaSetStatus::default() }
    }

    pub(super) fn object(&self) -> Option<&Arc<Object>> {
        self.object.as_ref()
    }

    pub(super) fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or("")
    }

    /// `None`, the newest, for one that is made now.
    pub(super) fn created_at(&self) -> Timestamp {
        self.object.as_ref().and_then(|object| object.meta().creation_timestamp).unwrap_or(Timestamp::MAX)
    }

    /// The size that is asked of it.
    pub(super) fn replicas(&self) -> i32 {
        let replicas = self.value["spec"]["replicas"].as_i64().unwrap_or(1);
        i32::try_from(replicas).unwrap_or(0)
    }

    pub(super) fn status(&self) -> &ReplicaSetStatus {
        &self.status
    }

    pub(super) fn available(&self) -> i32 {
        self.status.available_replicas.unwrap_or(0)
    }

    pub(super) fn template(&self) -> &Value {
        &self.value["spec"]["template"]
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.value["metadata"]["annotations"][key].as_str()
    }

    /// An annotation that is a number.
    pub(super) fn number(&self, key: &str) -> Option<i64> {
        self.annotation(key)?.parse().ok()
    }

    /// Which version of the template it is; 0 if it does not say.
    pub(super) fn revision(&self) -> i64 {
        self.number(REVISION).unwrap_or(0)
    }

    /// Whether the ReplicaSet controller has nothing left to do for it.
    pub(super) fn is_idle(&self) -> bool {
        let seen = self
            .object
            .as_ref()
            .is_some_and(|object| !object.is_deleting() && object.meta().generation <= self.status.observed_generation);
        seen && self.status.replicas == 0 && self.replicas() == 0
    }

    pub(super) fn annotate(&mut self, key: &str, text: &str) {
        edit::annotate(&mut self.value, key, text);
    }

    /// Notes the sizes of the Deployment that this set's size was decided for.
    pub(super) fn annotate_sizes(&mut self, desired: i32, max: i32) {
        self.annotate(DESIRED, &desired.to_string());
        self.annotate(MAX, &max.to_string());
    }

    pub(super) fn resize(&mut self, size: i32) {
        self.value["spec"]["replicas"] = size.into();
    }

    /// Takes over the Deployment's `minReadySeconds`.
    pub(super) fn set_min_ready(&mut self, seconds: i32) {
        if self.value["spec"]["minReadySeconds"].as_i64().unwrap_or(0) != i64::from(seconds) {
            self.value["spec"]["minReadySeconds"] = seconds.into();
        }
    }

    /// Adds a controller reference.
    pub(super) fn own(&mut self, reference: Value) {
        match &mut self.value["metadata"]["ownerReferences"] {
            Value::Array(owners) => owners.push(reference),
            other => *other = json!([reference]),
        }
    }

    /// What must be written for it.
    pub(super) fn write(&self) -> Option<Write> {
        match &self.object {
            None => {
                let namespace = self.value["metadata"]["namespace"].as_str().unwrap_or("");
                Some(Write::create(Key::of::<ReplicaSet>(namespace, self.name()), self.value.clone()))
            }
            Some(object) if object.value() != self.value => Some(Write::update(object, self.value.clone())),
            Some(_) => None,
        }
    }
}
