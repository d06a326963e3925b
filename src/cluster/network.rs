//! Which addresses a cluster lives in: networks of its own with the privilege, a piece of 127.0.0.0/8 without.
//!
//! Every address of 127.0.0.0/8 is this machine's own, with no configuration. Clusters side by side must not share one, so
//! a cluster takes a pair of /16 networks there and holds a UDP port in it for as long as it runs.

use agent::Cidr;
use anyhow::{Context, Result, bail, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The networks of a cluster.
pub struct Networks {
    /// Of pods.
    pub pods: Cidr,
    /// Of Services.
    pub services: Cidr,
    /// Whether no privilege is used.
    pub loopback: bool,
    /// Held while the cluster runs: the sign that these loopback networks are taken.
    pub _claim: Option<UdpSocket>,
}

impl Networks {
    /// The networks to use: those given, else by privilege. `seed` spreads clusters over the loopback pairs and gives the
    /// same one its own again.
    pub fn choose(pods: Option<Cidr>, services: Option<Cidr>, throw_away: bool, seed: u64) -> Result<Self> {
        match (pods, services) {
            (Some(pods), Some(services)) => Self::given(pods, services),
            (None, None) if agent::may_configure() && !throw_away => Self::given(network(10, 42), network(10, 43)),
            (None, None) => Self::free(seed, throw_away),
            _ => bail!("--cluster-cidr and --service-cidr are given together or not at all"),
        }
    }

    fn given(pods: Cidr, services: Cidr) -> Result<Self> {
        for cidr in [pods, services] {
            ensure!(
                cidr.address.is_ipv4() && (12..=24).contains(&cidr.prefix),
                "{cidr}: an IPv4 network of 12 to 24 bits"
            );
        }
        let overlap = pods.contains(services.address) || services.contains(pods.address);
        ensure!(!overlap, "--cluster-cidr {pods} and --service-cidr {services} overlap");
        let loopback = pods.address.is_loopback();
        ensure!(loopback == services.address.is_loopback(), "{pods} and {services}: both inside 127.0.0.0/8, or none");
        // who has chosen them knows whether others do
        let claim = if loopback { agent::hold(pods).ok() } else { None };
        Ok(Self { pods, services, loopback, _claim: claim })
    }

    fn free(seed: u64, any: bool) -> Result<Self> {
        if let Some(([pods, services], claim)) = agent::free_pair(seed, any) {
            return Ok(Self { pods, services, loopback: true, _claim: Some(claim) });
        }
        Err(anyhow::anyhow!("another cluster of this machine uses them; choose with --cluster-cidr and --service-cidr"))
            .context("take networks in 127.0.0.0/8")
    }

    /// The network of Service addresses, as the master takes it.
    pub fn services_v4(&self) -> Result<(Ipv4Addr, u8)> {
        v4(self.services)
    }

    /// The network of pods, as the master takes it.
    pub fn pods_v4(&self) -> Result<(Ipv4Addr, u8)> {
        v4(self.pods)
    }
}

fn v4(network: Cidr) -> Result<(Ipv4Addr, u8)> {
    match network.address {
        IpAddr::V4(address) => Ok((address, network.prefix)),
        IpAddr::V6(_) => bail!("{network}: IPv6 networks are not available"),
    }
}

fn network(first: u8, second: u8) -> Cidr {
    Cidr { address: Ipv4Addr::new(first, second, 0, 0).into(), prefix: 16 }
}

/// The address under which other machines know this one: the source of its default route. Nothing is sent.
pub fn own_address() -> IpAddr {
    // an address of documentation
    address_towards((Ipv4Addr::new(192, 0, 2, 1), 9).into()).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// The address that this machine has towards another. Nothing is sent.
pub fn address_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // connecting a UDP socket only looks up the route
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
