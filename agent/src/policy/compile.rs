//! From the node's world to the table that netproxy asks: selectors become addresses. Pure.
//!
//! Policies of all namespaces are compiled for all pods that the node knows, since a connection is judged where it begins too.

use crate::addresses;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use manifests::selector::LabelSelector;
use netproxy::Protocol;
use netproxy::network::Cidr;
use netproxy::policy::{Block, Isolation, NamedPort, Peers, Ports, Rule, Table};
use state::{Object, World};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use sync::peers::{self, PodPeer};

/// Labels of a pod or namespace.
type Labels = BTreeMap<String, String>;

/// A pod as policies see it.
struct Seen<'a> {
    labels: &'a Labels,
    addresses: Vec<IpAddr>,
    ports: Vec<peers::NamedPort>,
}

/// What the node knows, in the order of namespaces.
struct View<'a> {
    pods: BTreeMap<&'a str, Vec<Seen<'a>>>,
    namespaces: BTreeMap<&'a str, &'a Labels>,
}

/// The table of a world as `node` is to judge by it. `given` are the addresses of this node's pods by uid: those that the world does
/// not know yet.
pub fn table(world: &World, node: &str, given: &HashMap<String, IpAddr>) -> Table {
    if !peers::are_told(world) {
        return Table::default();
    }
    let view = View::of(world, given);
    let mut table = Table::default();
    for object in world.all::<Node>(None) {
        let addresses = node_addresses(object);
        if *object.key().name == *node {
            table.own_node.extend(&addresses);
        }
        table.nodes.extend(addresses);
    }
    let localhost = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    table.nodes.extend(localhost);
    table.own_node.extend(localhost);
    let mut names_ports = false;
    for object in world.all::<NetworkPolicy>(None) {
        let Some(policy) = Policy::of(object, &view) else { continue };
        names_ports |= policy.names_ports();
        let namespace = &*object.key().namespace;
        let pods = view.pods.get(namespace).into_iter().flatten().filter(|pod| policy.selector.matches(pod.labels));
        for address in pods.flat_map(|pod| &pod.addresses) {
            let Isolation { ingress, egress } = table.pods.entry(*address).or_default();
            for (of_pod, rules) in [(ingress, &policy.ingress), (egress, &policy.egress)] {
                if let Some(rules) = rules {
                    of_pod.get_or_insert_default().extend(rules.iter().cloned());
                }
            }
        }
    }
    if names_ports {
        table.named_ports = view.named_ports();
    }
    table
}

/// The policies that isolate a pod.
pub fn policies_of(world: &World, pod: &Object) -> Vec<Arc<Object>> {
    let policies = world.all::<NetworkPolicy>(Some(&pod.key().namespace));
    policies.filter(|object| selector_of(object).is_some_and(|it| it.matches(&pod.meta().labels))).cloned().collect()
}

fn selector_of(policy: &Object) -> Option<LabelSelector> {
    let spec = policy.view::<NetworkPolicy>()?.spec.as_ref()?;
    spec.pod_selector.as_ref().map_or(Some(LabelSelector::default()), |selector| LabelSelector::of(selector).ok())
}

impl<'a> View<'a> {
    fn of(world: &'a World, given: &HashMap<String, IpAddr>) -> Self {
        let mut pods: BTreeMap<&str, Vec<Seen<'_>>> = BTreeMap::new();
        for object in world.all::<Pod>(None) {
            if let Some(seen) = own(object, given) {
                pods.entry(&object.key().namespace).or_default().push(seen);
            }
        }
        for object in world.all::<PodPeer>(None) {
            let Some(peer) = object.view::<PodPeer>() else { continue };
            let addresses = peer.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            let seen = Seen { labels: &object.meta().labels, addresses, ports: peer.ports.clone() };
            pods.entry(&object.key().namespace).or_default().push(seen);
        }
        let namespaces = world.all::<Namespace>(None).map(|object| (&*object.key().name, &object.meta().labels));
        Self { pods, namespaces: namespaces.collect() }
    }

