//! Gives each Node its part of the pods' network: `spec.podCIDR`.
//!
//! The master's own node has the lower half, because pods there were addressed before other nodes joined; the others get
//! pieces of the upper half, the lowest free one first. What a deleted Node had is free again. One key for all nodes, so that
//! no piece is given out twice.

use crate::{Controller, Cx, Outcome};
use k8s_openapi::api::core::v1::{self, Node};
use serde_json::json;
use state::record::{self, Note};
use state::{Change, Event, Key, Object, World, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Name as the source of events.
const NAME: &str = "node-ipam-controller";
/// Label of the master's own node.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// Reason of the event about a node for which nothing is left.
const EXHAUSTED: &str = "CIDRNotAvailable";
/// Longest prefix of a node's part: a node halves it once more.
const MASK_MAX: u8 = 30;

/// The prefix length of a node's part where none is asked for: 24, or of a small network a sixteenth.
pub fn default_mask(cluster_prefix: u8) -> u8 {
    if cluster_prefix > 22 { cluster_prefix.saturating_add(4).min(MASK_MAX) } else { 24 }
}

/// An IPv4 network: its first address, and prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Net {
    first: u32,
    prefix: u8,
}

impl Net {
    fn new(address: u32, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Self { first: address & mask, prefix }
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        Some(Self::new(address.parse::<Ipv4Addr>().ok()?.into(), prefix))
    }

    fn last(self) -> u32 {
        self.first | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }

    /// Its halves, lower and upper; of a single address twice itself.
    fn halves(self) -> [Self; 2] {
        let prefix = (self.prefix + 1).min(32);
        [Self::new(self.first, prefix), Self::new(self.last(), prefix)]
    }

