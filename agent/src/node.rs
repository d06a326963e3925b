//! The Node object: registers this machine, keeps its status true, tells the master that it lives.
//!
//! The status is written when it differs from what the cluster has, not by the clock. The heartbeat is a word on the link; the
//! master renews the Lease, with its own clock. Deliberately absent: eviction under pressure (pressure is reported, not acted
//! on).

use crate::body::{Body, Session};
use crate::config::AgentConfig;
use crate::docker;
use crate::machine::{Machine, Pressure};
use jiff::Timestamp;
use netproxy::network::Cidr;
use serde_json::{Map, Value, json};
use state::{Key, Object, Stamp, Write, rfc3339};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use sync::{Rejected, Uplink};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// What `kubectl get nodes` shows as version.
const KUBELET_VERSION: &str = concat!("v1.36.0+coracle.", env!("CARGO_PKG_VERSION"));
/// The engine and its line.
const RUNTIME_VERSION: &str = "wasmtime://48.0";
/// Annotation: the version of Docker that this node offers, or why it offers none.
const DOCKER_ANNOTATION: &str = "coracle.dev/docker";
/// Label: whether this node runs OCI containers.
const DOCKER_LABEL: &str = "coracle.dev/runtime-docker";
/// Label: whether pods' addresses are the kernel's to know (`kernel`) or this process' (`user`).
const NETWORK_LABEL: &str = "coracle.dev/network";
/// Annotation: where other nodes may reach this one directly, `ip:port` separated by commas.
const ENDPOINTS_ANNOTATION: &str = "coracle.dev/endpoints";
/// How often the master is told that the node lives.
const BEAT: Duration = Duration::from_secs(10);
/// How often the machine is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Until a write that lost a race is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Until a write that the master refused is tried again.
const REFUSED_RETRY: Duration = Duration::from_secs(10);
/// Without a link a write waits for the next session; it is tried after so long all the same.
const OFFLINE_RETRY: Duration = Duration::from_secs(30);
const GROUP_CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Whether the node can take pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// The cluster has not given it a part of the pod network.
    NoNetwork,
    /// The machine is being switched off.
    ShuttingDown,
}

/// What the node says of itself now.
pub struct Report<'a> {
    /// Whether it can take pods.
    pub readiness: Readiness,
    /// What presses on the machine.
    pub pressure: Pressure,
    /// Docker's version, or why it is not offered.
    pub docker: &'a Result<String, String>,
    /// What pods' addresses stand on; `None`: not known yet.
    pub network: Option<&'static str>,
    /// Where other nodes may reach it; `None`: not known.
    pub endpoints: Option<&'a [SocketAddr]>,
    /// Its part of the pod network, if it has one: a Node that is made anew keeps it.
    pub pod_cidr: Option<Cidr>,
}

/// The Node as this agent would have it: `current` with its own labels, addresses, capacity and conditions put right, or a new
/// one. Pure.
pub fn desired(
    current: Option<&Value>,
    config: &AgentConfig,
    machine: &Machine,
    report: &Report<'_>,
    now: Timestamp,
) -> Value {
    let mut node = current.cloned().unwrap_or_else(|| new_node(config, report.pod_cidr));
    let docker = report.docker;
    let labels = labels(config, machine, report);
    let metadata = object(&mut node, "metadata");
    let about_docker = docker.as_ref().unwrap_or_else(|reason| reason).as_str();
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(DOCKER_ANNOTATION.into(), about_docker.into());
        annotations.insert(state::cron::RUNS.into(), "true".into());
        let storage = crate::volumes::storage_dir(&config.data_dir).display().to_string();
        annotations.insert(state::storage::STORAGE_PATH.into(), storage.into());
        if let Some(endpoints) = report.endpoints {
            let text: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
            annotations.insert(ENDPOINTS_ANNOTATION.into(), text.join(",").into());
        }
    }
    match metadata.get_mut("labels").and_then(Value::as_object_mut) {
        Some(existing) => existing.extend(labels),
        None => {
            metadata.insert("labels".into(), Value::Object(labels));
        }
    }
    let conditions = conditions(current, report.pressure, report.readiness, now);
    let status = object(&mut node, "status");
    status.extend(facts(config, machine, docker.as_deref().ok()));
    status.insert("conditions".into(), conditions);
    node
}

