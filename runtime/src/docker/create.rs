//! A container's specification in Docker's words.
//!
//! Pure: what Kubernetes means by each field, and what the kubelet refuses.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, DeviceMapping, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum as Propagation, MountType,
};

use super::error::DockerError;
use super::spec::{DockerContainerSpec, DockerMount, DockerResources, Seccomp};

/// Bounds of a container's log, Docker's words for [`crate::logs::LogLimits`]' defaults.
const LOG_FILE_BYTES_MAX: &str = "10m";
const LOG_FILES_MAX: &str = "5";
/// Shares of the CPU that stand for a core, and the fewest there are.
const CPU_SHARES_PER_CORE: u64 = 1024;
const CPU_SHARES_MIN: u64 = 2;
/// The period of CPU limits, and the least time of it that the kernel accepts.
const CPU_PERIOD_US: u64 = 100_000;
const CPU_QUOTA_US_MIN: u64 = 1_000;

/// The container's name in Docker.
pub(super) fn name(spec: &DockerContainerSpec) -> String {
    let DockerContainerSpec { pod, name, attempt, .. } = spec;
    format!("coracle_{name}_{}_{}_{}_{attempt}", pod.name, pod.namespace, pod.uid)
}

/// Whether the image's user has to be known.
pub(super) fn needs_image_user(spec: &DockerContainerSpec) -> bool {
    let security = &spec.security;
    security.user.is_none() && (security.run_as_non_root || security.group.is_some())
}

/// The user to run as; `None` is the image's. `image_user` is the image's, where [`needs_image_user`].
pub(super) fn user(spec: &DockerContainerSpec, image_user: &str) -> Result<Option<String>, DockerError> {
    let security = &spec.security;
    let who = || format!("(pod: \"{}\", container: {})", spec.pod.kubelet(), spec.name);
    let refuse = |text: String| Err(DockerError::Config { detail: format!("{text} {}", who()) });
    let image_user = image_user.split(':').next().unwrap_or_default();
    if security.run_as_non_root {
        match (security.user, image_user.parse::<i64>()) {
            (Some(0), _) => return refuse("container's runAsUser breaks non-root policy".to_owned()),
            (Some(_), _) => {}
            (None, Ok(0)) => return refuse("container has runAsNonRoot and image will run as root".to_owned()),
            (None, Err(_)) if image_user.is_empty() => {
                return refuse("container has runAsNonRoot and image will run as root".to_owned());
            }
            (None, Ok(_)) => {}
            (None, Err(_)) => {
                return refuse(format!(
                    "container has runAsNonRoot and image has non-numeric user ({image_user}), \
                     cannot verify user is non-root"
                ));
            }
        }
    }
    let user = match (security.user, security.group) {
        (Some(user), _) => user.to_string(),
        (None, None) => return Ok(None),
        (None, Some(_)) if image_user.is_empty() => "0".to_owned(),
        (None, Some(_)) => image_user.to_owned(),
    };
    Ok(Some(match security.group {
        Some(group) => format!("{user}:{group}"),
        None => user,
    }))
}

/// All of it. `user` from [`user`], `share_pid_of` the id behind that of the specification.
pub(super) fn body(
    spec: DockerContainerSpec,
    user: Option<String>,
    share_pid_of: Option<String>,
    labels: HashMap<String, String>,
) -> Result<ContainerCreateBody, DockerError> {
    let host_config = host_config(&spec, share_pid_of)?;
    // Kubernetes: a command replaces entrypoint and command of the image, arguments its command only.
    let entrypoint = (!spec.command.is_empty()).then_some(spec.command);
    let cmd = (!spec.args.is_empty() || entrypoint.is_some()).then_some(spec.args);
    Ok(ContainerCreateBody {
        image: Some(spec.image),
        entrypoint,
        cmd,
        env: Some(spec.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: spec.working_dir,
        user,
        tty: Some(spec.tty),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin_once),
        stop_signal: spec.stop_signal,
        // Probes are the agent's.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        labels: Some(labels),
        host_config: Some(host_config),
        ..Default::default()
    })
}

