//! `securityContext` of pod and container, as Docker takes it. What the container says goes before what the pod says.
//!
//! Pure. A Wasm guest has no users, capabilities or system calls that these could be about.

use k8s_openapi::api::core::v1::{Container, PodSpec, SELinuxOptions, SeccompProfile};
use runtime::docker::{DockerSecurity, Seccomp};
use std::path::Path;

/// The kubelet's directory of `localhostProfile` files, below the node's data directory.
const PROFILES_DIR: &str = "seccomp";
/// Bytes of a seccomp profile.
const PROFILE_BYTES_MAX: u64 = 1 << 20;

/// Why a container cannot be confined as asked: reason `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// A profile file that is not there.
    #[error("cannot load seccomp profile {path:?}")]
    Profile {
        /// As written in the spec.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Kubernetes allows Localhost, RuntimeDefault and Unconfined.
    #[error("unknown seccomp profile type {0:?}")]
    Type(String),
    /// The path leaves the directory of profiles.
    #[error("invalid seccomp profile path {0:?}: must be relative and must not contain '..'")]
    Path(String),
}

/// What Docker is told. `data_dir` holds the node's seccomp profiles.
pub fn security(spec: &PodSpec, container: &Container, data_dir: &Path) -> Result<DockerSecurity, SecurityError> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let capabilities = own.capabilities.unwrap_or_default();
    let profile = own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref());
    let apparmor = own.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref());
    let mut groups: Vec<i64> = pod.supplemental_groups.unwrap_or_default();
    groups.extend(pod.fs_group);
    Ok(DockerSecurity {
        user: own.run_as_user.or(pod.run_as_user),
        group: own.run_as_group.or(pod.run_as_group),
        supplemental_groups: groups,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        privileged: own.privileged == Some(true),
        read_only_root: own.read_only_root_filesystem == Some(true),
        allow_privilege_escalation: own.allow_privilege_escalation,
        seccomp: profile.map(|profile| seccomp(profile, data_dir)).transpose()?,
        apparmor: apparmor.and_then(|profile| match profile.type_.as_str() {
            "Unconfined" => Some("unconfined".into()),
            "Localhost" => profile.localhost_profile.clone(),
            _ => None,
        }),
        selinux: selinux(own.se_linux_options.or(pod.se_linux_options)),
        run_as_non_root: own.run_as_non_root.or(pod.run_as_non_root) == Some(true),
        proc_mount_unmasked: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

/// Docker's `label` options.
fn selinux(options: Option<SELinuxOptions>) -> Vec<String> {
    let options = options.unwrap_or_default();
    let named = [("user", options.user), ("role", options.role), ("type", options.type_), ("level", options.level)];
    named.into_iter().filter_map(|(name, value)| Some(format!("{name}:{}", value?))).collect()
}

fn seccomp(profile: &SeccompProfile, data_dir: &Path) -> Result<Seccomp, SecurityError> {
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => {
            let path = profile.localhost_profile.clone().unwrap_or_default();
            if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(SecurityError::Path(path));
            }
            let read = || -> std::io::Result<String> {
                use std::io::Read;
                let file = std::fs::File::open(data_dir.join(PROFILES_DIR).join(&path))?;
                let mut text = String::new();
                file.take(PROFILE_BYTES_MAX).read_to_string(&mut text)?;
                Ok(text)
            };
            read().map(Seccomp::Profile).map_err(|source| SecurityError::Profile { path, source })
        }
        other => Err(SecurityError::Type(other.into())),
    }
}
