//! Nodes that speak the real protocol and run nothing: they join with a token, register, send heartbeats, and say of each
//! pod that is bound to them that it runs.

use super::site::Site;
use agent::join::{self, Credentials, JoinConfig};
use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use state::{Expect, Key, Object, Revision, Write, rfc3339};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sync::node::{Config, Link};
use sync::{Down, Limits, Position, Progress, Uplink};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// As real agents do it.
const BEAT: Duration = Duration::from_secs(10);
/// Pods that a node takes.
const PODS: u32 = 110;
/// How long a node may take to leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// That something of its slice has come to a node.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What.
    pub what: What,
    /// When.
    pub at: Instant,
}

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The session is there; whether it goes on from the node's position.
    Welcome(bool),
    /// So many objects.
    Slice(usize),
    /// A change.
    Change(Key, Revision),
}

/// A node before it links.
pub struct Machine {
    number: usize,
    name: String,
    credentials: Credentials,
}

/// A node that is linked.
pub struct Running {
    stop: CancellationToken,
    ended: JoinHandle<Option<Position>>,
}

impl Machine {
    /// Joins: gets a certificate with the token.
    pub async fn join(site: &Site, number: usize) -> Result<Self> {
        let name = format!("node-{number:04}");
        let config = JoinConfig {
            server: site.url(),
            token: Some(site.token()?),
            node_name: name.clone(),
            data_dir: site.dir().join(&name),
        };
        let credentials = join::credentials(&config, &CancellationToken::new()).await?;
        Ok(Self { number, name, credentials })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Links, from where it was before; what comes is told to `seen`.
    pub fn run(&self, from: Option<Position>, seen: mpsc::UnboundedSender<Seen>) -> Running {
        let stop = CancellationToken::new();
        let (_renewed, identity) = watch::channel(self.credentials.identity.clone());
        let config = Config {
            server: self.credentials.host.clone(),
            port: self.credentials.port,
            node: self.name.clone(),
            server_ca: self.credentials.server_ca.clone(),
            identity,
            from: from.clone(),
            limits: Limits::default(),
            bind: None,
        };
        let link = sync::node::dial(config, stop.clone());
        let body = Body {
            number: self.number,
            name: self.name.clone(),
            uplink: link.end.uplink(),
            progress: Progress::new(from),
            seen,
            network: None,
            addresses: 0,
            told: HashSet::new(),
        };
        let ended = tokio::spawn(body.live(link, stop.clone()));
        Running { stop, ended }
    }
}

impl Running {
    /// Leaves; where it may go on.
    pub async fn stop(self) -> Result<Option<Position>> {
        self.stop.cancel();
        Ok(tokio::time::timeout(FAREWELL, self.ended).await??)
    }
}

struct Body {
    number: usize,
    name: String,
    uplink: Uplink,
    progress: Progress,
    seen: mpsc::UnboundedSender<Seen>,
    /// First address of its part of the pod network.
    network: Option<Ipv4Addr>,
    /// How many of them are given out.
    addresses: u32,
    /// Uids of the pods that were given an address.
    told: HashSet<String>,
}

impl Body {
    async fn live(mut self, mut link: Link, stop: CancellationToken) -> Option<Position> {
        let mut beats = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                message = link.end.next() => match message {
                    Some(message) => self.take(message),
                    None => break,
                },
                _ = beats.tick() => {
                    let uplink = self.uplink.clone();
                    tokio::spawn(async move { drop(uplink.renew().await) });
                }
            }
        }
        self.progress.position()
    }

    fn take(&mut self, message: Down) {
        let at = Instant::now();
        self.progress.see(&message);
        let what = match message {
            Down::Welcome(welcome) => What::Welcome(welcome.resumed),
            Down::Reset { objects, .. } => {
                if !objects.iter().any(|object| *object.key() == self.key()) {
                    self.write(Write::create(self.key(), self.node()));
                }
                objects.iter().for_each(|object| self.look(object));
                What::Slice(objects.len())
            }
            Down::Event(event) => {
                if event.change != state::Change::Deleted {
                    self.look(&event.object);
                }
                What::Change(event.key().clone(), event.revision)
            }
            Down::Reached(_) => return,
        };
        // nobody may want to know any more
        let _ = self.seen.send(Seen { what, at });
    }

    fn key(&self) -> Key {
        Key::of::<Node>("", &self.name)
    }

    fn look(&mut self, object: &Arc<Object>) {
        if *object.key() == self.key() {
            let spec = object.view::<Node>().and_then(|node| node.spec.as_ref());
            let cidr = spec.and_then(|spec| spec.pod_cidr.as_deref()).and_then(|cidr| cidr.split_once('/'));
            self.network = cidr.and_then(|(address, _)| address.parse().ok());
        } else if let Some(write) = self.next_of(object) {
            self.write(write);
        }
    }

    /// What the node says next of a pod: an address first, then that it runs, in the end that it is gone.
    fn next_of(&mut self, object: &Object) -> Option<Write> {
        let pod: &Pod = object.view()?;
        if object.is_deleting() {
            let expect = Expect::Uid(object.meta().uid.clone());
            return Some(Write { key: object.key().clone(), value: None, expect });
        }
        let status = pod.status.as_ref();
        if status.and_then(|status| status.phase.as_deref()) == Some("Running") {
            return None;
        }
        let mut value = object.value();
        let address = match status.and_then(|status| status.pod_ip.clone()) {
            Some(address) => {
                value["status"]["phase"] = "Running".into();
                address
            }
            None => {
                let network = self.network?;
                // a second look at the same state: the first write is under way
                if !self.told.insert(object.meta().uid.clone()) {
                    return None;
                }
                self.addresses += 1;
                Ipv4Addr::from_bits(network.to_bits() + 1 + self.addresses % 250).to_string()
            }
        };
        let runs = value["status"]["phase"] == "Running";
        report(&mut value, &address, runs);
        Some(Write::update(object, value))
    }

    fn write(&self, write: Write) {
        let uplink = self.uplink.clone();
        // what is refused is decided again when the next state comes
        tokio::spawn(async move { drop(uplink.write(vec![write]).await) });
    }

    /// The Node that it registers.
    fn node(&self) -> Value {
        let now = rfc3339(Timestamp::now());
        let condition = |kind: &str, status: &str, reason: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": "",
            "lastHeartbeatTime": now, "lastTransitionTime": now})
        };
        let resources = json!({"cpu": "8", "memory": "16Gi", "ephemeral-storage": "100Gi", "pods": PODS.to_string()});
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": self.name, "uid": format!("00000000-0000-4000-8000-{:012}", self.number), "creationTimestamp": now,
                "labels": {
                    "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "kubernetes.io/hostname": self.name,
                    "coracle.dev/runtime-wasm": "true", "coracle.dev/runtime-docker": "false",
                },
                "annotations": {"coracle.dev/endpoints": "192.0.2.1:6444"},
            },
            "spec": {},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": self.name},
                ],
                "capacity": resources, "allocatable": resources,
                "conditions": [
                    condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                    condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                    condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                    condition("Ready", "True", "KubeletReady"),
                ],
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "0", "containerRuntimeVersion": "wasmtime://48.0", "kernelVersion": "6",
                    "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "machineID": "0", "operatingSystem": "linux",
                    "osImage": "simulated", "systemUUID": "0",
                },
                "runtimeHandlers": [{"name": "wasm"}],
            },
        })
    }
}

