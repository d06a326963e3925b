//! The Services as this node routes them: their addresses and ports, and which of their endpoints are for whom here.
//!
//! Pure. The rules are kube-proxy's: traffic that may go anywhere prefers the endpoints whose hints name this node or its zone,
//! where all hints are there; where nobody is ready, those that still serve while they terminate get it.

use super::{Here, protocol};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use netproxy::{HeadlessRecord, HealthCheck, PortRoute, ServiceRoute, TrafficPolicy};
use state::World;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Label by which a slice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u64 = 10_800;

/// All Services, and the addresses of their ready endpoints.
pub(super) fn build(world: &World, api: SocketAddr, here: &Here<'_>) -> (Vec<ServiceRoute>, HashSet<IpAddr>) {
    let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for object in world.all::<EndpointSlice>(None) {
        if let (Some(service), Some(slice)) = (object.meta().labels.get(SERVICE_LABEL), object.view()) {
            let namespace = object.meta().namespace.as_deref().unwrap_or_default();
            slices.entry((namespace, service)).or_default().push(slice);
        }
    }
    let mut ready = HashSet::new();
    let mut services = Vec::new();
    for object in world.all::<Service>(None) {
        let Some(spec) = object.view::<Service>().and_then(|service| service.spec.as_ref()) else { continue };
        let (namespace, name) = (object.meta().namespace.as_deref().unwrap_or_default(), object.meta().name.as_str());
        let slices = slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        ready.extend(endpoints.filter(|endpoint| is_ready(endpoint)).flat_map(addresses));
        let mut route = route(spec, slices, here);
        if (namespace, name) == ("default", "kubernetes") {
            for port in route.ports.iter_mut().filter(|port| port.endpoints.is_empty()) {
                port.endpoints.push(api);
            }
        }
        services.push(ServiceRoute { namespace: namespace.into(), name: name.into(), ..route });
    }
    (services, ready)
}

fn route(spec: &ServiceSpec, slices: &[&EndpointSlice], here: &Here<'_>) -> ServiceRoute {
    if spec.type_.as_deref() == Some("ExternalName") {
        return ServiceRoute { external_name: spec.external_name.clone(), ..ServiceRoute::default() };
    }
    let is_headless = spec.cluster_ip.as_deref() == Some("None");
    let ports = spec.ports.iter().flatten().filter_map(|port| port_route(port, slices, here, is_headless));
    let timeout = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP"))
        .then(|| Duration::from_secs(timeout.and_then(|s| u64::try_from(s).ok()).unwrap_or(AFFINITY_SECONDS)));
    let parsed = |texts: &Option<Vec<String>>| -> Vec<IpAddr> {
        texts.iter().flatten().filter_map(|address| address.parse().ok()).collect()
    };
    let sources = spec.load_balancer_source_ranges.iter().flatten();
    ServiceRoute {
        cluster_ips: if is_headless { Vec::new() } else { cluster_ips(spec) },
        external_ips: parsed(&spec.external_ips),
        balancer_ips: is_load_balancer(spec).then_some(here.address).into_iter().collect(),
        balancer_sources: sources.filter_map(|range| range.trim().parse().ok()).collect(),
        internal: policy(spec.internal_traffic_policy.as_deref()),
        external: policy(spec.external_traffic_policy.as_deref()),
        health_check: health_check(spec, slices, here),
        ports: ports.collect(),
        affinity,
        headless: if is_headless { headless(slices) } else { Vec::new() },
        ..ServiceRoute::default()
    }
}

/// Whether a Service wants a load balancer and leaves the choice to the cluster: then each node serves it at its own address.
/// Which addresses its status shows is the master's to say, which knows all nodes.
fn is_load_balancer(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
}

fn policy(name: Option<&str>) -> TrafficPolicy {
    if name == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let many = spec.cluster_ips.iter().flatten();
    let mut ips: Vec<IpAddr> = many.chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// What load balancers outside ask a node for; they may be of any class.
fn health_check(spec: &ServiceSpec, slices: &[&EndpointSlice], here: &Here<'_>) -> Option<HealthCheck> {
    let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?;
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| is_ready(endpoint) && is_here(endpoint, here));
    let local: BTreeSet<IpAddr> = ready.flat_map(addresses).collect();
    Some(HealthCheck { port, local_endpoints: local.len() })
}

