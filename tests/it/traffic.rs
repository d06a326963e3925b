//! Services across machines: whose endpoints a client gets, by which door it comes, and who is let in.

use crate::harness::{Agent, Fleet, request, until};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Two pods, each on a machine in a zone of its own, that answer differently: `east` speaks HTTP, `west` counts bytes.
const WORLD: &str = "---
{apiVersion: v1, kind: Pod, metadata: {name: east, labels: {app: both, side: east}}, spec: {nodeSelector: {kubernetes.io/hostname: agent-0},
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: PROBE, args: [http, '8000'], ports: [{containerPort: 8000}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: west, labels: {app: both, side: west}}, spec: {nodeSelector: {kubernetes.io/hostname: agent-1},
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: PROBE, args: [count, '8000'], ports: [{containerPort: 8000}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: near}, spec: {trafficDistribution: PreferSameNode, selector: {app: both}, ports: [{port: 8000}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: sticky}, spec: {type: NodePort, sessionAffinity: ClientIP, selector: {app: both}, ports: [{port: 8000}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: local}, spec: {type: LoadBalancer, externalTrafficPolicy: Local,
  internalTrafficPolicy: Local, selector: {side: east}, ports: [{port: 7070, targetPort: 8000}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: written}, spec: {ports: [{port: 8000}]}}
";

/// Which of the two answers; none: refused, or broken off.
fn who(at: impl Into<SocketAddr>) -> Option<&'static str> {
    let mut stream = TcpStream::connect_timeout(&at.into(), Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    match said.get(..4)? {
        "HTTP" => Some("east"),
        "coun" => Some("west"),
        other => panic!("{other}"),
    }
}

/// Waits until it is always the same.
fn always(what: &str, expected: Option<&str>, ask: impl Fn() -> Option<&'static str>) {
    until(what, || (0..4).all(|_| ask() == expected).then_some(()));
}

fn virtual_ip(fleet: &Fleet, service: &str, port: u16) -> SocketAddr {
    SocketAddr::new(fleet.field(&format!("service/{service}"), "{.spec.clusterIP}").parse().unwrap(), port)
}

fn node_port(fleet: &Fleet, service: &str, agent: &Agent) -> SocketAddr {
    let port = fleet.field(&format!("service/{service}"), "{.spec.ports[0].nodePort}");
    SocketAddr::new(agent.address.into(), port.parse().unwrap())
}

#[test]
fn traffic_keeps_to_the_nodes_it_is_meant_for() {
    let Some(fleet) = Fleet::launch(2) else { return };
    let [east, west] = &fleet.agents[..] else { unreachable!("two were launched") };
    fleet.apply(WORLD);
    for (node, zone) in [("agent-0", "east"), ("agent-1", "west")] {
        fleet.kubectl(&["label", "node", node, &format!("topology.kubernetes.io/zone={zone}")]);
    }
    for pod in ["east", "west"] {
        fleet.wait(&format!("pod/{pod}"), "condition=Ready");
    }

    // near ones first: of the node, then of the zone
    let near = virtual_ip(&fleet, "near", 8000);
    for distribution in ["PreferSameNode", "PreferClose"] {
        let patch = format!(r#"{{"spec": {{"trafficDistribution": "{distribution}"}}}}"#);
        fleet.kubectl(&["patch", "service", "near", "-p", &patch]);
        always(&format!("{distribution}: east keeps to itself"), Some("east"), || east.within(|| who(near)));
        always(&format!("{distribution}: west keeps to itself"), Some("west"), || west.within(|| who(near)));
    }
    fleet.kubectl(&["patch", "service", "near", "-p", r#"{"spec": {"trafficDistribution": null}}"#]);
    for wanted in ["east", "west"] {
        until("without a wish, both serve", || east.within(|| who(near)).filter(|found| *found == wanted));
    }

    // a client belongs to one endpoint, by whichever node it comes
    let sticky = [east, west].map(|agent| node_port(&fleet, "sticky", agent));
    let first = until("sticky answers", || who(sticky[0]));
    always("the same by the other node", Some(first), || who(sticky[1]));
    always("and by the first", Some(first), || who(sticky[0]));

    // endpoints that somebody wrote
    let address = fleet.field("pod/west", "{.status.podIP}");
    fleet.apply(&format!(
        "---\n{{apiVersion: v1, kind: Endpoints, metadata: {{name: written}}, subsets: [{{addresses: [{{ip: {address}}}], \
         ports: [{{port: 8000}}]}}]}}"
    ));
    let written = virtual_ip(&fleet, "written", 8000);
    always("endpoints as they are written", Some("west"), || east.within(|| who(written)));
}

#[test]
fn a_balancer_serves_where_its_pods_are_and_whom_it_should() {
    let Some(fleet) = Fleet::launch(2) else { return };
    let [east, west] = &fleet.agents[..] else { unreachable!("two were launched") };
    fleet.apply(WORLD);
    fleet.wait("pod/east", "condition=Ready");
    let inside = virtual_ip(&fleet, "local", 7070);
    let balancer = |agent: &Agent| SocketAddr::new(IpAddr::V4(agent.address), 7070);
    let places = [(east, Some("east")), (west, None)];
    for (agent, expected) in places {
        always("from within", expected, || agent.within(|| who(inside)));
        always("at the node's port", expected, || who(node_port(&fleet, "local", agent)));
        always("at the balancer's", expected, || who(balancer(agent)));
    }
    let shown = "{.status.loadBalancer.ingress[*].ip}";
    fleet.until_field("service/local", shown, &east.address.to_string());

    // what balancers outside ask
    let port: u16 = fleet.field("service/local", "{.spec.healthCheckNodePort}").parse().unwrap();
    let health = |agent: &Agent| {
        let reply = request(SocketAddr::new(agent.address.into(), port), "node", "/").unwrap();
        let said: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(said["service"], serde_json::json!({"namespace": "default", "name": "local"}));
        assert_eq!(said["serviceProxyHealthy"], true);
        (reply.status, said["localEndpoints"].as_u64().unwrap())
    };
    assert_eq!((health(east), health(west)), ((200, 1), (503, 0)));

    // only one machine may use the balancer; other doors are not its
    let patch = format!(r#"{{"spec": {{"loadBalancerSourceRanges": ["{}/32"]}}}}"#, west.address);
    fleet.kubectl(&["patch", "service", "local", "-p", &patch]);
    always("a stranger is turned away", None, || who(balancer(east)));
    assert_eq!(west.within(|| who(balancer(east))), Some("east"));
    assert_eq!(who(node_port(&fleet, "local", east)), Some("east"));

    // the last pod goes, and with it the node
    fleet.kubectl(&["delete", "pod", "east"]);
    until("nobody serves", || (health(east) == (503, 0)).then_some(()));
    assert_eq!(who(node_port(&fleet, "local", east)), None);
    fleet.until_field("service/local", shown, "");
}
