//! NodeResourcesBalancedAllocation: the node whose cpu and memory would be used in the same proportion.

use super::MAX;
use crate::capacity::Room;
use crate::wanted::Wanted;

pub(super) fn score(wanted: &Wanted<'_>, room: &Room) -> i64 {
    let (promised, all) = (&room.promised.requested, &room.allocatable);
    // hundredths of what there is
    let part = |all: i64, taken: i64| if all <= 0 { MAX } else { (taken * MAX / all).min(MAX) };
    let cpu = part(all.cpu, promised.cpu + wanted.request.cpu);
    let memory = part(all.memory / MAX, (promised.memory + wanted.request.memory) / MAX);
    MAX - (cpu - memory).abs() / 2
}
