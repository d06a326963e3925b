//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `ConfigMap`.
pub(super) const CONFIG_MAP: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[],
    selectable: &[],
    default: default_config_map,
    validate: validate_config_map,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::ConfigMap>,
};

fn default_config_map(_: &mut Value) {}

fn validate_config_map(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}

/// `Secret`.
pub(super) const SECRET: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[],
    selectable: &["type"],
    default: default_secret,
    validate: validate_secret,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Secret>,
};

fn default_secret(_: &mut Value) {}

fn validate_secret(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
