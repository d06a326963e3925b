//! PodTopologySpread, `DoNotSchedule`: no place may get ahead of the emptiest by more than `maxSkew`.
//!
//! Looks at other pods, but only for a pod that has such constraints.

use super::{Reason, affinity, taints};
use crate::capacity::{Capacity, Room};
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::{Node, Pod, TopologySpreadConstraint};
use state::selects;
use std::collections::BTreeMap;

/// For each constraint: how many pods each place has.
#[derive(Default)]
pub(crate) struct Domains {
    counts: Vec<Count>,
}

struct Count {
    key: String,
    max_skew: i64,
    places: BTreeMap<String, i64>,
    fewest: i64,
    /// Whether the pod itself counts.
    own: i64,
}

impl Domains {
    pub(crate) fn of(wanted: &Wanted<'_>, capacity: &Capacity) -> Self {
        let constraints = wanted.spec.topology_spread_constraints.iter().flatten();
        let hard = constraints.filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule");
        Self { counts: hard.map(|constraint| count(constraint, wanted, capacity)).collect() }
    }
}

fn count(constraint: &TopologySpreadConstraint, wanted: &Wanted<'_>, capacity: &Capacity) -> Count {
    let key = &constraint.topology_key;
    let chosen = |labels: &BTreeMap<String, String>| {
        let own = &wanted.object.meta().labels;
        let same = |key: &String| own.get(key).is_none_or(|value| labels.get(key) == Some(value));
        constraint.label_selector.as_ref().is_some_and(|selector| selects(selector, labels))
            && constraint.match_label_keys.iter().flatten().all(same)
    };
    let mut places = BTreeMap::new();
    for room in capacity.rooms() {
        if let Some(place) = room.object.meta().labels.get(key).filter(|_| is_eligible(constraint, wanted, room)) {
            places.entry(place.clone()).or_insert(0);
        }
    }
    for pod in wanted.world.all::<Pod>(Some(&wanted.object.key().namespace)) {
        let node = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
        let room = node.and_then(|node| capacity.room(node));
        let place = room.and_then(|room| room.object.meta().labels.get(key));
        if let Some(count) = place.and_then(|place| places.get_mut(place))
            && !pod.is_deleting()
            && chosen(&pod.meta().labels)
        {
            *count += 1;
        }
    }
    let enough = constraint.min_domains.is_none_or(|min| places.len() >= usize::try_from(min).unwrap_or(0));
    let fewest = if enough { places.values().copied().min().unwrap_or(0) } else { 0 };
    let own = i64::from(chosen(&wanted.object.meta().labels));
    Count { key: key.clone(), max_skew: constraint.max_skew.into(), places, fewest, own }
}

/// Whether a node counts as a place: by default one that the pod's node affinity allows, whatever its taints.
fn is_eligible(constraint: &TopologySpreadConstraint, wanted: &Wanted<'_>, room: &Room) -> bool {
    let Some(node) = room.object.view::<Node>() else { return false };
    let by_affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore");
    let by_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    (by_affinity || affinity::filter(wanted, node).is_empty())
        && (!by_taints || taints::filter(wanted, node).is_empty())
}

pub(super) fn filter(domains: &Domains, _wanted: &Wanted<'_>, node: &Node) -> Vec<Reason> {
    for count in &domains.counts {
        let place = node.metadata.labels.as_ref().and_then(|labels| labels.get(&count.key));
        let Some(place) = place else {
            return Reason::for_good("node(s) didn't match pod topology spread constraints (missing required label)");
        };
        let here = count.places.get(place).copied().unwrap_or(0);
        if here + count.own - count.fewest > count.max_skew {
            return Reason::for_now("node(s) didn't match pod topology spread constraints");
        }
    }
    Vec::new()
}
