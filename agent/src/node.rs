//! The Node object: registers this machine, keeps its status true, renews its lease.
//!
//! The status is written when it differs from what the cluster has, not by the clock; the lease is the heartbeat, and it is
//! a kind that never touches a disk. Deliberately absent: eviction under pressure (pressure is reported, not acted on).

use crate::body::Body;
use crate::config::AgentConfig;
use crate::docker;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Map, Value, json};
use state::{Expect, Key, Stamp, World, Write, rfc3339};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What `kubectl get nodes` shows as version.
const KUBELET_VERSION: &str = concat!("v1.36.0+coracle.", env!("CARGO_PKG_VERSION"));
/// The engine and its line.
const RUNTIME_VERSION: &str = "wasmtime://48.0";
/// Annotation: the version of Docker that this node offers, or why it offers none.
const DOCKER_ANNOTATION: &str = "coracle.dev/docker";
/// Label: whether this node runs OCI containers.
const DOCKER_LABEL: &str = "coracle.dev/runtime-docker";
/// Kubernetes' namespace of node leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A lease that is not renewed for this long means a node that is not there.
const LEASE_SECONDS: i64 = 40;
/// How often it is renewed.
const LEASE_RENEW: Duration = Duration::from_secs(10);
/// Until a refused write is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Below this share of free memory or disk the node is under pressure.
const PRESSURE_PERCENT: u64 = 5;
const GROUP_CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// What the machine has.
#[derive(Clone, Debug)]
pub struct Machine {
    cpus: usize,
    memory_bytes: u64,
    disk_bytes: u64,
    machine_id: String,
    boot_id: String,
    kernel: String,
    os_image: String,
    /// As Go spells it: `amd64`, `arm64`.
    pub arch: &'static str,
}

impl Machine {
    /// Looks at the machine; `data_dir` is on the disk that counts.
    pub fn look(data_dir: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let name = rustix::system::uname();
        let pretty = read("/etc/os-release");
        let pretty = pretty.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory("MemTotal:"),
            disk_bytes: disk(data_dir).0,
            machine_id: read("/etc/machine-id"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: name.release().to_string_lossy().into_owned(),
            os_image: pretty.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_owned()),
            arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                "x86" => "386",
                other => other,
            },
        }
    }

    /// Memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Capacity, which is also what pods may have: the node's own needs are small and not set aside.
    pub fn resources(&self, pods_max: u32) -> [(String, Quantity); 4] {
        let kibi = |bytes: u64| Quantity(format!("{}Ki", bytes / 1024));
        [
            ("cpu".into(), Quantity(self.cpus.to_string())),
            ("ephemeral-storage".into(), kibi(self.disk_bytes)),
            ("memory".into(), kibi(self.memory_bytes)),
            ("pods".into(), Quantity(pods_max.to_string())),
        ]
    }
}

