//! PersistentVolumeClaims: what a pod asks of storage.

use super::cells::{AGE, NAME, column, text};
use super::persistent_volume::{
    ATTRIBUTES_CLASS, VOLUME_MODE, access_modes, class, class_and_mode, modes, phase, positive,
};
use crate::field::{At, FieldError, invalid_by};
use crate::{Column, Kind, fill, meta, names, quantity};
use schemars::SchemaGenerator;
use serde_json::{Value, json};

const FIXED: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

/// `PersistentVolumeClaim`.
pub(super) const PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    group: "",
    version: "v1",
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    categories: &[],
    namespaced: true,
    subresources: &["status"],
    volatile: false,
    counts_generation: false,
    columns: &[NAME, STATUS, VOLUME, CAPACITY, MODES, STORAGE_CLASS, ATTRIBUTES_CLASS, AGE, VOLUME_MODE],
    selectable: &[],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::PersistentVolumeClaim>,
};

const STATUS: Column = column("Status", "string", "Whether it is bound.", |object, _| phase(object).into());
const VOLUME: Column =
    column("Volume", "string", "The volume it is bound to.", |object, _| text(&object["spec"]["volumeName"]).into());
const CAPACITY: Column = column("Capacity", "string", "What the volume holds.", |object, _| {
    if is_bound(object) { text(&object["status"]["capacity"]["storage"]).into() } else { "".into() }
});
const MODES: Column = column("Access Modes", "string", "In which ways it can be mounted.", |object, _| {
    if is_bound(object) { modes(&object["status"]["accessModes"]).into() } else { "".into() }
});
const STORAGE_CLASS: Column = column("StorageClass", "string", "Its class.", |object, _| class(object).into());

fn is_bound(object: &Value) -> bool {
    !text(&object["spec"]["volumeName"]).is_empty()
}

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(claim) = value.as_object_mut() else { return };
    if let Some(spec) = fill::fields(claim, "spec") {
        default_spec(spec);
    }
    if let Some(status) = fill::object(claim, "status") {
        fill::missing(status, "phase", "Pending");
    }
}

/// Fills in a claim's spec, also of a template.
fn default_spec(spec: &mut serde_json::Map<String, Value>) {
    fill::missing(spec, "volumeMode", "Filesystem");
    if let Some(resources) = fill::fields(spec, "resources") {
        for field in ["requests", "limits"] {
            let amounts = resources.get_mut(field).and_then(Value::as_object_mut);
            amounts.into_iter().flat_map(|amounts| amounts.values_mut()).for_each(fill::canonical);
        }
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let root = At::root(new);
    errors.extend(spec(&root.field("spec")));
    if let Some(old) = old {
        errors.extend(unchanged(&root, &At::root(old)));
    }
    errors
}

/// What is wrong with a claim's spec, also of a template.
pub(crate) fn spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = access_modes(&spec.field("accessModes"));
    let requested = spec.fields(&["resources", "requests", "storage"]);
    let fault = if requested.is_set() { positive(&requested) } else { Some(requested.required("")) };
    let path = format!("{}[storage]", spec.field("resources").path());
    errors.extend(fault.map(|fault| FieldError { path, ..fault }));
    let name = spec.field("volumeName");
    if !name.text().is_empty() {
        errors.extend(invalid_by(&name, names::dns_subdomain(name.text())));
    }
    errors.extend(class_and_mode(spec));
    errors
}

fn unchanged(new: &At<'_>, old: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut was, mut is) = (old.field("spec").value.clone(), new.field("spec").value.clone());
    if text(&was["volumeName"]).is_empty() {
        was["volumeName"] = is["volumeName"].clone();
    }
    // a claim that named no class may be given one
    if was["storageClassName"].is_null() {
        was["storageClassName"] = is["storageClassName"].clone();
    }
    if new.fields(&["status", "phase"]).text() == "Bound" && is["resources"]["requests"].is_object() {
        is["resources"]["requests"]["storage"] = was["resources"]["requests"]["storage"].clone();
    }
    was["volumeAttributesClassName"] = json!(null);
    is["volumeAttributesClassName"] = json!(null);
    fill::prune(&mut was);
    fill::prune(&mut is);
    if was != is {
        errors.push(new.field("spec").forbidden(FIXED));
    }
    let amount = |at: &At<'_>, path: &[&str]| quantity::parse(at.fields(path).text()).ok();
    let request = ["spec", "resources", "requests", "storage"];
    let shrinks = amount(new, &request) < amount(old, &request);
    if shrinks && amount(new, &request) <= amount(old, &["status", "capacity", "storage"]) {
        errors.push(new.fields(&request).forbidden("field can not be less than status.capacity"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value) -> Value {
        let mut claim =
            json!({"metadata": {"name": "c", "namespace": "n"}, "spec": spec, "status": {"phase": "Bound"}});
        default(&mut claim);
        claim
    }

    fn check(new: &Value, old: Option<&Value>, expected: &[&str]) {
        let errors: Vec<String> = validate(new, old).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected);
    }

    #[test]
    fn a_claim_says_what_it_wants_and_keeps_to_it() {
        let asked =
            |size: &str| json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}});
        let good = claim(asked("1Gi"));
        check(&good, None, &[]);
        check(
            &claim(json!({})),
            None,
            &[
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ],
        );
        check(
            &claim(json!({"accessModes": ["ReadWriteOncePod", "Some"], "volumeMode": "Tape",
                "resources": {"requests": {"storage": "0"}}})),
            None,
            &[
                "spec.accessModes: Unsupported value: \"Some\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
                "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
                "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
            ],
        );
        check(&claim(asked("2Gi")), Some(&good), &[]);
        let mut held = good.clone();
        held["status"]["capacity"]["storage"] = "1Gi".into();
        check(
            &claim(asked("1Mi")),
            Some(&held),
            &["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"],
        );
        let mut classed = asked("1Gi");
        classed["storageClassName"] = "fast".into();
        check(&claim(classed.clone()), Some(&good), &[]);
        check(&good, Some(&claim(classed)), &[&format!("spec: Forbidden: {FIXED}")]);
        let mut pending = claim(asked("2Gi"));
        pending["status"]["phase"] = "Pending".into();
        check(&pending, Some(&good), &[&format!("spec: Forbidden: {FIXED}")]);
    }
}
