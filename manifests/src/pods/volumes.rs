//! Validation of volumes and of the mounts that use them.

use super::containers::{field_reference, resource_reference};
use crate::field::{At, Fault, FieldError, invalid_by};
use crate::kinds::persistent_volume_claim;
use crate::{names, quantity};
use std::collections::HashSet;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const MODE_MAX: i64 = 0o777;
/// Fields of the pod that a file may show, beside single labels and annotations.
const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const PROPAGATIONS: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// The names of the volumes, and what is wrong with them.
pub fn validate<'v>(volumes: &At<'v>) -> (HashSet<&'v str>, Vec<FieldError>) {
    let mut names = HashSet::new();
    let mut errors = Vec::new();
    for volume in volumes.items() {
        let name = volume.field("name");
        if name.text().is_empty() {
            errors.push(name.required(""));
        } else {
            let faults = names::dns_label(name.text());
            if faults.is_empty() && !names.insert(name.text()) {
                errors.push(name.duplicate());
            }
            errors.extend(invalid_by(&name, faults));
        }
        errors.extend(source(&volume));
    }
    (names, errors)
}

fn source(volume: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kinds: Vec<&str> = volume
        .value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, source)| *name != "name" && !source.is_null())
        .map(|(name, _)| name.as_str())
        .collect();
    if kinds.is_empty() {
        errors.push(volume.required("must specify a volume type"));
    }
    for more in kinds.iter().skip(1) {
        errors.push(volume.field(more).forbidden("may not specify more than 1 volume type"));
    }
    let Some(kind) = kinds.first() else { return errors };
    let source = volume.field(kind);
    match *kind {
        "hostPath" => errors.extend(host_path(&source)),
        "nfs" => errors.extend(nfs(&source)),
        "emptyDir" => errors.extend(empty_dir(&source)),
        "ephemeral" => errors.extend(ephemeral(&source)),
        "secret" => errors.extend(keyed(&source, "secretName")),
        "configMap" => errors.extend(keyed(&source, "name")),
        "downwardAPI" => errors.extend(downward(&source)),
        "projected" => errors.extend(projected(&source)),
        "persistentVolumeClaim" if source.field("claimName").text().is_empty() => {
            errors.push(source.field("claimName").required(""));
        }
        _ => {}
    }
    errors
}

/// What is wrong with a directory or file of the node, of a pod or a volume.
pub(crate) fn host_path(source: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = source.field("path");
    if path.text().is_empty() {
        errors.push(path.required(""));
    } else if path.text().split('/').any(|part| part == "..") {
        errors.push(path.invalid("must not contain '..'"));
    }
    if !HOST_PATH_TYPES.contains(&source.field("type").text()) {
        errors.push(source.field("type").not_supported(&HOST_PATH_TYPES));
    }
    errors
}

/// What is wrong with a network file system, of a pod or a volume.
pub(crate) fn nfs(source: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if source.field("server").text().is_empty() {
        errors.push(source.field("server").required(""));
    }
    let path = source.field("path");
    if path.text().is_empty() {
        errors.push(path.required(""));
    } else if !path.text().starts_with('/') {
        errors.push(path.invalid("must be an absolute path"));
    }
    errors
}

fn empty_dir(source: &At<'_>) -> Option<FieldError> {
    let limit = source.field("sizeLimit");
    let bad = |amount: Result<quantity::Amount, _>| amount.map_or(true, |amount| amount.is_negative());
    (limit.is_set() && bad(quantity::parse(&text_of(limit.value))))
        .then(|| limit.forbidden("SizeLimit field must be a valid resource quantity"))
}

fn text_of(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn ephemeral(source: &At<'_>) -> Vec<FieldError> {
    let template = source.field("volumeClaimTemplate");
    match template.is_set() {
        false => vec![template.required("")],
        true => persistent_volume_claim::spec(&template.field("spec")),
    }
}

fn mode(mode: &At<'_>) -> Option<FieldError> {
    mode.int().filter(|number| !(0..=MODE_MAX).contains(number)).map(|_| mode.invalid(MODE))
}

/// A ConfigMap's or Secret's files.
fn keyed(source: &At<'_>, name: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if source.field(name).text().is_empty() {
        errors.push(source.field(name).required(""));
    }
    errors.extend(mode(&source.field("defaultMode")));
    for item in source.field("items").items() {
        if item.field("key").text().is_empty() {
            errors.push(item.field("key").required(""));
        }
        errors.extend(file_path(&item.field("path")));
        errors.extend(mode(&item.field("mode")));
    }
    errors
}

