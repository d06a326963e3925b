//! Network policy inside a pod's own network namespace, by the kernel's firewall: who may come in, where containers may go out.
//!
//! The rules stand in two chains of their own, which are replaced whole at one blow and first of all in INPUT and OUTPUT. What
//! answers something that was allowed passes. Services pass on their way out: the proxy judges whom they lead to, knowing who asks.
//! Deliberately absent: entering the namespace, which whoever calls does.

use super::Cidr;
use super::forwarding::{ForwardingError, jump_first, restore};
use crate::policy::{Block, Isolation, Ports, Rule, Table};
use crate::routes::Protocol;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

const IN: &str = "CORACLE-IN";
const OUT: &str = "CORACLE-OUT";
/// Rules of one pod. One that would need more is not fenced, and says so.
const RULES_MAX: usize = 65_536;

/// The rules of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    ingress: Option<Vec<String>>,
    egress: Option<Vec<String>>,
}

/// Why a pod is not fenced.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The firewall's tool is not there, or refuses.
    #[error("the pod's firewall")]
    Firewall(#[from] ForwardingError),
    /// The kernel would have to look through too many.
    #[error("the pod's policies come to {0} rules, more than {RULES_MAX}")]
    TooMany(usize),
}

/// One direction of the rules.
struct Side<'a> {
    table: &'a Table,
    /// The flag of the other side's address.
    flag: &'static str,
    /// The pod, where it is the one that is connected to.
    to: Option<IpAddr>,
    rules: Vec<String>,
}

impl Fence {
    /// What `table` says of `pod`, whose way to `services` is open.
    pub fn of(table: &Table, pod: IpAddr, services: Cidr) -> Self {
        let Some(Isolation { ingress, egress }) = table.pods.get(&pod) else { return Self::default() };
        let compile = |rules: &[Arc<Rule>], to: Option<IpAddr>, open: Vec<String>| {
            let mut side = Side { table, flag: if to.is_some() { "-s" } else { "-d" }, to, rules: open };
            rules.iter().for_each(|rule| side.add(rule));
            side.rules
        };
        let sorted = |addresses: &std::collections::HashSet<IpAddr>, flag| {
            let mut addresses: Vec<IpAddr> = addresses.iter().copied().filter(IpAddr::is_ipv4).collect();
            addresses.sort_unstable();
            addresses.into_iter().map(move |address| format!("{flag} {address}")).collect::<Vec<_>>()
        };
        let own = |flag| {
            let mut open = sorted(&table.own_node, flag);
            open.push(format!("{flag} {services}"));
            open
        };
        Self {
            ingress: ingress.as_ref().map(|rules| compile(rules, Some(pod), sorted(&table.nodes, "-s"))),
            egress: egress.as_ref().map(|rules| compile(rules, None, own("-d"))),
        }
    }

    /// Whether nothing is forbidden.
    pub fn is_open(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }

    /// Puts the rules in place of those that were there, in the network namespace that the calling thread is in. Blocks.
    ///
    /// # Errors
    /// [`FenceError`]: the rules from before stand, or there are none.
    pub fn apply(&self) -> Result<(), FenceError> {
        let count = self.ingress.iter().chain(&self.egress).map(Vec::len).sum();
        if count > RULES_MAX {
            return Err(FenceError::TooMany(count));
        }
        restore(&self.text())?;
        jump_first("filter", "INPUT", IN)?;
        jump_first("filter", "OUTPUT", OUT)?;
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = format!("*filter\n:{IN} - [0:0]\n:{OUT} - [0:0]\n");
        for (chain, device, rules) in [(IN, "-i lo", &self.ingress), (OUT, "-o lo", &self.egress)] {
            let Some(rules) = rules else { continue };
            // a String takes everything
            let _ = writeln!(text, "-A {chain} {device} -j RETURN");
            let _ = writeln!(text, "-A {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN");
            for rule in rules {
                let _ = writeln!(text, "-A {chain}{}{rule} -j RETURN", if rule.is_empty() { "" } else { " " });
            }
            let _ = writeln!(text, "-A {chain} -j DROP");
        }
        text.push_str("COMMIT\n");
        text
    }
}

