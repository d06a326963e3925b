//! Where a Service's traffic can go: its pods' addresses, as EndpointSlices and as the older Endpoints object.
//!
//! A Service with a selector chooses pods; each with an address becomes an endpoint, ready or not, with the Service's ports
//! resolved for that pod (`slices`, and `legacy` for the older object), with hints where the Service prefers near ones (`hints`).
//! The endpoints of a Service without a selector are their owner's; who writes them as Endpoints gets slices of them (`mirror`).

mod hints;
mod legacy;
mod mirror;
mod slices;
#[cfg(test)]
mod tests;

use crate::{Controller, Cx, Outcome, node, pods};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use state::{Event, Key, Object, World, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Label of a slice: its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of endpoints of a Service without an address of its own.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label of a node: its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The controller.
pub struct EndpointsOfServices;

impl Controller for EndpointsOfServices {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let (key, meta) = (event.key(), event.object.meta());
        if key.is::<Service>() {
            vec![key.clone()]
        } else if key.is::<Pod>() {
            services_of(event, world)
        } else if key.is::<Endpoints>() {
            vec![Key::of::<Service>(&key.namespace, &key.name)]
        } else if key.is::<EndpointSlice>() && (slices::is_ours(meta) || mirror::is_mirror(meta)) {
            meta.labels.get(SERVICE_NAME).map(|name| Key::of::<Service>(&key.namespace, name)).into_iter().collect()
        } else if key.is::<Node>() {
            let moved = if is_moved(event) { services_on(&key.name, world) } else { Vec::new() };
            let shared = if changes_shares(event) { shared_out(world) } else { Vec::new() };
            moved.into_iter().chain(shared).collect()
        } else {
            Vec::new()
        }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).filter(|object| !object.is_deleting()).cloned() else {
            // slices go with their owner; Endpoints have none
            let mut writes = legacy::forget(cx.world, key);
            writes.extend(mirror::reconcile(cx, key, false));
            return Outcome { writes, again_at: None };
        };
        let Some(spec) = object.view::<Service>().and_then(|service| service.spec.as_ref()) else {
            return Outcome::default();
        };
        let Some(selector) = selector(spec) else {
            let is_external = spec.type_.as_deref() == Some("ExternalName");
            return Outcome { writes: mirror::reconcile(cx, key, !is_external), again_at: None };
        };
        let backends = backends(cx.world, &object, spec, selector);
        if let Some(until) = slices::rests_until(cx, &object, spec, &backends) {
            return Outcome { writes: Vec::new(), again_at: Some(until) };
        }
        let mut writes: Vec<Write> = slices::reconcile(cx, &object, spec, &backends);
        writes.extend(mirror::reconcile(cx, key, false));
        writes.extend(legacy::reconcile(cx, &object, spec, &backends));
        Outcome { writes, again_at: None }
    }
}

/// The selector of a Service whose endpoints are ours to keep.
fn selector(spec: &ServiceSpec) -> Option<&BTreeMap<String, String>> {
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|selector| !selector.is_empty() && !external)
}

fn matches(selector: &BTreeMap<String, String>, pod: &Object) -> bool {
    selector.iter().all(|(key, value)| pod.meta().labels.get(key) == Some(value))
}

/// The Services that choose a pod, or chose it before, if anything changed that endpoints show.
fn services_of(event: &Event, world: &World) -> Vec<Key> {
    let (now, before) = (&event.object, event.previous.as_ref());
    if let (state::Change::Modified, Some(before)) = (event.change, before)
        && shown(now) == shown(before)
        && now.meta().labels == before.meta().labels
    {
        return Vec::new();
    }
    let chooses = |service: &&std::sync::Arc<Object>| {
        let spec = service.view::<Service>().and_then(|service| service.spec.as_ref());
        let selector = spec.and_then(selector);
        selector
            .is_some_and(|selector| matches(selector, now) || before.is_some_and(|before| matches(selector, before)))
    };
    let services = world.all::<Service>(Some(&event.key().namespace));
    services.filter(chooses).map(|service| service.key().clone()).collect()
}

/// Whether a node is in another zone than before; a new node has no endpoints yet.
fn is_moved(event: &Event) -> bool {
    let zone = |node: &Object| node.meta().labels.get(ZONE).cloned();
    event.previous.as_ref().is_some_and(|previous| zone(previous) != zone(&event.object))
}

