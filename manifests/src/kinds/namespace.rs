//! Namespaces.

use super::cells::{AGE, NAME, column, text};
use crate::field::FieldError;
use crate::{Kind, fill, meta, names};
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
    columns: &[NAME, STATUS, AGE],
    selectable: &["status.phase"],
    default: fill::prune,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Namespace>,
};

const STATUS: crate::Column =
    column("Status", "string", "The status of the namespace", |object, _| text(&object["status"]["phase"]).into());

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_label)
}
