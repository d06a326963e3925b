//! The node with the fewest pods of the same controller: Kubernetes' default spreading by hostname.

use super::normal;
use crate::capacity::Room;
use crate::wanted::Wanted;

pub(super) fn scores(wanted: &Wanted<'_>, rooms: &[&Room]) -> Option<Vec<i64>> {
    let owner = wanted.owner?;
    let siblings = |room: &&Room| room.promised.owners.get(owner).map_or(0, |count| i64::from(*count));
    Some(normal(rooms.iter().map(siblings).collect(), true))
}
