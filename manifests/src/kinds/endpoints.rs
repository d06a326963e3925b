//! Not yet written out.

use crate::field::FieldError;
use crate::{Kind, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Endpoints`.
pub(super) const ENDPOINTS: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[],
    selectable: &[],
    default: default_endpoints,
    validate: validate_endpoints,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Endpoints>,
};

fn default_endpoints(_: &mut Value) {}

fn validate_endpoints(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}

/// `EndpointSlice`.
pub(super) const ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    volatile: false,
    counts_generation: true,
    columns: &[],
    selectable: &[],
    default: default_endpoint_slice,
    validate: validate_endpoint_slice,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::discovery::v1::EndpointSlice>,
};

fn default_endpoint_slice(_: &mut Value) {}

fn validate_endpoint_slice(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    meta::validate(new, old, names::dns_subdomain)
}
