//! Who gets the next connection or request: the less busy of two endpoints, taken in turn; ClientIP affinity first where a
//! Service asks for it. No sockets here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::pods::Endpoint;

/// One port of a Service, the same object for as long as the Service has it.
pub(crate) struct Port {
    /// `namespace/name:port`, for messages.
    pub(crate) name: String,
    backends: ArcSwap<Backends>,
    turn: AtomicUsize,
    clients: Clients,
}

/// What may change about a port while it lives.
pub(crate) struct Backends {
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// They speak HTTP/2 without TLS.
    pub(crate) h2c: bool,
    pub(crate) affinity: Option<Duration>,
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

    pub(crate) fn is_empty(&self) -> bool {
        self.backends.load().endpoints.is_empty()
    }

    pub(crate) fn h2c(&self) -> bool {
        self.backends.load().h2c
    }

    /// Whether `addr` is behind it now.
    pub(crate) fn has(&self, addr: SocketAddr) -> bool {
        self.backends.load().endpoints.iter().any(|endpoint| endpoint.addr == addr)
    }

    /// Whether that holds for all its endpoints.
    pub(crate) fn all(&self, holds: impl Fn(SocketAddr) -> bool) -> bool {
        self.backends.load().endpoints.iter().all(|endpoint| holds(endpoint.addr))
    }

    /// An endpoint not in `tried`; `client` counts only with affinity.
    pub(crate) fn choose(&self, among: Among, tried: &[SocketAddr], client: Option<IpAddr>) -> Option<Arc<Endpoint>> {
        let backends = self.backends.load();
        let endpoints = backends.endpoints.as_slice();
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
        let endpoint = self.less_busy(endpoints, fits)?;
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
