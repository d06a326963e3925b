//! Who gets the next connection or request: the less busy of two endpoints, taken in turn; ClientIP affinity first where a
//! Service asks for it. And who may come at all: a Service has several doors, each with rules of its own. No sockets here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::network::Cidr;
use crate::pods::Endpoint;
use crate::routes::TrafficPolicy;

/// One port of a Service, the same object for as long as the Service has it.
pub(crate) struct Port {
    /// `namespace/name:port`, for messages.
    pub(crate) name: String,
    backends: ArcSwap<Backends>,
    turn: AtomicUsize,
    clients: Clients,
}

/// What may change about a port while it lives.
#[derive(Default)]
pub(crate) struct Backends {
    /// Of all nodes.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// Of this node.
    pub(crate) local: Vec<Arc<Endpoint>>,
    pub(crate) internal: TrafficPolicy,
    pub(crate) external: TrafficPolicy,
    /// Who may use the load balancer; everybody if there are none.
    pub(crate) sources: Vec<Cidr>,
    /// They speak HTTP/2 without TLS.
    pub(crate) h2c: bool,
    pub(crate) affinity: Option<Duration>,
}

impl Backends {
    /// Those that a client at `door` may get.
    fn behind(&self, door: Door) -> &[Arc<Endpoint>] {
        let policy = match door {
            Door::Internal => self.internal,
            Door::External | Door::Balancer => self.external,
            Door::Ingress => TrafficPolicy::Cluster,
        };
        match policy {
            TrafficPolicy::Cluster => &self.endpoints,
            TrafficPolicy::Local => &self.local,
        }
    }
}

/// How a client comes to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// By a cluster address.
    Internal,
    /// By a node port, an external address, or a host port.
    External,
    /// By a load balancer's address.
    Balancer,
    /// By the node's ingress.
    Ingress,
}

/// A port of a Service, as one comes to it.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) port: Arc<Port>,
    pub(crate) door: Door,
}

impl Way {
    /// Whether a client may come this way.
    pub(crate) fn admits(&self, client: IpAddr) -> bool {
        let backends = self.port.backends.load();
        let client = client.to_canonical();
        self.door != Door::Balancer
            || backends.sources.is_empty()
            || backends.sources.iter().any(|range| range.contains(client))
    }

    /// Whether nobody would be found this way.
    pub(crate) fn is_empty(&self) -> bool {
        self.port.backends.load().behind(self.door).is_empty()
    }

    /// Whether something holds for all that may be found this way.
    pub(crate) fn all(&self, holds: impl Fn(SocketAddr) -> bool) -> bool {
        self.port.backends.load().behind(self.door).iter().all(|endpoint| holds(endpoint.addr))
    }

    /// Whether `addr` is still found this way.
    pub(crate) fn has(&self, addr: SocketAddr) -> bool {
        self.port.backends.load().behind(self.door).iter().any(|endpoint| endpoint.addr == addr)
    }

    /// An endpoint not in `tried`; `client` counts only with affinity.
    pub(crate) fn choose(&self, among: Among, tried: &[SocketAddr], client: Option<IpAddr>) -> Option<Arc<Endpoint>> {
        self.port.choose(self.door, among, tried, client)
    }
}

/// Which endpoints are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    /// Any.
    All,
    /// Pods in this process.
    Local,
}

impl Port {
    pub(crate) fn new(name: String, backends: Backends, affinity_clients_max: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            backends: ArcSwap::from_pointee(backends),
            turn: AtomicUsize::new(0),
            clients: Clients { known: Mutex::default(), clients_max: affinity_clients_max },
        })
    }

    /// New endpoints for whoever asks next.
    pub(crate) fn update(&self, backends: Backends) {
        self.backends.store(Arc::new(backends));
    }

    pub(crate) fn h2c(&self) -> bool {
        self.backends.load().h2c
    }

    fn choose(&self, door: Door, among: Among, tried: &[SocketAddr], client: Option<IpAddr>) -> Option<Arc<Endpoint>> {
        let backends = self.backends.load();
        let endpoints = backends.behind(door);
        let fits = |endpoint: &Endpoint| {
            (among == Among::All || endpoint.is_local()) && (tried.is_empty() || !tried.contains(&endpoint.addr))
        };
        let Some((client, timeout)) = client.zip(backends.affinity) else {
            return self.less_busy(endpoints, fits).cloned();
        };
        let now = Instant::now();
        if let Some(addr) = self.clients.get(client, now)
            && let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.addr == addr && fits(endpoint))
        {
            self.clients.set(client, addr, now + timeout, now);
            return Some(endpoint.clone());
        }
        // All nodes choose the same for a client they do not know yet, and so does this one after a restart.
        let fitting = endpoints.iter().filter(|endpoint| fits(endpoint));
        let endpoint = fitting.max_by_key(|endpoint| attraction(client, endpoint.addr.ip()))?;
        self.clients.set(client, endpoint.addr, now + timeout, now);
        Some(endpoint.clone())
    }

    fn less_busy<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        fits: impl Fn(&Endpoint) -> bool,
    ) -> Option<&'a Arc<Endpoint>> {
        let count = endpoints.len();
        if count <= 1 {
            return endpoints.first().filter(|endpoint| fits(endpoint));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first_from = |start: usize| {
            let (before, after) = endpoints.split_at(start % count);
            after.iter().chain(before).find(|endpoint| fits(endpoint))
        };
        let one = first_from(turn)?;
        let other = first_from(scatter(turn))?;
        Some(if other.load() < one.load() { other } else { one })
    }
}

