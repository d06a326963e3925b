//! A pod of a RuntimeClass goes to a node that offers the class's handler, where nodes say what they offer
//! (`status.runtimeHandlers`). Ours alone; in Kubernetes the pod would fail on the node.

use super::Reason;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::Node;

pub(super) fn filter(wanted: &Wanted<'_>, node: &Node) -> Vec<Reason> {
    let Some(handler) = wanted.handler else { return Vec::new() };
    let offered = node.status.as_ref().and_then(|status| status.runtime_handlers.as_deref()).unwrap_or_default();
    if offered.is_empty() || offered.iter().any(|offer| offer.name.as_deref() == Some(handler)) {
        return Vec::new();
    }
    Reason::for_good(&format!("node(s) didn't offer the runtime handler {handler}"))
}
