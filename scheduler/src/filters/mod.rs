//! Whether a pod may go to a node at all: one file per reason why not.

mod affinity;
mod fit;
mod name;
mod neighbours;
mod ports;
mod runtime;
mod spread;
mod taints;
mod unschedulable;
mod volumes;

pub(crate) use affinity::term_matches;
pub(crate) use fit::fits;
pub(crate) use neighbours::Neighbours;
pub(crate) use spread::Domains;
pub(crate) use taints::tolerates;
pub(crate) use volumes::Claims;

use crate::capacity::Room;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::Node;

/// Why a node was refused: Kubernetes' words, after the number of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reason {
    pub(crate) text: String,
    /// Whether fewer pods on the node would not help either.
    pub(crate) for_good: bool,
}

impl Reason {
    fn for_good(text: &str) -> Vec<Self> {
        vec![Self { text: text.into(), for_good: true }]
    }

    fn for_now(text: &str) -> Vec<Self> {
        vec![Self { text: text.into(), for_good: false }]
    }
}

/// A pod, and what was found out about the cluster for it before any node is looked at.
pub(crate) struct Question<'a> {
    pub(crate) wanted: Wanted<'a>,
    neighbours: Neighbours,
    domains: Domains,
    pub(crate) claims: Claims<'a>,
}

impl<'a> Question<'a> {
    pub(crate) fn new(wanted: Wanted<'a>, capacity: &crate::capacity::Capacity) -> Self {
        let neighbours = Neighbours::of(&wanted, capacity);
        let domains = Domains::of(&wanted, capacity);
        let claims = Claims::of(&wanted);
        Self { wanted, neighbours, domains, claims }
    }
}

/// Why a pod may not go to a node; nothing when it may. The first filter that refuses ends it.
pub(crate) fn refusal(question: &Question<'_>, room: &Room) -> Vec<Reason> {
    let Some(node) = room.object.view::<Node>() else { return Reason::for_good("node(s) could not be read") };
    let wanted = &question.wanted;
    let filters: [&dyn Fn() -> Vec<Reason>; 10] = [
        &|| unschedulable::filter(wanted, node),
        &|| name::filter(wanted, node),
        &|| taints::filter(wanted, node),
        &|| affinity::filter(wanted, node),
        &|| runtime::filter(wanted, node),
        &|| ports::filter(wanted, room),
        &|| fit::filter(wanted, room),
        &|| volumes::filter(&question.claims, wanted, node),
        &|| spread::filter(&question.domains, wanted, node),
        &|| neighbours::filter(&question.neighbours, node),
    ];
    filters.iter().map(|filter| filter()).find(|reasons| !reasons.is_empty()).unwrap_or_default()
}