/// How much a client belongs to an endpoint, the same everywhere: of several endpoints it belongs to the one that attracts it most
/// (rendezvous hashing), so that only those move whose endpoint goes.
fn attraction(client: IpAddr, endpoint: IpAddr) -> usize {
    let bits = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let fold = |bits: u128| (bits ^ (bits >> 64)) as usize;
    scatter(scatter(fold(bits(client))) ^ fold(bits(endpoint)))
}

/// Well spread numbers from a counter (the finisher of SplitMix64): which second endpoint to compare needs no real chance.
fn scatter(turn: usize) -> usize {
    let mut x = (turn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) as usize
}

/// Clients with affinity and where they belong until when.
struct Clients {
    known: Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>,
    clients_max: usize,
}

impl Clients {
    fn get(&self, client: IpAddr, now: Instant) -> Option<SocketAddr> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&client).filter(|(_, until)| *until > now).map(|(addr, _)| *addr)
    }

    fn set(&self, client: IpAddr, addr: SocketAddr, until: Instant, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= self.clients_max && !known.contains_key(&client) {
            known.retain(|_, (_, until)| *until > now);
            // Still full: forget anyone, it only costs that client its place.
            while known.len() >= self.clients_max {
                let Some(anyone) = known.keys().next().copied() else { break };
                known.remove(&anyone);
            }
        }
        known.insert(client, (addr, until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Endpoints;

    fn port(affinity: Option<Duration>) -> (Arc<Port>, impl Fn(&[u8], &[u8]) -> Backends) {
        let all = Endpoints::default();
        let at = move |hosts: &[u8]| -> Vec<Arc<Endpoint>> {
            hosts.iter().map(|host| all.at((Ipv4Addr::new(10, 42, 0, *host), 80).into())).collect()
        };
        let backends = move |everywhere: &[u8], here: &[u8]| Backends {
            endpoints: at(everywhere),
            local: at(here),
            affinity,
            ..Backends::default()
        };
        (Port::new("default/web:80".into(), Backends::default(), 1000), backends)
    }

    use std::net::Ipv4Addr;

    #[test]
    fn each_door_has_its_rules() {
        use TrafficPolicy::{Cluster, Local};
        let (port, backends) = port(None);
        let found = |door| {
            let way = Way { port: port.clone(), door };
            let mut hosts: Vec<String> = (0..64)
                .filter_map(|_| way.choose(Among::All, &[], None))
                .map(|endpoint| endpoint.addr.ip().to_string())
                .collect();
            hosts.sort();
            hosts.dedup();
            assert_eq!(way.is_empty(), hosts.is_empty());
            hosts.iter().map(|host| host.rsplit('.').next().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        for (internal, external, here, expected) in [
            (Cluster, Cluster, &[2][..], ["1 2 3", "1 2 3", "1 2 3", "1 2 3"]),
            (Cluster, Local, &[2], ["1 2 3", "2", "2", "1 2 3"]),
            (Local, Cluster, &[2], ["2", "1 2 3", "1 2 3", "1 2 3"]),
            (Local, Local, &[], ["", "", "", "1 2 3"]),
        ] {
            port.update(Backends { internal, external, ..backends(&[1, 2, 3], here) });
            let doors = [Door::Internal, Door::External, Door::Balancer, Door::Ingress];
            assert_eq!(doors.map(found), expected, "{internal:?} {external:?}");
        }
        port.update(Backends { sources: vec!["192.0.2.0/24".parse().unwrap()], ..backends(&[1], &[]) });
        for (door, client, expected) in [
            (Door::Balancer, "192.0.2.9", true),
            (Door::Balancer, "::ffff:192.0.2.9", true),
            (Door::Balancer, "198.51.100.1", false),
            (Door::External, "198.51.100.1", true),
            (Door::Internal, "198.51.100.1", true),
        ] {
            let way = Way { port: port.clone(), door };
            assert_eq!(way.admits(client.parse().unwrap()), expected, "{door:?} {client}");
        }
    }

    #[test]
    fn a_client_stays_where_it_is_and_belongs_to_the_same_on_every_node() {
        let clients = || (0..200u8).map(|n| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)));
        let places = |port: &Arc<Port>| -> Vec<SocketAddr> {
            let way = Way { port: port.clone(), door: Door::Internal };
            clients().map(|client| way.choose(Among::All, &[], Some(client)).unwrap().addr).collect()
        };
        let hour = Some(Duration::from_secs(3600));
        let ((one, of_one), (other, of_other)) = (port(hour), port(hour));
        one.update(of_one(&[1, 2, 3], &[]));
        other.update(of_other(&[3, 1, 2], &[]));
        let first = places(&one);
        assert_eq!(first, places(&other));
        for host in 1..=3 {
            let share = first.iter().filter(|place| place.ip() == Ipv4Addr::new(10, 42, 0, host)).count();
            assert!((40..100).contains(&share), "{host} has {share}");
        }
        // Who comes takes nobody away; who goes moves only its own.
        one.update(of_one(&[1, 2, 3, 4], &[]));
        assert_eq!(places(&one), first);
        one.update(of_one(&[1, 2, 4], &[]));
        for (before, after) in first.iter().zip(places(&one)) {
            assert!(*before == after || before.ip() == Ipv4Addr::new(10, 42, 0, 3), "{before} to {after}");
        }
    }
}
