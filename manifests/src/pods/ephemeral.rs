//! Validation of ephemeral containers: what a pod gets added while it runs.

use super::containers;
use crate::field::{At, Fault, FieldError};
use std::collections::HashSet;

/// What an ephemeral container may say.
const FIELDS: [&str; 18] = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "name",
    "securityContext",
    "stdin",
    "stdinOnce",
    "targetContainerName",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
    // that it has none is filled in
    "resources",
];
const FORBIDDEN: &str = "cannot be set for an Ephemeral Container";

/// What is wrong with the ephemeral containers of `spec`; of `before` when the pod exists.
pub fn validate(spec: &At<'_>, before: Option<&At<'_>>) -> Vec<FieldError> {
    let list = spec.field("ephemeralContainers");
    let mut errors = Vec::new();
    let Some(before) = before else {
        if !list.is_empty() {
            errors.push(list.forbidden("cannot be set on create"));
        }
        return errors;
    };
    let volumes = spec.field("volumes");
    let volumes: HashSet<&str> = volumes.items().map(|volume| volume.field("name").text()).collect();
    let others = ["containers", "initContainers"];
    let others = others.iter().flat_map(|list| spec.field(list).items().map(|one| one.field("name").text()));
    let others: HashSet<&str> = others.collect();
    let mut seen = others.clone();
    for one in list.items() {
        errors.extend(container(&one, &volumes, &others));
        let name = one.field("name");
        if !name.text().is_empty() && !seen.insert(name.text()) {
            errors.push(name.duplicate());
        }
    }
    for old in before.field("ephemeralContainers").items() {
        let name = old.field("name").text();
        let kept = list.items().find(|one| one.field("name").text() == name);
        let what = match kept {
            None => "removed",
            Some(kept) if kept.value != old.value => "changed",
            Some(_) => continue,
        };
        errors.push(list.forbidden(&format!("existing ephemeral containers {name:?} may not be {what}\n")));
    }
    errors
}

fn container(one: &At<'_>, volumes: &HashSet<&str>, others: &HashSet<&str>) -> Vec<FieldError> {
    let mut errors = containers::container(one, volumes, false);
    for (name, field) in one.entries() {
        let is_empty = !field.is_set() || field.is_empty() && (field.value.is_array() || field.value.is_object());
        if !is_empty && (name == "resources" || !FIELDS.contains(&name)) {
            errors.push(one.field(name).forbidden(FORBIDDEN));
        }
    }
    for mount in one.field("volumeMounts").items() {
        for field in ["subPath", "subPathExpr"] {
            if !mount.field(field).text().is_empty() {
                errors.push(mount.field(field).forbidden(FORBIDDEN));
            }
        }
    }
    let target = one.field("targetContainerName");
    if !target.text().is_empty() && !others.contains(target.text()) {
        errors.push(target.fault(Fault::NotFound(target.text().into())));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn errors(old: Option<Value>, new: Value) -> Vec<String> {
        let pod = |containers: Value| {
            let containers = json!({"containers": [{"name": "web"}], "ephemeralContainers": containers});
            let mut pod = json!({"metadata": {"name": "p"}, "spec": containers});
            crate::pods::defaults::pod(&mut pod);
            pod
        };
        let (old, new) = (old.map(pod), pod(new));
        let before = old.as_ref().map(|old| At::root(old).field("spec"));
        validate(&At::root(&new).field("spec"), before.as_ref()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ephemeral_containers_are_only_added() {
        let one = json!([{"name": "a", "image": "x", "targetContainerName": "web", "resources": {}, "tty": true}]);
        let none = || Some(json!([]));
        assert_eq!(errors(none(), one.clone()), [""; 0]);
        assert_eq!(errors(Some(one.clone()), one.clone()), [""; 0]);
        assert_eq!(errors(None, one.clone()), ["spec.ephemeralContainers: Forbidden: cannot be set on create"]);
        let forbidden = "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be";
        assert_eq!(errors(Some(one.clone()), json!([])), [format!("{forbidden} removed\n")]);
        let other = json!([{"name": "a", "image": "y"}]);
        assert_eq!(errors(Some(one), other), [format!("{forbidden} changed\n")]);
        for (field, value, wanted) in [
            ("name", json!("web"), "name: Duplicate value: \"web\""),
            ("image", json!(""), "image: Required value"),
            ("targetContainerName", json!("x"), "targetContainerName: Not found: \"x\""),
            ("ports", json!([{"containerPort": 1}]), "ports: Forbidden: cannot be set for an Ephemeral Container"),
            (
                "resources",
                json!({"limits": {"cpu": "1"}}),
                "resources: Forbidden: cannot be set for an Ephemeral Container",
            ),
            ("restartPolicy", json!("Always"), "restartPolicy: Forbidden: cannot be set for an Ephemeral Container"),
        ] {
            let mut new = json!([{"name": "b", "image": "x"}]);
            new[0][field] = value;
            assert_eq!(errors(none(), new), [format!("spec.ephemeralContainers[0].{wanted}")], "{field}");
        }
    }
}
