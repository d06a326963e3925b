//! What a deleted node leaves behind goes: its Lease, and the Secret that reserves its name for its key, so that another
//! machine may take the name. Its pods are [`crate::podgc`]'s.

use super::LEASES;
use crate::csr::identity;
use crate::{Controller, Cx, Outcome};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use state::{Change, Event, Key, World, Write};

/// The controller.
pub struct NodeLeftovers;

impl Controller for NodeLeftovers {
    fn name(&self) -> &'static str {
        "node-leftovers-controller"
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        // only a deletion tells that a node is gone: the Secret of one that joins is there before its Node
        let gone = event.key().is::<Node>() && event.change == Change::Deleted;
        if gone { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        if cx.world.get(key).is_some() {
            return Outcome::default();
        }
        let lease = cx.world.get(&Key::of::<Lease>(LEASES, &key.name));
        let identity = cx.world.get(&identity::key(&key.name)).filter(|secret| identity::is_one(secret));
        Outcome { writes: lease.into_iter().chain(identity).map(|left| Write::delete(left)).collect(), again_at: None }
    }
}