fn new_node(config: &AgentConfig, pod_cidr: Option<Cidr>) -> Value {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": config.node_name}, "spec": {}});
    if let Some(cidr) = pod_cidr {
        node["spec"] = json!({"podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()]});
    }
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

fn labels(config: &AgentConfig, machine: &Machine, report: &Report<'_>) -> Map<String, Value> {
    let mut labels = Map::new();
    for (name, value) in [
        ("beta.kubernetes.io/arch", machine.arch),
        ("beta.kubernetes.io/os", "linux"),
        (DOCKER_LABEL, if report.docker.is_ok() { "true" } else { "false" }),
        ("coracle.dev/runtime-wasm", "true"),
        ("kubernetes.io/arch", machine.arch),
        ("kubernetes.io/hostname", &config.node_name),
        ("kubernetes.io/os", "linux"),
    ] {
        labels.insert(name.into(), value.into());
    }
    if let Some(network) = report.network {
        labels.insert(NETWORK_LABEL.into(), network.into());
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
fn conditions(current: Option<&Value>, pressure: Pressure, readiness: Readiness, now: Timestamp) -> Value {
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
    let ready = match readiness {
        Readiness::Ready => ("True", "KubeletReady", "kubelet is posting ready status"),
        Readiness::NoNetwork => {
            ("False", "KubeletNotReady", "container runtime network not ready: the node has no spec.podCIDR yet")
        }
        Readiness::ShuttingDown => ("False", "KubeletNotReady", "node is shutting down"),
    };
    let ours = [
        ("MemoryPressure", memory),
        ("DiskPressure", disk),
        ("PIDPressure", ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")),
        ("Ready", ready),
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

/// Tells the master that the node lives, until shutdown. Begins with the first session.
pub async fn beat(uplink: Uplink, mut sessions: watch::Receiver<Session>, shutdown: CancellationToken) {
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            // a link that is up again is told at once
            changed = sessions.changed() => if changed.is_err() { return },
            _ = beats.tick() => {}
        }
        if sessions.borrow_and_update().number == 0 {
            continue;
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            renewed = tokio::time::timeout(BEAT, uplink.renew()) => match renewed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "heartbeat not taken"),
                Err(_) => tracing::debug!("heartbeat not answered"),
            },
        }
    }
}

/// Keeps the Node true until shutdown. `changed` tells that the Node in the world is another.
pub async fn keep(body: Arc<Body>, changed: Arc<Notify>, shutdown: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut known = None;
    let mut health = body.docker.as_ref().map(runtime::docker::Docker::health);
    let (mut sessions, mut endpoints) = (body.sessions.subscribe(), body.endpoints.subscribe());
    loop {
        let again = settle(&body, &mut known, Readiness::Ready).await;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = changed.notified() => {}
            // the senders live in the body
            _ = sessions.changed() => {}
            _ = endpoints.changed() => {}
            () = health_changed(&mut health) => {}
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            _ = looks.tick(), if again.is_none() => {}
        }
    }
}

/// Tells the cluster that this machine is being switched off, if there is a link.
pub async fn say_goodbye(body: &Body) {
    let mut known = Some(body.sessions.borrow().era);
    settle(body, &mut known, Readiness::ShuttingDown).await;
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

/// Writes the Node if it differs; returns when to try again what was not done. A Node that somebody deleted comes back only with
/// a new agent, as with a kubelet, or when the master itself has lost it (`known`: the era in which there was one).
async fn settle(body: &Body, known: &mut Option<u64>, readiness: Readiness) -> Option<Duration> {
    let world = body.world();
    let era = body.sessions.borrow().era;
    let current = world.get(&body.node_key());
    if current.is_none() && *known == Some(era) {
        return None;
    }
    let endpoints = body.endpoints.borrow().clone();
    let report = Report {
        readiness,
        pressure: Pressure::look(&body.machine, &body.config.data_dir),
        docker: &docker::offer(body.docker.as_ref()),
        network: Some(body.ground.name()),
        endpoints: endpoints.as_deref(),
        pod_cidr: Some(body.pod_cidr),
    };
    let Some(write) = write(&body.config, &body.machine, current, &report, Timestamp::now()) else {
        *known = Some(era);
        return None;
    };
    match body.uplink.write(vec![write]).await {
        Ok(_) => {
            *known = Some(era);
            None
        }
        Err(Rejected::Disconnected) => Some(OFFLINE_RETRY),
        Err(Rejected::Conflict(_)) => Some(RETRY),
        Err(error) => {
            tracing::warn!(%error, "node not written");
            Some(REFUSED_RETRY)
        }
    }
}

/// The write that brings the Node up to date; `None` when it is.
pub fn write(
    config: &AgentConfig,
    machine: &Machine,
    current: Option<&Arc<Object>>,
    report: &Report<'_>,
    now: Timestamp,
) -> Option<Write> {
    let value = current.map(|node| node.value());
    let mut wanted = desired(value.as_ref(), config, machine, report, now);
    if value.as_ref() == Some(&wanted) {
        return None;
    }
    Some(match current {
        Some(node) => Write::update(node, wanted),
        None => {
            Stamp { now, identities: &mut crate::identity::Random::new() }.complete(&mut wanted, false);
            Write::create(Key::of::<k8s_openapi::api::core::v1::Node>("", &config.node_name), wanted)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        let handle = tokio::runtime::Handle::current();
        AgentConfig {
            node_name: "edge-1".into(),
            node_ip: "10.0.0.7".parse().unwrap(),
            data_dir: "/".into(),
            keeps_replica: true,
            mesh: None,
            ingress_http_port: None,
            ingress_https_port: None,
            resolv_conf: crate::RESOLV_CONF.into(),
            master: None,
            control_plane: false,
            labels: [("site".to_owned(), "harbour".to_owned())].into(),
            taints: vec![crate::Taint { key: "edge".into(), value: String::new(), effect: "NoSchedule".into() }],
            pods_max: 7,
            wasm: crate::WasmLimits::default(),
            logs: crate::LogLimits::default(),
            commands: handle.clone(),
            data: handle,
        }
    }

    #[tokio::test]
    async fn a_node_says_what_it_is_and_leaves_what_others_decide() {
        let (config, machine) = (config(), Machine::look(std::path::Path::new("/")));
        let no_docker = Err("no Docker".to_owned());
        let report = |readiness, endpoints, pod_cidr| Report {
            readiness,
            pressure: Pressure::default(),
            docker: &no_docker,
            network: Some("user"),
            endpoints,
            pod_cidr,
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = desired(None, &config, &machine, &report(Readiness::Ready, None, None), at(1));
        assert_eq!(first["spec"], json!({"taints": [{"key": "edge", "effect": "NoSchedule"}]}));
        assert_eq!(first["metadata"]["labels"]["site"], "harbour");
        assert_eq!(first["metadata"]["labels"][DOCKER_LABEL], "false");
        assert_eq!(first["metadata"]["labels"][NETWORK_LABEL], "user");
        assert_eq!(first["metadata"]["annotations"][ENDPOINTS_ANNOTATION], Value::Null);
        let addresses =
            json!([{"type": "InternalIP", "address": "10.0.0.7"}, {"type": "Hostname", "address": "edge-1"}]);
        assert_eq!(first["status"]["addresses"], addresses);
        assert_eq!(first["status"]["capacity"]["pods"], "7");

        // what others have decided stays; what has not changed is not dated anew
        let mut current = first.clone();
        current["spec"] = json!({"podCIDR": "10.42.128.0/24", "unschedulable": true});
        let endpoints: [SocketAddr; 1] = ["10.0.0.7:6444".parse().unwrap()];
        let report_now = report(Readiness::Ready, Some(&endpoints), "10.42.0.0/24".parse().ok());
        let second = desired(Some(&current), &config, &machine, &report_now, at(9));
        assert_eq!(second["spec"], current["spec"]);
        assert_eq!(second["metadata"]["annotations"][ENDPOINTS_ANNOTATION], "10.0.0.7:6444");
        assert_eq!(second["status"], first["status"]);

        let ready = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().unwrap();
            let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
            format!("{} {} {}", ready["status"], ready["reason"], ready["message"]).replace('"', "")
        };
        let cases = [
            (Readiness::Ready, "True KubeletReady kubelet is posting ready status"),
            (Readiness::ShuttingDown, "False KubeletNotReady node is shutting down"),
        ];
        for (readiness, expected) in cases {
            let node = desired(Some(&current), &config, &machine, &report(readiness, None, None), at(10));
            assert_eq!(ready(&node), expected);
        }
        // one that a master has lost comes back with the network it has
        let again = desired(None, &config, &machine, &report_now, at(11));
        assert_eq!(again["spec"]["podCIDR"], "10.42.0.0/24");
    }
}
