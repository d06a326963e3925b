//! Service accounts.

use super::cells::{AGE, NAME, column, count};
use crate::field::FieldError;
use crate::{Column, Kind, fill, meta, names};
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
    columns: &[NAME, SECRETS, AGE],
    selectable: &[],
    default: fill::prune,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::ServiceAccount>,
};

const SECRETS: Column = column("Secrets", "string", "Number of secrets.", |object, _| count(&object["secrets"]).into());

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
