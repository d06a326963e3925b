//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `ServiceAccount`.
pub(super) const SERVICE_ACCOUNT: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[],
    selectable: &[],
    default: default_service_account,
    validate: validate_service_account,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::ServiceAccount>,
};

fn default_service_account(_: &mut Value) {}

fn validate_service_account(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
