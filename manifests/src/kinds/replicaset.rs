//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
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
    columns: &[],
    selectable: &["status.replicas"],
    default: default_replica_set,
    validate: validate_replica_set,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::apps::v1::ReplicaSet>,
};

fn default_replica_set(_: &mut Value) {}

fn validate_replica_set(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
