//! NodePorts: a host port is one pod's alone.

use super::Reason;
use crate::capacity::Room;
use crate::wanted::Wanted;

pub(super) fn filter(wanted: &Wanted<'_>, room: &Room) -> Vec<Reason> {
    let taken = |port| room.promised.ports.iter().any(|other| other.clashes(port));
    if wanted.ports.iter().any(taken) {
        return Reason::for_now("node(s) didn't have free ports for the requested pod ports");
    }
    Vec::new()
}
