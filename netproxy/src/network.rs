//! The kernel's side of the pod network: may we change it, and the local routes that make every pod and Service address this
//! host's own. Loopback mode needs nothing of this. No bridges, no namespaces here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use futures::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// First address; host bits are zero.
    pub address: IpAddr,
    /// Bits of the network part.
    pub prefix: u8,
}

impl Cidr {
    /// Whether `ip` lies in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                mask(a.to_bits().into(), 32, self.prefix) == mask(b.to_bits().into(), 32, self.prefix)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                mask(a.to_bits(), 128, self.prefix) == mask(b.to_bits(), 128, self.prefix)
            }
            _ => false,
        }
    }
}

/// `bits` without its host part.
fn mask(bits: u128, width: u8, prefix: u8) -> u128 {
    bits.checked_shr(u32::from(width - prefix.min(width))).unwrap_or(0)
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Not `address/prefix`.
#[derive(Debug, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => IpAddr::V4(Ipv4Addr::from_bits(
                v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0),
            )),
            IpAddr::V6(v6) if prefix <= 128 => IpAddr::V6(Ipv6Addr::from_bits(
                v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0),
            )),
            _ => return Err(wrong()),
        };
        Ok(Self { address, prefix })
    }
}

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] std::io::Error),
    /// The kernel did not list them.
    #[error("cannot list this host's addresses")]
    List(#[source] rtnetlink::Error),
    /// The kernel refused the route.
    #[error("cannot add local route {cidr}")]
    Route {
        /// The range.
        cidr: Cidr,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
}

/// Whether this process has CAP_NET_ADMIN (effective).
pub fn may_configure() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    has_capability(CAP_NET_ADMIN)
}

/// Whether this process has CAP_SYS_ADMIN (effective): it may work inside the network namespaces of others.
pub fn may_enter_namespaces() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    has_capability(CAP_SYS_ADMIN)
}

/// Whether this process has CAP_NET_BIND_SERVICE or the kernel lets anyone bind `port`.
pub fn may_bind(port: u16) -> bool {
    const CAP_NET_BIND_SERVICE: u32 = 10;
    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .unwrap_or(1024);
    u32::from(port) >= first_free || has_capability(CAP_NET_BIND_SERVICE)
}

fn has_capability(bit: u32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|caps| caps & (1 << bit) != 0)
}

/// Makes every address of the ranges local to this host (`ip route add local CIDR dev lo`). Idempotent; needs CAP_NET_ADMIN.
pub async fn claim(cidrs: &[Cidr]) -> Result<(), NetworkError> {
    change(cidrs, true).await
}

/// Takes the routes of [`claim`] away again; absent ones are no error.
pub async fn release(cidrs: &[Cidr]) -> Result<(), NetworkError> {
    change(cidrs, false).await
}

/// This host's own addresses, loopback first, without link-local ones. They are what the ingress and node ports listen on.
pub async fn host_addresses() -> Result<Vec<IpAddr>, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Open)?;
    let connection = tokio::spawn(connection);
    let listed: Result<Vec<_>, _> = handle.address().get().execute().try_collect().await;
    connection.abort();
    let mut addresses: Vec<IpAddr> = listed
        .map_err(NetworkError::List)?
        .iter()
        .filter_map(own_address)
        .filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .collect();
    addresses.sort_by_key(|address| (!address.is_loopback(), address.is_ipv6()));
    Ok(addresses)
}

/// On a point-to-point link "address" is the other side; then "local" is ours.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = || {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    };
    local.or_else(address)
}

async fn change(cidrs: &[Cidr], add: bool) -> Result<(), NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Open)?;
    let connection = tokio::spawn(connection);
    let mut done = Ok(());
    for cidr in cidrs {
        let route = local_route(*cidr);
        let changed =
            if add { handle.route().add(route).execute().await } else { handle.route().del(route).execute().await };
        done = match changed {
            Err(source) if !is_already(&source, add) => Err(NetworkError::Route { cidr: *cidr, source }),
            _ => Ok(()),
        };
        if done.is_err() {
            break;
        }
    }
    connection.abort();
    done
}

/// `local CIDR dev lo table local`.
fn local_route(cidr: Cidr) -> RouteMessage {
    /// The kernel's table of this host's own addresses (RT_TABLE_LOCAL).
    const LOCAL_TABLE: u8 = 255;
    /// The loopback device is the first of every network namespace.
    const LOOPBACK: u32 = 1;
    let mut route = match cidr.address {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, cidr.prefix).build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, cidr.prefix).build(),
    };
    route.header.table = LOCAL_TABLE;
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.attributes.push(RouteAttribute::Oif(LOOPBACK));
    route
}

/// Whether the kernel only says that it is so already: EEXIST, or ESRCH for a removal.
fn is_already(error: &rtnetlink::Error, add: bool) -> bool {
    const ESRCH: i32 = 3;
    const EEXIST: i32 = 17;
    match error {
        rtnetlink::Error::NetlinkError(message) => -message.raw_code() == if add { EEXIST } else { ESRCH },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_asked() {
        for (text, inside, outside) in [
            ("10.42.7.9/16", "10.42.255.1", "10.43.0.1"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("127.1.0.0/32", "127.1.0.0", "127.1.0.1"),
            ("fd00::1/64", "fd00::ffff", "fd01::1"),
            ("::/0", "fe80::1", "1.2.3.4"),
        ] {
            let cidr: Cidr = text.parse().unwrap();
            assert!(cidr.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!cidr.contains(outside.parse().unwrap()), "{text} {outside}");
        }
        assert_eq!("10.42.7.9/16".parse::<Cidr>().unwrap().to_string(), "10.42.0.0/16");
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_host_has_addresses_that_can_be_bound() {
        let addresses = host_addresses().await.unwrap();
        assert!(addresses[0].is_loopback(), "{addresses:?}");
        // One that is still being set up (IPv6) may not be bound yet.
        for address in addresses.into_iter().filter(IpAddr::is_ipv4) {
            std::net::TcpListener::bind((address, 0)).unwrap();
        }
    }

    /// A range of the documentation (RFC 5737) that no machine has.
    #[tokio::test]
    async fn claimed_addresses_can_be_bound() {
        if !may_configure() {
            assert!(claim(&["198.51.100.0/24".parse().unwrap()]).await.is_err(), "without the capability it must fail");
            return;
        }
        let range: Cidr = "198.51.100.0/24".parse().unwrap();
        claim(&[range]).await.unwrap();
        claim(&[range]).await.unwrap();
        let bound = std::net::TcpListener::bind("198.51.100.77:0");
        release(&[range]).await.unwrap();
        release(&[range]).await.unwrap();
        bound.unwrap();
    }
}
