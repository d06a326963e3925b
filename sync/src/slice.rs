//! Which part of the cluster a node gets: pure functions of a world and an event.
//!
//! Everything that routes traffic goes to every node; what a pod reads goes where the pod is, and nowhere else.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount, Volume,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::api::node::v1::RuntimeClass;
use state::{Change, Event, Key, Object, World};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The ConfigMap with the cluster's CA, which every pod mounts.
const ROOT_CA: &str = "kube-root-ca.crt";

/// A node's whole slice of a world.
pub fn objects(world: &World, node: &str) -> Vec<Arc<Object>> {
    let mut keys: BTreeSet<Key> =
        world.iter().map(|object| object.key()).filter(|key| is_common(key)).cloned().collect();
    keys.insert(Key::of::<Node>("", node));
    keys.insert(lease(node));
    for pod in world.pods_on(node) {
        keys.insert(pod.key().clone());
        keys.extend(references(pod));
    }
    for ingress in world.all::<Ingress>(None) {
        keys.extend(certificates(ingress));
    }
    keys.iter().filter_map(|key| world.get(key)).cloned().collect()
}

/// What an event means to a node. `world` contains the event. What a pod or an Ingress newly refers to comes before it.
pub fn events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    let key = event.key();
    if key.is::<Pod>() {
        return pod_events(event, world, node);
    }
    if key.is::<Ingress>() {
        return with_references(event, world, certificates);
    }
    let concerned = is_common(key)
        || *key == Key::of::<Node>("", node)
        || *key == lease(node)
        || (is_source(key) && is_referred_to(key, world, node));
    if concerned { vec![event.clone()] } else { Vec::new() }
}

fn pod_events(event: &Event, world: &World, node: &str) -> Vec<Event> {
    let is_here = node_of(&event.object) == Some(node);
    let was_here = event.previous.as_ref().is_some_and(|previous| node_of(previous) == Some(node));
    match (is_here, was_here) {
        (true, _) if event.change != Change::Deleted => with_references(event, world, references),
        (true, _) => vec![event.clone()],
        // cannot happen while nodeName is immutable; a node must not keep a pod that is another's all the same
        (false, true) => vec![Event { change: Change::Deleted, ..event.clone() }],
        (false, false) => Vec::new(),
    }
}

/// The event, after what its object refers to now and did not before.
fn with_references(event: &Event, world: &World, refers: fn(&Object) -> BTreeSet<Key>) -> Vec<Event> {
    let old = event.previous.as_ref().map(|previous| refers(previous)).unwrap_or_default();
    let moved_in = event.previous.as_ref().is_some_and(|previous| node_of(previous) != node_of(&event.object));
    let mut events: Vec<Event> = refers(&event.object)
        .into_iter()
        .filter(|key| moved_in || !old.contains(key))
        .filter_map(|key| world.get(&key))
        .map(|object| Event { revision: event.revision, change: Change::Added, object: object.clone(), previous: None })
        .collect();
    events.push(event.clone());
    events
}

fn is_common(key: &Key) -> bool {
    key.is::<Namespace>()
        || key.is::<Service>()
        || key.is::<EndpointSlice>()
        || key.is::<Endpoints>()
        || key.is::<Ingress>()
        || key.is::<IngressClass>()
        || key.is::<RuntimeClass>()
}

fn is_source(key: &Key) -> bool {
    key.is::<ConfigMap>() || key.is::<Secret>() || key.is::<ServiceAccount>()
}

fn is_referred_to(key: &Key, world: &World, node: &str) -> bool {
    let by_pod =
        world.pods_on(node).filter(|pod| pod.key().namespace == key.namespace).any(|pod| references(pod).contains(key));
    by_pod
        || key.is::<Secret>()
            && world.all::<Ingress>(Some(&key.namespace)).any(|ingress| certificates(ingress).contains(key))
}

fn lease(node: &str) -> Key {
    Key::of::<Lease>("kube-node-lease", node)
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

/// The ConfigMaps, Secrets and the ServiceAccount a pod refers to.
pub fn references(pod: &Object) -> BTreeSet<Key> {
    let namespace = &*pod.key().namespace;
    let config = |name: &str| Key::of::<ConfigMap>(namespace, name);
    let secret = |name: &str| Key::of::<Secret>(namespace, name);
    let mut keys = BTreeSet::from([config(ROOT_CA)]);
    let Some(spec) = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()) else { return keys };
    keys.extend(spec.service_account_name.as_deref().map(|name| Key::of::<ServiceAccount>(namespace, name)));
    keys.extend(spec.image_pull_secrets.iter().flatten().map(|reference| secret(&reference.name)));
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        container_references(container, &config, &secret, &mut keys);
    }
    for volume in spec.volumes.iter().flatten() {
        volume_references(volume, &config, &secret, &mut keys);
    }
    keys
}

fn container_references(
    container: &Container,
    config: &dyn Fn(&str) -> Key,
    secret: &dyn Fn(&str) -> Key,
    keys: &mut BTreeSet<Key>,
) {
    for source in container.env_from.iter().flatten() {
        keys.extend(source.config_map_ref.as_ref().map(|reference| config(&reference.name)));
        keys.extend(source.secret_ref.as_ref().map(|reference| secret(&reference.name)));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
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
