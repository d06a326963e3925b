//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Pod`.
pub(super) const POD: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "log", "binding", "eviction"],
    volatile: false,
    counts_generation: true,
    columns: &[],
    selectable: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    default: default_pod,
    validate: validate_pod,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Pod>,
};

fn default_pod(_: &mut Value) {}

fn validate_pod(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
