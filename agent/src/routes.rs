//! The node's routes, computed from its world: Services with their ready endpoints, Ingresses, certificates, host ports.
//!
//! [`build`] is pure; [`keep`] rebuilds once per burst of changes and tells the pods who still gets traffic. Which endpoints of a
//! Service are for this node is `services`'. Deliberately absent: sockets (netproxy's), and which pods are endpoints (the
//! EndpointSlice controller's).

mod services;

use crate::body::Body;
use crate::readiness;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Namespace, Node, Pod, PodSpec, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressClass};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netproxy::{Backend, BackendPort, Certificate, HostPort, IngressRoute, IngressRule, PathKind, Protocol, Routes};
use state::{Key, Object, World};
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The IngressClass that this cluster ships with.
pub const INGRESS_CLASS: &str = "coracle";
/// `spec.controller` of IngressClasses that are ours.
pub const INGRESS_CONTROLLER: &str = "coracle.dev/ingress";
/// The older way to name the class.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Label of a Node: its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The node that the routes are for.
pub struct Here<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its address.
    pub address: IpAddr,
    /// Its zone, if it is in one.
    pub zone: Option<&'a str>,
}

/// Addresses that get new traffic, as the last applied routes have it.
pub type Routed = Arc<HashSet<IpAddr>>;

/// Whether a change of this object can change the routes (a Node's may: its zone); `world` has it as it is now. Of pods only those
/// with host ports do, and those that are gone and may have had some.
pub fn concerns(world: &World, key: &Key) -> bool {
    if key.is::<Pod>() {
        return world.get(key).is_none_or(|object| object.view::<Pod>().is_some_and(has_host_ports));
    }
    key.is::<Service>()
        || key.is::<Namespace>()
        || key.is::<Node>()
        || key.is::<EndpointSlice>()
        || key.is::<Ingress>()
        || key.is::<IngressClass>()
        || key.is::<Secret>()
}

/// Rebuilds the routes after changes until shutdown; changes that come while it works are one rebuild.
pub async fn keep(body: Arc<Body>, shutdown: CancellationToken) {
    let mut last = Routes::default();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = body.routes_stale.notified() => {}
        }
        let world = readiness::corrected(&body.world(), &body.ready.lock());
        let zone = world.get(&body.node_key()).and_then(|node| node.meta().labels.get(ZONE)).map(String::as_str);
        let here = Here { node: &body.config.node_name, address: body.config.node_ip, zone };
        let (routes, routed) = build(&world, **body.api.load(), &here);
        if routes != last {
            body.proxy.set_routes(routes.clone());
            last = routes;
        }
        body.routed.send_replace(Arc::new(routed));
        report_problems(&body, &world);
    }
}

/// Tells as events what the proxy could not do for a Service, a pod's host port or an Ingress' certificate.
fn report_problems(body: &Body, world: &World) {
    for problem in body.proxy.problems() {
        let object = match &problem.about {
            netproxy::About::Service { namespace, name, .. } => world.get(&Key::of::<Service>(namespace, name)),
            netproxy::About::Certificate(name) => {
                name.split_once('/').and_then(|(namespace, name)| world.get(&Key::of::<Secret>(namespace, name)))
            }
            netproxy::About::HostPort { namespace, pod, .. } => world.get(&Key::of::<Pod>(namespace, pod)),
            _ => world.get(&body.node_key()),
        };
        let reason = match &problem.about {
            netproxy::About::HostPort { .. } => "HostPortConflict",
            _ => "ProxyProblem",
        };
        if let Some(object) = object {
            body.recorder.warning(object, reason, &problem.message);
        }
    }
}

/// The routes, and the addresses in them that are there because they are ready (not as a last resort).
pub fn build(world: &World, api: SocketAddr, here: &Here<'_>) -> (Routes, HashSet<IpAddr>) {
    let (services, ready) = services::build(world, api, here);
    let (ingresses, certificates) = ingresses(world);
    let namespaces = world.all::<Namespace>(None).map(|object| object.meta().name.clone()).collect();
    let host_ports = host_ports(world, here.node);
    (Routes { namespaces, services, ingresses, certificates, host_ports, ..Routes::default() }, ready)
}

