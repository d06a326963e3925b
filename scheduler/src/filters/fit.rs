//! NodeResourcesFit: what the pod asks for must be left on the node.

use super::Reason;
use crate::amounts::Amounts;
use crate::capacity::Room;
use crate::wanted::Wanted;

pub(super) fn filter(wanted: &Wanted<'_>, room: &Room) -> Vec<Reason> {
    let promised = &room.promised;
    let mut reasons = Vec::new();
    if promised.pods + 1 > room.pods_max {
        reasons.push(Reason { text: "Too many pods".into(), for_good: room.pods_max == 0 });
    }
    let mut compare = |name: &str, asked: i64, all: i64, taken: i64| {
        if asked > 0 && asked > all.saturating_sub(taken) {
            reasons.push(Reason { text: format!("Insufficient {name}"), for_good: asked > all });
        }
    };
    let (asked, all, taken) = (&wanted.request, &room.allocatable, &promised.requested);
    compare("cpu", asked.cpu, all.cpu, taken.cpu);
    compare("memory", asked.memory, all.memory, taken.memory);
    compare("ephemeral-storage", asked.storage, all.storage, taken.storage);
    for (name, asked) in &asked.extended {
        let of = |amounts: &Amounts| amounts.extended.get(name).copied().unwrap_or(0);
        compare(name, *asked, of(all), of(taken));
    }
    reasons
}

/// Whether a request would fit a node as it is.
pub(crate) fn fits(request: &Amounts, room: &Room) -> bool {
    let (all, taken) = (&room.allocatable, &room.promised.requested);
    let left = |all: i64, taken: i64| all.saturating_sub(taken);
    room.promised.pods < room.pods_max
        && (request.cpu == 0 || request.cpu <= left(all.cpu, taken.cpu))
        && (request.memory == 0 || request.memory <= left(all.memory, taken.memory))
        && (request.storage == 0 || request.storage <= left(all.storage, taken.storage))
}
