//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Deployment`.
pub(super) const DEPLOYMENT: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "scale"],
    volatile: false,
    counts_generation: true,
    columns: &[],
    selectable: &[],
    default: default_deployment,
    validate: validate_deployment,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::apps::v1::Deployment>,
};

fn default_deployment(_: &mut Value) {}

fn validate_deployment(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