/// `None` for a port whose protocol is not carried.
fn port_route(port: &ServicePort, slices: &[&EndpointSlice], here: &Here<'_>, is_headless: bool) -> Option<PortRoute> {
    let mut all = Vec::new();
    for slice in slices {
        let Some(number) = target(slice.ports.as_deref().unwrap_or_default(), port) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            all.extend(addresses(endpoint).map(|address| (SocketAddr::new(address, number), endpoint)));
        }
    }
    let local = all.iter().filter(|(_, endpoint)| is_here(endpoint, here)).copied().collect();
    let endpoints = match is_headless {
        // for its names alone, which are the same everywhere
        true => all.into_iter().filter(|(_, endpoint)| is_ready(endpoint)).collect(),
        false => near(serving(all), here),
    };
    Some(PortRoute {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
        h2c: port.app_protocol.as_deref() == Some("kubernetes.io/h2c"),
        endpoints: distinct(endpoints),
        local: distinct(serving(local)),
    })
}

/// A place that traffic may go to, and what is known of it.
type Candidate<'a> = (SocketAddr, &'a Endpoint);

/// The ready ones, or if there is none those that still serve while they terminate.
fn serving(all: Vec<Candidate<'_>>) -> Vec<Candidate<'_>> {
    let (ready, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, endpoint)| is_ready(endpoint));
    match ready.is_empty() {
        true => others.into_iter().filter(|(_, endpoint)| serves_while_terminating(endpoint)).collect(),
        false => ready,
    }
}

/// Those whose hints name this node, else its zone. Hints count only where every endpoint has some and they leave this node any;
/// what terminates is a last resort, wherever it is.
fn near<'a>(all: Vec<Candidate<'a>>, here: &Here<'_>) -> Vec<Candidate<'a>> {
    let names_node = |endpoint: &Endpoint| {
        let hinted = endpoint.hints.as_ref()?.for_nodes.as_ref().filter(|nodes| !nodes.is_empty())?;
        Some(hinted.iter().any(|node| node.name == here.node))
    };
    let names_zone = |endpoint: &Endpoint| {
        let hinted = endpoint.hints.as_ref()?.for_zones.as_ref().filter(|zones| !zones.is_empty())?;
        Some(hinted.iter().any(|zone| Some(zone.name.as_str()) == here.zone))
    };
    for by_node in [true, false] {
        let named = |endpoint: &Endpoint| if by_node { names_node(endpoint) } else { names_zone(endpoint) };
        let hints: Option<Vec<bool>> =
            all.iter().map(|(_, endpoint)| named(endpoint).filter(|_| is_ready(endpoint))).collect();
        if let Some(hints) = hints.filter(|hints| hints.contains(&true)) {
            return all.into_iter().zip(hints).filter_map(|(candidate, named)| named.then_some(candidate)).collect();
        }
    }
    all
}

/// In their order; one pod may be in two slices while it moves from one to the other.
fn distinct(candidates: Vec<Candidate<'_>>) -> Vec<SocketAddr> {
    let mut seen = HashSet::new();
    candidates.into_iter().map(|(addr, _)| addr).filter(|addr| seen.insert(*addr)).collect()
}

