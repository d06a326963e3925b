//! NodeAffinity: the node selector of a pod and the required part of its node affinity.

use super::Reason;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::Node;
pub(crate) use state::storage::term_matches;

pub(super) fn filter(wanted: &Wanted<'_>, node: &Node) -> Vec<Reason> {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let selector = wanted.spec.node_selector.iter().flatten();
    let selected = selector.into_iter().all(|(key, value)| label(key) == Some(value));
    let affinity = wanted.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let liked =
        required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)));
    if selected && liked { Vec::new() } else { Reason::for_good("node(s) didn't match Pod's node affinity/selector") }
}
