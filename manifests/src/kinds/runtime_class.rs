//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `RuntimeClass`.
pub(super) const RUNTIME_CLASS: Kind = Kind {
    group: "node.k8s.io",
    version: "v1",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    short_names: &[],
    categories: &[],
    namespaced: false,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[],
    selectable: &[],
    default: default_runtime_class,
    validate: validate_runtime_class,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::node::v1::RuntimeClass>,
};

fn default_runtime_class(_: &mut Value) {}

fn validate_runtime_class(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