impl Side<'_> {
    fn add(&mut self, rule: &Rule) {
        let Some(ports) = &rule.ports else { return self.add_peers(rule, "") };
        for ports in ports {
            match ports {
                Ports::Range(protocol, first, last) => self.add_peers(rule, &spell(*protocol, *first, *last)),
                Ports::Named(protocol, name) => self.add_named(rule, *protocol, name),
            }
        }
    }

    /// A name is a number of the pod that is connected to.
    fn add_named(&mut self, rule: &Rule, protocol: Protocol, name: &str) {
        let table = self.table;
        if let Some(pod) = self.to {
            for port in table.numbers(pod, protocol, name) {
                self.add_peers(rule, &spell(protocol, port, port));
            }
            return;
        }
        let mut pods: Vec<&IpAddr> = table.named_ports.keys().collect();
        pods.sort_unstable();
        for pod in pods.into_iter().filter(|pod| rule.peers.as_ref().is_none_or(|peers| peers.contains(**pod))) {
            for port in table.numbers(*pod, protocol, name) {
                self.push(&format!("{} {pod}", self.flag), &spell(protocol, port, port));
            }
        }
    }

    fn add_peers(&mut self, rule: &Rule, ports: &str) {
        let Some(peers) = &rule.peers else { return self.push("", ports) };
        let mut pods: Vec<&IpAddr> = peers.pods.iter().filter(|pod| pod.is_ipv4()).collect();
        pods.sort_unstable();
        for pod in pods {
            self.push(&format!("{} {pod}", self.flag), ports);
        }
        for block in peers.blocks.iter().filter(|block| block.cidr.address.is_ipv4()) {
            for cidr in without_holes(block) {
                self.push(&format!("{} {cidr}", self.flag), ports);
            }
        }
    }

    fn push(&mut self, peer: &str, ports: &str) {
        let gap = if peer.is_empty() || ports.is_empty() { "" } else { " " };
        self.rules.push(format!("{peer}{gap}{ports}"));
    }
}

fn spell(protocol: Protocol, first: u16, last: u16) -> String {
    let name = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    match (first, last) {
        (0 | 1, u16::MAX) => format!("-p {name}"),
        _ if first == last => format!("-p {name} --dport {first}"),
        _ => format!("-p {name} --dport {first}:{last}"),
    }
}

/// A range cut into those parts that its holes leave.
fn without_holes(block: &Block) -> Vec<Cidr> {
    let mut parts = vec![block.cidr];
    for hole in &block.except {
        parts = parts.into_iter().flat_map(|part| cut(part, *hole)).collect();
    }
    parts
}