/// The host ports of this node's pods that have an address of their own and are not done, the oldest pod first.
fn host_ports(world: &World, node: &str) -> Vec<HostPort> {
    let mut found = Vec::new();
    for object in world.all::<Pod>(None) {
        let Some(pod) = object.view::<Pod>().filter(|pod| has_host_ports(pod)) else { continue };
        let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { continue };
        let is_done = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let Some(address) = status.pod_ip.as_ref().and_then(|address| address.parse::<IpAddr>().ok()) else { continue };
        if is_done || spec.node_name.as_deref() != Some(node) {
            continue;
        }
        let ports = lasting_containers(spec).flat_map(|container| container.ports.iter().flatten());
        let made = ports.filter_map(|port| host_port(object, address, port));
        found.extend(made.map(|port| (object.meta().creation_timestamp, port)));
    }
    found.sort_by(|(a, one), (b, other)| (a, &one.namespace, &one.pod).cmp(&(b, &other.namespace, &other.pod)));
    found.into_iter().map(|(_, port)| port).collect()
}

fn host_port(pod: &Object, address: IpAddr, port: &ContainerPort) -> Option<HostPort> {
    let number = port.host_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?;
    Some(HostPort {
        namespace: pod.meta().namespace.clone().unwrap_or_default(),
        pod: pod.meta().name.clone(),
        protocol: protocol(port.protocol.as_deref())?,
        host_ip: port.host_ip.as_ref().and_then(|address| address.parse().ok()),
        port: number,
        to: SocketAddr::new(address, u16::try_from(port.container_port).ok()?),
    })
}

/// In the node's network every port is a host port already.
fn has_host_ports(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.host_network != Some(true)) else { return false };
    let mut ports = lasting_containers(spec).flat_map(|container| container.ports.iter().flatten());
    ports.any(|port| port.host_port.is_some_and(|port| port != 0))
}

/// The containers that live as long as the pod: the main ones and sidecars.
fn lasting_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars)
}

/// `None` for what is not carried.
fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

/// The Ingresses of our class, the oldest first, and the certificates they name.
fn ingresses(world: &World) -> (Vec<IngressRoute>, Vec<Certificate>) {
    let mut ours: Vec<&Arc<Object>> = world.all::<Ingress>(None).filter(|object| is_ours(world, object)).collect();
    ours.sort_by_key(|object| object.meta().creation_timestamp);
    let mut certificates: BTreeMap<String, Certificate> = BTreeMap::new();
    let mut routes = Vec::new();
    for object in ours {
        let Some(spec) = object.view::<Ingress>().and_then(|ingress| ingress.spec.as_ref()) else { continue };
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        let mut rules = Vec::new();
        for rule in spec.rules.iter().flatten() {
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                let kind = match path.path_type.as_str() {
                    "Exact" => PathKind::Exact,
                    "Prefix" => PathKind::Prefix,
                    _ => PathKind::ImplementationSpecific,
                };
                let Some(backend) = backend(&path.backend) else { continue };
                let host = rule.host.clone().filter(|host| !host.is_empty());
                rules.push(IngressRule { host, path: path.path.clone().unwrap_or_default(), kind, backend });
            }
        }
        for tls in spec.tls.iter().flatten() {
            let secret = tls.secret_name.as_deref().unwrap_or_default();
            let hosts = tls.hosts.clone().unwrap_or_default();
            add_certificate(world, namespace, secret, hosts, &mut certificates);
        }
        routes.push(IngressRoute {
            namespace: namespace.into(),
            name: object.meta().name.clone(),
            rules,
            default_backend: spec.default_backend.as_ref().and_then(backend),
        });
    }
    (routes, certificates.into_values().collect())
}

/// Whether an Ingress is for this ingress: its class is ours, or it names none and ours is the default.
pub fn is_ours(world: &World, object: &Object) -> bool {
    let Some(ingress) = object.view::<Ingress>() else { return false };
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.clone());
    let named = named.or_else(|| object.meta().annotations.get(CLASS_ANNOTATION).cloned());
    let class = |name: &str| world.view::<IngressClass>("", name);
    let controller = |class: &IngressClass| class.spec.as_ref().and_then(|spec| spec.controller.clone());
    match named {
        Some(name) => match class(&name) {
            Some(class) => controller(class).as_deref() == Some(INGRESS_CONTROLLER),
            None => name == INGRESS_CLASS,
        },
        None => world.all::<IngressClass>(None).all(|object| {
            let is_default = object.meta().annotations.get("ingressclass.kubernetes.io/is-default-class");
            let foreign = object.view().and_then(controller).as_deref() != Some(INGRESS_CONTROLLER);
            // a foreign default class takes what names none
            !(foreign && is_default.is_some_and(|value| value == "true"))
        }),
    }
}

