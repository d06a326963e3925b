//! Validation of containers.

use super::{probes, volumes};
use crate::field::{At, Fault, FieldError, invalid_by};
use crate::{names, quantity};
use std::collections::HashSet;

/// Fields of the pod that the environment may take over, beside single labels and annotations.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Resources that the environment may take over.
const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// What is wrong with the containers of a spec that has volumes of these names.
pub fn validate(spec: &At<'_>, volumes: &HashSet<&str>) -> Vec<FieldError> {
    let containers = spec.field("containers");
    let mut errors = Vec::new();
    if containers.is_empty() {
        errors.push(containers.required(""));
    }
    let is_host_network = spec.field("hostNetwork").is_true();
    let mut seen = HashSet::new();
    let mut host_ports = HashSet::new();
    for (list, is_init) in [("containers", false), ("initContainers", true)] {
        for container in spec.field(list).items() {
            errors.extend(self::container(&container, volumes, is_init));
            let name = container.field("name");
            if !name.text().is_empty() && !seen.insert(name.text()) {
                errors.push(name.duplicate());
            }
            if !is_init {
                errors.extend(host_ports_of(&container, is_host_network, &mut host_ports));
            }
        }
    }
    errors
}

/// What is wrong with one container.
pub(super) fn container(container: &At<'_>, volumes: &HashSet<&str>, is_init: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (name, image) = (container.field("name"), container.field("image"));
    if name.text().is_empty() {
        errors.push(name.required(""));
    } else {
        errors.extend(invalid_by(&name, names::dns_label(name.text())));
    }
    if image.text().is_empty() {
        errors.push(image.required(""));
    } else if image.text().trim() != image.text() {
        errors.push(image.invalid("must not have leading or trailing whitespace"));
    }
    errors.extend(container.field("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"]));
    errors.extend(container.field("terminationMessagePolicy").one_of(&["FallbackToLogsOnError", "File"]));
    errors.extend(ports(&container.field("ports")));
    errors.extend(container.field("env").items().flat_map(|env| self::env(&env)));
    errors.extend(container.field("envFrom").items().flat_map(|source| env_from(&source)));
    errors.extend(volumes::mounts(container, volumes));
    errors.extend(resources(&container.field("resources")));
    errors.extend(probes::of_container(container, is_init));
    errors
}

fn ports(ports: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for port in ports.items() {
        let (name, number) = (port.field("name"), port.field("containerPort"));
        if !name.text().is_empty() {
            let faults = names::port(name.text());
            if faults.is_empty() && !seen.insert(name.text()) {
                errors.push(name.duplicate());
            }
            errors.extend(invalid_by(&name, faults));
        }
        match number.int() {
            None | Some(0) => errors.push(number.required("")),
            Some(value) => errors.extend(invalid_by(&number, names::port_number(value))),
        }
        let host = port.field("hostPort");
        if let Some(value) = host.int().filter(|value| *value != 0) {
            errors.extend(invalid_by(&host, names::port_number(value)));
        }
        errors.extend(port.field("protocol").one_of(&["SCTP", "TCP", "UDP"]));
    }
    errors
}

fn host_ports_of<'v>(
    container: &At<'v>,
    is_host_network: bool,
    seen: &mut HashSet<(&'v str, &'v str, i64)>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for port in container.field("ports").items() {
        let host = port.field("hostPort");
        let Some(number) = host.int().filter(|number| *number != 0) else { continue };
        let (protocol, ip) = (port.field("protocol").text(), port.field("hostIP").text());
        if !seen.insert((protocol, ip, number)) {
            errors.push(host.fault(Fault::Duplicate(format!("{protocol}/{ip}/{number}").into())));
        }
        if is_host_network && port.field("containerPort").int() != Some(number) {
            let why = "must match `hostPort` when `hostNetwork` is true";
            errors.push(port.field("containerPort").invalid(why));
        }
    }
    errors
}

fn env(env: &At<'_>) -> Vec<FieldError> {
    let name = env.field("name");
    let mut errors = Vec::new();
    if name.text().is_empty() {
        errors.push(name.required(""));
    } else {
        errors.extend(invalid_by(&name, names::env(name.text())));
    }
    let source = env.field("valueFrom");
    if !source.is_set() {
        return errors;
    }
    let empty = |why: &str| source.fault(Fault::Invalid("".into(), why.into()));
    if !env.field("value").text().is_empty() {
        errors.push(empty("may not be specified when `value` is not empty"));
    }
    match source.len() {
        0 => errors.push(empty(
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        )),
        1 => {}
        _ => errors.push(empty("may not have more than one field specified at a time")),
    }
    for reference in ["configMapKeyRef", "secretKeyRef"] {
        let reference = source.field(reference);
        if reference.is_set() {
            errors.extend(key_reference(&reference));
        }
    }
    if source.field("fieldRef").is_set() {
        errors.extend(field_reference(&source.field("fieldRef"), &ENV_FIELDS));
    }
    if source.field("resourceFieldRef").is_set() {
        errors.extend(resource_reference(&source.field("resourceFieldRef")));
    }
    errors
}

