//! Which part of the cluster a node gets: pure functions of a world and an event.
//!
//! Everything that routes traffic goes to every node; what a pod reads goes where the pod is, and nowhere else. When the
//! last pod that reads an object has left a node, the object leaves it too, as if it were deleted. Of other nodes a node
//! gets what it takes to reach their pods and to prefer near ones ([`Reach`]), and hears of them only when that changed. Where
//! there are NetworkPolicies it also gets the pods elsewhere, as [`peers`] tells of them.
//! CronJobs that belong to a node ([`state::cron`]) come with their Jobs and with what their pods will read.

mod duties;

use crate::peers;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, EnvFromSource, EnvVar, Event as ClusterEvent, Namespace, Node, NodeAddress, PersistentVolume,
    PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount, Volume,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, NetworkPolicy};
use k8s_openapi::api::node::v1::RuntimeClass;
use serde_json::json;
use state::{Change, Event, Key, Object, Revision, World, cron, storage};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The ConfigMap with the cluster's CA, which every pod mounts.
const ROOT_CA: &str = "kube-root-ca.crt";
/// Annotation of a Node: the addresses, `ip:port` with commas between, at which its link may be reached directly.
pub const ENDPOINTS: &str = "coracle.dev/endpoints";
/// Label of a Node: its machine's name.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Beginning of the labels of a Node that say where it is.
const TOPOLOGY: &str = "topology.kubernetes.io/";

/// A node's whole slice of a world.
pub fn objects(world: &World, node: &str) -> Vec<Arc<Object>> {
    let mut keys: BTreeSet<Key> =
        world.iter().map(|object| object.key()).filter(|key| is_common(key)).cloned().collect();
    keys.insert(Key::of::<Node>("", node));
    for pod in world.pods_on(node) {
        keys.insert(pod.key().clone());
        keys.extend(needs(pod, world));
    }
    keys.extend(duties::keys(world, node));
    for ingress in world.all::<Ingress>(None) {
        keys.extend(certificates(ingress));
    }
    let local = world.all::<PersistentVolume>(None).filter(|volume| lives_on(volume, node));
    keys.extend(local.map(|volume| volume.key().clone()));
    let own = keys.iter().filter_map(|key| world.get(key)).cloned();
    let others = world.all::<Node>(None).filter(|other| *other.key().name != *node);
    let others = others.filter_map(|other| reduced(other));
    own.chain(others).chain(peers::objects(world, node)).collect()
}

/// What an event means to a node. `world` contains the event and may contain later ones. What an object newly refers to
/// comes before it; what nobody on the node refers to any more is deleted after it. Only the nodes of the event's [`audience`] are
/// asked about: what is told of further objects here must be known there.
pub fn events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    let key = event.key();
    if key.is::<Pod>() {
        return pod_events(event, world, node);
    }
    if duties::is_one(key) {
        return duties::events(event, world, node);
    }
    if key.is::<Ingress>() {
        return with_references(event, world, node, |ingress, _| certificates(ingress));
    }
    if key.is::<PersistentVolume>() {
        return volume_events(event, world, node);
    }
    if key.is::<Node>() && *key.name != *node {
        return other_node_events(event);
    }
    if key.is::<NetworkPolicy>() {
        let mut events = vec![event.clone()];
        events.extend(peers::policy_events(event, world, node));
        return events;
    }
    let concerned = is_common(key) || key.is::<Node>() || (is_source(key) && is_referred_to(key, world, node));
    match concerned {
        false => Vec::new(),
        true if key.is::<PersistentVolumeClaim>() => {
            with_references(event, world, node, |claim, world| volume_of(claim, world).into_iter().collect())
        }
        true => vec![event.clone()],
    }
}

/// The nodes that an event may mean something to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// All of them.
    Everybody,
    /// These at most.
    Nodes(BTreeSet<String>),
}

impl Audience {
    /// Whether a node is among them.
    pub fn has(&self, node: &str) -> bool {
        match self {
            Self::Everybody => true,
            Self::Nodes(nodes) => nodes.contains(node),
        }
    }
}

