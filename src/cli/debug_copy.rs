//! The objects that `debug` makes: an ephemeral container, a copy of a pod, a pod for a node. No requests here.

use serde_json::{Map, Value, json};

use super::debug_profile::{Keep, Profile, Style};
use super::failure::{Result, fail};

/// What the flags say about the debugging container.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its image; empty if an existing container of a copy keeps its own.
    pub image: String,
    /// `imagePullPolicy`, if given.
    pub pull_policy: Option<String>,
    /// What it runs; empty for the image's own.
    pub args: Vec<String>,
    /// Whether those are arguments of the image's command.
    pub arguments_only: bool,
    /// Name and value pairs.
    pub env: Vec<(String, String)>,
    /// Its stdin stays open.
    pub stdin: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Its rights.
    pub profile: Profile,
}

/// What the flags say about the copy of a pod.
#[derive(Debug, Clone, Default)]
pub struct CopyWanted {
    /// Its name.
    pub name: String,
    /// Images by container name; `*` is all others.
    pub set_images: Vec<(String, String)>,
    /// It goes where the original is.
    pub same_node: bool,
    /// `--share-processes`, if given.
    pub share_processes: Option<bool>,
    /// What is kept.
    pub keep: Keep,
}

impl Wanted {
    /// Lays the flags over a container.
    fn dress(&self, container: &mut Value) {
        if !self.args.is_empty() {
            let (field, other) = if self.arguments_only { ("args", None) } else { ("command", Some("args")) };
            container[field] = self.args.clone().into();
            if let (Some(other), Some(container)) = (other, container.as_object_mut()) {
                container.remove(other);
            }
        }
        if !self.env.is_empty() {
            let env = self.env.iter().map(|(name, value)| json!({"name": name, "value": value}));
            container["env"] = env.collect();
        }
        if !self.image.is_empty() {
            container["image"] = self.image.clone().into();
        }
        if let Some(policy) = &self.pull_policy {
            container["imagePullPolicy"] = policy.clone().into();
        }
        for (field, on) in [("stdin", self.stdin), ("tty", self.tty)] {
            match (on, container.as_object_mut()) {
                (true, _) => container[field] = true.into(),
                (false, Some(container)) => drop(container.remove(field)),
                (false, None) => {}
            }
        }
    }

    fn fresh(&self, name: &str) -> Value {
        let mut container = json!({"name": name, "resources": {}, "terminationMessagePolicy": "File"});
        self.dress(&mut container);
        container
    }
}

/// A patch that adds an ephemeral container to a pod.
pub fn ephemeral_patch(pod: &Value, wanted: &Wanted, name: &str, target: Option<&str>) -> Value {
    let mut container = wanted.fresh(name);
    if let Some(target) = target {
        container["targetContainerName"] = target.into();
    }
    wanted.profile.secure(&mut container, Style::Ephemeral);
    let existing = pod["spec"]["ephemeralContainers"].as_array().into_iter().flatten();
    let order: Vec<Value> =
        existing.map(|container| json!({"name": container["name"]})).chain([json!({"name": name})]).collect();
    json!({"spec": {"$setElementOrder/ephemeralContainers": order, "ephemeralContainers": [container]}})
}

/// A pod on a node, that sees what its profile lets it see.
pub fn node_pod(node: &str, wanted: &Wanted, pod_name: &str, name: &str) -> Value {
    let mut container = wanted.fresh(name);
    wanted.profile.secure(&mut container, Style::Node);
    let mut spec = json!({
        "nodeName": node, "restartPolicy": "Never", "tolerations": [{"operator": "Exists"}],
    });
    if wanted.profile.mounts_root() {
        container["volumeMounts"] = json!([{"mountPath": "/host", "name": "host-root"}]);
        spec["volumes"] = json!([{"name": "host-root", "hostPath": {"path": "/"}}]);
    }
    if wanted.profile.uses_host_namespaces() {
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            spec[field] = true.into();
        }
    }
    spec["containers"] = json!([container]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name}, "spec": spec})
}