/// Whether the zones' parts of the CPU may be others than before.
fn changes_shares(event: &Event) -> bool {
    let shown = |node: &Object| {
        let status = node.view::<Node>().and_then(|node| node.status.as_ref());
        let cpu = status.and_then(|status| status.allocatable.as_ref()?.get("cpu")).cloned();
        (node.meta().labels.get(ZONE).cloned(), node::ready(node) == Some("True"), cpu)
    };
    let before = event.previous.as_deref().map(shown);
    event.change == state::Change::Deleted || before.is_none_or(|before| before != shown(&event.object))
}

/// The Services whose endpoints are shared out among zones.
fn shared_out(world: &World) -> Vec<Key> {
    world
        .all::<Service>(None)
        .filter(|service| hints::are_shared_out(service))
        .map(|service| service.key().clone())
        .collect()
}

/// The Services that choose a pod of a node.
fn services_on(node: &str, world: &World) -> Vec<Key> {
    let mut keys = BTreeSet::new();
    for pod in world.pods_on(node) {
        for service in world.all::<Service>(Some(&pod.key().namespace)) {
            let spec = service.view::<Service>().and_then(|service| service.spec.as_ref());
            if spec.and_then(selector).is_some_and(|selector| matches(selector, pod)) {
                keys.insert(service.key().clone());
            }
        }
    }
    keys.into_iter().collect()
}

/// Everything of a pod that endpoints show, ports apart (they cannot change).
fn shown(pod: &Object) -> impl PartialEq {
    let view = pod.view::<Pod>();
    let node = view.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    (address(pod), pods::is_ready(pod), pods::is_finished(pod), pod.is_deleting(), node)
}

fn address(pod: &Object) -> Option<IpAddr> {
    pod.view::<Pod>()?.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

/// A port of a Service as one pod serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    name: String,
    protocol: String,
    number: i32,
    app_protocol: Option<String>,
}

/// A pod that a Service may send traffic to.
struct Backend<'a> {
    pod: &'a Object,
    address: IpAddr,
    ports: Vec<Port>,
    /// The pod's own word.
    serving: bool,
    terminating: bool,
    node: Option<&'a str>,
    zone: Option<&'a str>,
    /// Its own DNS name below the Service's.
    hostname: Option<&'a str>,
}

/// The pods of a Service that have an address and have not ended, by name.
fn backends<'a>(
    world: &'a World,
    service: &Object,
    spec: &ServiceSpec,
    selector: &'a BTreeMap<String, String>,
) -> Vec<Backend<'a>> {
    let mut pods: Vec<_> = world.pods_labelled(&service.key().namespace, selector).collect();
    pods.sort_unstable_by(|a, b| a.key().name.cmp(&b.key().name));
    let backend = |pod: &'a std::sync::Arc<Object>| {
        let address = address(pod).filter(|_| !pods::is_finished(pod))?;
        let own = pod.view::<Pod>()?.spec.as_ref()?;
        let node = own.node_name.as_deref();
        let zone = node.and_then(|node| world.get(&Key::of::<Node>("", node))?.meta().labels.get(ZONE));
        let named = own.subdomain.as_deref() == Some(&service.meta().name);
        Some(Backend {
            pod,
            address,
            ports: spec.ports.iter().flatten().filter_map(|port| resolve(port, pod.view()?)).collect(),
            serving: pods::is_ready(pod),
            terminating: pod.is_deleting(),
            node,
            zone: zone.map(String::as_str),
            hostname: own.hostname.as_deref().filter(|_| named),
        })
    };
    pods.into_iter().filter_map(backend).collect()
}

/// A Service's port on a pod; `None` when it is named and the pod has no port of that name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let mut ports =
                spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let named = ports
                .find(|own| own.name.as_ref() == Some(name) && own.protocol.as_deref().unwrap_or("TCP") == protocol);
            named?.container_port
        }
    };
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol.into(),
        number,
        app_protocol: port.app_protocol.clone(),
    })
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// The labels of a Service's endpoints: the Service's own, and what they are.
fn labels(service: &Object, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut labels = service.meta().labels.clone();
    if is_headless(spec) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}
