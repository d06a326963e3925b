//! Pod addresses: the node's part of the pod network, handed out one by one.
//!
//! The lower half belongs to user space (local routes), the upper half to the bridge of Docker's pods. The pools live in memory;
//! after a restart the agent reserves what its pods' statuses say before it hands out anything. Deliberately absent: sockets and
//! routes, which are `netproxy`'s.

use netproxy::network::Cidr;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Where a pod's address lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In this process, through local routes.
    UserSpace,
    /// In a network namespace on the bridge.
    Bridge,
}

/// The addresses of both sides.
#[derive(Debug)]
pub struct Pools {
    user_space: Pool,
    bridge: Pool,
}

impl Pools {
    /// Two empty pools over a node's part of the pod network.
    pub fn new(pod_cidr: Cidr) -> Self {
        let [user_space, bridge] = halves(pod_cidr);
        Self { user_space: Pool::new(user_space), bridge: Pool::new(bridge) }
    }

    /// An unused address of that side; `None` when all are taken.
    pub fn take(&mut self, side: Side) -> Option<IpAddr> {
        match side {
            Side::UserSpace => self.user_space.take(),
            Side::Bridge => self.bridge.take(),
        }
    }

    /// Marks an address as used; `false` when it is of no pool or somebody has it.
    pub fn reserve(&mut self, address: IpAddr) -> bool {
        self.user_space.reserve(address) || self.bridge.reserve(address)
    }

    /// The side an address is of; `None` for one of neither.
    pub fn side(&self, address: IpAddr) -> Option<Side> {
        if self.user_space.offset(address).is_some() {
            return Some(Side::UserSpace);
        }
        self.bridge.offset(address).map(|_| Side::Bridge)
    }

    /// Gives an address back.
    pub fn release(&mut self, address: IpAddr) {
        self.user_space.release(address);
        self.bridge.release(address);
    }
}

/// The lower half of a network and the upper one.
pub fn halves(cidr: Cidr) -> [Cidr; 2] {
    let prefix = (cidr.prefix + 1).min(32);
    let upper = match cidr.address {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) | (1_u32 << (32 - u32::from(prefix)))).into()),
        other => other,
    };
    [Cidr { address: cidr.address, prefix }, Cidr { address: upper, prefix }]
}

/// The address of a bridge: the first of its network.
pub fn gateway(cidr: Cidr) -> IpAddr {
    match cidr.address {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) + 1).into()),
        other => other,
    }
}

/// One side's pod addresses. The network's own address and the first after it (the gateway of a bridge) and the last
/// (broadcast) are never handed out.
#[derive(Debug)]
struct Pool {
    base: u32,
    size: u64,
    taken: BTreeSet<u32>,
    next: u32,
}

impl Pool {
    /// An empty pool over an IPv4 network; a pool over anything else has no addresses.
    fn new(cidr: Cidr) -> Self {
        let (base, size) = match cidr.address {
            IpAddr::V4(base) => (u32::from(base), 1 << 32_u8.saturating_sub(cidr.prefix)),
            IpAddr::V6(_) => (0, 0),
        };
        Self { base, size, taken: BTreeSet::new(), next: 2 }
    }

    /// Marks an address as used; `false` when it is not of this pool or somebody has it.
    fn reserve(&mut self, address: IpAddr) -> bool {
        self.offset(address).is_some_and(|offset| self.taken.insert(offset))
    }

    /// Where in the pool an address is; `None` for one that the pool does not hand out.
    fn offset(&self, address: IpAddr) -> Option<u32> {
        let IpAddr::V4(v4) = address else { return None };
        u32::from(v4).checked_sub(self.base).filter(|offset| self.is_usable(*offset))
    }

    /// An unused address; addresses come back into use as late as possible, so that nobody reaches a new pod under the
    /// address of an old one. `None` when all are taken.
    fn take(&mut self) -> Option<IpAddr> {
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
    fn release(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.taken.remove(&offset);
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
    fn a_network_is_halved() {
        let text = |cidr: &str| halves(cidr.parse().unwrap()).map(|half| half.to_string()).join(" ");
        assert_eq!(text("10.42.0.0/16"), "10.42.0.0/17 10.42.128.0/17");
        assert_eq!(text("10.42.3.0/24"), "10.42.3.0/25 10.42.3.128/25");
        let mut pools = Pools::new("10.42.0.0/24".parse().unwrap());
        assert_eq!(pools.take(Side::Bridge).unwrap().to_string(), "10.42.0.130");
        assert_eq!(pools.take(Side::UserSpace).unwrap().to_string(), "10.42.0.2");
        assert!(!pools.reserve("10.42.0.130".parse().unwrap()));
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
