//! Where a node without privilege keeps the cluster's addresses: every address of 127.0.0.0/8 is this machine's own, with no
//! configuration, so each network of the cluster has a place there.
//!
//! The usual place of A.B.C.D is 127.B.C.D. Where that would be the machine's own localhost, or another node of this machine has
//! it, it is a pair of networks that nobody has. Whoever has a place holds a UDP port in it, which is how others know. Ports that
//! only root may bind are exchanged with the highest ones. Nobody outside this process is to know any of this: what people and
//! programs see are the cluster's addresses.

use super::{Cidr, privilege};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// Pairs for whoever does not find its usual place: 127.64/16 with 127.65/16, up to 127.190/16 with 127.191/16.
const PAIRS: u8 = 64;
const FIRST: u8 = 64;
/// Bits of a network of a pair.
const PAIR_BITS: u8 = 16;
/// The port that is held at the last address of a pod network.
const CLAIM_PORT: u16 = 6443;
/// The machine's own localhost: 127.0.0.0/16.
const LOCALHOST: Cidr = Cidr { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 16 };

/// Why the networks have no place.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// Too large for a pair, and the usual place is taken.
    #[error("the networks {pods} and {services} have no place in 127.0.0.0/8 on this machine")]
    NoRoom {
        /// The network of pods.
        pods: Cidr,
        /// The network of Services.
        services: Cidr,
    },
    /// Not IPv4.
    #[error("{0} is not an IPv4 network")]
    Family(Cidr),
}

/// The places of a cluster's networks, held while this lives.
#[derive(Debug)]
pub struct Loopback {
    places: [Place; 2],
    /// Ports below this are not bindable; 0 or 1: all are.
    first_free: u16,
    _claim: Option<UdpSocket>,
}

/// A network and where it is.
#[derive(Clone, Copy, Debug)]
struct Place {
    cluster: Cidr,
    here: Cidr,
}

/// Takes a pair of networks in 127.0.0.0/8 that nobody has: the one of that number, or, if `any` will do, the first free one after
/// it. The socket is the sign that they are taken, for as long as it is kept.
pub fn free_pair(seed: u64, any: bool) -> Option<([Cidr; 2], UdpSocket)> {
    let wanted = (seed % u64::from(PAIRS)) as u8;
    let tries = if any { PAIRS } else { 1 };
    (0..tries).map(|step| (wanted + step) % PAIRS).find_map(|pair| {
        let networks = [FIRST + 2 * pair, FIRST + 2 * pair + 1]
            .map(|second| Cidr { address: Ipv4Addr::new(127, second, 0, 0).into(), prefix: PAIR_BITS });
        hold(networks[0]).ok().map(|socket| (networks, socket))
    })
}

impl Loopback {
    /// The places that the addresses say themselves: of a cluster that lives in 127.0.0.0/8, on the machine of its master.
    pub fn same(pods: Cidr, services: Cidr) -> Self {
        let places = [pods, services].map(|cluster| Place { cluster, here: cluster });
        Self { places, first_free: privilege::first_free_port(), _claim: None }
    }

    /// The usual places if they are free, else others.
    ///
    /// # Errors
    /// When there are none.
    pub fn claim(pods: Cidr, services: Cidr) -> Result<Self, LoopbackError> {
        let usual = [usual(pods)?, usual(services)?];
        let clash = usual[0].contains(usual[1].address) || usual[1].contains(usual[0].address);
        let is_localhost = |network: &Cidr| LOCALHOST.contains(network.address) || network.contains(LOCALHOST.address);
        let first = (!clash && !usual.iter().any(is_localhost)).then(|| hold(usual[0]).ok()).flatten();
        let fits = pods.prefix >= PAIR_BITS && services.prefix >= PAIR_BITS;
        let found = match first {
            Some(socket) => Some((usual, socket)),
            None if fits => free_pair(u64::from(std::process::id()), true),
            None => None,
        };
        let Some((here, socket)) = found else { return Err(LoopbackError::NoRoom { pods, services }) };
        let place = |cluster: Cidr, here: Cidr| Place { cluster, here: Cidr { prefix: cluster.prefix, ..here } };
        Ok(Self {
            places: [place(pods, here[0]), place(services, here[1])],
            first_free: privilege::first_free_port(),
            _claim: Some(socket),
        })
    }

    /// Where on this machine an address of the cluster is; others stay as they are.
    pub fn local(&self, address: SocketAddr) -> SocketAddr {
        self.moved(address, |place| (place.cluster, place.here))
    }

    /// Which address of the cluster is here; others stay as they are. The reverse of [`Loopback::local`].
    pub fn shown(&self, address: SocketAddr) -> SocketAddr {
        self.moved(address, |place| (place.here, place.cluster))
    }