    /// The lowest part of this size that overlaps none of these, which are in order.
    fn free(self, prefix: u8, taken: &[Self]) -> Option<Self> {
        let prefix = prefix.max(self.prefix);
        let mut candidate = Self::new(self.first, prefix);
        for other in taken {
            if candidate.overlaps(*other) {
                // the next part that begins behind it
                let behind = other.last().max(candidate.last()).checked_add(1)?;
                let aligned = Self::new(behind, prefix);
                candidate =
                    if aligned.first == behind { aligned } else { Self::new(aligned.last().checked_add(1)?, prefix) };
            }
        }
        (candidate.first >= self.first && candidate.last() <= self.last()).then_some(candidate)
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

/// The controller.
pub struct NodeIpam {
    own: Net,
    others: Net,
    mask: u8,
}

impl NodeIpam {
    /// For this pod network; `mask` is the prefix length of a node's part. One that does not fit is made to fit.
    pub fn new((address, prefix): (Ipv4Addr, u8), mask: Option<u8>) -> Self {
        let [own, others] = Net::new(address.into(), prefix).halves();
        let mask = mask.unwrap_or_else(|| default_mask(prefix)).min(MASK_MAX).max(others.prefix);
        Self { own, others, mask }
    }

    /// What a node has of the pods' network. One that has both halves, from when it was alone, has to choose anew.
    fn nets(&self, node: &Object) -> Vec<Net> {
        let spec = node.view::<Node>().and_then(|node| node.spec.as_ref());
        let texts = spec.into_iter().flat_map(|spec| spec.pod_cidr.iter().chain(spec.pod_cidrs.iter().flatten()));
        let mut nets: Vec<Net> = texts.filter_map(|text| Net::parse(text)).collect();
        nets.retain(|net| self.own == self.others || !(net.overlaps(self.own) && net.overlaps(self.others)));
        nets.dedup();
        nets
    }

    fn choose(&self, node: &Object, taken: &[Net]) -> Option<Net> {
        let is_own = node.meta().labels.contains_key(CONTROL_PLANE);
        let own = is_own && !taken.iter().any(|other| other.overlaps(self.own));
        if own { Some(self.own) } else { self.others.free(self.mask, taken) }
    }
}

impl Controller for NodeIpam {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        let concerns = event.change == Change::Deleted || self.nets(&event.object).is_empty();
        if event.key().is::<Node>() && concerns { vec![Key::of::<Node>("", "")] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, _key: &Key) -> Outcome {
        let nodes: Vec<&Arc<Object>> = cx.world.all::<Node>(None).collect();
        let mut taken: Vec<Net> = nodes.iter().flat_map(|node| self.nets(node)).collect();
        let mut waiting: Vec<&Arc<Object>> =
            nodes.into_iter().filter(|node| !node.is_deleting() && self.nets(node).is_empty()).collect();
        waiting.sort_by_key(|node| (node.meta().creation_timestamp, node.meta().name.clone()));
        let mut writes = Vec::new();
        for node in waiting {
            taken.sort_unstable();
            let Some(net) = self.choose(node, &taken) else {
                writes.extend(complain(cx, node));
                continue;
            };
            taken.push(net);
            let mut value = node.value();
            if !value["spec"].is_object() {
                value["spec"] = json!({});
            }
            value["spec"]["podCIDR"] = net.to_string().into();
            value["spec"]["podCIDRs"] = json!([net.to_string()]);
            writes.push(Write::update(node, value));
        }
        Outcome { writes, again_at: None }
    }
}

/// Tells that nothing is left for a node, unless that is told already.
fn complain(cx: &mut Cx<'_>, node: &Object) -> Option<Write> {
    let told = cx.world.all::<v1::Event>(Some("default")).filter_map(|event| event.view::<v1::Event>());
    let uid = Some(&node.meta().uid);
    let mut about = told.filter(|event| event.reason.as_deref() == Some(EXHAUSTED));
    if about.any(|event| event.involved_object.uid.as_ref() == uid) {
        return None;
    }
    let message = format!("Node {} status is now: {EXHAUSTED}", node.meta().name);
    Some(record::event(cx.world, &mut cx.stamp, node, &Note::normal(NAME, EXHAUSTED, &message)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Sandbox;

    fn sandbox(cluster: &str, mask: Option<u8>) -> Sandbox {
        let (address, prefix) = cluster.split_once('/').unwrap();
        let cluster = (address.parse().unwrap(), prefix.parse().unwrap());
        Sandbox::new(vec![Box::new(NodeIpam::new(cluster, mask))])
    }

    fn add(sandbox: &mut Sandbox, name: &str, spec: &str) {
        let label =
            if name == "own" { "labels: {node-role.kubernetes.io/control-plane: 'true'}" } else { "labels: {}" };
        sandbox
            .apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}, {label}}}, spec: {{{spec}}}}}"));
    }

    fn report(sandbox: &Sandbox) -> String {
        let of = |node: &Arc<Object>| {
            let spec = &node.value()["spec"];
            assert!(spec["podCIDRs"].is_null() || spec["podCIDRs"][0] == spec["podCIDR"]);
            format!("{} {}", node.meta().name, spec["podCIDR"].as_str().unwrap_or("-"))
        };
        sandbox.world.all::<Node>(None).map(of).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn each_node_has_its_part() {
        for (cluster, mask, expected) in [
            ("10.42.0.0/16", None, "a 10.42.128.0/24, b 10.42.129.0/24, own 10.42.0.0/17"),
            ("10.42.7.9/16", Some(20), "a 10.42.128.0/20, b 10.42.144.0/20, own 10.42.0.0/17"),
            ("10.42.0.0/24", None, "a 10.42.0.128/28, b 10.42.0.144/28, own 10.42.0.0/25"),
            ("10.42.0.0/23", Some(16), "a 10.42.1.0/24, b -, own 10.42.0.0/24"),
            ("10.42.0.0/28", Some(32), "a 10.42.0.8/30, b 10.42.0.12/30, own 10.42.0.0/29"),
            ("0.0.0.0/0", None, "a 128.0.0.0/24, b 128.0.1.0/24, own 0.0.0.0/1"),
            ("255.255.255.255/32", None, "a 255.255.255.255/32, b -, own -"),
        ] {
            let mut sandbox = sandbox(cluster, mask);
            ["a", "b", "own"].into_iter().for_each(|name| add(&mut sandbox, name, ""));
            sandbox.settle();
            assert_eq!(report(&sandbox), expected, "{cluster} {mask:?}");
        }
    }

    #[test]
    fn gaps_are_used_again_and_nothing_is_given_twice() {
        let mut sandbox = sandbox("10.42.0.0/22", Some(25));
        // what others chose is kept away from
        add(&mut sandbox, "x", "podCIDR: 10.42.2.128/26, podCIDRs: [10.42.2.128/26]");
        ["a", "b", "c", "d"].into_iter().for_each(|name| add(&mut sandbox, name, ""));
        sandbox.settle();
        assert_eq!(report(&sandbox), "a 10.42.2.0/25, b 10.42.3.0/25, c 10.42.3.128/25, d -, x 10.42.2.128/26");
        assert_eq!(sandbox.told(), ["CIDRNotAvailable: Node d status is now: CIDRNotAvailable"]);
        sandbox.delete(&Key::of::<Node>("", "b"), state::Deletion::default()).settle();
        assert!(report(&sandbox).contains("d 10.42.3.0/25"));
    }

    #[test]
    fn a_node_that_was_alone_gives_half_of_it_back() {
        let mut sandbox = sandbox("10.42.0.0/16", None);
        add(&mut sandbox, "own", "podCIDR: 10.42.0.0/16, podCIDRs: [10.42.0.0/16]");
        add(&mut sandbox, "a", "");
        sandbox.settle();
        assert_eq!(report(&sandbox), "a 10.42.128.0/24, own 10.42.0.0/17");
    }

    #[test]
    fn five_hundred_nodes_have_five_hundred_parts() {
        let mut sandbox = sandbox("10.0.0.0/12", None);
        (0..500).for_each(|number| add(&mut sandbox, &format!("n{number}"), ""));
        sandbox.settle();
        let ipam = NodeIpam::new((Ipv4Addr::new(10, 0, 0, 0), 12), None);
        let mut nets: Vec<Net> = sandbox.world.all::<Node>(None).flat_map(|node| ipam.nets(node)).collect();
        nets.sort_unstable();
        assert_eq!(nets.len(), 500);
        assert!(nets.windows(2).all(|pair| !pair[0].overlaps(pair[1])));
    }
}
