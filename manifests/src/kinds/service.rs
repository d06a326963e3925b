//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Service`.
pub(super) const SERVICE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: false,
    columns: &[],
    selectable: &["spec.clusterIP", "spec.type"],
    default: default_service,
    validate: validate_service,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Service>,
};

fn default_service(_: &mut Value) {}

fn validate_service(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
