//! What a deleted node leaves behind: its Lease goes, and the Secret that reserves its name for its key says that another machine
//! may take the name. Its pods are [`crate::podgc`]'s.

use super::LEASES;
use crate::csr::identity;
use crate::{Controller, Cx, Outcome};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Secret};
use state::{Change, Event, Key, World, Write};

/// The controller.
pub struct NodeLeftovers;

impl Controller for NodeLeftovers {
    fn name(&self) -> &'static str {
        "node-leftovers-controller"
    }

    fn wakes(&self, event: &Event, _world: &World) -> Vec<Key> {
        if event.key().is::<Secret>() && identity::is_released(&event.object) {
            return vec![event.key().clone()];
        }
        // only a deletion tells that a node is gone: the Secret of one that joins is there before its Node
        let gone = event.key().is::<Node>() && event.change == Change::Deleted;
        if gone { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        if key.is::<Secret>() {
            return forget(cx, key);
        }
        if cx.world.get(key).is_some() {
            return Outcome::default();
        }
        let lease = cx.world.get(&Key::of::<Lease>(LEASES, &key.name)).map(|lease| Write::delete(lease));
        let identity = cx.world.get(&identity::key(&key.name));
        let identity = identity.filter(|secret| identity::is_one(secret) && !identity::is_released(secret));
        let released = identity.map(|secret| identity::release(secret, cx.now));
        Outcome { writes: lease.into_iter().chain(released).collect(), again_at: None }
    }
}

/// A name that nobody can show a certificate for needs no Secret.
fn forget(cx: &Cx<'_>, key: &Key) -> Outcome {
    let secret = cx.world.get(key).filter(|secret| identity::is_one(secret));
    let Some((secret, at)) = secret.and_then(|secret| Some((secret, identity::forgotten_at(secret)?))) else {
        return Outcome::default();
    };
    match at <= cx.now {
        true => Outcome { writes: vec![Write::delete(secret)], again_at: None },
        false => Outcome { writes: Vec::new(), again_at: Some(at) },
    }
}
