//! NodeUnschedulable: a cordoned node takes only pods that tolerate that.

use super::{Reason, tolerates};
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::{Node, Taint};

/// The taint that being cordoned is.
const TAINT: &str = "node.kubernetes.io/unschedulable";

pub(super) fn filter(wanted: &Wanted<'_>, node: &Node) -> Vec<Reason> {
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true) {
        return Vec::new();
    }
    let taint = Taint { key: TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() };
    if wanted.tolerations().any(|toleration| tolerates(toleration, &taint)) {
        return Vec::new();
    }
    Reason::for_good("node(s) were unschedulable")
}
