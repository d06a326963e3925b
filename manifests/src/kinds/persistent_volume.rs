//! PersistentVolumes: storage that outlives pods. What volumes and claims have in common stands here.

use super::cells::{AGE, NAME, column, items, text, text_or, wide};
use crate::field::{At, FieldError, invalid_by};
use crate::quantity;
use crate::{Column, Kind, fill, meta, names, pods};
use schemars::SchemaGenerator;
use serde_json::Value;

pub(super) const UNSET: &str = "<unset>";
const ACCESS_MODES: [(&str, &str); 4] =
    [("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOnce", "RWO"), ("ReadWriteOncePod", "RWOP")];
const SINGLE_POD: &str = "ReadWriteOncePod";
/// Fields of `spec` that are not a source of storage.
const COMMON: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// `PersistentVolume`.
pub(super) const PERSISTENT_VOLUME: Kind = Kind {
    group: "",
    version: "v1",
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    categories: &[],
    namespaced: false,
    subresources: &["status"],
    volatile: false,
    counts_generation: false,
    columns: &[
        NAME,
        CAPACITY,
        MODES,
        RECLAIM_POLICY,
        STATUS,
        CLAIM,
        STORAGE_CLASS,
        ATTRIBUTES_CLASS,
        REASON,
        AGE,
        VOLUME_MODE,
    ],
    selectable: &[],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::PersistentVolume>,
};

const CAPACITY: Column =
    column("Capacity", "string", "What it holds.", |object, _| text(&object["spec"]["capacity"]["storage"]).into());
const MODES: Column = column("Access Modes", "string", "In which ways it can be mounted.", |object, _| {
    modes(&object["spec"]["accessModes"]).into()
});
const RECLAIM_POLICY: Column =
    column("Reclaim Policy", "string", "What becomes of it when its claim is gone.", |object, _| {
        text(&object["spec"]["persistentVolumeReclaimPolicy"]).into()
    });
const STATUS: Column = column("Status", "string", "Whether it is bound.", |object, _| phase(object).into());
const CLAIM: Column = column("Claim", "string", "The claim it is bound to.", |object, _| {
    let claim = &object["spec"]["claimRef"];
    if claim.is_null() { "".into() } else { format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])).into() }
});
const STORAGE_CLASS: Column = column("StorageClass", "string", "Its class.", |object, _| class(object).into());
pub(super) const ATTRIBUTES_CLASS: Column =
    column("VolumeAttributesClass", "string", "Its class of attributes.", |object, _| {
        text_or(&object["spec"]["volumeAttributesClassName"], UNSET).into()
    });
const REASON: Column =
    column("Reason", "string", "Why it is in this state.", |object, _| text(&object["status"]["reason"]).into());
pub(super) const VOLUME_MODE: Column = wide("VolumeMode", "string", "A file system or a device.", |object, _| {
    text_or(&object["spec"]["volumeMode"], UNSET).into()
});

/// `RWO,RWX`
pub(super) fn modes(modes: &Value) -> String {
    let has = |mode: &str| items(modes).iter().any(|own| own == mode);
    // Kubernetes' order
    let order = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", SINGLE_POD];
    let short = |mode: &&str| ACCESS_MODES.iter().find(|(name, _)| name == mode).map(|(_, short)| *short);
    order.iter().filter(|mode| has(mode)).filter_map(short).collect::<Vec<_>>().join(",")
}

pub(super) fn phase(object: &Value) -> &str {
    if object["metadata"]["deletionTimestamp"].is_null() { text(&object["status"]["phase"]) } else { "Terminating" }
}

