//! Leases: heartbeats of nodes, and who leads. They change all the time and are worth nothing after a restart, so they
//! stay off the disk.

use super::cells::{AGE, NAME, column, text};
use crate::field::{At, FieldError};
use crate::{Column, Kind, fill, meta, names};
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
    columns: &[NAME, HOLDER, AGE],
    selectable: &[],
    default: fill::prune,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::coordination::v1::Lease>,
};

const HOLDER: Column =
    column("Holder", "string", "Who holds the lease.", |object, _| text(&object["spec"]["holderIdentity"]).into());

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let spec = At::root(new).field("spec");
    let seconds = spec.field("leaseDurationSeconds");
    if seconds.int().is_some_and(|seconds| seconds <= 0) {
        errors.push(seconds.invalid("must be greater than 0"));
    }
    errors.extend(spec.field("leaseTransitions").non_negative());
    errors
}
