//! NodeAffinity: the node selector of a pod and the required part of its node affinity.

use super::Reason;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm};

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

/// Whether a node is what a term describes. A term that describes nothing matches nothing.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let field = |key: &str| if key == "metadata.name" { node.metadata.name.as_deref() } else { None };
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|term| holds(term, label(&term.key)))
        && fields.iter().all(|term| holds(term, field(&term.key)))
}

fn holds(term: &NodeSelectorRequirement, own: Option<&str>) -> bool {
    let values = term.values.as_deref().unwrap_or_default();
    let among = |own: &str| values.iter().any(|value| value == own);
    let numbers = || Some((own?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match term.operator.as_str() {
        "In" => own.is_some_and(among),
        "NotIn" => !own.is_some_and(among),
        "Exists" => own.is_some(),
        "DoesNotExist" => own.is_none(),
        "Gt" => numbers().is_some_and(|(own, value)| own > value),
        "Lt" => numbers().is_some_and(|(own, value)| own < value),
        _ => false,
    }
}
