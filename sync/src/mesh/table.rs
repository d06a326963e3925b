//! Which node an address belongs to. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A node's part of the pod network, or all of it: IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    /// First address; host bits are zero.
    base: u32,
    prefix: u8,
}

/// Not an IPv4 `address/prefix`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an IPv4 network: {0}")]
pub struct NetworkError(String);

impl Network {
    /// Whether an address lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        mask(address.to_bits(), self.prefix) == self.base
    }

    /// Its last address.
    fn last(self) -> u32 {
        self.base | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }
}

/// `bits` without its host part.
fn mask(bits: u32, prefix: u8) -> u32 {
    bits & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: Ipv4Addr = address.parse().ok()?;
            let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some(Self { base: mask(address.to_bits(), prefix), prefix })
        };
        parse().ok_or_else(|| NetworkError(text.to_owned()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.base), self.prefix)
    }
}

/// Networks that do not overlap, each with what is behind it.
#[derive(Clone, Debug)]
pub struct Table<T> {
    rows: Vec<(Network, T)>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { rows: Vec::new() }
    }
}

impl<T> Table<T> {
    /// A table of the given rows. Of two that overlap, the one with the lower first address (then the larger) stays; what was left
    /// out is returned beside.
    pub fn new(rows: impl IntoIterator<Item = (Network, T)>) -> (Self, Vec<Network>) {
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_by_key(|(network, _)| *network);
        let mut refused = Vec::new();
        let mut last = None;
        rows.retain(|(network, _)| {
            let is_apart = last.is_none_or(|last| network.base > last);
            if is_apart {
                last = Some(network.last());
            } else {
                refused.push(*network);
            }
            is_apart
        });
        (Self { rows }, refused)
    }

    /// What is behind each network, in their order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.rows.iter().map(|(_, value)| value)
    }

    /// What is behind an address.
    pub fn find(&self, address: Ipv4Addr) -> Option<&T> {
        let after = self.rows.partition_point(|(network, _)| network.base <= address.to_bits());
        let (network, value) = self.rows.get(after.checked_sub(1)?)?;
        network.contains(address).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() {
        for (text, shown) in [
            ("10.42.7.9/16", "10.42.0.0/16"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.0.0.1/32", "10.0.0.1/32"),
            ("10.42.128.77/25", "10.42.128.0/25"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
        }
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/64", "10.0.0/8", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_found_and_overlaps_refused() {
        let rows = ["10.42.128.0/24", "10.42.0.0/17", "10.42.200.0/24", "10.42.128.128/25", "10.42.5.0/24"];
        let (table, refused) = Table::new(rows.map(|text| (text.parse().unwrap(), text)));
        let refused: Vec<_> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(refused, ["10.42.5.0/24", "10.42.128.128/25"]);
        for (address, row) in [
            ("10.41.255.255", None),
            ("10.42.0.0", Some("10.42.0.0/17")),
            ("10.42.127.255", Some("10.42.0.0/17")),
            ("10.42.128.200", Some("10.42.128.0/24")),
            ("10.42.129.0", None),
            ("10.42.200.1", Some("10.42.200.0/24")),
            ("255.255.255.255", None),
        ] {
            assert_eq!(table.find(address.parse().unwrap()).copied(), row, "{address}");
        }
        let (all, _) = Table::new([("0.0.0.0/0".parse().unwrap(), ())]);
        assert!(all.find(Ipv4Addr::BROADCAST).is_some());
    }
}
