//! Which of the possible nodes is best: one file per wish, each scoring 0 to 100, added by Kubernetes' weights.

mod affinity;
mod balance;
mod least;
mod spread;
mod taints;

use crate::capacity::Room;
use crate::wanted::Wanted;

/// The most a wish gives.
const MAX: i64 = 100;

/// The scores of nodes, in their order.
pub(crate) fn scores(wanted: &Wanted<'_>, rooms: &[&Room]) -> Vec<i64> {
    let mut totals: Vec<i64> =
        rooms.iter().map(|room| least::score(wanted, room) + balance::score(wanted, room)).collect();
    let mut add = |weight: i64, scores: Option<Vec<i64>>| {
        for (total, score) in totals.iter_mut().zip(scores.into_iter().flatten()) {
            *total += weight * score;
        }
    };
    add(2, affinity::scores(wanted, rooms));
    add(3, taints::scores(wanted, rooms));
    add(2, spread::scores(wanted, rooms));
    totals
}

/// Stretches raw numbers to 0..100; with `reverse`, less is better.
fn normal(raw: Vec<i64>, reverse: bool) -> Vec<i64> {
    let max = raw.iter().copied().max().unwrap_or(0);
    let stretch = |value: i64| match (max, reverse) {
        (0, true) => MAX,
        (0, false) => 0,
        (max, true) => MAX - value * MAX / max,
        (max, false) => value * MAX / max,
    };
    raw.into_iter().map(stretch).collect()
}