fn downward(source: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = mode(&source.field("defaultMode")).into_iter().collect();
    for item in source.field("items").items() {
        errors.extend(file_path(&item.field("path")));
        errors.extend(mode(&item.field("mode")));
        let (field, resource) = (item.field("fieldRef"), item.field("resourceFieldRef"));
        match (field.is_set(), resource.is_set()) {
            (true, true) => {
                errors.push(item.invalid("fieldRef and resourceFieldRef can not be specified simultaneously"));
            }
            (true, false) => errors.extend(field_reference(&field, &FILE_FIELDS)),
            (false, true) => {
                if resource.field("containerName").text().is_empty() {
                    errors.push(resource.field("containerName").required(""));
                }
                errors.extend(resource_reference(&resource));
            }
            (false, false) => errors.push(item.required("one of fieldRef and resourceFieldRef is required")),
        }
    }
    errors
}

fn projected(source: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = mode(&source.field("defaultMode")).into_iter().collect();
    for part in source.field("sources").items() {
        if part.len() > 1 {
            errors.push(part.forbidden("may not specify more than 1 volume type per source"));
        }
        for name in ["configMap", "secret"] {
            if part.field(name).is_set() {
                errors.extend(keyed(&part.field(name), "name"));
            }
        }
        if part.field("downwardAPI").is_set() {
            errors.extend(downward(&part.field("downwardAPI")));
        }
        let token = part.field("serviceAccountToken");
        if token.is_set() {
            errors.extend(file_path(&token.field("path")));
            let seconds = token.field("expirationSeconds");
            if seconds.int().is_some_and(|seconds| seconds < 600) {
                errors.push(seconds.invalid("may not specify a duration less than 10 minutes"));
            }
        }
    }
    errors
}

/// `recursiveReadOnly` goes with a read-only mount that nothing is propagated into.
fn recursive(mount: &At<'_>) -> Vec<FieldError> {
    let recursive = mount.field("recursiveReadOnly");
    let mut errors = Vec::new();
    if recursive.is_set() {
        errors.extend(recursive.one_of(&["Disabled", "Enabled", "IfPossible"]));
    }
    if matches!(recursive.text(), "Enabled" | "IfPossible") {
        if !mount.field("readOnly").is_true() {
            errors.push(recursive.forbidden("may only be specified when readOnly is true"));
        }
        if !matches!(mount.field("mountPropagation").text(), "" | "None") {
            let why = "may only be specified when mountPropagation is None or not specified";
            errors.push(recursive.forbidden(why));
        }
    }
    errors
}

/// A path below a directory, of a file that must have one.
fn file_path(path: &At<'_>) -> Vec<FieldError> {
    if path.text().is_empty() {
        return vec![path.required("")];
    }
    let mut errors = descending(path);
    if errors.is_empty() && path.text().starts_with("..") {
        errors.push(path.invalid("must not start with '..'"));
    }
    errors
}

fn descending(path: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if path.text().starts_with('/') {
        errors.push(path.invalid("must be a relative path"));
    }
    if path.text().split('/').any(|part| part == "..") {
        errors.push(path.invalid("must not contain '..'"));
    }
    errors
}

/// What is wrong with a container's mounts of volumes of these names.
pub fn mounts(container: &At<'_>, volumes: &HashSet<&str>) -> Vec<FieldError> {
    let mounts = container.field("volumeMounts");
    let is_privileged = container.fields(&["securityContext", "privileged"]).is_true();
    let mut errors = Vec::new();
    let mut paths = HashSet::new();
    for mount in mounts.items() {
        let (name, path) = (mount.field("name"), mount.field("mountPath"));
        if name.text().is_empty() {
            errors.push(name.required(""));
        } else if !volumes.contains(name.text()) {
            errors.push(name.fault(Fault::NotFound(name.value.clone())));
        }
        if path.text().is_empty() {
            errors.push(path.required(""));
        } else if !paths.insert(path.text()) {
            errors.push(path.invalid("must be unique"));
        }
        let propagation = mount.field("mountPropagation");
        if propagation.is_set() {
            errors.extend(propagation.one_of(&PROPAGATIONS));
        }
        if propagation.text() == "Bidirectional" && !is_privileged {
            errors.push(
                propagation.forbidden("Bidirectional mount propagation is available only to privileged containers"),
            );
        }
        errors.extend(recursive(&mount));
        let (sub, expression) = (mount.field("subPath"), mount.field("subPathExpr"));
        errors.extend(descending(&sub));
        errors.extend(descending(&expression));
        if !sub.text().is_empty() && !expression.text().is_empty() {
            errors.push(expression.invalid("subPathExpr and subPath are mutually exclusive"));
        }
    }
    errors
}