/// To whom [`events`] may have something to say: found once for all nodes, so that a pod's change costs the other nodes nothing.
/// It may name too many nodes and never too few; what is not known to be of interest to few is for everybody.
pub fn audience(event: &Event, world: &World) -> Audience {
    let key = event.key();
    if key.is::<Pod>() {
        if peers::are_to_be_told(event, world) {
            return Audience::Everybody;
        }
        let nodes = [Some(&event.object), event.previous.as_ref()].into_iter().flatten().filter_map(|pod| node_of(pod));
        return Audience::Nodes(nodes.map(str::to_owned).collect());
    }
    if key.is::<Node>() && event.change == Change::Modified {
        let before = event.previous.as_deref().and_then(Reach::of);
        if before.is_some() && before == Reach::of(&event.object) {
            return Audience::Nodes(BTreeSet::from([key.name.to_string()]));
        }
    }
    if duties::is_one(key) {
        return Audience::Nodes(duties::audience(event, world));
    }
    if is_source(key) && !(key.is::<Secret>() && is_certificate(key, world)) {
        return Audience::Nodes(readers(key, world));
    }
    if is_minds_own(key) { Audience::Nodes(BTreeSet::new()) } else { Audience::Everybody }
}

/// The nodes with a pod, or a CronJob of their own, that refers to an object of its namespace.
fn readers(key: &Key, world: &World) -> BTreeSet<String> {
    let mut nodes = BTreeSet::new();
    let namespace = Some(&*key.namespace);
    for reader in world.all::<Pod>(namespace).chain(world.all::<CronJob>(namespace)) {
        if let Some(node) = node_of(reader).or_else(|| cron::home(reader))
            && !nodes.contains(node)
            && references(reader).contains(key)
        {
            nodes.insert(node.to_owned());
        }
    }
    nodes
}

/// The busiest of the kinds that no node is told of.
fn is_minds_own(key: &Key) -> bool {
    // of Endpoints nodes read what the slices say
    key.is::<ClusterEvent>()
        || key.is::<Endpoints>()
        || key.is::<Lease>()
        || key.is::<ReplicaSet>()
        || key.is::<Deployment>()
}

fn pod_events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    let is_here = node_of(&event.object) == Some(node);
    let was_here = event.previous.as_ref().is_some_and(|previous| node_of(previous) == Some(node));
    match (is_here, was_here) {
        (true, _) => with_references(event, world, node, needs),
        // cannot happen while nodeName is immutable; a node must not keep a pod that is another's all the same
        (false, true) => {
            let gone = Event { change: Change::Deleted, ..event.clone() };
            with_references(&gone, world, node, needs)
        }
        (false, false) => peers::pod_events(event, world, node),
    }
}

/// What a node is told of another one.
#[derive(PartialEq)]
struct Reach<'a> {
    /// Its name as a label, and where it is.
    labels: Vec<(&'a str, &'a str)>,
    endpoints: Option<&'a str>,
    pod_cidr: Option<&'a str>,
    pod_cidrs: &'a [String],
    addresses: &'a [NodeAddress],
}

impl<'a> Reach<'a> {
    fn of(node: &'a Object) -> Option<Self> {
        let typed = node.view::<Node>()?;
        let meta = node.meta();
        let told = |(name, _): &(&String, &String)| *name == HOSTNAME || name.starts_with(TOPOLOGY);
        let labels = meta.labels.iter().filter(told).map(|(name, value)| (name.as_str(), value.as_str()));
        let spec = typed.spec.as_ref();
        let status = typed.status.as_ref();
        Some(Self {
            labels: labels.collect(),
            endpoints: meta.annotations.get(ENDPOINTS).map(String::as_str),
            pod_cidr: spec.and_then(|spec| spec.pod_cidr.as_deref()),
            pod_cidrs: spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default(),
            addresses: status.and_then(|status| status.addresses.as_deref()).unwrap_or_default(),
        })
    }
}

/// Another node, as a node knows it.
fn reduced(node: &Object) -> Option<Arc<Object>> {
    let reach = Reach::of(node)?;
    let meta = node.meta();
    let labels: BTreeMap<&str, &str> = reach.labels.into_iter().collect();
    let mut value = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": meta.name, "uid": meta.uid, "labels": labels},
        "spec": {}, "status": {"addresses": reach.addresses},
    });
    if let Some(endpoints) = reach.endpoints {
        value["metadata"]["annotations"] = json!({ENDPOINTS: endpoints});
    }
    if let Some(cidr) = reach.pod_cidr {
        value["spec"] = json!({"podCIDR": cidr, "podCIDRs": reach.pod_cidrs});
    }
    Object::encode(node.key().resource.clone(), node.revision(), value).ok().map(Arc::new)
}