/// A figure of /proc/meminfo, in bytes.
fn memory(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Total and available bytes of the file system.
fn disk(path: &Path) -> (u64, u64) {
    rustix::fs::statvfs(path).map_or((0, 0), |stat| (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// What presses on the machine now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    memory: bool,
    disk: bool,
}

impl Pressure {
    fn look(machine: &Machine, data_dir: &Path) -> Self {
        let scarce = |free: u64, all: u64| all > 0 && free < all / 100 * PRESSURE_PERCENT;
        Self {
            memory: scarce(memory("MemAvailable:"), machine.memory_bytes),
            disk: scarce(disk(data_dir).1, machine.disk_bytes),
        }
    }
}

/// The Node as this agent would have it: `current` with its own labels, addresses, capacity and conditions put right, or a new
/// one. Pure.
pub fn desired(
    current: Option<&Value>,
    config: &AgentConfig,
    machine: &Machine,
    pressure: Pressure,
    docker: &Result<String, String>,
    now: Timestamp,
) -> Value {
    let mut node = current.cloned().unwrap_or_else(|| new_node(config));
    let labels = labels(config, machine, docker.is_ok());
    let metadata = object(&mut node, "metadata");
    let about_docker = docker.as_ref().unwrap_or_else(|reason| reason).as_str();
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(DOCKER_ANNOTATION.into(), about_docker.into());
        let storage = crate::volumes::storage_dir(&config.data_dir).display().to_string();
        annotations.insert(state::storage::STORAGE_PATH.into(), storage.into());
    }
    match metadata.get_mut("labels").and_then(Value::as_object_mut) {
        Some(existing) => existing.extend(labels),
        None => {
            metadata.insert("labels".into(), Value::Object(labels));
        }
    }
    let spec = object(&mut node, "spec");
    spec.entry("podCIDR").or_insert_with(|| config.pod_cidr.to_string().into());
    spec.entry("podCIDRs").or_insert_with(|| json!([config.pod_cidr.to_string()]));
    let conditions = conditions(current, pressure, now);
    let status = object(&mut node, "status");
    status.extend(facts(config, machine, docker.as_deref().ok()));
    status.insert("conditions".into(), conditions);
    node
}

fn new_node(config: &AgentConfig) -> Value {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": config.node_name}, "spec": {}});
    if !config.taints.is_empty() {
        let taint = |t: &crate::config::Taint| {
            let mut taint = json!({"key": t.key, "effect": t.effect});
            if !t.value.is_empty() {
                taint["value"] = t.value.as_str().into();
            }
            taint
        };
        node["spec"]["taints"] = config.taints.iter().map(taint).collect();
    }
    node
}

fn labels(config: &AgentConfig, machine: &Machine, has_docker: bool) -> Map<String, Value> {
    let mut labels = Map::new();
    for (name, value) in [
        ("beta.kubernetes.io/arch", machine.arch),
        ("beta.kubernetes.io/os", "linux"),
        (DOCKER_LABEL, if has_docker { "true" } else { "false" }),
        ("coracle.dev/runtime-wasm", "true"),
        ("kubernetes.io/arch", machine.arch),
        ("kubernetes.io/hostname", &config.node_name),
        ("kubernetes.io/os", "linux"),
    ] {
        labels.insert(name.into(), value.into());
    }
    if config.control_plane {
        labels.insert(GROUP_CONTROL_PLANE.into(), "true".into());
    }
    labels.extend(config.labels.iter().map(|(name, value)| (name.clone(), value.as_str().into())));
    labels
}

fn facts(config: &AgentConfig, machine: &Machine, docker: Option<&str>) -> Map<String, Value> {
    let resources: Map<String, Value> =
        machine.resources(config.pods_max).into_iter().map(|(name, quantity)| (name, quantity.0.into())).collect();
    let mut handlers = vec![json!({"name": "wasm"})];
    let mut runtimes = RUNTIME_VERSION.to_owned();
    if let Some(version) = docker {
        handlers.push(json!({"name": "docker"}));
        runtimes.push_str(&format!(",docker://{version}"));
    }
    let facts = json!({
        "addresses": [
            {"type": "InternalIP", "address": config.node_ip.to_string()},
            {"type": "Hostname", "address": config.node_name},
        ],
        "allocatable": resources, "capacity": resources,
        "nodeInfo": {
            "architecture": machine.arch, "bootID": machine.boot_id, "containerRuntimeVersion": runtimes,
            "kernelVersion": machine.kernel, "kubeProxyVersion": "", "kubeletVersion": KUBELET_VERSION,
            "machineID": machine.machine_id, "operatingSystem": "linux", "osImage": machine.os_image,
            "systemUUID": machine.machine_id,
        },
        "runtimeHandlers": handlers,
    });
    facts.as_object().cloned().unwrap_or_default()
}

/// Our four conditions; those of others stay. Heartbeat and transition times change only with what they say.
fn conditions(current: Option<&Value>, pressure: Pressure, now: Timestamp) -> Value {
    let (memory, disk) = if pressure.memory {
        (("True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available"), pressure.disk)
    } else {
        (("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"), pressure.disk)
    };
    let disk = if disk {
        ("True", "KubeletHasDiskPressure", "kubelet has disk pressure")
    } else {
        ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
    };
    let ours = [
        ("MemoryPressure", memory),
        ("DiskPressure", disk),
        ("PIDPressure", ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")),
        ("Ready", ("True", "KubeletReady", "kubelet is posting ready status")),
    ];
    let old = current.and_then(|node| node["status"]["conditions"].as_array()).cloned().unwrap_or_default();
    let mut conditions: Vec<Value> =
        old.iter().filter(|c| !ours.iter().any(|(type_, _)| c["type"] == *type_)).cloned().collect();
    for (type_, (status, reason, message)) in ours {
        let before = old.iter().find(|condition| condition["type"] == type_);
        let same = before.filter(|c| c["status"] == status && c["reason"] == reason && c["message"] == message);
        conditions.push(same.cloned().unwrap_or_else(|| {
            let since = before.filter(|c| c["status"] == status).and_then(|c| c["lastTransitionTime"].as_str());
            json!({
                "type": type_, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": rfc3339(now),
                "lastTransitionTime": since.map_or_else(|| rfc3339(now), ToOwned::to_owned),
            })
        }));
    }
    conditions.into()
}

fn object<'a>(value: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let slot = &mut value[field];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object just now"),
    }
}

/// Keeps the Node true and its lease renewed until shutdown. `changed` tells that the Node in the world is another.
pub async fn keep(body: Arc<Body>, changed: Arc<Notify>, shutdown: CancellationToken) {
    let mut renewals = tokio::time::interval(LEASE_RENEW);
    renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut registered = false;
    let mut health = body.docker.as_ref().map(runtime::docker::Docker::health);
    loop {
        let settled = settle(&body, &mut registered).await;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = changed.notified() => {}
            () = health_changed(&mut health) => {}
            () = tokio::time::sleep(RETRY), if !settled => {}
            _ = renewals.tick() => {
                if let Err(error) = renew(&body).await {
                    tracing::debug!(%error, "lease not renewed");
                }
            }
        }
    }
}

