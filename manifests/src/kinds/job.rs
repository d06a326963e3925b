//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Job`.
pub(super) const JOB: Kind = Kind {
    group: "batch",
    version: "v1",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    short_names: &[],
    categories: &["all"],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: true,
    columns: &[],
    selectable: &["status.successful"],
    default: default_job,
    validate: validate_job,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::batch::v1::Job>,
};

fn default_job(_: &mut Value) {}

fn validate_job(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
