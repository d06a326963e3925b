//! RuntimeClasses: which runtime a pod may ask for by name.

use super::cells::{AGE, NAME, column, text};
use crate::field::{At, FieldError, invalid_by};
use crate::{Column, Kind, fill, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `RuntimeClass`.
pub(super) const RUNTIME_CLASS: Kind = Kind {
    group: "node.k8s.io",
    version: "v1",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    short_names: &[],
    categories: &[],
    namespaced: false,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[NAME, HANDLER, AGE],
    selectable: &[],
    default: fill::prune,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::node::v1::RuntimeClass>,
};

const HANDLER: Column =
    column("Handler", "string", "What the class stands for on a node.", |object, _| text(&object["handler"]).into());

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let handler = At::root(new).field("handler");
    errors.extend(invalid_by(&handler, names::dns_label(handler.text())));
    if let Some(old) = old {
        errors.extend(meta::immutable(&handler, &At::root(old).field("handler")));
    }
    errors
}