fn host_config(spec: &DockerContainerSpec, share_pid_of: Option<String>) -> Result<HostConfig, DockerError> {
    let security = &spec.security;
    let of = |id: &str| format!("container:{id}");
    let sandbox = spec.sandbox_id.as_deref().map(of);
    let host = || "host".to_owned();
    let pid_mode = match (share_pid_of, spec.host_pid, spec.share_processes) {
        (Some(target), _, _) => Some(of(&target)),
        (None, true, _) => Some(host()),
        (None, false, true) => sandbox.clone(),
        (None, false, false) => None,
    };
    let unmasked = || security.proc_mount_unmasked.then(Vec::new);
    let mounts: Result<Vec<Mount>, DockerError> = spec.mounts.iter().map(mount).collect();
    let mut host_config = HostConfig {
        network_mode: Some(sandbox.clone().unwrap_or_else(|| "none".to_owned())),
        ipc_mode: if spec.host_ipc { Some(host()) } else { sandbox },
        pid_mode,
        mounts: Some(mounts?),
        devices: Some(
            spec.devices
                .iter()
                .map(|device| DeviceMapping {
                    path_on_host: Some(device.host.to_string_lossy().into_owned()),
                    path_in_container: Some(device.container.clone()),
                    cgroup_permissions: Some(device.permissions.clone()),
                })
                .collect(),
        ),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), LOG_FILE_BYTES_MAX.to_owned()),
                ("max-file".to_owned(), LOG_FILES_MAX.to_owned()),
            ])),
        }),
        cap_add: Some(security.add_capabilities.clone()),
        cap_drop: Some(security.drop_capabilities.clone()),
        group_add: Some(security.supplemental_groups.iter().map(i64::to_string).collect()),
        privileged: Some(security.privileged),
        readonly_rootfs: Some(security.read_only_root),
        security_opt: Some(security_options(spec)),
        masked_paths: unmasked(),
        readonly_paths: unmasked(),
        ..Default::default()
    };
    limit(&mut host_config, &spec.resources);
    Ok(host_config)
}

fn limit(host_config: &mut HostConfig, resources: &DockerResources) {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let shares = resources.cpu_request_millis.unwrap_or(0).saturating_mul(CPU_SHARES_PER_CORE) / 1000;
    host_config.cpu_shares = Some(signed(shares.max(CPU_SHARES_MIN)));
    if let Some(millis) = resources.cpu_limit_millis.filter(|millis| *millis > 0) {
        host_config.cpu_period = Some(signed(CPU_PERIOD_US));
        let quota = millis.saturating_mul(CPU_PERIOD_US) / 1000;
        host_config.cpu_quota = Some(signed(quota.max(CPU_QUOTA_US_MIN)));
    }
    if let Some(bytes) = resources.memory_limit_bytes.filter(|bytes| *bytes > 0) {
        host_config.memory = Some(signed(bytes));
        host_config.memory_swap = Some(signed(bytes));
    }
    host_config.oom_score_adj = Some(resources.oom_score_adj);
}

fn security_options(spec: &DockerContainerSpec) -> Vec<String> {
    let security = &spec.security;
    let mut options = Vec::new();
    if security.allow_privilege_escalation == Some(false) {
        options.push("no-new-privileges".to_owned());
    }
    match &security.seccomp {
        Some(Seccomp::Unconfined) => options.push("seccomp=unconfined".to_owned()),
        Some(Seccomp::Profile(json)) => options.push(format!("seccomp={json}")),
        Some(Seccomp::RuntimeDefault) | None => {}
    }
    if let Some(profile) = &security.apparmor {
        options.push(format!("apparmor={profile}"));
    }
    options.extend(security.selinux.iter().map(|label| format!("label={label}")));
    options
}

fn mount(mount: &DockerMount) -> Result<Mount, DockerError> {
    let refuse = |detail: String| Err(DockerError::Config { detail });
    let Some(source) = mount.host.to_str() else {
        return refuse(format!("path {:?} is not text and cannot be mounted", mount.host));
    };
    let propagation = match mount.propagation.as_deref() {
        None | Some("" | "None" | "rprivate") => Propagation::RPRIVATE,
        Some("HostToContainer" | "rslave") => Propagation::RSLAVE,
        Some("Bidirectional" | "rshared") => Propagation::RSHARED,
        Some("private") => Propagation::PRIVATE,
        Some("slave") => Propagation::SLAVE,
        Some("shared") => Propagation::SHARED,
        Some(other) => return refuse(format!("unknown mountPropagation mode: {other:?}")),
    };
    Ok(Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_owned()),
        target: Some(mount.container.clone()),
        read_only: Some(mount.read_only),
        bind_options: Some(MountBindOptions { propagation: Some(propagation), ..Default::default() }),
        ..Default::default()
    })
}
