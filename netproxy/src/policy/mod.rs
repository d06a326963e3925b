//! Who may talk to whom: NetworkPolicies as addresses, compiled by the agent, asked for each connection, datagram session and
//! request that is carried to a pod.
//!
//! Pure. Nodes are trusted: what comes from a node has been judged there for whoever asked it, or is the node's own business
//! (probes, Ingress, forwarded ports). Replies are nobody's question: who asks about a connection asks once, when it begins.
//! Deliberately absent: labels and selectors (the agent's), and the kernel's form of it ([`crate::network::Fence`]).

#[cfg(test)]
mod tests;

use crate::network::Cidr;
use crate::routes::Protocol;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Every pod that policies say something about, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Addresses of all nodes: they may enter every pod.
    pub nodes: HashSet<IpAddr>,
    /// Addresses of this node: its pods may go there.
    pub own_node: HashSet<IpAddr>,
    /// The pods that some policy isolates. Others may do and receive everything.
    pub pods: HashMap<IpAddr, Isolation>,
    /// The named ports of pods, where a rule names some.
    pub named_ports: HashMap<IpAddr, Vec<NamedPort>>,
}

/// What one pod may. `None`: that direction is open; no rules: nothing may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Who may come.
    pub ingress: Option<Vec<Arc<Rule>>>,
    /// Where it may go.
    pub egress: Option<Vec<Arc<Rule>>>,
}

/// Some peers, at some ports of whoever is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The other side; `None` is everybody.
    pub peers: Option<Peers>,
    /// `None` is every port of every protocol.
    pub ports: Option<Vec<Ports>>,
}

/// Others, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Pods.
    pub pods: HashSet<IpAddr>,
    /// Ranges.
    pub blocks: Vec<Block>,
}

/// A range of addresses with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The range.
    pub cidr: Cidr,
    /// What is not meant of it.
    pub except: Vec<Cidr>,
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// From the first to the last, both included.
    Range(Protocol, u16, u16),
    /// What the pod that is connected to calls so.
    Named(Protocol, String),
}

/// A port of a pod that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its transport.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

impl Table {
    /// Whether `from` may open a connection or send a first datagram to `to`: `from` must be let out, where it is a pod, and `to`
    /// must let it in.
    pub fn permits(&self, from: IpAddr, to: SocketAddr, protocol: Protocol) -> bool {
        if self.pods.is_empty() {
            return true;
        }
        let (from, to) = (from.to_canonical(), SocketAddr::new(to.ip().to_canonical(), to.port()));
        from == to.ip() || (self.lets_out(from, to, protocol) && self.lets_in(from, to, protocol))
    }

    /// Whether anybody is kept from coming to this pod.
    pub fn guards(&self, pod: IpAddr) -> bool {
        self.pods.get(&pod).is_some_and(|isolation| isolation.ingress.is_some())
    }

    fn lets_out(&self, from: IpAddr, to: SocketAddr, protocol: Protocol) -> bool {
        let rules = self.pods.get(&from).and_then(|isolation| isolation.egress.as_ref());
        rules.is_none_or(|rules| {
            self.own_node.contains(&to.ip()) || rules.iter().any(|rule| self.fits(rule, to.ip(), to, protocol))
        })
    }

    fn lets_in(&self, from: IpAddr, to: SocketAddr, protocol: Protocol) -> bool {
        let rules = self.pods.get(&to.ip()).and_then(|isolation| isolation.ingress.as_ref());
        rules.is_none_or(|rules| {
            self.nodes.contains(&from) || rules.iter().any(|rule| self.fits(rule, from, to, protocol))
        })
    }

    fn fits(&self, rule: &Rule, peer: IpAddr, to: SocketAddr, protocol: Protocol) -> bool {
        let is_port = |ports: &Ports| match ports {
            Ports::Range(of, first, last) => *of == protocol && (*first..=*last).contains(&to.port()),
            Ports::Named(of, name) => {
                *of == protocol && self.numbers(to.ip(), *of, name).any(|number| number == to.port())
            }
        };
        rule.peers.as_ref().is_none_or(|peers| peers.contains(peer))
            && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(is_port))
    }

    /// What a pod means by the name of a port.
    pub(crate) fn numbers<'a>(
        &'a self,
        pod: IpAddr,
        protocol: Protocol,
        name: &'a str,
    ) -> impl Iterator<Item = u16> + 'a {
        let ports = self.named_ports.get(&pod).map(Vec::as_slice).unwrap_or_default();
        ports.iter().filter(move |port| port.protocol == protocol && port.name == name).map(|port| port.port)
    }
}

impl Peers {
    /// Whether an address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.pods.contains(&address) || self.blocks.iter().any(|block| block.contains(address))
    }
}

impl Block {
    /// Whether an address is meant.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(address) && !self.except.iter().any(|hole| hole.contains(address))
    }
}
