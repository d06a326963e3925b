//! ReplicaSets.

use super::cells::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, column, number};
use crate::field::{At, FieldError};
use crate::{Column, Kind, fill, labels, meta, names, pods};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `ReplicaSet`.
pub(super) const REPLICA_SET: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "scale"],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR],
    selectable: &["status.replicas"],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::apps::v1::ReplicaSet>,
};

const DESIRED: Column =
    column("Desired", "integer", "Replicas that are wanted.", |object, _| number(&object["spec"]["replicas"]).into());
const CURRENT: Column =
    column("Current", "integer", "Replicas that there are.", |object, _| number(&object["status"]["replicas"]).into());
const READY: Column = column("Ready", "integer", "Replicas that are ready.", |object, _| {
    number(&object["status"]["readyReplicas"]).into()
});

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(spec) = value.as_object_mut().and_then(|object| fill::object(object, "spec")) else { return };
    fill::missing(spec, "replicas", 1);
    pods::defaults::template(spec);
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let spec = At::root(new).field("spec");
    errors.extend(spec.field("replicas").non_negative());
    errors.extend(spec.field("minReadySeconds").non_negative());
    errors.extend(labels::of_template(&spec));
    errors.extend(super::deployment::long_running(&spec.field("template")));
    if let Some(old) = old {
        errors.extend(meta::immutable(&spec.field("selector"), &At::root(old).field("spec").field("selector")));
    }
    errors
}
