//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `IngressClass`.
pub(super) const INGRESS_CLASS: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    short_names: &[],
    categories: &[],
    namespaced: false,
    subresources: &[],
    volatile: false,
    counts_generation: true,
    columns: &[],
    selectable: &[],
    default: default_ingress_class,
    validate: validate_ingress_class,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::networking::v1::IngressClass>,
};

fn default_ingress_class(_: &mut Value) {}

fn validate_ingress_class(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}

/// `Ingress`.
pub(super) const INGRESS: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    categories: &[],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: true,
    columns: &[],
    selectable: &[],
    default: default_ingress,
    validate: validate_ingress,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::networking::v1::Ingress>,
};

fn default_ingress(_: &mut Value) {}

fn validate_ingress(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
