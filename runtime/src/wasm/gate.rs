//! Network policy at a guest's own sockets, where its pod has no network namespace that the kernel could guard.
//!
//! One per container. wasmtime asks about each address a socket uses, and not which socket it is; so a gate notes the ports
//! that the container listens on, and to whom it has sent datagrams, whose answers it then lets in. Where some ports are open to
//! a peer and others are not, [`super::sockets`] asks again with the socket in hand. Programs of preview 3 are not asked again:
//! a peer of theirs needs to be welcome at every port.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wasmtime_wasi::sockets::SocketAddrUse;

use super::sockets::is_allowed;
use crate::spec::{Network, Transport};

/// Datagrams pass both ways for so long after the last one, as the kernel's tracking of connections has it.
const EXCHANGE: Duration = Duration::from_secs(180);
/// Addresses with which datagrams are exchanged; the oldest makes room.
const PARTNERS_MAX: usize = 4096;

/// Judges what a container's sockets do.
pub(super) struct Gate {
    network: Arc<dyn Network>,
    /// Its sockets are not asked again.
    is_only: bool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    tcp: BTreeSet<u16>,
    udp: BTreeSet<u16>,
    partners: HashMap<SocketAddr, Instant>,
}

impl Gate {
    pub(super) fn new(network: Arc<dyn Network>, is_only: bool) -> Arc<Self> {
        Arc::new(Self { network, is_only, known: Mutex::default() })
    }

    /// The answer to wasmtime. The address is as [`Network::shown`] has it.
    pub(super) fn allows(&self, address: SocketAddr, act: SocketAddrUse) -> bool {
        if !is_allowed(address, act, self.network.address()) {
            return false;
        }
        match act {
            SocketAddrUse::TcpConnect => self.network.may_reach(address, Transport::Tcp),
            SocketAddrUse::UdpSend => self.may_send(address),
            SocketAddrUse::TcpBind => true,
            SocketAddrUse::TcpListen => {
                self.known().tcp.insert(address.port());
                true
            }
            SocketAddrUse::UdpBind => {
                if address.port() != 0 {
                    self.known().udp.insert(address.port());
                }
                true
            }
            SocketAddrUse::TcpAccept => self.may_come(address, Transport::Tcp),
            SocketAddrUse::UdpReceive => self.may_come(address, Transport::Udp),
        }
    }

    /// Whether a connection, or a datagram, may come to that very port.
    pub(super) fn admits(&self, from: SocketAddr, port: u16, transport: Transport) -> bool {
        let is_datagram = transport == Transport::Udp;
        let may = !self.network.is_guarded()
            || (is_datagram && self.is_partner(from))
            || self.network.may_come(from.ip(), port, transport);
        // whoever asked is answered, also where nobody else may come to it
        if may && is_datagram {
            self.known().meet(from, Instant::now());
        }
        may
    }

    fn may_send(&self, to: SocketAddr) -> bool {
        let may = self.is_partner(to) || self.network.may_reach(to, Transport::Udp);
        if may && self.network.is_guarded() {
            self.known().meet(to, Instant::now());
        }
        may
    }

    fn may_come(&self, from: SocketAddr, transport: Transport) -> bool {
        if !self.network.is_guarded() || (transport == Transport::Udp && self.is_partner(from)) {
            return true;
        }
        let known = self.known();
        let ports = if transport == Transport::Tcp { &known.tcp } else { &known.udp };
        // a port that the kernel chose is none that a policy could name
        let ports: Vec<u16> = if ports.is_empty() { vec![0] } else { ports.iter().copied().collect() };
        drop(known);
        let open = |port: &u16| self.network.may_come(from.ip(), *port, transport);
        if self.is_only { ports.iter().all(open) } else { ports.iter().any(open) }
    }