    fn named_ports(&self) -> HashMap<IpAddr, Vec<NamedPort>> {
        let mut found = HashMap::new();
        for pod in self.pods.values().flatten() {
            let made = pod.ports.iter().filter_map(|port| {
                let number = u16::try_from(port.port).ok()?;
                Some(NamedPort { name: port.name.clone(), protocol: protocol(&port.protocol)?, port: number })
            });
            let ports: Vec<NamedPort> = made.collect();
            if !ports.is_empty() {
                found.extend(pod.addresses.iter().map(|address| (*address, ports.clone())));
            }
        }
        found
    }
}

/// A pod of this node, if it has an address of its own and is not over.
fn own<'a>(object: &'a Object, given: &HashMap<String, IpAddr>) -> Option<Seen<'a>> {
    let pod = object.view::<Pod>()?;
    let is_over =
        matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    if is_over || pod.spec.as_ref()?.host_network == Some(true) {
        return None;
    }
    let addresses = match given.get(&object.meta().uid) {
        Some(address) => vec![*address],
        None => PodPeer::of(object)?.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
    };
    Some(Seen { labels: &object.meta().labels, addresses, ports: peers::named_ports(pod) })
}

/// All addresses under which a node's own sockets may be seen: of its machine, its device to other nodes, and its bridge.
fn node_addresses(object: &Object) -> Vec<IpAddr> {
    let Some(node) = object.view::<Node>() else { return Vec::new() };
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut addresses: Vec<IpAddr> = listed.iter().filter_map(|address| address.address.parse().ok()).collect();
    let cidr = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref()?.parse::<Cidr>().ok());
    if let Some(cidr) = cidr {
        let [_, bridge] = addresses::halves(cidr);
        addresses.extend([cidr.address, addresses::gateway(bridge)]);
    }
    addresses
}

/// A policy whose selectors are addresses.
struct Policy {
    selector: LabelSelector,
    ingress: Option<Vec<Arc<Rule>>>,
    egress: Option<Vec<Arc<Rule>>>,
}

impl Policy {
    fn of(object: &Object, view: &View<'_>) -> Option<Self> {
        let spec = object.view::<NetworkPolicy>()?.spec.as_ref()?;
        let has = |direction: &str| spec.policy_types.iter().flatten().any(|one| one == direction);
        let namespace = &*object.key().namespace;
        let rule = |peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>| {
            Arc::new(Rule { peers: peers_of(peers, namespace, view), ports: ports_of(ports) })
        };
        let ingress = spec.ingress.iter().flatten().map(|one| rule(one.from.as_deref(), one.ports.as_deref()));
        let egress = spec.egress.iter().flatten().map(|one| rule(one.to.as_deref(), one.ports.as_deref()));
        Some(Self {
            selector: selector_of(object)?,
            ingress: has("Ingress").then(|| ingress.collect()),
            egress: has("Egress").then(|| egress.collect()),
        })
    }

    fn names_ports(&self) -> bool {
        let rules = self.ingress.iter().chain(&self.egress).flatten();
        rules.filter_map(|rule| rule.ports.as_ref()).flatten().any(|ports| matches!(ports, Ports::Named(..)))
    }
}

/// Whom a rule names; nobody named is everybody.
fn peers_of(named: Option<&[NetworkPolicyPeer]>, namespace: &str, view: &View<'_>) -> Option<Peers> {
    let named = named.filter(|named| !named.is_empty())?;
    let mut peers = Peers::default();
    for peer in named {
        match &peer.ip_block {
            Some(block) => {
                let Ok(cidr) = block.cidr.parse() else { continue };
                let except = block.except.iter().flatten().filter_map(|hole| hole.parse().ok()).collect();
                peers.blocks.push(Block { cidr, except });
            }
            None => select(peer, namespace, view, &mut peers.pods),
        }
    }
    Some(peers)
}

/// Adds the pods that a peer selects: in its own namespace, unless it selects namespaces.
fn select(peer: &NetworkPolicyPeer, namespace: &str, view: &View<'_>, found: &mut HashSet<IpAddr>) {
    let parse = |selector: &Option<meta::LabelSelector>| selector.as_ref().map(LabelSelector::of).transpose();
    let (Ok(pods), Ok(namespaces)) = (parse(&peer.pod_selector), parse(&peer.namespace_selector)) else { return };
    let is_meant = |name: &str| match &namespaces {
        None => name == namespace,
        Some(selector) => view.namespaces.get(name).is_some_and(|labels| selector.matches(labels)),
    };
    for (_, candidates) in view.pods.iter().filter(|(name, _)| is_meant(name)) {
        let chosen = candidates.iter().filter(|pod| pods.as_ref().is_none_or(|selector| selector.matches(pod.labels)));
        found.extend(chosen.flat_map(|pod| &pod.addresses));
    }
}

