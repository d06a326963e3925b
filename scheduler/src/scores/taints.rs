//! TaintToleration, `PreferNoSchedule`: the node with the fewest taints that the pod does not tolerate.

use super::normal;
use crate::capacity::Room;
use crate::filters::tolerates;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::Node;

pub(super) fn scores(wanted: &Wanted<'_>, rooms: &[&Room]) -> Option<Vec<i64>> {
    let disliked = |room: &&Room| -> i64 {
        let taints = room.object.view::<Node>().and_then(|node| node.spec.as_ref()?.taints.as_ref());
        let soft = taints.into_iter().flatten().filter(|taint| taint.effect == "PreferNoSchedule");
        soft.map(|taint| i64::from(!wanted.tolerations().any(|toleration| tolerates(toleration, taint)))).sum()
    };
    let raw: Vec<i64> = rooms.iter().map(disliked).collect();
    // the same everywhere decides nothing
    raw.iter().any(|count| *count != 0).then(|| normal(raw, true))
}