/// `spec.storageClassName`, or the annotation that came before it.
pub(super) fn class(object: &Value) -> &str {
    let old = &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    text(if old.is_null() { &object["spec"]["storageClassName"] } else { old })
}

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(volume) = value.as_object_mut() else { return };
    if let Some(status) = fill::object(volume, "status") {
        fill::missing(status, "phase", "Pending");
    }
    let Some(spec) = fill::fields(volume, "spec") else { return };
    fill::missing(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill::missing(spec, "volumeMode", "Filesystem");
    if let Some(capacity) = fill::fields(spec, "capacity") {
        capacity.values_mut().for_each(fill::canonical);
    }
    if let Some(host) = fill::fields(spec, "hostPath") {
        fill::missing(host, "type", "");
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let spec = At::root(new).field("spec");
    errors.extend(access_modes(&spec.field("accessModes")));
    let capacity = spec.field("capacity");
    if capacity.is_empty() {
        errors.push(capacity.required(""));
    }
    for (name, amount) in capacity.entries() {
        if name == "storage" {
            errors.extend(positive(&amount));
        } else {
            errors.push(capacity.not_supported(&["storage"]));
        }
    }
    let policy = spec.field("persistentVolumeReclaimPolicy");
    if !policy.text().is_empty() {
        errors.extend(policy.one_of(&["Delete", "Recycle", "Retain"]));
    }
    errors.extend(source(&spec));
    errors.extend(node_affinity(&spec.field("nodeAffinity")));
    if policy.text() == "Recycle" && spec.fields(&["hostPath", "path"]).text() == "/" {
        errors.push(policy.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
    }
    errors.extend(class_and_mode(&spec));
    if let Some(old) = old {
        errors.extend(unchanged(&spec, &At::root(old).field("spec")));
    }
    errors
}

/// What is wrong with access modes, of a volume or a claim.
pub(super) fn access_modes(modes: &At<'_>) -> Vec<FieldError> {
    if modes.is_empty() {
        return vec![modes.required("at least 1 access mode is required")];
    }
    let names = ACCESS_MODES.map(|(name, _)| name);
    let unknown = |mode: &At<'_>| !names.contains(&mode.text());
    let mut errors: Vec<FieldError> = modes
        .items()
        .filter(unknown)
        .map(|mode| FieldError { path: modes.path().to_owned(), ..mode.not_supported(&names) })
        .collect();
    if modes.len() > 1 && modes.items().any(|mode| mode.text() == SINGLE_POD) {
        errors.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

/// What is wrong with an amount that must be some.
pub(super) fn positive(amount: &At<'_>) -> Option<FieldError> {
    match quantity::parse(amount.text()) {
        Err(error) => Some(amount.invalid(error.to_string())),
        Ok(parsed) if parsed.is_zero() || parsed.is_negative() => Some(amount.invalid("must be greater than zero")),
        Ok(_) => None,
    }
}

/// What is wrong with class and mode, of a volume or a claim.
pub(super) fn class_and_mode(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let class = spec.field("storageClassName");
    if !class.text().is_empty() {
        errors.extend(invalid_by(&class, names::dns_subdomain(class.text())));
    }
    let mode = spec.field("volumeMode");
    if mode.is_set() {
        errors.extend(mode.one_of(&["Block", "Filesystem"]));
    }
    errors
}

fn source(spec: &At<'_>) -> Vec<FieldError> {
    let sources: Vec<&str> = spec
        .value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !COMMON.contains(&name.as_str()) && !value.is_null())
        .map(|(name, _)| name.as_str())
        .collect();
    let Some(kind) = sources.first() else { return vec![spec.required("must specify a volume type")] };
    let mut errors: Vec<FieldError> =
        sources[1..].iter().map(|more| spec.field(more).forbidden("may not specify more than 1 volume type")).collect();
    let source = spec.field(kind);
    match *kind {
        "hostPath" => errors.extend(pods::volumes::host_path(&source)),
        "nfs" => errors.extend(pods::volumes::nfs(&source)),
        "local" => {
            let path = source.field("path");
            if path.text().is_empty() {
                errors.push(path.required(""));
            } else if path.text().split('/').any(|part| part == "..") {
                errors.push(path.invalid("must not contain '..'"));
            }
            if spec.fields(&["nodeAffinity", "required"]).value.is_null() {
                errors.push(spec.field("nodeAffinity").required("Local volume requires node affinity"));
            }
        }
        _ => {}
    }
    errors
}

fn node_affinity(affinity: &At<'_>) -> Vec<FieldError> {
    if !affinity.is_set() {
        return Vec::new();
    }
    let required = affinity.field("required");
    if !required.is_set() {
        return vec![required.required("must specify required node constraints")];
    }
    let terms = required.field("nodeSelectorTerms");
    if terms.is_empty() {
        return vec![terms.required("must have at least one node selector term")];
    }
    Vec::new()
}

fn unchanged(new: &At<'_>, old: &At<'_>) -> Vec<FieldError> {
    let source = |spec: &At<'_>| {
        let mut fields = spec.value.as_object().cloned().unwrap_or_default();
        fields.retain(|name, value| !COMMON.contains(&name.as_str()) && !value.is_null());
        fields
    };
    let mut errors = Vec::new();
    if source(new) != source(old) {
        let at = new.field("persistentvolumesource");
        errors.push(at.forbidden("spec.persistentvolumesource is immutable after creation"));
    }
    errors.extend(meta::immutable(&new.field("volumeMode"), &old.field("volumeMode")));
    if old.field("nodeAffinity").is_set() {
        errors.extend(meta::immutable(&new.field("nodeAffinity"), &old.field("nodeAffinity")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: Value, old: Option<&Value>, expected: &[&str]) -> Value {
        let mut volume = json!({"metadata": {"name": "v"}, "spec": spec});
        default(&mut volume);
        let errors: Vec<String> = validate(&volume, old).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected);
        volume
    }

    #[test]
    fn a_volume_says_what_it_is_and_stays_so() {
        let host = |path: &str| json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": path}});
        let good = check(host("/x"), None, &[]);
        assert_eq!(good["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(modes(&json!(["ReadWriteMany", "ReadWriteOnce"])), "RWO,RWX");
        check(
            host("/y"),
            Some(&good),
            &["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"],
        );
        check(
            json!({}),
            None,
            &[
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.capacity: Required value",
                "spec: Required value: must specify a volume type",
            ],
        );
        check(
            json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/x/../y"},
                "persistentVolumeReclaimPolicy": "Burn", "nfs": {"path": "x"}}),
            None,
            &[
                "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Burn\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
                "spec.local.path: Invalid value: \"/x/../y\": must not contain '..'",
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ],
        );
    }
}
