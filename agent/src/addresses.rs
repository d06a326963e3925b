//! Pod addresses: the node's part of the pod network, handed out one by one.
//!
//! The pool lives in memory; after a restart the agent reserves what its pods' statuses say before it hands out anything.
//! Deliberately absent: sockets and routes, which are `netproxy`'s.

use netproxy::network::Cidr;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// The node's pod addresses. The network's own address and the first after it (the gateway of a bridge) and the last
/// (broadcast) are never handed out.
#[derive(Debug)]
pub struct Pool {
    base: u32,
    size: u64,
    taken: BTreeSet<u32>,
    next: u32,
}

impl Pool {
    /// An empty pool over an IPv4 network; a pool over anything else has no addresses.
    pub fn new(cidr: Cidr) -> Self {
        let (base, size) = match cidr.address {
            IpAddr::V4(base) => (u32::from(base), 1 << 32_u8.saturating_sub(cidr.prefix)),
            IpAddr::V6(_) => (0, 0),
        };
        Self { base, size, taken: BTreeSet::new(), next: 2 }
    }

    /// Marks an address as used; `false` when it is not of this pool or somebody has it.
    pub fn reserve(&mut self, address: IpAddr) -> bool {
        let IpAddr::V4(v4) = address else { return false };
        let Some(offset) = u32::from(v4).checked_sub(self.base) else { return false };
        self.is_usable(offset) && self.taken.insert(offset)
    }

    /// An unused address; addresses come back into use as late as possible, so that nobody reaches a new pod under the
    /// address of an old one. `None` when all are taken.
    pub fn take(&mut self) -> Option<IpAddr> {
        if self.taken.len() as u64 + 3 >= self.size {
            return None;
        }
        for _ in 0..self.size {
            let offset = self.next;
            self.next = if u64::from(self.next) + 2 < self.size { self.next + 1 } else { 2 };
            if self.is_usable(offset) && self.taken.insert(offset) {
                return Some(IpAddr::V4(Ipv4Addr::from(self.base + offset)));
            }
        }
        None
    }

    /// Gives an address back.
    pub fn release(&mut self, address: IpAddr) {
        if let IpAddr::V4(v4) = address {
            self.taken.remove(&u32::from(v4).wrapping_sub(self.base));
        }
    }

    fn is_usable(&self, offset: u32) -> bool {
        offset >= 2 && u64::from(offset) + 1 < self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
