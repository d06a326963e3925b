//! What the agent decides once: addresses, ports, bounds.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::network::Stack;

/// How to set up a [`crate::Proxy`].
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The cluster's DNS domain, `cluster.local` usually.
    pub cluster_domain: String,
    /// This host's own addresses, for the ingress and NodePorts. Name them rather than `0.0.0.0`: a wildcard listener takes
    /// its port from every pod and Service address of this host.
    pub node_addresses: Vec<IpAddr>,
    /// Ingress HTTP; 0 takes a free port; None: no listener.
    pub ingress_http_port: Option<u16>,
    /// Ingress HTTPS; 0 takes a free port; None: no listener.
    pub ingress_https_port: Option<u16>,
    /// Where the DNS server listens (the cluster DNS address, port 53); None: in-process resolving only.
    pub dns: Option<SocketAddr>,
    /// Where the host's own resolvers are named.
    pub resolv_conf: PathBuf,
    /// The pod network in user space, where addresses of the cluster are elsewhere on this machine than they say.
    pub stack: Option<Stack>,
    /// Runtime for everything that carries bytes.
    pub data: tokio::runtime::Handle,
    /// Bounds.
    pub limits: Limits,
}

impl ProxyConfig {
    /// The usual: `cluster.local`, 127.0.0.1, no ingress, no DNS server.
    pub fn new(data: tokio::runtime::Handle) -> Self {
        Self {
            cluster_domain: "cluster.local".into(),
            node_addresses: vec![IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)],
            ingress_http_port: None,
            ingress_https_port: None,
            dns: None,
            resolv_conf: "/etc/resolv.conf".into(),
            stack: None,
            data,
            limits: Limits::default(),
        }
    }
}

/// Every bound of this crate; the unit is the name's last word.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open client connections of one listener; more wait in the kernel's queue.
    pub listener_connections_max: usize,
    /// Open client connections of all Services and pods together.
    pub connections_max: usize,
    /// Sessions of one UDP Service port; the oldest is dropped for a new one.
    pub udp_sessions_max: usize,
    /// A UDP session without packets ends after this.
    pub udp_idle_seconds: u64,
    /// Remembered clients of one Service port with ClientIP affinity.
    pub affinity_clients_max: usize,
    /// A connection to an endpoint must be there by then, or the next is tried.
    pub connect_timeout: Duration,
    /// Endpoints tried for one connection or request.
    pub attempts_max: usize,
    /// A request's head must be complete by then.
    pub header_timeout: Duration,
    /// Size of a request's head. (Its lines are bounded by hyper: 100, which costs no memory of their own.)
    pub header_bytes_max: usize,
    /// TLS handshakes must be done by then.
    pub handshake_timeout: Duration,
    /// Concurrent HTTP/2 streams of one connection.
    pub h2_streams_max: u32,
    /// Idle upstream connections kept for one endpoint.
    pub upstream_idle_max: usize,
    /// An idle upstream connection is closed after this.
    pub upstream_idle_timeout: Duration,
    /// DNS queries served at once; more are dropped (UDP) or wait (TCP).
    pub dns_queries_max: usize,
    /// An upstream resolver must answer by then.
    pub dns_timeout: Duration,
    /// What is remembered of other name servers' answers.
    pub dns_cache_bytes_max: usize,
    /// Open TCP connections of the DNS server.
    pub dns_connections_max: usize,
    /// After a guard's drop or a shutdown, open connections end at the latest by then.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            listener_connections_max: 4096,
            connections_max: 16384,
            udp_sessions_max: 1024,
            udp_idle_seconds: 60,
            affinity_clients_max: 8192,
            connect_timeout: Duration::from_secs(3),
            attempts_max: 5,
            header_timeout: Duration::from_secs(60),
            header_bytes_max: 64 * 1024,
            handshake_timeout: Duration::from_secs(10),
            h2_streams_max: 256,
            upstream_idle_max: 64,
            upstream_idle_timeout: Duration::from_secs(60),
            dns_queries_max: 256,
            dns_timeout: Duration::from_secs(3),
            dns_cache_bytes_max: 2 * 1024 * 1024,
            dns_connections_max: 64,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