fn other_node_events(event: &Event) -> Vec<Event> {
    if event.change == Change::Deleted {
        return deletion(event.key(), event.revision).into_iter().collect();
    }
    let before = event.previous.as_deref().and_then(Reach::of);
    if before.is_some() && before == Reach::of(&event.object) {
        return Vec::new();
    }
    let change = if before.is_some() { Change::Modified } else { Change::Added };
    let object = reduced(&event.object);
    object.map(|object| Event { revision: event.revision, change, object, previous: None }).into_iter().collect()
}

/// A volume concerns the node it lies on, and the nodes whose pods use its claim. That one is gone is told to all: nobody
/// knows any more who had it.
fn volume_events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    let used = |volume: &Object| claim_of(volume).is_some_and(|claim| is_referred_to(&claim, world, node));
    if lives_on(&event.object, node) || used(&event.object) {
        return vec![event.clone()];
    }
    let left = event.change == Change::Deleted || event.previous.as_ref().is_some_and(|previous| used(previous));
    if left { deletion(event.key(), event.revision).into_iter().collect() } else { Vec::new() }
}

/// The event, after what its object refers to now and did not before, and before what it referred to last.
fn with_references(
    event: &Event,
    world: &World,
    node: &str,
    refers: fn(&Object, &World) -> BTreeSet<Key>,
) -> Vec<Event> {
    let before = event.previous.as_ref().map(|previous| refers(previous, world)).unwrap_or_default();
    let moved_in = event.previous.as_ref().is_some_and(|previous| node_of(previous) != node_of(&event.object));
    let now = if event.change == Change::Deleted { BTreeSet::new() } else { refers(&event.object, world) };
    let mut lost = before.clone();
    if event.change == Change::Deleted {
        lost.extend(refers(&event.object, world));
    }
    lost.retain(|key| !now.contains(key));
    let mut events: Vec<Event> = now
        .into_iter()
        .filter(|key| moved_in || !before.contains(key))
        .filter_map(|key| world.get(&key))
        .map(|object| Event { revision: event.revision, change: Change::Added, object: object.clone(), previous: None })
        .collect();
    events.push(event.clone());
    forget_needed(&mut lost, world, node);
    events.extend(lost.iter().filter_map(|key| deletion(key, event.revision)));
    events
}

/// Leaves those keys that nothing on a node needs.
fn forget_needed(keys: &mut BTreeSet<Key>, world: &World, node: &str) {
    for reader in world.pods_on(node).chain(duties::of(world, node)) {
        if keys.is_empty() {
            return;
        }
        for key in needs(reader, world) {
            keys.remove(&key);
        }
    }
    if keys.iter().any(Key::is::<Secret>) {
        for ingress in world.all::<Ingress>(None) {
            for key in certificates(ingress) {
                keys.remove(&key);
            }
        }
    }
    keys.retain(|key| !world.get(key).is_some_and(|object| lives_on(object, node)));
}

/// That an object is not this node's any more: its name, and nothing of what is in it.
fn deletion(key: &Key, revision: Revision) -> Option<Event> {
    let mut value = json!({"metadata": {"name": &*key.name}});
    if !key.namespace.is_empty() {
        value["metadata"]["namespace"] = (*key.namespace).into();
    }
    let object = Arc::new(Object::encode(key.resource.clone(), revision, value).ok()?);
    Some(Event { revision, change: Change::Deleted, object, previous: None })
}

fn is_common(key: &Key) -> bool {
    key.is::<Namespace>()
        || key.is::<Service>()
        || key.is::<EndpointSlice>()
        || key.is::<Ingress>()
        || key.is::<IngressClass>()
        || key.is::<NetworkPolicy>()
        || key.is::<RuntimeClass>()
}

fn is_source(key: &Key) -> bool {
    key.is::<ConfigMap>() || key.is::<Secret>() || key.is::<ServiceAccount>() || key.is::<PersistentVolumeClaim>()
}

fn is_referred_to(key: &Key, world: &World, node: &str) -> bool {
    let readers = world.pods_on(node).chain(duties::of(world, node));
    let by_pod =
        readers.filter(|reader| reader.key().namespace == key.namespace).any(|reader| references(reader).contains(key));
    by_pod || key.is::<Secret>() && is_certificate(key, world)
}

/// Whether an Ingress names it.
fn is_certificate(secret: &Key, world: &World) -> bool {
    world.all::<Ingress>(Some(&secret.namespace)).any(|ingress| certificates(ingress).contains(secret))
}

fn node_of(object: &Object) -> Option<&str> {
    object.view::<Pod>()?.spec.as_ref()?.node_name.as_deref()
}