    fn is_partner(&self, address: SocketAddr) -> bool {
        self.known().partners.get(&address).is_some_and(|since| since.elapsed() < EXCHANGE)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn meet(&mut self, address: SocketAddr, now: Instant) {
        if self.partners.len() >= PARTNERS_MAX && !self.partners.contains_key(&address) {
            self.partners.retain(|_, since| now.duration_since(*since) < EXCHANGE);
            let oldest = self.partners.iter().min_by_key(|(_, since)| **since).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| self.partners.len() >= PARTNERS_MAX) {
                self.partners.remove(&oldest);
            }
        }
        self.partners.insert(address, now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::spec::{Body, NetworkError};
    use futures::future::BoxFuture;
    use std::net::IpAddr;

    /// A pod that lets nobody in but at port 80, and goes to 10.0.0.0/24 only.
    struct Strict;

    impl Network for Strict {
        fn address(&self) -> IpAddr {
            "10.0.0.7".parse().unwrap()
        }

        fn resolve(&self, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetworkError>> {
            let name = name.to_owned();
            Box::pin(async move { Err(NetworkError::NameNotFound(name)) })
        }

        fn route(&self, to: SocketAddr, _: Transport) -> SocketAddr {
            to
        }

        fn request(&self, _: http::Request<Body>) -> BoxFuture<'static, Result<http::Response<Body>, NetworkError>> {
            Box::pin(async { Err(NetworkError::Refused) })
        }

        fn may_reach(&self, to: SocketAddr, _: Transport) -> bool {
            to.ip().to_string().starts_with("10.0.0.")
        }

        fn is_guarded(&self) -> bool {
            true
        }

        fn may_come(&self, _: IpAddr, port: u16, _: Transport) -> bool {
            port == 80
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_pod_goes_where_it_may_and_is_answered() {
        let gate = Gate::new(Arc::new(Strict), false);
        assert!(gate.allows(at("10.0.0.8:1"), SocketAddrUse::TcpConnect));
        assert!(!gate.allows(at("192.0.2.1:1"), SocketAddrUse::TcpConnect));
        assert!(!gate.allows(at("192.0.2.1:1"), SocketAddrUse::UdpSend));
        assert!(!gate.allows(at("10.0.0.8:53"), SocketAddrUse::UdpReceive), "nobody has asked it");
        assert!(gate.allows(at("10.0.0.8:53"), SocketAddrUse::UdpSend));
        assert!(
            gate.allows(at("10.0.0.8:53"), SocketAddrUse::UdpReceive)
                && gate.admits(at("10.0.0.8:53"), 9, Transport::Udp)
        );
        assert!(!gate.allows(at("10.0.0.8:54"), SocketAddrUse::UdpReceive));
        assert!(!gate.allows(at("192.0.2.1:9"), SocketAddrUse::UdpSend));
        assert!(gate.admits(at("192.0.2.1:9"), 80, Transport::Udp));
        assert!(gate.allows(at("192.0.2.1:9"), SocketAddrUse::UdpSend), "who asked is answered");
    }

    #[test]
    fn ports_are_told_apart() {
        for is_only in [false, true] {
            let gate = Gate::new(Arc::new(Strict), is_only);
            let peer = at("10.0.0.8:40000");
            assert!(!gate.allows(peer, SocketAddrUse::TcpAccept));
            gate.allows(at("10.0.0.7:80"), SocketAddrUse::TcpListen);
            assert!(gate.allows(peer, SocketAddrUse::TcpAccept));
            gate.allows(at("10.0.0.7:81"), SocketAddrUse::TcpListen);
            assert_eq!(gate.allows(peer, SocketAddrUse::TcpAccept), !is_only);
            assert!(gate.admits(peer, 80, Transport::Tcp) && !gate.admits(peer, 81, Transport::Tcp));
        }
    }

    #[test]
    fn partners_are_bounded() {
        let (mut known, start) = (Known::default(), Instant::now());
        for number in 0..=PARTNERS_MAX {
            let port = u16::try_from(number).unwrap();
            known.meet((Strict.address(), port).into(), start + Duration::from_millis(number as u64));
        }
        assert_eq!(known.partners.len(), PARTNERS_MAX);
        assert!(!known.partners.contains_key(&(Strict.address(), 0).into()));
    }
}