/// No port named is every port. SCTP is not carried: ports of it are none.
fn ports_of(named: Option<&[NetworkPolicyPort]>) -> Option<Vec<Ports>> {
    let named = named.filter(|named| !named.is_empty())?;
    let ports = named.iter().filter_map(|port| {
        let protocol = protocol(port.protocol.as_deref().unwrap_or("TCP"))?;
        match &port.port {
            None => Some(Ports::Range(protocol, 0, u16::MAX)),
            Some(IntOrString::String(name)) => Some(Ports::Named(protocol, name.clone())),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                Some(Ports::Range(protocol, u16::try_from(*first).ok()?, u16::try_from(last).ok()?))
            }
        }
    });
    Some(ports.collect())
}

fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::{Value, json};
    use state::{Key, Revision};

    fn put(world: &mut World, version: &str, kind: &str, namespace: &str, name: &str, mut value: Value) {
        let resource = match kind {
            "PodPeer" => manifests::Resource::of::<PodPeer>(),
            kind => manifests::by_kind(version, kind).unwrap().resource(),
        };
        value["metadata"]["name"] = name.into();
        value["metadata"]["uid"] = format!("{kind}-{namespace}-{name}").into();
        if !namespace.is_empty() {
            value["metadata"]["namespace"] = namespace.into();
        }
        world.put(Arc::new(Object::encode(resource, Revision(1), value).unwrap()));
    }

    /// Namespaces a (team: x) and b; own pods a/web (10.0.0.1, port web is 8080) and a/new (given 10.0.0.2), pods elsewhere
    /// a/far (10.0.1.1) and b/far (10.0.1.2); all labelled with their names.
    fn world(policies: &[(&str, Value)]) -> World {
        let mut world = World::default();
        put(&mut world, "v1", "Namespace", "", "a", json!({"metadata": {"labels": {"team": "x"}}}));
        put(&mut world, "v1", "Namespace", "", "b", json!({}));
        for (name, address) in [("n0", "192.0.2.1"), ("n1", "192.0.2.2")] {
            let cidr = if name == "n0" { "10.0.0.0/24" } else { "10.0.1.0/24" };
            let status = json!({"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]});
            put(&mut world, "v1", "Node", "", name, json!({"spec": {"podCIDR": cidr}, "status": status}));
        }
        let own = |name: &str, status: Value| {
            let ports = json!([{"name": "web", "containerPort": 8080}]);
            json!({
                "metadata": {"labels": {"app": name}},
                "spec": {"nodeName": "n0", "containers": [{"name": "c", "ports": ports}]}, "status": status,
            })
        };
        put(
            &mut world,
            "v1",
            "Pod",
            "a",
            "web",
            own("web", json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]})),
        );
        put(&mut world, "v1", "Pod", "a", "new", own("new", json!({})));
        put(&mut world, "v1", "Pod", "a", "over", own("web", json!({"phase": "Failed", "podIP": "10.0.0.3"})));
        for (namespace, address) in [("a", "10.0.1.1"), ("b", "10.0.1.2")] {
            let peer = json!({"metadata": {"labels": {"app": "far"}}, "addresses": [address]});
            put(&mut world, "", "PodPeer", namespace, "far", peer);
        }
        for (name, spec) in policies {
            put(&mut world, "networking.k8s.io/v1", "NetworkPolicy", "a", name, json!({"spec": spec}));
        }
        world
    }

    fn compiled(policies: &[(&str, Value)]) -> Table {
        table(&world(policies), "n0", &HashMap::from([("Pod-a-new".into(), "10.0.0.2".parse().unwrap())]))
    }

    /// Which of the others may come to 10.0.0.1:8080.
    fn callers(policies: &[(&str, Value)]) -> Vec<&'static str> {
        let table = compiled(policies);
        let others = ["10.0.0.2", "10.0.1.1", "10.0.1.2", "203.0.113.7"];
        let may = |from: &&&str| table.permits(from.parse().unwrap(), "10.0.0.1:8080".parse().unwrap(), Protocol::Tcp);
        others.iter().filter(may).copied().collect()
    }

    fn from(peers: Value) -> Value {
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}]})
    }

    #[test]
    fn selectors_become_addresses() {
        let all = ["10.0.0.2", "10.0.1.1", "10.0.1.2", "203.0.113.7"];
        assert_eq!(callers(&[]), all);
        let deny = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
        assert_eq!(callers(&[("deny", deny.clone())]), [""; 0]);
        let far = json!({"matchLabels": {"app": "far"}});
        for (peers, expected) in [
            (json!([{"podSelector": {}}]), vec!["10.0.0.2", "10.0.1.1"]),
            (json!([{"podSelector": far}]), vec!["10.0.1.1"]),
            (json!([{"namespaceSelector": {}}]), vec!["10.0.0.2", "10.0.1.1", "10.0.1.2"]),
            (json!([{"namespaceSelector": {"matchLabels": {"team": "x"}}}]), vec!["10.0.0.2", "10.0.1.1"]),
            (json!([{"namespaceSelector": {}, "podSelector": far}]), vec!["10.0.1.1", "10.0.1.2"]),
            (json!([{"ipBlock": {"cidr": "203.0.113.0/24"}}]), vec!["203.0.113.7"]),
            (json!([{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.7/32"]}}]), vec![]),
            (json!([{"podSelector": far}, {"ipBlock": {"cidr": "203.0.113.0/24"}}]), vec!["10.0.1.1", "203.0.113.7"]),
            (json!([]), all.to_vec()),
        ] {
            assert_eq!(callers(&[("deny", deny.clone()), ("some", from(peers.clone()))]), expected, "{peers}");
        }
    }

    #[test]
    fn ports_are_numbers_and_names() {
        let ports = |ports: Value| {
            let rule = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]});
            !callers(&[("p", rule)]).is_empty()
        };
        assert!(
            ports(json!([{"port": 8080}])) && ports(json!([{"port": "web"}])) && ports(json!([{"protocol": "TCP"}]))
        );
        assert!(ports(json!([{"port": 8000, "endPort": 8080}])) && ports(json!([])));
        assert!(!ports(json!([{"port": 8081}])) && !ports(json!([{"port": "other"}])));
        assert!(
            !ports(json!([{"port": 8080, "protocol": "UDP"}])) && !ports(json!([{"port": 8080, "protocol": "SCTP"}]))
        );
    }

    #[test]
    fn nodes_come_and_pods_without_a_policy_are_free() {
        let egress = json!({"podSelector": {"matchLabels": {"app": "new"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]});
        let deny = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]});
        let table = compiled(&[("egress", egress)]);
        let may = |table: &Table, from: &str, to: &str| {
            table.permits(from.parse().unwrap(), to.parse().unwrap(), Protocol::Udp)
        };
        assert!(may(&table, "10.0.0.2", "10.0.0.1:9"), "an address that only this node knows yet");
        assert!(!may(&table, "10.0.0.2", "10.0.1.1:9") && may(&table, "10.0.1.1", "10.0.0.2:9"));
        assert!(may(&table, "10.0.0.2", "192.0.2.1:9") && !may(&table, "10.0.0.2", "192.0.2.2:9"));
        let table = compiled(&[("deny", deny)]);
        for node in ["192.0.2.1", "192.0.2.2", "10.0.0.0", "10.0.0.129", "10.0.1.0", "10.0.1.129", "127.0.0.1"] {
            assert!(may(&table, node, "10.0.0.1:9"), "{node}");
        }
        assert!(!table.pods.contains_key(&"10.0.0.3".parse().unwrap()), "of a pod that is over");
    }

    #[test]
    fn a_pod_has_its_policies() {
        let world = world(&[("web", from(json!([]))), ("none", json!({"podSelector": {"matchLabels": {"app": "x"}}}))]);
        let pod = world.get(&Key::of::<Pod>("a", "web")).unwrap();
        let names: Vec<String> = policies_of(&world, pod).iter().map(|policy| policy.meta().name.clone()).collect();
        assert_eq!(names, ["web"]);
    }
}
