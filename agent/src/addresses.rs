//! Pod addresses: the node's part of the pod network, handed out one by one.
//!
//! The pool lives in memory; after a restart the agent reserves what its pods' statuses say before it hands out anything.
//! Deliberately absent: sockets and routes, which are `netproxy`'s.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// An IPv4 network: `10.42.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Debug, thiserror::Error)]
#[error("parse network {text:?}: want an IPv4 CIDR such as 10.42.0.0/24")]
pub struct CidrError {
    text: String,
}

impl Cidr {
    /// Whether the network has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if u32::from(address) & self.mask() == self.base)
    }

    /// Number of addresses.
    fn size(&self) -> u64 {
        1 << (32 - self.prefix)
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(u32::from(32 - self.prefix)).unwrap_or(0)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError { text: text.into() };
        let (base, prefix) = text.split_once('/').ok_or_else(error)?;
        let base: Ipv4Addr = base.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > 32 {
            return Err(error());
        }
        let cidr = Self { base: u32::from(base), prefix };
        Ok(Self { base: cidr.base & cidr.mask(), prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

/// The node's pod addresses. The network's own address and the first after it (the gateway of a bridge) and the last
/// (broadcast) are never handed out.
#[derive(Debug)]
pub struct Pool {
    cidr: Cidr,
    taken: BTreeSet<u32>,
    next: u32,
}

impl Pool {
    /// An empty pool over a network.
    pub fn new(cidr: Cidr) -> Self {
        Self { cidr, taken: BTreeSet::new(), next: 2 }
    }

    /// Marks an address as used; `false` when it is not of this pool or somebody has it.
    pub fn reserve(&mut self, address: IpAddr) -> bool {
        let IpAddr::V4(v4) = address else { return false };
        let offset = u32::from(v4).wrapping_sub(self.cidr.base);
        self.cidr.contains(address) && self.is_usable(offset) && self.taken.insert(offset)
    }

    /// An unused address; addresses come back into use as late as possible, so that nobody reaches a new pod under the
    /// address of an old one. `None` when all are taken.
    pub fn take(&mut self) -> Option<IpAddr> {
        let size = u32::try_from(self.cidr.size()).unwrap_or(u32::MAX);
        if self.taken.len() as u64 + 3 > u64::from(size) {
            return None;
        }
        for _ in 0..size {
            let offset = self.next;
            self.next = if u64::from(self.next) + 2 < u64::from(size) { self.next + 1 } else { 2 };
            if self.is_usable(offset) && self.taken.insert(offset) {
                return Some(IpAddr::V4(Ipv4Addr::from(self.cidr.base + offset)));
            }
        }
        None
    }

    /// Gives an address back.
    pub fn release(&mut self, address: IpAddr) {
        if let IpAddr::V4(v4) = address {
            self.taken.remove(&u32::from(v4).wrapping_sub(self.cidr.base));
        }
    }

    fn is_usable(&self, offset: u32) -> bool {
        offset >= 2 && u64::from(offset) + 1 < self.cidr.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_parse_and_refuse() {
        for good in ["10.42.0.0/16", "127.1.0.0/16", "0.0.0.0/0", "10.1.2.3/32"] {
            assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
        }
        assert_eq!("10.42.7.9/24".parse::<Cidr>().unwrap().to_string(), "10.42.7.0/24");
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/64", "x/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pool_hands_out_each_address_once_and_late_again() {
        let mut pool = Pool::new("10.42.0.0/29".parse().unwrap());
        let reserved: IpAddr = "10.42.0.3".parse().unwrap();
        assert!(pool.reserve(reserved));
        assert!(!pool.reserve(reserved));
        assert!(!pool.reserve("10.42.0.1".parse().unwrap()));
        let taken: Vec<String> = std::iter::from_fn(|| pool.take()).map(|a| a.to_string()).collect();
        assert_eq!(taken, ["10.42.0.2", "10.42.0.4", "10.42.0.5", "10.42.0.6"]);
        pool.release(reserved);
        assert_eq!(pool.take(), Some(reserved));
    }
}
