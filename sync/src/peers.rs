//! What a node is told of pods elsewhere, so that it can judge who talks to whom: [`PodPeer`].
//!
//! A kind of its own, which the API does not have, so that nobody takes another node's pod for one of this node. Peers are
//! in a node's world while there is any NetworkPolicy, and are forgotten with the last one.

use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::{NamespaceResourceScope, Resource as KindOf};
use manifests::Resource;
use serde::{Deserialize, Serialize};
use serde_json::json;
use state::{Change, Event, Key, Object, Revision, World};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A pod as others see it. Labels are in its metadata, namespace and name are the pod's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPeer {
    /// `status.podIPs`: never empty.
    pub addresses: Vec<String>,
    /// The ports that have a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
}

/// A container's port with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The container port.
    pub port: i32,
}

impl KindOf for PodPeer {
    const API_VERSION: &'static str = "coracle.dev/v1";
    const GROUP: &'static str = "coracle.dev";
    const KIND: &'static str = "PodPeer";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "podpeers";
    type Scope = NamespaceResourceScope;
}

impl PodPeer {
    /// What others see of a pod; `None` of one without an address of its own: it has none yet, it is over, or it lives in its
    /// node's network and is the node to others.
    pub fn of(pod: &Object) -> Option<Self> {
        let typed = pod.view::<Pod>()?;
        let (spec, status) = (typed.spec.as_ref()?, typed.status.as_ref()?);
        let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if is_over || spec.host_network == Some(true) {
            return None;
        }
        let addresses: Vec<String> = match status.pod_ips.as_deref().unwrap_or_default() {
            [] => status.pod_ip.iter().cloned().collect(),
            several => several.iter().map(|address| address.ip.clone()).collect(),
        };
        (!addresses.is_empty()).then(|| Self { addresses, ports: named_ports(typed) })
    }
}

/// The named ports of the containers that last as long as their pod.
pub fn named_ports(pod: &Pod) -> Vec<NamedPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let named = |port: &ContainerPort| {
        let name = port.name.clone().filter(|name| !name.is_empty())?;
        Some(NamedPort {
            name,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: port.container_port,
        })
    };
    ports.filter_map(named).collect()
}

/// Whether nodes are told of pods elsewhere.
pub fn are_told(world: &World) -> bool {
    world.count(&Resource::of::<NetworkPolicy>()) > 0
}

/// All peers of a node's pods, where they are told.
pub(crate) fn objects(world: &World, node: &str) -> Vec<Arc<Object>> {
    if !are_told(world) {
        return Vec::new();
    }
    let pods = world.all::<Pod>(None).filter(|pod| is_elsewhere(pod, node));
    pods.filter_map(|pod| encoded(pod, &PodPeer::of(pod)?, pod.revision())).collect()
}

/// Whether a change of a pod is one that nodes elsewhere see.
pub(crate) fn are_to_be_told(event: &Event, world: &World) -> bool {
    are_told(world) && news(event).is_some()
}

/// What a change of a pod on another node, or of none, means to a node.
pub(crate) fn pod_events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    if !are_told(world) || !is_elsewhere(&event.object, node) {
        return Vec::new();
    }
    let told = news(event).and_then(|(change, peer)| {
        let object = encoded(&event.object, &peer, event.revision)?;
        Some(Event { revision: event.revision, change, object, previous: None })
    });
    told.into_iter().collect()
}

/// What becomes of a pod's peer by a change.
fn news(event: &Event) -> Option<(Change, PodPeer)> {
    let before = event.previous.as_deref().and_then(|pod| Some((PodPeer::of(pod)?, &pod.meta().labels)));
    let is_there = event.change != Change::Deleted;
    match (before, PodPeer::of(&event.object).filter(|_| is_there)) {
        (None, None) => None,
        (None, Some(now)) => Some((Change::Added, now)),
        (Some((before, _)), None) => Some((Change::Deleted, before)),
        (Some((before, labels)), Some(now)) => {
            (before != now || *labels != event.object.meta().labels).then_some((Change::Modified, now))
        }
    }
}

/// What a change of a policy brings along: with the first one come all peers. `world` may be ahead of the event; peers that are
/// told twice do no harm.
pub(crate) fn policy_events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    let is_older = |other: &Arc<Object>| other.key() != event.key() && other.revision() < event.revision;
    if event.change != Change::Added || world.all::<NetworkPolicy>(None).any(is_older) {
        return Vec::new();
    }
    let told = |object| Event { revision: event.revision, change: Change::Added, object, previous: None };
    objects(world, node).into_iter().map(told).collect()
}

/// Takes the peers out of a node's world that has lost its last policy. Returns what is gone.
pub fn forget(world: &mut World) -> Vec<Key> {
    if are_told(world) {
        return Vec::new();
    }
    let keys: Vec<Key> = world.all::<PodPeer>(None).map(|peer| peer.key().clone()).collect();
    for key in &keys {
        world.remove(key);
    }
    keys
}

fn is_elsewhere(pod: &Object, node: &str) -> bool {
    let spec = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref());
    spec.and_then(|spec| spec.node_name.as_deref()) != Some(node)
}

fn encoded(pod: &Object, peer: &PodPeer, revision: Revision) -> Option<Arc<Object>> {
    let meta = pod.meta();
    let labels: &BTreeMap<String, String> = &meta.labels;
    let mut value = serde_json::to_value(peer).ok()?;
    value["apiVersion"] = PodPeer::API_VERSION.into();
    value["kind"] = PodPeer::KIND.into();
    value["metadata"] = json!({"namespace": meta.namespace, "name": meta.name, "labels": labels});
    Object::encode(Resource::of::<PodPeer>(), revision, value).ok().map(Arc::new)
}
