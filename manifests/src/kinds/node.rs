//! Nodes.

use super::cells::{AGE, NAME, NONE, UNKNOWN, column, holds, items, text, text_or, wide};
use crate::field::{At, FieldError};
use crate::{Column, Kind, fill, meta, names};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Node`.
pub(super) const NODE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    subresources: &["status"],
    volatile: false,
    counts_generation: false,
    columns: &[
        NAME,
        STATUS,
        ROLES,
        AGE,
        VERSION,
        INTERNAL_IP,
        EXTERNAL_IP,
        OS_IMAGE,
        KERNEL_VERSION,
        CONTAINER_RUNTIME,
    ],
    selectable: &["spec.unschedulable"],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::core::v1::Node>,
};

const STATUS: Column = column("Status", "string", "The status of the node", |object, _| {
    let is_told = items(&object["status"]["conditions"]).iter().any(|condition| condition["type"] == "Ready");
    let mut status = match (is_told, holds(object, "Ready")) {
        (false, _) => "Unknown".to_owned(),
        (true, true) => "Ready".to_owned(),
        (true, false) => "NotReady".to_owned(),
    };
    if object["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status.into()
});
const ROLES: Column = column("Roles", "string", "The roles of the node", |object, _| roles(object).into());
const VERSION: Column = column("Version", "string", "Kubelet Version reported by the node.", |object, _| {
    text(&object["status"]["nodeInfo"]["kubeletVersion"]).into()
});
const INTERNAL_IP: Column =
    wide("Internal-IP", "string", "Address inside the cluster.", |object, _| address(object, "InternalIP").into());
const EXTERNAL_IP: Column =
    wide("External-IP", "string", "Address outside the cluster.", |object, _| address(object, "ExternalIP").into());
const OS_IMAGE: Column =
    wide("OS-Image", "string", "OS Image reported by the node.", |object, _| info(object, "osImage"));
const KERNEL_VERSION: Column =
    wide("Kernel-Version", "string", "Kernel Version reported by the node.", |object, _| info(object, "kernelVersion"));
const CONTAINER_RUNTIME: Column = wide("Container-Runtime", "string", "Container runtime of the node.", |object, _| {
    info(object, "containerRuntimeVersion")
});

fn info(object: &Value, field: &str) -> Value {
    text_or(&object["status"]["nodeInfo"][field], UNKNOWN).into()
}

fn address<'v>(object: &'v Value, kind: &str) -> &'v str {
    let found = items(&object["status"]["addresses"]).iter().find(|address| address["type"] == kind);
    found.map_or(NONE, |address| text(&address["address"]))
}

fn roles(object: &Value) -> String {
    let mut roles: Vec<&str> = Vec::new();
    for (label, value) in object["metadata"]["labels"].as_object().into_iter().flatten() {
        if let Some(role) = label.strip_prefix("node-role.kubernetes.io/").filter(|role| !role.is_empty()) {
            roles.push(role);
        } else if label == "kubernetes.io/role" && !text(value).is_empty() {
            roles.push(text(value));
        }
    }
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) else { return };
    for side in ["capacity", "allocatable"] {
        fill::fields(status, side).into_iter().flat_map(|amounts| amounts.values_mut()).for_each(fill::canonical);
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    for taint in At::root(new).fields(&["spec", "taints"]).items() {
        let key = taint.field("key");
        errors.extend(crate::field::invalid_by(&key, names::qualified(key.text())));
        let value = taint.field("value");
        errors.extend(crate::field::invalid_by(&value, names::label_value(value.text())));
        errors.extend(taint.field("effect").one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"]));
    }
    errors.extend(doubles(new));
    let spec = At::root(new).field("spec");
    let parts = |value: &Value| -> Vec<String> {
        items(&value["spec"]["podCIDRs"]).iter().map(|part| text(part).to_owned()).collect()
    };
    if let Some(old) = old.map(parts).filter(|old| !old.is_empty())
        && old != parts(new)
    {
        errors.push(spec.field("podCIDRs").forbidden("node updates may not change podCIDR except from \"\" to valid"));
    }
    errors
}

/// Taints that are there twice.
fn doubles(node: &Value) -> Vec<FieldError> {
    let taints: Vec<At<'_>> = At::root(node).fields(&["spec", "taints"]).items().collect();
    let same = |a: &At<'_>, b: &At<'_>| ["key", "effect"].iter().all(|part| a.value[*part] == b.value[*part]);
    let is_double = |index: &usize| taints[..*index].iter().any(|earlier| same(earlier, &taints[*index]));
    (0..taints.len()).filter(is_double).map(|index| taints[index].duplicate()).collect()
}
