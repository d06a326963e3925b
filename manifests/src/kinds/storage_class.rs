//! StorageClasses: who makes volumes for claims, and when.

use super::cells::{AGE, column, text, text_or};
use crate::field::{At, FieldError, invalid_by};
use crate::{Column, Kind, fill, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// Marks the class of claims that name none.
const DEFAULT_ANNOTATIONS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const UNSET: &str = "<unset>";

/// `StorageClass`.
pub(super) const STORAGE_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    version: "v1",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    categories: &[],
    namespaced: false,
    subresources: &[],
    volatile: false,
    counts_generation: false,
    columns: &[NAME, PROVISIONER, RECLAIM_POLICY, BINDING_MODE, EXPANSION, AGE],
    selectable: &[],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::storage::v1::StorageClass>,
};

const NAME: Column = column("Name", "string", "Name of the class.", |object, _| {
    let name = text(&object["metadata"]["name"]);
    let annotations = &object["metadata"]["annotations"];
    let is_default = DEFAULT_ANNOTATIONS.iter().any(|annotation| annotations[*annotation] == "true");
    if is_default { format!("{name} (default)").into() } else { name.into() }
});
const PROVISIONER: Column =
    column("Provisioner", "string", "Who makes the volumes.", |object, _| text(&object["provisioner"]).into());
const RECLAIM_POLICY: Column =
    column("ReclaimPolicy", "string", "What becomes of a volume whose claim is gone.", |object, _| {
        text_or(&object["reclaimPolicy"], "Delete").into()
    });
const BINDING_MODE: Column = column("VolumeBindingMode", "string", "When claims are bound.", |object, _| {
    text_or(&object["volumeBindingMode"], UNSET).into()
});
const EXPANSION: Column =
    column("AllowVolumeExpansion", "string", "Whether claims may ask for more later.", |object, _| {
        (object["allowVolumeExpansion"] == true).to_string().into()
    });

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(class) = value.as_object_mut() else { return };
    fill::missing(class, "reclaimPolicy", "Delete");
    fill::missing(class, "volumeBindingMode", "Immediate");
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    let provisioner = root.field("provisioner");
    if provisioner.text().is_empty() {
        errors.push(provisioner.required(""));
    } else {
        errors.extend(invalid_by(&provisioner, names::qualified(&provisioner.text().to_lowercase())));
    }
    for (key, parameter) in root.field("parameters").entries() {
        if key.is_empty() {
            errors.push(parameter.invalid("field can not be empty."));
        }
    }
    errors.extend(root.field("reclaimPolicy").one_of(&["Delete", "Retain"]));
    errors.extend(root.field("volumeBindingMode").one_of(&["Immediate", "WaitForFirstConsumer"]));
    let Some(old) = old.map(At::root) else { return errors };
    for field in ["parameters", "provisioner"] {
        if root.field(field).value != old.field(field).value {
            errors.push(root.field(field).forbidden(&format!("updates to {field} are forbidden.")));
        }
    }
    for field in ["reclaimPolicy", "volumeBindingMode"] {
        errors.extend(meta::immutable(&root.field(field), &old.field(field)));
    }
    errors
}