fn key_reference(reference: &At<'_>) -> Vec<FieldError> {
    let key = reference.field("key");
    let mut errors = Vec::new();
    if reference.field("name").text().is_empty() {
        errors.push(reference.field("name").required(""));
    }
    if key.text().is_empty() {
        errors.push(key.required(""));
    } else {
        errors.extend(invalid_by(&key, names::config_key(key.text())));
    }
    errors
}

/// A field of the pod, one of these or a single label or annotation.
pub(super) fn field_reference(reference: &At<'_>, known: &[&str]) -> Vec<FieldError> {
    let path = reference.field("fieldPath");
    if path.text().is_empty() {
        return vec![path.required("")];
    }
    if let Some((map, rest)) = path.text().split_once('[') {
        let key = rest.strip_suffix("']").and_then(|rest| rest.strip_prefix('\''));
        return match (map, key) {
            ("metadata.labels" | "metadata.annotations", Some(key)) => {
                invalid_by(&path, names::qualified(&key.to_lowercase())).collect()
            }
            ("metadata.labels" | "metadata.annotations", None) => {
                vec![path.invalid("error converting fieldPath: field label not supported")]
            }
            _ => vec![path.invalid("does not support subscript")],
        };
    }
    path.one_of(known).into_iter().collect()
}

/// A resource of a container.
pub(super) fn resource_reference(reference: &At<'_>) -> Vec<FieldError> {
    let resource = reference.field("resource");
    if resource.text().contains("hugepages-") {
        return Vec::new();
    }
    resource.one_of(&RESOURCE_FIELDS).into_iter().collect()
}

fn env_from(source: &At<'_>) -> Vec<FieldError> {
    let prefix = source.field("prefix");
    let mut errors = Vec::new();
    if !prefix.text().is_empty() {
        errors.extend(invalid_by(&prefix, names::env(prefix.text())));
    }
    let references = [source.field("configMapRef"), source.field("secretRef")];
    let empty = |why: &str| source.fault(Fault::Invalid("".into(), why.into()));
    match references.iter().filter(|reference| reference.is_set()).count() {
        0 => errors.push(empty("must specify one of: `configMapRef` or `secretRef`")),
        1 => {}
        _ => errors.push(empty("may not have more than one field specified at a time")),
    }
    for reference in references.iter().filter(|reference| reference.is_set()) {
        if reference.field("name").text().is_empty() {
            errors.push(reference.field("name").required(""));
        }
    }
    errors
}

fn resources(resources: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for side in ["limits", "requests"] {
        for (name, amount) in resources.field(side).entries() {
            let is_standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
            if !is_standard && !name.contains('/') {
                let why = "must be a standard resource for containers";
                errors.push(amount.fault(Fault::Invalid(name.into(), why.into())));
            } else if !is_standard {
                errors.extend(
                    names::qualified(name).into_iter().map(|why| amount.fault(Fault::Invalid(name.into(), why))),
                );
            }
            match parsed(&amount) {
                Some(parsed) if parsed.is_negative() => {
                    errors.push(amount.invalid("must be greater than or equal to 0"))
                }
                Some(parsed) if !is_standard && !parsed.is_whole() => errors.push(amount.invalid("must be an integer")),
                Some(_) => {}
                None => errors.push(amount.invalid(quantity::QuantityError::Format.to_string())),
            }
        }
    }
    let (limits, requests) = (resources.field("limits"), resources.field("requests"));
    for (name, request) in requests.entries() {
        let limit = limits.entries().find(|(limited, _)| *limited == name);
        let Some((_, limit)) = limit else { continue };
        if let (Some(asked), Some(limited)) = (parsed(&request), parsed(&limit))
            && asked > limited
        {
            let why = format!("must be less than or equal to {name} limit of {limited}");
            errors.push(requests.fault(Fault::Invalid(asked.to_string().into(), why)));
        }
    }
    errors
}

fn parsed(amount: &At<'_>) -> Option<quantity::Amount> {
    match amount.value {
        serde_json::Value::Number(number) => quantity::parse(&number.to_string()).ok(),
        _ => quantity::parse(amount.text()).ok(),
    }
}
