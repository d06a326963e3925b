//! One placement: filter nodes until enough will do, score those, take the best.

use crate::Refused;
use crate::capacity::{Capacity, Room};
use crate::filters::{self, Question, Reason};
use crate::scores;
use crate::wanted::Wanted;
use std::collections::BTreeMap;

/// So many possible nodes are enough, at least; Kubernetes' number.
const FEASIBLE_NODES_MIN: usize = 100;

/// The best node for a pod. `seed` says where to start looking and decides among equals.
pub(crate) fn choose(wanted: Wanted<'_>, capacity: &Capacity, seed: u64) -> Result<String, Refused> {
    let rooms = capacity.rooms();
    if rooms.is_empty() {
        return Err(Refused { message: "no nodes available to schedule pods".into() });
    }
    let question = Question::new(wanted, capacity);
    if let Some(reason) = &question.claims.refusal {
        return Err(Refused { message: message_for_all(rooms.len(), reason) });
    }
    let enough = feasible_nodes(rooms.len());
    let start = usize::try_from(seed % rooms.len() as u64).unwrap_or(0);
    let (mut feasible, mut refused): (Vec<&Room>, Vec<Vec<Reason>>) = (Vec::new(), Vec::new());
    for room in rooms[start..].iter().chain(&rooms[..start]) {
        let reasons = filters::refusal(&question, room);
        if reasons.is_empty() {
            feasible.push(room);
            if feasible.len() == enough {
                break;
            }
        } else {
            refused.push(reasons);
        }
    }
    match feasible[..] {
        [] => Err(Refused { message: message(&refused) }),
        [only] => Ok(only.object.meta().name.clone()),
        _ => {
            let scores = scores::scores(&question.wanted, &feasible);
            let best = feasible.iter().zip(scores).max_by_key(|(room, score)| (*score, mix(seed, room)));
            Ok(best.map(|(room, _)| room.object.meta().name.clone()).unwrap_or_default())
        }
    }
}

/// How many possible nodes are enough: all of a small cluster, a falling share of a large one.
fn feasible_nodes(nodes: usize) -> usize {
    if nodes <= FEASIBLE_NODES_MIN {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(FEASIBLE_NODES_MIN)
}

fn mix(seed: u64, room: &Room) -> u64 {
    let name = room.object.meta().name.bytes();
    state::record::fnv1a_64(seed.to_le_bytes().into_iter().chain(name))
}

/// Kubernetes' words for a refusal that needs no look at a node.
fn message_for_all(nodes: usize, reason: &Reason) -> String {
    let preemption = match reason.for_good {
        true => "Preemption is not helpful for scheduling.",
        false => "No preemption victims found for incoming pod.",
    };
    format!(
        "0/{nodes} nodes are available: {}. no new claims to deallocate, \
         preemption: 0/{nodes} nodes are available: {nodes} {preemption}",
        reason.text
    )
}

/// Kubernetes' words for a refusal: every reason with the number of nodes that gave it. There is no preemption here, and
/// the second half says so as Kubernetes does when preemption found nothing.
fn message(refused: &[Vec<Reason>]) -> String {
    let nodes = refused.len();
    let reasons = histogram(refused.iter().flatten().map(|reason| reason.text.as_str()));
    let preemption = histogram(refused.iter().map(|reasons| match reasons.iter().any(|reason| reason.for_good) {
        true => "Preemption is not helpful for scheduling.",
        false => "No preemption victims found for incoming pod.",
    }));
    let preemption = preemption.replace(".,", ",");
    format!(
        "0/{nodes} nodes are available: {reasons}. no new claims to deallocate, \
         preemption: 0/{nodes} nodes are available: {preemption}"
    )
}

/// `1 a, 2 b`, sorted as text, as Kubernetes sorts it.
fn histogram<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    texts.for_each(|text| *counts.entry(text).or_insert(0) += 1);
    let mut parts: Vec<String> = counts.into_iter().map(|(text, count)| format!("{count} {text}")).collect();
    parts.sort();
    parts.join(", ")
}