fn backend(backend: &IngressBackend) -> Option<Backend> {
    let service = backend.service.as_ref()?;
    let port = service.port.as_ref()?;
    let port = match (port.number, &port.name) {
        (Some(number), _) => BackendPort::Number(u16::try_from(number).ok()?),
        (None, Some(name)) => BackendPort::Name(name.clone()),
        (None, None) => return None,
    };
    Some(Backend { service: service.name.clone(), port })
}

fn add_certificate(
    world: &World,
    namespace: &str,
    secret: &str,
    hosts: Vec<String>,
    certificates: &mut BTreeMap<String, Certificate>,
) {
    let Some(data) = world.view::<Secret>(namespace, secret).and_then(|secret| secret.data.as_ref()) else { return };
    let (Some(chain), Some(key)) = (data.get("tls.crt"), data.get("tls.key")) else { return };
    let name = format!("{namespace}/{secret}");
    let certificate = certificates.entry(name.clone()).or_insert_with(|| Certificate {
        name,
        hosts: Vec::new(),
        chain_pem: chain.0.clone(),
        key_pem: key.0.clone(),
    });
    for host in hosts {
        if !certificate.hosts.contains(&host) {
            certificate.hosts.push(host);
        }
    }
}

/// The number behind a probe's or lifecycle hook's port, which may be the name of a container port.
pub fn port_number(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|number| *number != 0),
        IntOrString::String(name) => {
            let found = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            let number = found.map(|port| port.container_port).or_else(|| name.parse().ok())?;
            u16::try_from(number).ok().filter(|number| *number != 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(pods: &[&str]) -> World {
        let mut world = World::default();
        for (revision, yaml) in (1..).zip(pods) {
            let mut value: serde_json::Value = serde_yaml::from_str(yaml).unwrap();
            value["apiVersion"] = "v1".into();
            value["kind"] = "Pod".into();
            value["metadata"]["namespace"] = "default".into();
            let object = Object::encode(manifests::Resource::of::<Pod>(), state::Revision(revision), value).unwrap();
            world.put(Arc::new(object));
        }
        world
    }

    #[test]
    fn host_ports_are_those_of_living_pods_here() {
        let ports = "ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 81}, \
                     {containerPort: 53, hostPort: 5353, hostIP: 127.0.0.1, protocol: UDP}]";
        let pod = |name: &str, more: &str, status: &str| {
            format!(
                "{{metadata: {{name: {name}, uid: {name}, creationTimestamp: '2026-01-0{}T00:00:00Z'}}, \
                 spec: {{nodeName: here, {more}}}, status: {{{status}}}}}",
                name.len()
            )
        };
        let main = format!("containers: [{{name: c, {ports}}}]");
        let sidecar = "containers: [{name: c}], initContainers: [{name: s, restartPolicy: Always, ports: \
                       [{containerPort: 1, hostPort: 1}]}, {name: i, ports: [{containerPort: 2, hostPort: 2}]}]";
        let running = "phase: Running, podIP: 10.42.0.7";
        let all = [
            pod("later", &main, running),
            pod("old", sidecar, running),
            pod("done", &main, "phase: Succeeded, podIP: 10.42.0.8"),
            pod("new", &main, "phase: Pending"),
            pod("node", &format!("hostNetwork: true, {main}"), running),
        ];
        let world = world(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let found = host_ports(&world, "here");
        let lines: Vec<String> =
            found.iter().map(|p| format!("{} {:?} {:?} {} {}", p.pod, p.protocol, p.host_ip, p.port, p.to)).collect();
        assert_eq!(
            lines,
            [
                "old Tcp None 1 10.42.0.7:1",
                "later Tcp None 8080 10.42.0.7:80",
                "later Udp Some(127.0.0.1) 5353 10.42.0.7:53",
            ]
        );
        assert!(host_ports(&world, "there").is_empty());
        let concerned = |name: &str| concerns(&world, &Key::of::<Pod>("default", name));
        assert!(concerned("old") && concerned("gone") && !concerned("node"));
    }
}
