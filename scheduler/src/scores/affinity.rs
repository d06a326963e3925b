//! NodeAffinity, the preferred part: the sum of the weights of the terms that a node matches.

use super::normal;
use crate::capacity::Room;
use crate::filters::term_matches;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::Node;

pub(super) fn scores(wanted: &Wanted<'_>, rooms: &[&Room]) -> Option<Vec<i64>> {
    let affinity = wanted.spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
    let weigh = |room: &&Room| {
        let Some(node) = room.object.view::<Node>() else { return 0 };
        let matching = preferred.iter().filter(|term| term_matches(&term.preference, node));
        matching.map(|term| i64::from(term.weight)).sum()
    };
    Some(normal(rooms.iter().map(weigh).collect(), false))
}
