//! The contract with the agent: what a sandbox and a container of Docker are given, and what is found of them.
//!
//! Plain data; nothing here talks to Docker.

use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::{Exit, NetworkNamespace};

/// Whose engine objects these are and where the pods live.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// The node, as a label on everything made here: 12 hex digits. Things of other owners are never touched.
    pub owner: String,
    /// The bridge network: `a.b.c.d/n`.
    pub subnet: String,
    /// The bridge's own address, of `subnet`.
    pub gateway: IpAddr,
    /// The bridge's interface name, 15 bytes at most.
    pub bridge: String,
    /// `unix:///path`, a path, or `tcp://host:port` (without TLS); `None` is `$DOCKER_HOST` or the default socket.
    pub endpoint: Option<String>,
}

/// Whether Docker can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    /// It answers, and the pod network is there.
    Ready {
        /// The engine's version, such as `28.2.2`.
        version: String,
        /// Its API's, such as `1.50`.
        api: String,
    },
    /// It does not, or cannot be used.
    Down {
        /// Why.
        reason: String,
    },
}

/// A pod, for names and labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: what it is known by.
    pub uid: String,
}

impl PodId {
    /// The kubelet's way to name a pod in messages.
    pub(super) fn kubelet(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }
}

/// What the containers of a pod share.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// The pod.
    pub pod: PodId,
    /// Its address on the bridge network; `None` is the network of the node (`hostNetwork`).
    pub address: Option<IpAddr>,
    /// The pod's host name. Without meaning in the network of the node.
    pub hostname: String,
    /// The pod's containers will see each other's processes, and the sandbox reaps their orphans.
    pub share_processes: bool,
    /// The node's IPC namespace.
    pub host_ipc: bool,
    /// The node's processes.
    pub host_pid: bool,
    /// Kernel settings of the pod's namespaces.
    pub sysctls: Vec<(String, String)>,
}

/// A running sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Docker's id.
    pub id: String,
    /// Its network; `None` is that of the node.
    pub namespace: Option<NetworkNamespace>,
    /// Its address; `None` in the network of the node.
    pub address: Option<IpAddr>,
}

/// A directory or file of the node, shown to a container.
#[derive(Debug, Clone)]
pub struct DockerMount {
    /// Must exist.
    pub host: PathBuf,
    /// The absolute path in the container.
    pub container: String,
    /// Refuse writes.
    pub read_only: bool,
    /// Kubernetes' `mountPropagation` (`None`, `HostToContainer`, `Bidirectional`) or Docker's word (`rprivate`, ...).
    pub propagation: Option<String>,
}

/// A device of the node, given to a container.
#[derive(Debug, Clone)]
pub struct DockerDevice {
    /// On the node.
    pub host: PathBuf,
    /// In the container.
    pub container: String,
    /// Of `rwm`.
    pub permissions: String,
}

/// What a container may use.
#[derive(Debug, Clone, Default)]
pub struct DockerResources {
    /// Thousandths of a core: its weight beside others.
    pub cpu_request_millis: Option<u64>,
    /// Thousandths of a core, over periods of 100 ms.
    pub cpu_limit_millis: Option<u64>,
    /// For the scheduler only; Docker is not told.
    pub memory_request_bytes: Option<u64>,
    /// Memory, and swap with it: there is none beyond.
    pub memory_limit_bytes: Option<u64>,
    /// How early the kernel ends it for want of memory: -1000 to 1000.
    pub oom_score_adj: i64,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// All.
    Unconfined,
    /// Docker's own profile.
    RuntimeDefault,
    /// This profile: its JSON.
    Profile(String),
}

/// What a container may do.
#[derive(Debug, Clone, Default)]
pub struct DockerSecurity {
    /// `None`: the image's.
    pub user: Option<i64>,
    /// `None`: that of the user.
    pub group: Option<i64>,
    /// More groups.
    pub supplemental_groups: Vec<i64>,
    /// Beyond Docker's own set, or `ALL`.
    pub add_capabilities: Vec<String>,
    /// From Docker's own set, or `ALL`.
    pub drop_capabilities: Vec<String>,
    /// Everything root may on the node.
    pub privileged: bool,
    /// The image's files cannot be written.
    pub read_only_root: bool,
    /// `Some(false)`: no new privileges by set-uid programs.
    pub allow_privilege_escalation: Option<bool>,
    /// `None`: Docker's own profile.
    pub seccomp: Option<Seccomp>,
    /// A profile of the node, or `unconfined`; `None`: Docker's own.
    pub apparmor: Option<String>,
    /// SELinux' `user`, `role`, `type`, `level` as `key:value`.
    pub selinux: Vec<String>,
    /// Refuse to run as root.
    pub run_as_non_root: bool,
    /// Show all of `/proc` and `/sys` (`procMount: Unmasked`).
    pub proc_mount_unmasked: bool,
}

