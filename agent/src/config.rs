//! What the binary tells an agent: who the node is, where it may write, what it may use.
//!
//! Deliberately absent: flags and environment (the door reads those), and what is known only after joining: the cluster's
//! networks come down the link ([`sync::ClusterFacts`]), the node's own part of them in `spec.podCIDR`.

use crate::mesh::MeshConfig;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use tokio::runtime::Handle;

/// Everything an agent is told at its start.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// Address under which the node is known (`status.addresses`, `status.hostIP` of pods).
    pub node_ip: IpAddr,
    /// Directory of this node's files: pods' volumes, logs, compiled code, the copy of the cluster. Made when missing.
    pub data_dir: PathBuf,
    /// Keep a copy of what the node knows on its disk ([`crate::replica`]), so that it starts without its master. Not for the
    /// node in the master's own process, whose store is that copy.
    pub keeps_replica: bool,
    /// How to reach the pods of other nodes; `None`: not at all.
    pub mesh: Option<MeshConfig>,
    /// Where this machine reaches its master, for one that knows itself by its localhost only.
    pub master: Option<IpAddr>,
    /// TCP port of plain-text ingress traffic; `None`: the node serves none.
    pub ingress_http_port: Option<u16>,
    /// TCP port of TLS ingress traffic; `None`: the node serves none.
    pub ingress_https_port: Option<u16>,
    /// The file that names the resolvers of names outside the cluster.
    pub resolv_conf: PathBuf,
    /// The node runs the control plane: `node-role.kubernetes.io/control-plane` is set.
    pub control_plane: bool,
    /// Labels of the user's choice for the Node.
    pub labels: BTreeMap<String, String>,
    /// Taints of the user's choice for the Node at its registration.
    pub taints: Vec<Taint>,
    /// Pods this node accepts (`status.capacity.pods`).
    pub pods_max: u32,
    /// Bounds of what Wasm guests may use.
    pub wasm: WasmLimits,
    /// Bounds of each container's log.
    pub logs: LogLimits,
    /// Runtime whose threads run guests' commands.
    pub commands: Handle,
    /// Runtime whose threads move bytes: services, ingress, HTTP guests.
    pub data: Handle,
}

/// What [`AgentConfig::resolv_conf`] is when the user does not say.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

impl AgentConfig {
    /// Where this machine reaches the API server that the master told of.
    pub fn api(&self, told: SocketAddr) -> SocketAddr {
        match self.master {
            Some(master) if told.ip().is_loopback() => (master, told.port()).into(),
            _ => told,
        }
    }
}

/// A taint given at start: `key=value:effect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Qualified name.
    pub key: String,
    /// Value, may be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// Bounds of what Wasm guests may use.
#[derive(Clone, Copy, Debug)]
pub struct WasmLimits {
    /// Live instances on the node.
    pub instances_max: u32,
    /// Linear memory of one instance without a limit of its own.
    pub instance_memory_bytes_max: usize,
    /// Whether components of WASI preview 3 are offered to pods that ask by annotation.
    pub p3: bool,
}

/// Bounds of each container's log.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// Size at which a file is rotated.
    pub file_bytes_max: u64,
    /// Files kept, the current one included.
    pub files_max: u32,
}

impl Default for WasmLimits {
    fn default() -> Self {
        Self { instances_max: 10_000, instance_memory_bytes_max: 1 << 30, p3: false }
    }
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { file_bytes_max: 10 << 20, files_max: 5 }
    }
}

/// What [`AgentConfig::pods_max`] is when the user does not say.
pub const PODS_MAX: u32 = 1_000;