fn certificates(ingress: &Object) -> BTreeSet<Key> {
    let spec = ingress.view::<Ingress>().and_then(|ingress| ingress.spec.as_ref());
    let tls = spec.into_iter().flat_map(|spec| spec.tls.iter().flatten());
    tls.filter_map(|tls| tls.secret_name.as_deref())
        .map(|name| Key::of::<Secret>(&ingress.key().namespace, name))
        .collect()
}

fn lives_on(volume: &Object, node: &str) -> bool {
    volume.key().is::<PersistentVolume>() && volume.view().is_some_and(|volume| storage::lives_on(volume, node))
}

/// The claim a volume is bound to or reserved for.
fn claim_of(volume: &Object) -> Option<Key> {
    let reference = volume.view::<PersistentVolume>()?.spec.as_ref()?.claim_ref.as_ref()?;
    let (namespace, name) = (reference.namespace.as_deref()?, reference.name.as_deref()?);
    Some(Key::of::<PersistentVolumeClaim>(namespace, name))
}

/// The volume a claim is bound to; of a claim that is gone, the one that still names it.
fn volume_of(claim: &Object, world: &World) -> Option<Key> {
    let name = claim.view::<PersistentVolumeClaim>().and_then(storage::volume_name)?;
    let key = Key::of::<PersistentVolume>("", name);
    world.get(&key).is_some().then_some(key)
}

/// All that a pod, or a CronJob's pods, need: what they refer to, and the volumes of their claims.
fn needs(pod: &Object, world: &World) -> BTreeSet<Key> {
    let mut keys = references(pod);
    let claims: Vec<Key> = keys.iter().filter(|key| key.is::<PersistentVolumeClaim>()).cloned().collect();
    for claim in claims {
        match world.get(&claim) {
            Some(claim) => keys.extend(volume_of(claim, world)),
            None => {
                let volumes = world.all::<PersistentVolume>(None);
                let names_it = |volume: &&Arc<Object>| claim_of(volume).as_ref() == Some(&claim);
                keys.extend(volumes.filter(names_it).map(|volume| volume.key().clone()));
            }
        }
    }
    keys
}

/// The ConfigMaps, Secrets, claims and the ServiceAccount that a pod refers to, or that the pods of a CronJob will.
pub fn references(pod: &Object) -> BTreeSet<Key> {
    let namespace = &*pod.key().namespace;
    let config = |name: &str| Key::of::<ConfigMap>(namespace, name);
    let secret = |name: &str| Key::of::<Secret>(namespace, name);
    let mut keys = BTreeSet::from([config(ROOT_CA)]);
    let spec = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()).or_else(|| cron::template(pod));
    let Some(spec) = spec else { return keys };
    keys.extend(spec.service_account_name.as_deref().map(|name| Key::of::<ServiceAccount>(namespace, name)));
    keys.extend(spec.image_pull_secrets.iter().flatten().map(|reference| secret(&reference.name)));
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let (from, variables) = (container.env_from.as_deref(), container.env.as_deref());
        variable_references(from, variables, &config, &secret, &mut keys);
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        let (from, variables) = (container.env_from.as_deref(), container.env.as_deref());
        variable_references(from, variables, &config, &secret, &mut keys);
    }
    keys.extend(pod.view::<Pod>().map(storage::claim_keys).unwrap_or_default());
    for volume in spec.volumes.iter().flatten() {
        let claim = volume.persistent_volume_claim.as_ref();
        keys.extend(claim.map(|source| Key::of::<PersistentVolumeClaim>(namespace, &source.claim_name)));
        volume_references(volume, &config, &secret, &mut keys);
    }
    keys
}

fn variable_references(
    from: Option<&[EnvFromSource]>,
    variables: Option<&[EnvVar]>,
    config: &dyn Fn(&str) -> Key,
    secret: &dyn Fn(&str) -> Key,
    keys: &mut BTreeSet<Key>,
) {
    for source in from.unwrap_or_default() {
        keys.extend(source.config_map_ref.as_ref().map(|reference| config(&reference.name)));
        keys.extend(source.secret_ref.as_ref().map(|reference| secret(&reference.name)));
    }
    for source in variables.unwrap_or_default().iter().filter_map(|variable| variable.value_from.as_ref()) {
        keys.extend(source.config_map_key_ref.as_ref().map(|reference| config(&reference.name)));
        keys.extend(source.secret_key_ref.as_ref().map(|reference| secret(&reference.name)));
    }
}

