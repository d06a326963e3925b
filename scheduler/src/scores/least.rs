//! NodeResourcesFit, LeastAllocated: the node with the most left.

use super::MAX;
use crate::capacity::Room;
use crate::wanted::Wanted;

pub(super) fn score(wanted: &Wanted<'_>, room: &Room) -> i64 {
    let (promised, all) = (&room.promised.usual, &room.allocatable);
    let left = |all: i64, taken: i64| if all <= 0 || taken > all { 0 } else { (all - taken) * MAX / all };
    (left(all.cpu, promised.0 + wanted.usual.0) + left(all.memory, promised.1 + wanted.usual.1)) / 2
}