/// Puts the status of a pod that has its address, and runs or is about to.
fn report(pod: &mut Value, address: &str, runs: bool) {
    let now = rfc3339(Timestamp::now());
    let names: Vec<Value> =
        pod["spec"]["containers"].as_array().into_iter().flatten().map(|c| c["name"].clone()).collect();
    let image = pod["spec"]["containers"][0]["image"].clone();
    let status = &mut pod["status"];
    let scheduled = status["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions: Vec<Value> = scheduled.into_iter().filter(|one| one["type"] == "PodScheduled").collect();
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        let is_so = runs || kind == "Initialized" || kind == "PodReadyToStartContainers";
        let truth = if is_so { "True" } else { "False" };
        conditions.push(json!({"type": kind, "status": truth, "lastTransitionTime": now}));
    }
    let container = |name: &Value| {
        let state = if runs {
            json!({"running": {"startedAt": now}})
        } else {
            json!({"waiting": {"reason": "ContainerCreating"}})
        };
        json!({"name": name, "image": image, "imageID": "", "ready": runs, "started": runs, "restartCount": 0, "state": state})
    };
    status["containerStatuses"] = names.iter().map(container).collect();
    status["conditions"] = conditions.into();
    status["podIP"] = address.into();
    status["podIPs"] = json!([{"ip": address}]);
    status["hostIP"] = "192.0.2.1".into();
    status["hostIPs"] = json!([{"ip": "192.0.2.1"}]);
    if status["startTime"].is_null() {
        status["startTime"] = now.into();
    }
}
