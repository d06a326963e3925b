//! TaintToleration: a node's taints keep away the pods that do not tolerate them.

use super::Reason;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

pub(super) fn filter(wanted: &Wanted<'_>, node: &Node) -> Vec<Reason> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let mut hard =
        taints.into_iter().flatten().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    if hard.all(|taint| wanted.tolerations().any(|toleration| tolerates(toleration, taint))) {
        return Vec::new();
    }
    Reason::for_good("node(s) had untolerated taint(s)")
}

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or("");
    let key = toleration.key.as_deref().unwrap_or("");
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let (own, other) = (toleration.value.as_deref().unwrap_or(""), taint.value.as_deref().unwrap_or(""));
    let numbers = || Some((other.parse::<i64>().ok()?, own.parse::<i64>().ok()?));
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => own == other,
        "Lt" => numbers().is_some_and(|(taint, own)| taint < own),
        "Gt" => numbers().is_some_and(|(taint, own)| taint > own),
        _ => false,
    }
}
