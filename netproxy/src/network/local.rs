//! Routes that make pod and Service addresses this host's own, and the addresses that it has anyway.

use super::{Cidr, NetworkError};
use futures::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    use super::super::may_configure;
    use super::*;

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