fn volume_references(
    volume: &Volume,
    config: &dyn Fn(&str) -> Key,
    secret: &dyn Fn(&str) -> Key,
    keys: &mut BTreeSet<Key>,
) {
    keys.extend(volume.config_map.as_ref().map(|source| config(&source.name)));
    keys.extend(volume.secret.as_ref().and_then(|source| source.secret_name.as_deref()).map(secret));
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        keys.extend(source.config_map.as_ref().map(|source| config(&source.name)));
        keys.extend(source.secret.as_ref().map(|source| secret(&source.name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// A world and what a node makes of its changes, which must always be the same as a new slice of it.
    struct Cluster {
        world: World,
        replica: World,
    }

    impl Cluster {
        fn new() -> Self {
            Self { world: World::default(), replica: World::default() }
        }

        fn fold(&mut self, kind: &str, namespace: &str, name: &str, body: Option<Value>) -> Vec<String> {
            let event = self.change(kind, namespace, name, body);
            self.see(&event)
        }

        /// The change happens, and nobody looks yet.
        fn change(&mut self, kind: &str, namespace: &str, name: &str, body: Option<Value>) -> Event {
            let version = match kind {
                "Ingress" | "NetworkPolicy" => "networking.k8s.io/v1",
                "CronJob" | "Job" => "batch/v1",
                _ => "v1",
            };
            let resource = manifests::by_kind(version, kind).unwrap().resource();
            let revision = Revision(self.world.revision().0 + 1);
            let previous = self.world.get(&Key::new(resource.clone(), namespace, name)).cloned();
            let (change, object) = match body {
                Some(mut value) => {
                    value["metadata"]["name"] = name.into();
                    value["metadata"]["uid"] = format!("{kind}-{name}").into();
                    if !namespace.is_empty() {
                        value["metadata"]["namespace"] = namespace.into();
                    }
                    let object = Arc::new(Object::encode(resource, revision, value).unwrap());
                    (if previous.is_some() { Change::Modified } else { Change::Added }, object)
                }
                None => (Change::Deleted, previous.clone().unwrap().at(revision)),
            };
            let event = Event { revision, change, object, previous };
            self.world.fold(&event);
            event
        }

        fn see(&mut self, event: &Event) -> Vec<String> {
            let audience = audience(event, &self.world);
            for node in ["a", "b", "bystander"] {
                let is_told = !events(event, &self.world, node).is_empty();
                assert!(!is_told || audience.has(node), "{node} is to be told of {event:?}, and is not asked about");
            }
            let events = events(event, &self.world, "a");
            for event in &events {
                self.replica.fold(event);
                peers::forget(&mut self.replica);
            }
            events.iter().map(|event| format!("{:?} {}", event.change, event.key())).collect()
        }

        fn agree(&self) {
            let names = |objects: Vec<Arc<Object>>| -> BTreeSet<String> {
                objects.iter().map(|object| format!("{} {}", object.key(), object.revision())).collect()
            };
            let replica: Vec<Arc<Object>> = self.replica.iter().cloned().collect();
            assert_eq!(names(replica), names(objects(&self.world, "a")));
        }
    }

    fn pod(node: &str, secret: &str) -> Option<Value> {
        Some(
            json!({"spec": {"nodeName": node, "containers": [{"name": "c", "env": [{"name": "X", "valueFrom": {"secretKeyRef":
            {"name": secret, "key": "k"}}}]}]}}),
        )
    }

    fn with_claim(node: &str, claim: &str) -> Option<Value> {
        Some(json!({"spec": {"nodeName": node, "containers": [], "volumes": [
            {"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}}))
    }

    fn bound(volume: &str) -> Option<Value> {
        Some(json!({"spec": {"volumeName": volume}, "status": {"phase": "Bound"}}))
    }

    fn volume(claim: &str) -> Option<Value> {
        Some(json!({"spec": {"claimRef": {"namespace": "n", "name": claim}, "hostPath": {"path": "/x"}}}))
    }

    fn local(node: &str) -> Option<Value> {
        Some(json!({
            "metadata": {"annotations": {storage::PROVISIONED_BY: storage::LOCAL_PATH}},
            "spec": {"local": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}},
        }))
    }

    #[test]
    fn what_pods_read_comes_before_them_and_goes_after_the_last() {
        let mut cluster = Cluster::new();
        assert!(cluster.fold("Secret", "n", "s", Some(json!({"data": {}}))).is_empty());
        assert!(cluster.fold("Pod", "n", "elsewhere", pod("b", "s")).is_empty());
        assert_eq!(cluster.fold("Pod", "n", "p", pod("a", "s")), ["Added secrets n/s", "Added pods n/p"]);
        assert_eq!(cluster.fold("Pod", "n", "q", pod("a", "s")), ["Added secrets n/s", "Added pods n/q"]);
        assert_eq!(cluster.fold("Secret", "n", "s", Some(json!({"data": {"k": ""}}))), ["Modified secrets n/s"]);
        assert_eq!(cluster.fold("Pod", "n", "p", None), ["Deleted pods n/p"]);
        cluster.agree();
        let last = cluster.fold("Pod", "n", "q", None);
        assert_eq!(last, ["Deleted pods n/q", "Deleted configmaps n/kube-root-ca.crt", "Deleted secrets n/s"]);
        assert!(cluster.fold("Secret", "n", "s", None).is_empty());
        cluster.agree();
    }

    #[test]
    fn few_nodes_are_asked_about_what_concerns_few() {
        let mut cluster = Cluster::new();
        let mut asked = |kind: &str, namespace: &str, name: &str, body: Option<Value>| {
            let event = cluster.change(kind, namespace, name, body);
            cluster.see(&event);
            match audience(&event, &cluster.world) {
                Audience::Everybody => "everybody".to_owned(),
                Audience::Nodes(nodes) => nodes.into_iter().collect::<Vec<_>>().join(" "),
            }
        };
        let (empty, node) =
            (|| Some(json!({})), |memory: &str| Some(json!({"status": {"capacity": {"memory": memory}}})));
        assert_eq!(asked("Secret", "n", "s", empty()), "");
        assert_eq!(asked("Pod", "n", "p", pod("a", "s")), "a");
        assert_eq!(asked("Pod", "n", "q", pod("b", "s")), "b");
        assert_eq!(asked("Pod", "n", "r", pod("c", "other")), "c");
        assert_eq!(asked("Pod", "n", "waiting", Some(json!({"spec": {"containers": []}}))), "");
        assert_eq!(asked("Secret", "n", "s", Some(json!({"data": {}}))), "a b");
        assert_eq!(asked("ConfigMap", "n", ROOT_CA, empty()), "a b c");
        assert_eq!(asked("ConfigMap", "other", ROOT_CA, empty()), "");
        assert_eq!(asked("Node", "", "a", node("1Gi")), "everybody");
        assert_eq!(asked("Node", "", "a", node("2Gi")), "a");
        assert_eq!(asked("Service", "n", "s", empty()), "everybody");
        assert_eq!(asked("Event", "n", "e", empty()), "");
        asked("Ingress", "n", "i", Some(json!({"spec": {"tls": [{"secretName": "s"}]}})));
        assert_eq!(asked("Secret", "n", "s", None), "everybody");
        assert_eq!(asked("Pod", "n", "q", None), "b");
    }

    #[test]
    fn a_secret_that_vanished_with_its_pods_leaves_no_trace() {
        let mut cluster = Cluster::new();
        cluster.fold("Secret", "n", "s", Some(json!({"data": {"k": "dGV4dA=="}})));
        cluster.fold("Pod", "n", "p", pod("a", "s"));
        // all is over before anybody looks
        let events = [cluster.change("Pod", "n", "p", None), cluster.change("Secret", "n", "s", None)];
        for event in &events {
            cluster.see(event);
        }
        cluster.agree();
        let gone = super::events(&events[0], &cluster.world, "a").pop().unwrap();
        assert!(gone.object.value()["data"].is_null(), "only the name is told");
    }

    #[test]
    fn claims_bring_their_volumes_and_a_node_knows_its_own() {
        let mut cluster = Cluster::new();
        cluster.fold("PersistentVolumeClaim", "n", "c", Some(json!({"spec": {}})));
        let first = cluster.fold("Pod", "n", "p", with_claim("a", "c"));
        assert_eq!(first, ["Added persistentvolumeclaims n/c", "Added pods n/p"]);
        cluster.agree();
        assert_eq!(cluster.fold("PersistentVolume", "", "v", volume("c")), ["Added persistentvolumes v"]);
        let bound = cluster.fold("PersistentVolumeClaim", "n", "c", bound("v"));
        assert_eq!(bound, ["Added persistentvolumes v", "Modified persistentvolumeclaims n/c"]);
        cluster.agree();
        assert!(cluster.fold("PersistentVolume", "", "other", volume("x")).is_empty());
        assert!(cluster.fold("PersistentVolume", "", "theirs", local("b")).is_empty());
        assert_eq!(cluster.fold("PersistentVolume", "", "ours", local("a")), ["Added persistentvolumes ours"]);
        cluster.agree();
        cluster.fold("Pod", "n", "p", None);
        cluster.agree();
        assert_eq!(cluster.fold("PersistentVolume", "", "ours", None), ["Deleted persistentvolumes ours"]);
        cluster.agree();
        assert_eq!(cluster.fold("PersistentVolumeClaim", "n", "c", None), [""; 0]);
    }

    #[test]
    fn of_other_nodes_a_node_knows_how_to_reach_them() {
        let node = |memory: &str, zone: &str| {
            Some(json!({
                "metadata": {
                    "labels": {HOSTNAME: "h", "topology.kubernetes.io/zone": zone, "coracle.dev/runtime-wasm": "true"},
                    "annotations": {ENDPOINTS: "192.0.2.1:4433", "coracle.dev/docker": "x"},
                },
                "spec": {"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"], "taints": []},
                "status": {"capacity": {"memory": memory}, "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
            }))
        };
        let mut cluster = Cluster::new();
        assert_eq!(cluster.fold("Node", "", "a", node("1Gi", "x")), ["Added nodes a"]);
        assert_eq!(cluster.fold("Node", "", "a", node("2Gi", "x")), ["Modified nodes a"]);
        assert_eq!(cluster.fold("Node", "", "b", node("1Gi", "x")), ["Added nodes b"]);
        cluster.agree();
        assert!(cluster.fold("Node", "", "b", node("2Gi", "x")).is_empty(), "what changed is of no interest");
        let key = Key::of::<Node>("", "b");
        let told = cluster.replica.get(&key).unwrap().value();
        let wanted = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "b", "uid": "Node-b", "resourceVersion": told["metadata"]["resourceVersion"],
                "labels": {HOSTNAME: "h", "topology.kubernetes.io/zone": "x"},
                "annotations": {ENDPOINTS: "192.0.2.1:4433"},
            },
            "spec": {"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        });
        assert_eq!(told, wanted);
        assert_eq!(cluster.fold("Node", "", "b", node("2Gi", "y")), ["Modified nodes b"]);
        cluster.agree();
        assert_eq!(
            cluster.replica.get(&Key::of::<Node>("", "a")).unwrap().value()["status"]["capacity"]["memory"],
            "2Gi"
        );
        assert_eq!(cluster.fold("Node", "", "b", None), ["Deleted nodes b"]);
        cluster.agree();
    }

    #[test]
    fn a_cron_job_of_the_node_comes_with_its_jobs_and_what_they_will_read() {
        let cron = |node: &str, secret: &str| {
            let mut pod = pod(node, secret).unwrap();
            pod["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
            Some(json!({"spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": pod}}}}))
        };
        let job = |active: i32| {
            let owner = json!({"apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "CronJob-c", "controller": true});
            Some(json!({"metadata": {"ownerReferences": [owner]}, "status": {"active": active},
                "spec": {"template": {"spec": {"nodeName": "a", "containers": []}}}}))
        };
        let mut cluster = Cluster::new();
        cluster.fold("Secret", "n", "s", Some(json!({"data": {}})));
        cluster.fold("Secret", "n", "t", Some(json!({"data": {}})));
        cluster.fold("PersistentVolumeClaim", "n", "c", Some(json!({"spec": {}})));
        assert!(cluster.fold("CronJob", "n", "theirs", cron("b", "s")).is_empty());
        assert!(cluster.fold("Job", "n", "j", job(1)).is_empty());
        let first = cluster.fold("CronJob", "n", "c", cron("a", "s"));
        assert_eq!(
            first,
            [
                "Added persistentvolumeclaims n/c",
                "Added secrets n/s",
                "Added jobs.batch n/j",
                "Added cronjobs.batch n/c"
            ]
        );
        cluster.agree();
        assert_eq!(cluster.fold("Job", "n", "j", job(0)), ["Modified jobs.batch n/j"]);
        assert_eq!(cluster.fold("Job", "n", "k", job(0)), ["Added jobs.batch n/k"]);
        assert_eq!(
            cluster.fold("CronJob", "n", "c", cron("a", "t")),
            ["Added secrets n/t", "Modified cronjobs.batch n/c", "Deleted secrets n/s"]
        );
        cluster.agree();
        cluster.fold("Pod", "n", "p", pod("a", "t"));
        let mut moved = cluster.fold("CronJob", "n", "c", cron("b", "t"));
        // the Jobs come in no order
        moved.sort();
        let gone = ["cronjobs.batch n/c", "jobs.batch n/j", "jobs.batch n/k", "persistentvolumeclaims n/c"];
        assert_eq!(moved, gone.map(|name| format!("Deleted {name}")));
        cluster.agree();
        assert!(cluster.fold("Job", "n", "k", job(3)).is_empty());
        cluster.fold("CronJob", "n", "c", cron("a", "t"));
        cluster.fold("CronJob", "n", "c", None);
        assert!(
            cluster.replica.get(&Key::of::<k8s_openapi::api::batch::v1::Job>("n", "j")).is_some(),
            "until it goes too"
        );
        cluster.fold("Job", "n", "j", None);
        cluster.fold("Job", "n", "k", None);
        cluster.agree();
    }

    #[test]
    fn an_ingress_brings_its_certificate_and_takes_it_along() {
        let mut cluster = Cluster::new();
        cluster.fold("Secret", "n", "tls", Some(json!({"data": {}})));
        let ingress = |secret: &str| Some(json!({"spec": {"tls": [{"secretName": secret}]}}));
        cluster.fold("Ingress", "n", "i", ingress("tls"));
        cluster.agree();
        cluster.fold("Ingress", "n", "i", ingress("none"));
        cluster.agree();
        cluster.fold("Ingress", "n", "i", ingress("tls"));
        cluster.fold("Ingress", "n", "i", None);
        cluster.agree();
    }

    #[test]
    fn pods_elsewhere_are_told_while_there_are_policies() {
        let far = |label: &str, address: &str, phase: &str| {
            let mut value = json!({
                "metadata": {"labels": {"app": label}},
                "spec": {"nodeName": "b", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]},
                "status": {"phase": phase, "conditions": []},
            });
            if !address.is_empty() {
                value["status"]["podIPs"] = json!([{"ip": address}]);
            }
            Some(value)
        };
        let policy = || Some(json!({"spec": {"podSelector": {}}}));
        let mut cluster = Cluster::new();
        assert!(cluster.fold("Pod", "n", "early", far("x", "10.0.0.1", "Running")).is_empty());
        cluster.fold("Pod", "n", "own", pod("a", "s"));
        let first = cluster.fold("NetworkPolicy", "n", "p", policy());
        assert_eq!(first, ["Added networkpolicies.networking.k8s.io n/p", "Added podpeers.coracle.dev n/early"]);
        assert_eq!(cluster.fold("NetworkPolicy", "n", "q", policy()).len(), 1, "they are known");
        cluster.agree();
        assert!(cluster.fold("Pod", "n", "late", far("x", "", "Pending")).is_empty(), "it has no address");
        assert_eq!(
            cluster.fold("Pod", "n", "late", far("x", "10.0.0.2", "Pending")),
            ["Added podpeers.coracle.dev n/late"]
        );
        assert!(cluster.fold("Pod", "n", "late", far("x", "10.0.0.2", "Running")).is_empty(), "nothing of interest");
        assert_eq!(
            cluster.fold("Pod", "n", "late", far("y", "10.0.0.2", "Running")),
            ["Modified podpeers.coracle.dev n/late"]
        );
        cluster.agree();
        let key = Key::of::<peers::PodPeer>("n", "late");
        let told = cluster.replica.get(&key).unwrap().value();
        let wanted = json!({
            "apiVersion": "coracle.dev/v1", "kind": "PodPeer", "addresses": ["10.0.0.2"],
            "ports": [{"name": "web", "protocol": "TCP", "port": 80}],
            "metadata": {"namespace": "n", "name": "late", "labels": {"app": "y"},
                "resourceVersion": told["metadata"]["resourceVersion"]},
        });
        assert_eq!(told, wanted);
        assert_eq!(
            cluster.fold("Pod", "n", "late", far("y", "10.0.0.2", "Failed")),
            ["Deleted podpeers.coracle.dev n/late"]
        );
        assert!(cluster.fold("Pod", "n", "late", None).is_empty());
        cluster.agree();
        cluster.fold("NetworkPolicy", "n", "p", None);
        cluster.agree();
        cluster.fold("NetworkPolicy", "n", "q", None);
        cluster.agree();
        assert!(cluster.replica.get(&Key::of::<peers::PodPeer>("n", "early")).is_none());
        // all is over, and there again, before anybody looks
        let events = [
            cluster.change("NetworkPolicy", "n", "p", policy()),
            cluster.change("Pod", "n", "early", None),
            cluster.change("NetworkPolicy", "n", "p", None),
            cluster.change("Pod", "n", "other", far("x", "10.0.0.3", "Running")),
            cluster.change("NetworkPolicy", "n", "q", policy()),
        ];
        for event in &events {
            cluster.see(event);
        }
        cluster.agree();
    }
}