/// A copy of a pod with a debugging container: one more, or one of its own changed. `name` is asked for only if it is needed.
/// The second value is that container's name; none if only images were changed.
pub fn pod_copy(
    pod: &Value,
    wanted: &Wanted,
    copy: &CopyWanted,
    container: Option<&str>,
    name: impl FnOnce() -> String,
) -> Result<(Value, Option<String>)> {
    let mut spec = pod["spec"].as_object().cloned().unwrap_or_default();
    spec.remove("ephemeralContainers");
    if !copy.same_node {
        spec.remove("nodeName");
    }
    if let Some(share) = copy.share_processes {
        spec.insert("shareProcessNamespace".into(), share.into());
    }
    let mut metadata = Map::new();
    for field in ["namespace", "labels", "annotations"] {
        if let Some(value) = pod["metadata"].get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    metadata.insert("name".into(), copy.name.clone().into());
    let mut out = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    set_images(&mut out, &copy.set_images);

    let containers = out["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let at = containers.iter().position(|known| container.is_some_and(|name| known["name"] == name));
    let mut debugger = match at {
        Some(at) => containers[at].clone(),
        None if wanted.image.is_empty() && !copy.set_images.is_empty() => return Ok((out, None)),
        None if wanted.image.is_empty() => return fail("you must specify image when creating new container"),
        None => json!({
            "name": container.map_or_else(name, str::to_string), "resources": {}, "terminationMessagePolicy": "File",
        }),
    };
    wanted.dress(&mut debugger);
    wanted.profile.secure(&mut debugger, Style::Copy);
    let debugger_name = debugger["name"].as_str().map(str::to_string);
    if let Some(list) = out["spec"]["containers"].as_array_mut() {
        match at.and_then(|at| list.get_mut(at)) {
            Some(place) => *place = debugger,
            None => list.push(debugger),
        }
    }
    wanted.profile.prepare_copy(&mut out, copy.keep);
    Ok((out, debugger_name))
}

fn set_images(pod: &mut Value, images: &[(String, String)]) {
    let image_of = |name: &str| images.iter().rev().find(|(known, _)| known == name).map(|(_, image)| image.clone());
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        let name = container["name"].as_str().unwrap_or_default();
        if let Some(image) = image_of(name).or_else(|| image_of("*")) {
            container["image"] = image.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(profile: Profile, args: &[&str]) -> Wanted {
        Wanted {
            image: "busybox".into(),
            pull_policy: None,
            args: args.iter().map(ToString::to_string).collect(),
            arguments_only: false,
            env: Vec::new(),
            stdin: false,
            tty: false,
            profile,
        }
    }

    fn pod() -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}, "annotations": {"k": "v"}},
            "spec": {
                "nodeName": "node-1", "initContainers": [{"name": "ini"}], "ephemeralContainers": [{"name": "old"}],
                "containers": [
                    {"name": "a", "image": "i:1", "command": ["x"], "args": ["y"], "livenessProbe": {}, "readinessProbe": {}},
                    {"name": "b", "image": "i:2"},
                ],
            },
            "status": {"phase": "Running"},
        })
    }

    fn copy(container: Option<&str>, wanted: &Wanted, copy: CopyWanted) -> (Value, Option<String>) {
        pod_copy(&pod(), wanted, &copy, container, || "debugger-1".into()).unwrap()
    }

    #[test]
    fn an_ephemeral_container() {
        let patch = ephemeral_patch(&pod(), &wanted(Profile::General, &["sh"]), "d", Some("a"));
        assert_eq!(
            patch,
            json!({"spec": {
                "$setElementOrder/ephemeralContainers": [{"name": "old"}, {"name": "d"}],
                "ephemeralContainers": [{
                    "name": "d", "image": "busybox", "command": ["sh"], "targetContainerName": "a", "resources": {},
                    "terminationMessagePolicy": "File", "securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}},
                }],
            }})
        );
    }

    #[test]
    fn a_copy_with_one_more_container() {
        let keep = Keep { init_containers: true, ..Default::default() };
        let named = CopyWanted { name: "q".into(), keep, ..Default::default() };
        let (made, name) = copy(None, &wanted(Profile::General, &[]), named.clone());
        assert_eq!(name.as_deref(), Some("debugger-1"));
        assert_eq!(made["metadata"], json!({"name": "q", "namespace": "n"}));
        let spec = &made["spec"];
        assert_eq!(spec["shareProcessNamespace"], true);
        assert!(spec["nodeName"].is_null() && spec["ephemeralContainers"].is_null() && made["status"].is_null());
        assert_eq!(spec["initContainers"], json!([{"name": "ini"}]));
        assert_eq!(spec["containers"][0], json!({"name": "a", "image": "i:1", "command": ["x"], "args": ["y"]}));
        assert_eq!(spec["containers"][2]["image"], "busybox");

        let (made, _) = copy(None, &wanted(Profile::Legacy, &[]), CopyWanted { same_node: true, ..named.clone() });
        assert_eq!(made["metadata"], json!({"name": "q", "namespace": "n", "annotations": {"k": "v"}}));
        assert_eq!(made["spec"]["nodeName"], "node-1");
        assert!(made["spec"]["shareProcessNamespace"].is_null());
        assert!(made["spec"]["containers"][0]["livenessProbe"].is_object());

        let share = CopyWanted { share_processes: Some(false), ..named };
        let (made, _) = copy(Some("d"), &wanted(Profile::Baseline, &[]), share);
        assert_eq!(made["spec"]["shareProcessNamespace"], false);
        assert_eq!(made["spec"]["containers"][2]["name"], "d");
    }

    #[test]
    fn a_copy_with_a_changed_container() {
        let named = CopyWanted { name: "q".into(), ..Default::default() };
        let own_image = Wanted { image: String::new(), ..wanted(Profile::Legacy, &["sleep", "5"]) };
        let (made, name) = copy(Some("a"), &own_image, named.clone());
        assert_eq!(name.as_deref(), Some("a"));
        let container = &made["spec"]["containers"][0];
        assert_eq!((&container["command"], &container["image"]), (&json!(["sleep", "5"]), &json!("i:1")));
        assert!(container["args"].is_null());

        let images =
            CopyWanted { set_images: vec![("*".into(), "x".into()), ("b".into(), "y".into())], ..named.clone() };
        let only_images = Wanted { args: Vec::new(), ..own_image.clone() };
        let (made, name) = copy(None, &only_images, images);
        assert_eq!(name, None);
        assert_eq!(made["spec"]["containers"][0]["image"], "x");
        assert_eq!(made["spec"]["containers"][1]["image"], "y");
        assert_eq!(made["metadata"]["labels"], json!({"app": "x"}));

        let missing = pod_copy(&pod(), &own_image, &named, Some("zzz"), String::new).unwrap_err();
        assert_eq!(missing.message(), "error: you must specify image when creating new container");
    }

    #[test]
    fn a_pod_for_a_node() {
        let made = node_pod("node-1", &wanted(Profile::Legacy, &[]), "node-debugger-node-1-x", "debugger");
        assert_eq!(made["spec"]["volumes"], json!([{"name": "host-root", "hostPath": {"path": "/"}}]));
        assert_eq!(made["spec"]["hostPID"], true);
        assert_eq!(made["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], "/host");
        let made = node_pod("node-1", &wanted(Profile::Netadmin, &[]), "x", "debugger");
        assert!(made["spec"]["volumes"].is_null());
        assert_eq!(made["spec"]["hostNetwork"], true);
        let made = node_pod("node-1", &wanted(Profile::Restricted, &[]), "x", "debugger");
        assert!(made["spec"]["hostNetwork"].is_null());
        assert_eq!(made["spec"]["tolerations"], json!([{"operator": "Exists"}]));
    }
}
