//! NodeName: a pod that names its node goes there or nowhere.

use super::Reason;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::Node;

pub(super) fn filter(wanted: &Wanted<'_>, node: &Node) -> Vec<Reason> {
    match wanted.spec.node_name.as_deref() {
        None | Some("") => Vec::new(),
        name if name == node.metadata.name.as_deref() => Vec::new(),
        Some(_) => Reason::for_good("node(s) didn't match the requested node name"),
    }
}
