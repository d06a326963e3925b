//! ConfigMaps and Secrets: small data by key.

use super::cells::{AGE, NAME, column, count, text_or};
use crate::field::{At, Fault, FieldError};
use crate::{Column, Kind, fill, meta, names};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::SchemaGenerator;
use serde_json::Value;
use serde_json::{Map, json};

/// All data of an object together: Kubernetes' bound.
const DATA_BYTES_MAX: usize = 1024 * 1024;
const FIXED: &str = "field is immutable when `immutable` is set";

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
    columns: &[NAME, ENTRIES, AGE],
    selectable: &[],
    default: default_config_map,
    validate: validate_config_map,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::ConfigMap>,
};

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
    columns: &[NAME, TYPE, SECRET_ENTRIES, AGE],
    selectable: &["type"],
    default: default_secret,
    validate: validate_secret,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Secret>,
};

const ENTRIES: Column = column("Data", "integer", "Number of entries.", |object, _| {
    (count(&object["data"]) + count(&object["binaryData"])).into()
});
const SECRET_ENTRIES: Column =
    column("Data", "integer", "Number of entries.", |object, _| count(&object["data"]).into());
const TYPE: Column =
    column("Type", "string", "Used to facilitate programmatic handling of secret data.", |object, _| {
        text_or(&object["type"], "Opaque").into()
    });

/// A key without a value has an empty one.
fn fill_values(value: &mut Value, fields: &[&str]) {
    for field in fields {
        let entries = value.get_mut(*field).and_then(Value::as_object_mut);
        for entry in entries.into_iter().flat_map(Map::values_mut).filter(|entry| entry.is_null()) {
            *entry = "".into();
        }
    }
}

fn default_config_map(value: &mut Value) {
    fill_values(value, &["data", "binaryData"]);
    fill::prune(value);
}

fn default_secret(value: &mut Value) {
    fill_values(value, &["data", "stringData"]);
    fill::prune(value);
    let Some(secret) = value.as_object_mut() else { return };
    fill::missing(secret, "type", "Opaque");
    // plain text is only for writing: it is kept as data
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    if let Some(data) = fill::object(secret, "data").filter(|_| !plain.is_empty()) {
        for (key, text) in plain {
            data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
        }
    }
}

fn validate_config_map(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    let data = root.field("data");
    let mut bytes = 0;
    for (key, value) in data.entries() {
        errors.extend(key_faults(key, &value));
        bytes += value.text().len();
    }
    for (key, value) in root.field("binaryData").entries() {
        errors.extend(key_faults(key, &value));
        if !data.value[key].is_null() {
            errors.push(value.fault(Fault::Invalid(key.into(), "duplicate of key present in data".into())));
        }
        bytes += decoded_bytes(&value);
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError { path: "[]".into(), fault: Fault::TooLong(DATA_BYTES_MAX) });
    }
    errors.extend(sealed(new, old, &["data", "binaryData"]));
    errors
}

fn key_faults(key: &str, at: &At<'_>) -> Vec<FieldError> {
    names::config_key(key).into_iter().map(|why| at.fault(Fault::Invalid(key.into(), why))).collect()
}

/// Bytes that base64 stands for.
fn decoded_bytes(value: &At<'_>) -> usize {
    value.text().trim_end_matches('=').len() * 3 / 4
}

/// What may not change any more once `immutable` is set.
fn sealed(new: &Value, old: Option<&Value>, fields: &[&str]) -> Vec<FieldError> {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return Vec::new() };
    let root = At::root(new);
    let mut errors = Vec::new();
    if new["immutable"] != true {
        errors.push(root.field("immutable").forbidden(FIXED));
    }
    let empty = json!({});
    let entries = |value: &Value, field: &str| value.get(field).cloned().unwrap_or_else(|| empty.clone());
    for field in fields.iter().filter(|field| entries(new, field) != entries(old, field)) {
        errors.push(root.field(field).forbidden(FIXED));
    }
    errors
}

fn validate_secret(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    let data = root.field("data");
    let mut bytes = 0;
    for (key, value) in data.entries() {
        errors.extend(key_faults(key, &value));
        bytes += decoded_bytes(&value);
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(data.fault(Fault::TooLong(DATA_BYTES_MAX)));
    }
    for key in needed_keys(root.field("type").text()) {
        let entry = &data.value[*key];
        if entry.is_null() {
            errors.push(FieldError { path: format!("data[{key}]"), fault: Fault::Required(String::new()) });
        }
    }
    if let Some(old) = old {
        errors.extend(meta::immutable(&root.field("type"), &At::root(old).field("type")));
    }
    errors.extend(sealed(new, old, &["data"]));
    errors
}

/// Keys that a Secret of this type must have.
fn needed_keys(secret_type: &str) -> &'static [&'static str] {
    match secret_type {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    }
}
