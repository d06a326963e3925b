//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Node`.
pub(super) const NODE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    subresources: &["status"],
    volatile: false,
    counts_generation: false,
    columns: &[],
    selectable: &["spec.unschedulable"],
    default: default_node,
    validate: validate_node,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Node>,
};

fn default_node(_: &mut Value) {}

fn validate_node(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