fn cut(part: Cidr, hole: Cidr) -> Vec<Cidr> {
    let covers = |a: Cidr, b: Cidr| a.prefix <= b.prefix && a.contains(b.address);
    if covers(hole, part) {
        return Vec::new();
    }
    let (IpAddr::V4(first), true) = (part.address, covers(part, hole)) else { return vec![part] };
    // each step keeps the half without the hole
    let mut kept = Vec::new();
    let (mut base, mut prefix) = (first.to_bits(), part.prefix);
    while prefix < hole.prefix {
        prefix += 1;
        let halves = [base, base | (1 << (32 - u32::from(prefix)))]
            .map(|bits| Cidr { address: IpAddr::V4(bits.into()), prefix });
        let [near, far] =
            if halves[0].contains(hole.address) { [halves[0], halves[1]] } else { [halves[1], halves[0]] };
        kept.push(far);
        if let IpAddr::V4(next) = near.address {
            base = next.to_bits();
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{NamedPort, Peers};
    use expect_test::expect;
    use std::collections::HashMap;

    #[test]
    fn holes_are_cut_out() {
        let cut = |cidr: &str, except: &[&str]| {
            let except = except.iter().map(|text| text.parse().unwrap()).collect();
            let parts = without_holes(&Block { cidr: cidr.parse().unwrap(), except });
            parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(cut("10.0.0.0/24", &[]), "10.0.0.0/24");
        assert_eq!(cut("10.0.0.0/24", &["10.0.0.128/25"]), "10.0.0.0/25");
        assert_eq!(cut("10.0.0.0/24", &["10.0.0.0/26", "10.0.0.192/26"]), "10.0.0.128/26 10.0.0.64/26");
        assert_eq!(cut("10.0.0.0/31", &["10.0.0.1/32"]), "10.0.0.0/31".replace("/31", "/32"));
        assert_eq!(cut("0.0.0.0/0", &["0.0.0.0/1", "10.0.0.0/8"]), "128.0.0.0/1");
    }

    #[test]
    fn rules_are_spelled() {
        let pod: IpAddr = "10.42.0.130".parse().unwrap();
        let peer: IpAddr = "10.42.1.2".parse().unwrap();
        let rule = |peers, ports| Arc::new(Rule { peers, ports });
        let them = || Some(Peers { pods: [peer].into(), blocks: Vec::new() });
        let block = Block { cidr: "192.0.2.0/24".parse().unwrap(), except: vec!["192.0.2.128/25".parse().unwrap()] };
        let named = |port| vec![NamedPort { name: "web".into(), protocol: Protocol::Tcp, port }];
        let table = Table {
            nodes: ["10.42.1.0".parse().unwrap(), "10.42.0.0".parse().unwrap()].into(),
            own_node: ["10.42.0.0".parse().unwrap()].into(),
            pods: HashMap::from([(
                pod,
                Isolation {
                    ingress: Some(vec![rule(
                        them(),
                        Some(vec![Ports::Range(Protocol::Udp, 53, 54), Ports::Named(Protocol::Tcp, "web".into())]),
                    )]),
                    egress: Some(vec![
                        rule(Some(Peers { blocks: vec![block], ..Peers::default() }), None),
                        rule(them(), Some(vec![Ports::Named(Protocol::Tcp, "web".into())])),
                        rule(None, Some(vec![Ports::Range(Protocol::Tcp, 1, u16::MAX)])),
                    ]),
                },
            )]),
            named_ports: HashMap::from([(pod, named(80)), (peer, named(8080))]),
        };
        let services = "10.43.0.0/16".parse().unwrap();
        let fence = Fence::of(&table, pod, services);
        assert!(!fence.is_open() && Fence::of(&table, peer, services).is_open());
        expect![[r#"
            *filter
            :CORACLE-IN - [0:0]
            :CORACLE-OUT - [0:0]
            -A CORACLE-IN -i lo -j RETURN
            -A CORACLE-IN -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
            -A CORACLE-IN -s 10.42.0.0 -j RETURN
            -A CORACLE-IN -s 10.42.1.0 -j RETURN
            -A CORACLE-IN -s 10.42.1.2 -p udp --dport 53:54 -j RETURN
            -A CORACLE-IN -s 10.42.1.2 -p tcp --dport 80 -j RETURN
            -A CORACLE-IN -j DROP
            -A CORACLE-OUT -o lo -j RETURN
            -A CORACLE-OUT -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
            -A CORACLE-OUT -d 10.42.0.0 -j RETURN
            -A CORACLE-OUT -d 10.43.0.0/16 -j RETURN
            -A CORACLE-OUT -d 192.0.2.0/25 -j RETURN
            -A CORACLE-OUT -d 10.42.1.2 -p tcp --dport 8080 -j RETURN
            -A CORACLE-OUT -p tcp -j RETURN
            -A CORACLE-OUT -j DROP
            COMMIT
        "#]]
        .assert_eq(&fence.text());
    }
}
