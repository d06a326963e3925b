//! A pod as the one who asks: what `localhost`, its own address and names mean to it. Plain values of the agent's, and the one
//! act of reaching into the pod's own network namespace.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::TcpStream;

/// Name servers of one pod that are asked; as many as the kubelet keeps.
pub const NAMESERVERS_MAX: usize = 3;
/// Search domains of one pod that are tried; as many as the kubelet keeps.
pub const SEARCHES_MAX: usize = 32;

/// The network as one pod sees it.
#[derive(Clone)]
pub struct PodView {
    /// Its namespace: where short names are looked up.
    pub namespace: String,
    /// Its address.
    pub address: IpAddr,
    /// It lives in the node's own network: its localhost is the node's.
    pub host_network: bool,
    /// The way into the network namespace it has of its own, if it has one.
    pub dial: Option<Arc<dyn Dial>>,
    /// Its `/etc/hosts`: looked at before any name server. The first line with a name wins.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// How it finds names that are not there.
    pub dns: PodDns,
}

/// Makes connections inside a network namespace.
pub trait Dial: Send + Sync {
    /// Connects to `to` as it is seen in there.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, std::io::Result<TcpStream>>;
}

/// `dnsPolicy` with `dnsConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDns {
    /// Who is asked first.
    pub policy: DnsPolicy,
    /// `dnsConfig.nameservers`, port 53 there: asked after those of the policy, where these cannot answer.
    pub nameservers: Vec<SocketAddr>,
    /// `dnsConfig.searches`: tried after those of the policy.
    pub searches: Vec<String>,
    /// The option `ndots`; that of the policy (5 for the cluster's, 1 else) when None.
    pub ndots: Option<usize>,
    /// The option `timeout`, of one question to one server.
    pub timeout: Option<Duration>,
    /// The option `attempts`, rounds over all servers.
    pub attempts: Option<usize>,
}

/// Where a pod's names come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsPolicy {
    /// The cluster's names with its search domains, then what the host resolves.
    #[default]
    ClusterFirst,
    /// What the host resolves.
    Default,
    /// Only the name servers that are named.
    None,
}

impl PodView {
    /// A pod that lives on an address of this process, with the cluster's names.
    pub fn new(namespace: impl Into<String>, address: IpAddr) -> Self {
        Self {
            namespace: namespace.into(),
            address,
            host_network: false,
            dial: None,
            hosts: Vec::new(),
            dns: PodDns::default(),
        }
    }

    /// The addresses its hosts file has for `name`.
    pub(crate) fn in_hosts(&self, name: &str) -> Vec<IpAddr> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let lines = self.hosts.iter().filter(|(_, names)| names.iter().any(|known| known.eq_ignore_ascii_case(name)));
        lines.map(|(address, _)| *address).collect()
    }

    /// Whether `address` means the pod itself.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        address == self.address || is_localhost(address)
    }
}

/// Exactly localhost (and "no address", which the kernel takes for it): the rest of 127.0.0.0/8 may be other pods.
pub(crate) fn is_localhost(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_unspecified() || address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

/// `localhost`, whatever its case, with or without the final dot.
pub(crate) fn is_localhost_name(name: &str) -> bool {
    name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case("localhost")
}

/// A way in, the same as another only if it is the same object: connections of two namespaces are never mixed up.
#[derive(Clone)]
pub(crate) struct Via(pub(crate) Arc<dyn Dial>);

impl PartialEq for Via {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Via {}

impl Hash for Via {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}

impl std::fmt::Debug for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Via")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_exactly_that() {
        for (address, expected) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("0.0.0.0", true),
            ("::", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.2", false),
            ("10.42.0.7", false),
        ] {
            assert_eq!(is_localhost(address.parse().unwrap()), expected, "{address}");
        }
        assert!(is_localhost_name("LOCALHOST.") && is_localhost_name("localhost"));
        assert!(!is_localhost_name("localhost.example.com"));
    }
}
