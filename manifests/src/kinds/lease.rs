//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Lease`.
pub(super) const LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: true,
    counts_generation: false,
    columns: &[],
    selectable: &[],
    default: default_lease,
    validate: validate_lease,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::coordination::v1::Lease>,
};

fn default_lease(_: &mut Value) {}

fn validate_lease(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
