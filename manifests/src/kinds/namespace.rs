//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Namespace`.
pub(super) const NAMESPACE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    namespaced: false,
    subresources: &["status", "finalize"],
    volatile: false,
    counts_generation: false,
    columns: &[],
    selectable: &["status.phase"],
    default: default_namespace,
    validate: validate_namespace,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Namespace>,
};

fn default_namespace(_: &mut Value) {}

fn validate_namespace(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
