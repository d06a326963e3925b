//! How fast nodes in trouble are emptied: one after the other in each zone, slower or not at all when much of a zone is in
//! trouble, and nobody when everybody is, since then it is the master's own link that is down.
//!
//! Kubernetes' `--node-eviction-rate`, `--secondary-node-eviction-rate`, `--unhealthy-zone-threshold` and
//! `--large-cluster-size-threshold`. What a node's turn means is a `NoExecute` taint; when the last turn was is read off the
//! taints, so nothing is remembered here. One key for all nodes, so that two never have the same turn.
//!
//! One thing is decided otherwise than in Kubernetes: a node that shares the master's machine (the control plane's role) is no
//! witness of the master's link, so where there are two nodes or more beside it, they alone are counted.

use super::{ready, taints};
use crate::{Controller, Cx, Outcome};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use state::{Change, Event, Key, Object, World, Write, rfc3339};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels of a node: where it is.
const PLACE: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];
/// Label of a node that does not count here.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";
/// Label of a node that shares the master's machine.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// So many nodes of a zone may be in trouble without the zone being so.
const NODES_IN_TROUBLE: usize = 2;

/// How fast nodes in trouble may be emptied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Nodes per second in a healthy zone.
    pub node_eviction_rate: f64,
    /// Nodes per second in an unhealthy zone of a large cluster; in a small one there it is 0.
    pub secondary_node_eviction_rate: f64,
    /// The share of nodes in trouble, 0 to 1, that makes a zone unhealthy.
    pub unhealthy_zone_threshold: f64,
    /// A zone of more nodes than this is large.
    pub large_cluster_size_threshold: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_cluster_size_threshold: 50,
        }
    }
}

/// The controller.
pub struct NodeEviction {
    /// How fast.
    pub pace: Pace,
}

impl Controller for NodeEviction {
    fn name(&self) -> &'static str {
        "node-eviction-controller"
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        let news = match (event.change, &event.previous) {
            (Change::Modified, Some(previous)) => concern(previous) != concern(&event.object),
            _ => true,
        };
        if event.key().is::<Node>() && news { vec![Key::of::<Node>("", "")] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, _key: &Key) -> Outcome {
        let nodes: Vec<&Arc<Object>> = cx.world.all::<Node>(None).filter(|node| !node.is_deleting()).collect();
        let counted = counted(&nodes);
        if !counted.is_empty() && counted.iter().all(|node| ready(node) != Some("True")) {
            return Outcome { writes: nodes.iter().filter_map(|node| relieve(node)).collect(), again_at: None };
        }
        let mut zones: BTreeMap<[&str; 2], Vec<&Arc<Object>>> = BTreeMap::new();
        for node in &nodes {
            zones.entry(place(node)).or_default().push(node);
        }
        let mut outcome = Outcome::default();
        for (zone, nodes) in zones {
            let counted: Vec<_> = counted.iter().filter(|node| place(node) == zone).copied().collect();
            let Some(pause) = self.pause(&counted) else { continue };
            let (write, again_at) = turn(&nodes, pause, cx.now);
            outcome.writes.extend(write);
            outcome.again_at = [outcome.again_at, again_at].into_iter().flatten().min();
        }
        outcome
    }
}

impl NodeEviction {
    /// The time between two turns in a zone of these nodes; `None` when nobody has one.
    fn pause(&self, counted: &[&Arc<Object>]) -> Option<SignedDuration> {
        let trouble = counted.iter().filter(|node| ready(node) != Some("True")).count();
        let share = trouble as f64 / counted.len().max(1) as f64;
        // a zone that is down as a whole while others are up is emptied as a healthy one is
        let unhealthy =
            trouble > NODES_IN_TROUBLE && trouble < counted.len() && share >= self.pace.unhealthy_zone_threshold;
        let rate = match unhealthy {
            false => self.pace.node_eviction_rate,
            true if counted.len() > self.pace.large_cluster_size_threshold => self.pace.secondary_node_eviction_rate,
            true => 0.0,
        };
        let milliseconds = (1000.0 / rate).ceil();
        (rate > 0.0 && milliseconds < 1e15).then(|| SignedDuration::from_millis(milliseconds as i64))
    }
}

/// Gives the node that has waited longest its turn, if it is time; otherwise, or when more wait, says when it is.
fn turn(nodes: &[&Arc<Object>], pause: SignedDuration, now: Timestamp) -> (Option<Write>, Option<Timestamp>) {
    let mut waiting: Vec<(Option<Timestamp>, &Arc<Object>, &str)> = nodes
        .iter()
        .filter_map(|node| {
            let key = taints::driving(ready(node))?;
            driven_since(node).is_none().then(|| (trouble_since(node), *node, key))
        })
        .collect();
    waiting.sort_by(|a, b| (a.0, &a.1.meta().name).cmp(&(b.0, &b.1.meta().name)));
    let Some((_, node, key)) = waiting.first() else { return (None, None) };
    // a taint from the future is a clock that was set back
    let last = nodes.iter().filter_map(|node| driven_since(node)).filter(|at| *at <= now).max();
    let next = last.and_then(|at| at.checked_add(pause).ok()).filter(|at| *at > now);
    if next.is_some() {
        return (None, next);
    }
    let mut value = node.value();
    let mut taints = taints::list(&value);
    taints.push(json!({"key": key, "effect": "NoExecute", "timeAdded": rfc3339(now)}));
    taints::set(&mut value, taints);
    let again_at = if waiting.len() > 1 { now.checked_add(pause).ok() } else { None };
    (Some(Write::update(node, value)), again_at)
}

/// Takes the taints that drive pods out off a node: its pods stay, and their time begins anew if it comes to that.
fn relieve(node: &Arc<Object>) -> Option<Write> {
    let mut value = node.value();
    let mut taints = taints::list(&value);
    taints.retain(|taint| !taints::is_driving(taint));
    taints::set(&mut value, taints);
    (value != node.value()).then(|| Write::update(node, value))
}

/// The nodes whose state says something about zones and about the master's link.
fn counted<'a>(nodes: &[&'a Arc<Object>]) -> Vec<&'a Arc<Object>> {
    let all: Vec<_> = nodes.iter().copied().filter(|node| !node.meta().labels.contains_key(EXCLUDED)).collect();
    let others: Vec<_> = all.iter().copied().filter(|node| !node.meta().labels.contains_key(CONTROL_PLANE)).collect();
    if others.len() >= 2 { others } else { all }
}

/// Region and zone of a node.
fn place(node: &Object) -> [&str; 2] {
    PLACE.map(|label| node.meta().labels.get(label).map_or("", String::as_str))
}

/// Everything of a node that is looked at here.
fn concern(node: &Object) -> impl PartialEq + use<> {
    let labels = &node.meta().labels;
    let marks = (labels.contains_key(EXCLUDED), labels.contains_key(CONTROL_PLANE), node.is_deleting());
    (ready(node).map(str::to_owned), place(node).map(str::to_owned), marks, driven_since(node))
}

/// Since when a node's pods are driven out by a taint of ours.
fn driven_since(node: &Object) -> Option<Timestamp> {
    let taints = node.view::<Node>()?.spec.as_ref()?.taints.as_ref()?;
    let ours = taints.iter().filter(|taint| {
        taint.effect == "NoExecute" && matches!(taint.key.as_str(), taints::NOT_READY | taints::UNREACHABLE)
    });
    // one that somebody else put there has no time, and is no turn of ours
    ours.map(|taint| taint.time_added.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)).max()
}

/// Since when a node is in trouble.
fn trouble_since(node: &Object) -> Option<Timestamp> {
    let conditions = node.view::<Node>()?.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}