fn target(ports: &[EndpointPort], wanted: &ServicePort) -> Option<u16> {
    let name = wanted.name.as_deref().unwrap_or_default();
    let protocol = wanted.protocol.as_deref().unwrap_or("TCP");
    let found = ports.iter().find(|port| {
        port.name.as_deref().unwrap_or_default() == name && port.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    u16::try_from(found?.port?).ok()
}

fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> + '_ {
    endpoint.addresses.iter().filter_map(|address| address.parse().ok())
}

fn is_here(endpoint: &Endpoint, here: &Here<'_>) -> bool {
    endpoint.node_name.as_deref() == Some(here.node)
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn serves_while_terminating(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.is_some_and(|conditions| conditions.serving == Some(true) && conditions.terminating == Some(true))
}

fn headless(slices: &[&EndpointSlice]) -> Vec<HeadlessRecord> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let mut records: Vec<HeadlessRecord> = Vec::new();
    let mut seen = HashSet::new();
    for endpoint in endpoints.filter(|endpoint| is_ready(endpoint)) {
        for address in addresses(endpoint).filter(|address| seen.insert((*address, endpoint.hostname.clone()))) {
            records.push(HeadlessRecord { address, hostname: endpoint.hostname.clone() });
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `STATE@NODE/ZONE hints`: the last number of an address is the endpoint's place in the list.
    fn slice(endpoints: &[&str]) -> EndpointSlice {
        let endpoint = |(number, text): (usize, &&str)| {
            let (state, place) = text.split_once('@').unwrap();
            let (place, hints) = place.split_once(' ').unwrap_or((place, ""));
            let (node, zone) = place.split_once('/').unwrap_or((place, ""));
            let (ready, serving, terminating) = match state {
                "ready" => (true, true, false),
                "unready" => (false, false, false),
                "leaving" => (false, true, true),
                _ => (false, false, true),
            };
            let named = |kind: &str| -> Vec<serde_json::Value> {
                let own = hints.split(' ').filter_map(|hint| hint.strip_prefix(kind));
                own.map(|name| serde_json::json!({"name": name})).collect()
            };
            serde_json::json!({
                "addresses": [format!("10.42.0.{}", number + 1)], "nodeName": node, "zone": zone,
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                "hints": {"forNodes": named("node="), "forZones": named("zone=")},
            })
        };
        let endpoints: Vec<_> = endpoints.iter().enumerate().map(endpoint).collect();
        let slice = serde_json::json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 80}]});
        serde_json::from_value(slice).unwrap()
    }

    #[test]
    fn endpoints_are_chosen_as_kube_proxy_does() {
        let spec: ServiceSpec = serde_yaml::from_str("{clusterIP: 10.43.0.7, ports: [{port: 80}]}").unwrap();
        let here = Here { node: "a", address: "192.0.2.1".parse().unwrap(), zone: Some("east") };
        for (endpoints, everywhere, local) in [
            (&["ready@a", "ready@b", "unready@a"][..], "1 2", "1"),
            // what terminates is for when nobody is ready, here or anywhere
            (&["leaving@a", "ready@b"], "2", "1"),
            (&["leaving@a", "leaving@b", "gone@a"], "1 2", "1"),
            (&["ready@b", "gone@a"], "1", ""),
            // hints of zones
            (&["ready@b/east zone=east", "ready@c/west zone=west", "unready@d"], "1", ""),
            (&["ready@b/west zone=west zone=east", "ready@c/west zone=west"], "1", ""),
            (&["ready@b/west zone=west", "ready@c/west zone=west"], "1 2", ""),
            (&["ready@b/east zone=east", "ready@c/west"], "1 2", ""),
            // of nodes, which are nearer
            (&["ready@a/east node=a zone=east", "ready@b/east node=b zone=east"], "1", "1"),
            (&["ready@c/west node=c zone=west", "ready@b/east node=b zone=east"], "2", ""),
            (&["leaving@a/east zone=east", "leaving@b/west zone=west"], "1 2", "1"),
        ] {
            let slice = slice(endpoints);
            let route = route(&spec, &[&slice, &slice], &here);
            let last = |addrs: &[SocketAddr]| -> String {
                let all = addrs.iter().map(|addr| addr.ip().to_string().rsplit('.').next().unwrap().to_owned());
                all.collect::<Vec<_>>().join(" ")
            };
            let port = &route.ports[0];
            assert_eq!(
                (last(&port.endpoints).as_str(), last(&port.local).as_str()),
                (everywhere, local),
                "{endpoints:?}"
            );
        }
        // a node in no zone
        let nowhere = Here { zone: None, ..here };
        let slice = slice(&["ready@b/east zone=east", "ready@c/west zone=west"]);
        assert_eq!(route(&spec, &[&slice], &nowhere).ports[0].endpoints.len(), 2);
    }

    #[test]
    fn a_balancer_is_as_its_service_says() {
        let spec = "{type: LoadBalancer, clusterIP: 10.43.0.7, externalTrafficPolicy: Local, internalTrafficPolicy: Local, \
             healthCheckNodePort: 31000, loadBalancerSourceRanges: ['192.0.2.0/24', ' 198.51.100.7/32 '], \
             externalIPs: [203.0.113.9], ports: [{port: 80, nodePort: 30080}, {port: 81, protocol: SCTP}]}";
        let spec: ServiceSpec = serde_yaml::from_str(spec).unwrap();
        let here = Here { node: "a", address: "192.0.2.1".parse().unwrap(), zone: None };
        let slice = slice(&["ready@a", "ready@a", "leaving@a", "ready@b"]);
        let mut made = route(&spec, &[&slice], &here);
        assert_eq!((made.internal, made.external), (TrafficPolicy::Local, TrafficPolicy::Local));
        assert_eq!(made.health_check, Some(HealthCheck { port: 31000, local_endpoints: 2 }));
        assert_eq!(made.balancer_ips, [here.address]);
        let sources: Vec<String> = made.balancer_sources.iter().map(ToString::to_string).collect();
        assert_eq!(sources, ["192.0.2.0/24", "198.51.100.7/32"]);
        assert_eq!((made.external_ips.len(), made.ports.len()), (1, 1));
        let foreign = ServiceSpec { load_balancer_class: Some("example.com/lb".into()), ..spec };
        made = route(&foreign, &[&slice], &here);
        assert!(made.balancer_ips.is_empty() && made.health_check.is_some());
    }
}