/// Everything one container needs to run.
#[derive(Debug, Clone)]
pub struct DockerContainerSpec {
    /// Its pod.
    pub pod: PodId,
    /// Its name in the pod.
    pub name: String,
    /// Counts its restarts, from 0: each is a container of its own to Docker.
    pub attempt: u32,
    /// The pod's sandbox, whose network and IPC it joins. `None`: a network of nothing but loopback.
    pub sandbox_id: Option<String>,
    /// [`ImageInfo::id`].
    pub image: String,
    /// The image as the pod names it, for people.
    pub image_name: String,
    /// Instead of the image's entrypoint and command; empty: the image's.
    pub command: Vec<String>,
    /// Instead of the image's command.
    pub args: Vec<String>,
    /// Beside the image's own.
    pub env: Vec<(String, String)>,
    /// `None`: the image's.
    pub working_dir: Option<String>,
    /// Files from the node.
    pub mounts: Vec<DockerMount>,
    /// Devices of the node.
    pub devices: Vec<DockerDevice>,
    /// What it may use.
    pub resources: DockerResources,
    /// What it may do.
    pub security: DockerSecurity,
    /// A terminal.
    pub tty: bool,
    /// Standard input stays open for those who attach.
    pub stdin: bool,
    /// Standard input ends with the first who attached.
    pub stdin_once: bool,
    /// Such as `SIGQUIT`; `None`: the image's, else `SIGTERM`.
    pub stop_signal: Option<String>,
    /// Sees the processes of the sandbox (`shareProcessNamespace`).
    pub share_processes: bool,
    /// Sees the processes of this container of its pod (an ephemeral container's `targetContainerName`).
    pub share_pid_of: Option<String>,
    /// Sees the node's processes.
    pub host_pid: bool,
    /// The node's IPC namespace instead of the sandbox's.
    pub host_ipc: bool,
}

/// An image that is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// `sha256:...`: what containers are made from, so that a moved tag does not matter.
    pub id: String,
    /// `repository:tag`.
    pub tags: Vec<String>,
    /// `repository@sha256:...`: what a pod's `imageID` shows.
    pub digests: Vec<String>,
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// Its command.
    pub command: Vec<String>,
    /// The signal it wants to be stopped by.
    pub stop_signal: Option<String>,
    /// On disk.
    pub size_bytes: u64,
}

/// Who asks a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryAuth {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
    /// Instead of both, from a registry's own login.
    pub identity_token: Option<String>,
    /// The registry.
    pub server: String,
}

/// What Docker has of a pod.
#[derive(Debug, Clone, Default)]
pub struct FoundPod {
    /// Its sandbox.
    pub sandbox: Option<FoundSandbox>,
    /// Its containers, by name, of one name the newest attempt first.
    pub containers: Vec<FoundContainer>,
}

/// A sandbox that exists.
#[derive(Debug, Clone)]
pub struct FoundSandbox {
    /// Docker's id.
    pub id: String,
    /// On the bridge network.
    pub address: Option<IpAddr>,
    /// A dead one is replaced by [`super::Docker::sandbox`].
    pub running: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq)]
pub enum FoundState {
    /// Never started: to be removed.
    Created,
    /// Running: to be adopted.
    Running,
    /// Over.
    Exited(Exit),
}

/// A container that exists.
#[derive(Debug, Clone)]
pub struct FoundContainer {
    /// Docker's id.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Counts its restarts.
    pub attempt: u32,
    /// How it is.
    pub state: FoundState,
    /// When it was started; `None` for one that was not.
    pub started_at: Option<Timestamp>,
    /// `sha256:...`
    pub image_id: String,
    /// The image as the pod named it.
    pub image_name: String,
}

/// When images go, in hundredths of the disk they lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Above this, images nobody uses are removed ...
    pub high_percent: u8,
    /// ... until it is at this.
    pub low_percent: u8,
}

impl Default for ImageLimits {
    /// The kubelet's.
    fn default() -> Self {
        ImageLimits { high_percent: 85, low_percent: 80 }
    }
}

/// What [`super::Docker::collect`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Pods that are no more.
    pub pods: Vec<String>,
    /// Containers of living pods that a newer attempt has replaced.
    pub containers: usize,
    /// Images nobody used.
    pub images: Vec<String>,
    /// What they had on disk.
    pub image_bytes: u64,
    /// How full the disk of images was before; `None` where its directory cannot be seen.
    pub disk_percent: Option<u8>,
}