    /// Whether an address is of the cluster's networks.
    pub fn has(&self, address: IpAddr) -> bool {
        self.places.iter().any(|place| place.cluster.contains(address.to_canonical()))
    }

    /// Whether an address is a Service's.
    pub fn is_service(&self, address: IpAddr) -> bool {
        let [_, services] = &self.places;
        services.cluster.contains(address.to_canonical())
    }

    fn moved(&self, address: SocketAddr, way: impl Fn(&Place) -> (Cidr, Cidr)) -> SocketAddr {
        let IpAddr::V4(ip) = address.ip().to_canonical() else { return address };
        let ways = self.places.iter().map(way);
        for (from, to) in ways.filter(|(from, _)| from.contains(IpAddr::V4(ip))) {
            let IpAddr::V4(base) = to.address else { continue };
            let host = ip.to_bits() & u32::MAX.checked_shr(from.prefix.into()).unwrap_or(0);
            return (Ipv4Addr::from_bits(base.to_bits() | host), self.exchanged(address.port())).into();
        }
        address
    }

    /// 1 to 1023 and 64513 to 65535 change places, where the kernel keeps the former to itself.
    fn exchanged(&self, port: u16) -> u16 {
        let shift = 0_u16.wrapping_sub(self.first_free);
        match port {
            0 => 0,
            port if port < self.first_free => port + shift,
            port if self.first_free > 1 && port > shift => port - shift,
            port => port,
        }
    }
}

/// 127.B.C.D
fn usual(network: Cidr) -> Result<Cidr, LoopbackError> {
    let IpAddr::V4(address) = network.address else { return Err(LoopbackError::Family(network)) };
    let [_, second, third, fourth] = address.octets();
    Ok(Cidr { address: Ipv4Addr::new(127, second, third, fourth).into(), prefix: network.prefix })
}

/// Tells other nodes of this machine that this network of pods is taken, for as long as the socket is kept.
///
/// # Errors
/// When another has it.
pub fn hold(pods: Cidr) -> io::Result<UdpSocket> {
    let IpAddr::V4(base) = pods.address else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
    let hosts = u32::MAX.checked_shr(pods.prefix.into()).unwrap_or(0);
    let last = Ipv4Addr::from_bits(base.to_bits() | hosts.saturating_sub(1));
    UdpSocket::bind((last, CLAIM_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(pods: &str, services: &str) -> Loopback {
        Loopback::claim(pods.parse().unwrap(), services.parse().unwrap()).unwrap()
    }

    #[test]
    fn an_address_has_one_place_and_comes_back_from_it() {
        let place = |network: &str| {
            let cluster = network.parse().unwrap();
            Place { cluster, here: usual(cluster).unwrap() }
        };
        let places = [place("10.33.0.0/16"), place("10.34.0.0/17")];
        let map = Loopback { places, first_free: 1024, _claim: None };
        for (shown, local) in [
            ("10.33.7.9:8080", "127.33.7.9:8080"),
            ("10.34.0.10:53", "127.34.0.10:64565"),
            ("10.34.0.10:65000", "127.34.0.10:488"),
            ("10.34.0.10:64512", "127.34.0.10:64512"),
            ("10.34.0.10:1023", "127.34.0.10:65535"),
            ("10.34.0.10:0", "127.34.0.10:0"),
            ("10.34.200.10:53", "10.34.200.10:53"),
            ("192.0.2.1:53", "192.0.2.1:53"),
            ("[::1]:53", "[::1]:53"),
        ] {
            assert_eq!(map.local(shown.parse().unwrap()).to_string(), local);
            assert_eq!(map.shown(local.parse().unwrap()).to_string(), shown);
        }
    }

    #[test]
    fn two_nodes_of_a_machine_have_different_places() {
        let [first, second] = [(); 2].map(|()| claimed("10.35.0.0/16", "10.36.0.0/16"));
        let place = |map: &Loopback| map.local("10.35.1.2:8080".parse().unwrap()).to_string();
        assert!(place(&second) != place(&first) && place(&second).starts_with("127."), "{}", place(&second));
    }

    #[test]
    fn the_machines_localhost_is_no_place() {
        for (pods, services) in [("10.0.0.0/16", "10.37.0.0/16"), ("10.38.0.0/16", "192.38.0.0/16")] {
            let map = claimed(pods, services);
            let local = map.local(SocketAddr::new(pods.parse::<Cidr>().unwrap().address, 80));
            assert!(local.to_string().starts_with("127.") && !LOCALHOST.contains(local.ip()), "{local}");
        }
    }
}
