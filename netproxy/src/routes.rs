//! The route table as the agent writes it: plain values made from Services, EndpointSlices, Ingresses and Secrets.
//! Nothing here looks anything up; `table` compiles it for that, `service` diffs it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::network::Cidr;

/// Everything netproxy knows about the cluster. Order does not matter, except that of `ingresses`, where the first of two
/// equal rules wins (put the oldest first, as Kubernetes' controllers do).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// The namespaces there are, by which some names exist.
    pub namespaces: Vec<String>,
    /// One per Service.
    pub services: Vec<ServiceRoute>,
    /// One per Ingress of our class.
    pub ingresses: Vec<IngressRoute>,
    /// The TLS Secrets which those Ingresses name.
    pub certificates: Vec<Certificate>,
    /// Served when no name matches; a self-signed one when absent.
    pub default_certificate: Option<Certificate>,
    /// The host ports of this node's pods.
    pub host_ports: Vec<HostPort>,
}

/// `hostPort` of a pod's container: a port of the node that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// Its transport.
    pub protocol: Protocol,
    /// The one address of the node to listen on; all of them and localhost when None.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub port: u16,
    /// The pod's address and the container's port.
    pub to: SocketAddr,
}

/// One Service with its ready endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRoute {
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// spec.clusterIPs; empty when headless or ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// spec.externalIPs
    pub external_ips: Vec<IpAddr>,
    /// This node's own addresses, where it is a load balancer for the Service.
    pub balancer_ips: Vec<IpAddr>,
    /// spec.loadBalancerSourceRanges: who may come to `balancer_ips`; everybody if there are none.
    pub balancer_sources: Vec<Cidr>,
    /// internalTrafficPolicy: for `cluster_ips`.
    pub internal: TrafficPolicy,
    /// externalTrafficPolicy: for node ports and the other addresses.
    pub external: TrafficPolicy,
    /// healthCheckNodePort
    pub health_check: Option<HealthCheck>,
    /// spec.ports, each with its endpoints.
    pub ports: Vec<PortRoute>,
    /// sessionAffinity ClientIP with its timeout; None is sessionAffinity None.
    pub affinity: Option<Duration>,
    /// For a headless Service: the addresses its name resolves to (ready ones, or all if publishNotReadyAddresses).
    pub headless: Vec<HeadlessRecord>,
    /// spec.externalName of a Service of type ExternalName.
    pub external_name: Option<String>,
}

/// Whose endpoints are for a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Those of all nodes.
    #[default]
    Cluster,
    /// Those of this node, and nobody if there are none.
    Local,
}

/// A port at which this node says whether it has endpoints of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The node's port.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRoute {
    /// Its name; empty if it has none.
    pub name: String,
    /// spec.ports[].protocol
    pub protocol: Protocol,
    /// spec.ports[].port
    pub port: u16,
    /// spec.ports[].nodePort, if there is one.
    pub node_port: Option<u16>,
    /// Whether its endpoints speak HTTP/2 without TLS (appProtocol kubernetes.io/h2c).
    pub h2c: bool,
    /// Ready endpoints of all nodes, pod address and target port: those that this node prefers.
    pub endpoints: Vec<SocketAddr>,
    /// Ready endpoints of this node.
    pub local: Vec<SocketAddr>,
}

/// Transport of a Service port. SCTP is not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// One pod behind a headless Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadlessRecord {
    /// The pod's address.
    pub address: IpAddr,
    /// The endpoint's hostname, by which it is known under the Service's name.
    pub hostname: Option<String>,
}

/// One Ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngressRoute {
    /// metadata.namespace; backends are Services in it.
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// spec.rules, one per host and path.
    pub rules: Vec<IngressRule>,
    /// spec.defaultBackend
    pub default_backend: Option<Backend>,
}

/// One path of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressRule {
    /// Exact, or `*.` and a suffix; None matches every host.
    pub host: Option<String>,
    /// Starts with `/`; empty means `/`.
    pub path: String,
    /// How `path` is compared.
    pub kind: PathKind,
    /// Who answers.
    pub backend: Backend,
}

/// networking.k8s.io/v1 pathType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// The very same path.
    Exact,
    /// Element-wise prefix.
    Prefix,
    /// Ours: as Prefix.
    ImplementationSpecific,
}

/// A Service's port as an Ingress names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// A Service of the Ingress' namespace.
    pub service: String,
    /// One of its ports.
    pub port: BackendPort,
}

/// By number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendPort {
    /// spec.ports[].port
    Number(u16),
    /// spec.ports[].name
    Name(String),
}

/// A key pair for TLS.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// `namespace/secret`, for messages.
    pub name: String,
    /// Server names it is for (spec.tls[].hosts, `*.` allowed); empty means those the certificate itself names.
    pub hosts: Vec<String>,
    /// PEM, leaf first (tls.crt).
    pub chain_pem: Vec<u8>,
    /// PEM, PKCS #8, PKCS #1 or SEC 1 (tls.key).
    pub key_pem: Vec<u8>,
}

impl std::fmt::Debug for Certificate {
    /// Never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("name", &self.name).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}