/// Waits for Docker to come or go; for ever where there is none.
async fn health_changed(health: &mut Option<tokio::sync::watch::Receiver<runtime::docker::Health>>) {
    let is_there = match health {
        Some(health) => health.changed().await.is_ok(),
        None => false,
    };
    if !is_there {
        std::future::pending::<()>().await;
    }
}

/// Writes the Node if it differs. A Node that somebody deleted comes back only with a new agent, as with a kubelet.
async fn settle(body: &Body, registered: &mut bool) -> bool {
    let world = body.world();
    let current = world.get(&body.node_key()).cloned();
    if current.is_none() && *registered {
        return true;
    }
    let now = Timestamp::now();
    let value = current.as_ref().map(|node| node.value());
    let pressure = Pressure::look(&body.machine, &body.config.data_dir);
    let docker = docker::offer(body.docker.as_ref());
    let mut wanted = desired(value.as_ref(), &body.config, &body.machine, pressure, &docker, now);
    if value.as_ref() == Some(&wanted) {
        *registered = true;
        return true;
    }
    let write = match &current {
        Some(node) => Write::update(node, wanted),
        None => {
            Stamp { now, identities: &mut crate::identity::Random::new() }.complete(&mut wanted, false);
            Write::create(body.node_key(), wanted)
        }
    };
    match body.uplink.write(vec![write]).await {
        Ok(_) => {
            *registered = true;
            true
        }
        Err(error) => {
            tracing::debug!(%error, "node not written");
            false
        }
    }
}

async fn renew(body: &Body) -> Result<(), sync::Rejected> {
    let world = body.world();
    let now = Timestamp::now();
    body.uplink.write(vec![lease(&world, &body.config.node_name, now)]).await.map(|_| ())
}

/// The write that renews the lease.
fn lease(world: &World, node: &str, now: Timestamp) -> Write {
    let key = Key::of::<Lease>(LEASE_NAMESPACE, node);
    let renewed = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    if let Some(old) = world.get(&key) {
        let mut value = old.value();
        value["spec"]["renewTime"] = renewed.into();
        // the node alone writes its lease
        return Write { key, value: Some(value), expect: Expect::Uid(old.meta().uid.clone()) };
    }
    let mut value = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node, "namespace": LEASE_NAMESPACE},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed},
    });
    if let Some(owner) = world.get(&Key::of::<Node>("", node)) {
        value["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner.meta().uid}]);
    }
    Stamp { now, identities: &mut crate::identity::Random::new() }.complete(&mut value, false);
    Write::create(key, value)
}
