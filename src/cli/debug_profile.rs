//! The profiles of `debug`: what a debugging container may do, and what its pod shares with it. No requests here.

use serde_json::{Value, json};

/// What `--profile` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// kubectl's first behaviour, still its default.
    Legacy,
    /// A reasonable set for most journeys.
    General,
    /// Within the Baseline pod security standard.
    Baseline,
    /// Within the Restricted pod security standard.
    Restricted,
    /// For network troubles.
    Netadmin,
    /// All there is.
    Sysadmin,
}

/// Where the debugging container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// An ephemeral container of a pod that runs.
    Ephemeral,
    /// A container of a copy of a pod.
    Copy,
    /// The container of a pod made for a node.
    Node,
}

/// What a copy keeps of its original, by the flags `--keep-...`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keep {
    /// Labels.
    pub labels: bool,
    /// Annotations.
    pub annotations: bool,
    /// Liveness probes.
    pub liveness: bool,
    /// Readiness probes.
    pub readiness: bool,
    /// Startup probes.
    pub startup: bool,
    /// Init containers.
    pub init_containers: bool,
}

impl Profile {
    /// Reads `--profile`.
    pub fn parse(text: &str) -> Option<Profile> {
        Some(match text {
            "" | "legacy" => Profile::Legacy,
            "general" => Profile::General,
            "baseline" => Profile::Baseline,
            "restricted" => Profile::Restricted,
            "netadmin" => Profile::Netadmin,
            "sysadmin" => Profile::Sysadmin,
            _ => return None,
        })
    }

    /// Gives the debugging container its rights.
    pub fn secure(self, container: &mut Value, style: Style) {
        match self {
            Profile::Legacy => {}
            // On a node the host's namespaces do the work.
            Profile::General if style == Style::Node => clear(container),
            Profile::General => add_capabilities(container, &["SYS_PTRACE"]),
            Profile::Baseline => clear(container),
            Profile::Restricted => {
                container["securityContext"] = json!({
                    "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
                    "allowPrivilegeEscalation": false, "seccompProfile": {"type": "RuntimeDefault"},
                });
            }
            Profile::Netadmin => add_capabilities(container, &["NET_ADMIN", "NET_RAW"]),
            Profile::Sysadmin => container["securityContext"]["privileged"] = true.into(),
        }
    }

    /// Whether a node's debugging pod sees the node's file system, at `/host`.
    pub fn mounts_root(self) -> bool {
        matches!(self, Profile::Legacy | Profile::General | Profile::Sysadmin)
    }

    /// Whether a node's debugging pod shares the node's network, processes and IPC.
    pub fn uses_host_namespaces(self) -> bool {
        self.mounts_root() || self == Profile::Netadmin
    }

    /// Makes a copied pod one to look into: nothing else answers for it, and its processes are seen.
    pub fn prepare_copy(self, pod: &mut Value, keep: Keep) {
        if let Some(metadata) = pod["metadata"].as_object_mut() {
            if !keep.labels {
                metadata.remove("labels");
            }
            if !keep.annotations && self != Profile::Legacy {
                metadata.remove("annotations");
            }
        }
        if self == Profile::Legacy {
            return;
        }
        let probes =
            [("livenessProbe", keep.liveness), ("readinessProbe", keep.readiness), ("startupProbe", keep.startup)];
        for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            for (probe, keep) in probes {
                if !keep {
                    container.remove(probe);
                }
            }
        }
        if !keep.init_containers
            && let Some(spec) = pod["spec"].as_object_mut()
        {
            spec.remove("initContainers");
        }
        if pod["spec"]["shareProcessNamespace"].is_null() {
            pod["spec"]["shareProcessNamespace"] = true.into();
        }
    }
}

fn clear(container: &mut Value) {
    if let Some(container) = container.as_object_mut() {
        container.remove("securityContext");
    }
}

fn add_capabilities(container: &mut Value, names: &[&str]) {
    let list = &mut container["securityContext"]["capabilities"]["add"];
    if !list.is_array() {
        *list = json!([]);
    }
    for name in names {
        if let Some(list) = list.as_array_mut()
            && !list.iter().any(|known| known == name)
        {
            list.push((*name).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights() {
        let check = |name: &str, style, expected: Value| {
            let mut container = json!({"name": "d"});
            Profile::parse(name).unwrap().secure(&mut container, style);
            assert_eq!(container["securityContext"], expected, "{name} {style:?}");
        };
        let restricted = json!({
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        for style in [Style::Ephemeral, Style::Copy, Style::Node] {
            check("legacy", style, Value::Null);
            check("baseline", style, Value::Null);
            check("restricted", style, restricted.clone());
            check("netadmin", style, json!({"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}}));
            check("sysadmin", style, json!({"privileged": true}));
        }
        check("general", Style::Ephemeral, json!({"capabilities": {"add": ["SYS_PTRACE"]}}));
        check("general", Style::Copy, json!({"capabilities": {"add": ["SYS_PTRACE"]}}));
        check("general", Style::Node, Value::Null);
        assert_eq!(Profile::parse("foo"), None);
    }

    #[test]
    fn an_existing_containers_rights_are_added_to() {
        let mut container = json!({"securityContext": {"runAsUser": 5, "capabilities": {"add": ["SYS_PTRACE"]}}});
        Profile::General.secure(&mut container, Style::Copy);
        assert_eq!(container["securityContext"], json!({"runAsUser": 5, "capabilities": {"add": ["SYS_PTRACE"]}}));
    }
}
