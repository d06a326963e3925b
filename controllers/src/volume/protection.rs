//! Storage in use is not deleted: a claim waits for the pods that use it, a volume for its claim.
//!
//! Both carry a finalizer from their first moment; it is taken away when they are to go and nobody needs them.

use super::{hold, release};
use crate::{Controller, Cx, Outcome};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use state::storage::{CLAIM_PROTECTION, VOLUME_PROTECTION, claim_keys};
use state::{Change, Event, Key, Object, World, Write};

/// The controller. Its keys are claims and volumes.
pub struct Protection;

impl Controller for Protection {
    fn name(&self) -> &'static str {
        "storage-protection-controller"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let key = event.key();
        if key.is::<Pod>() {
            let over = event.change == Change::Deleted || crate::pods::is_finished(&event.object);
            let claims = event.object.view::<Pod>().filter(|_| over).map(claim_keys).unwrap_or_default();
            return claims.into_iter().filter(|key| world.get(key).is_some_and(|claim| claim.is_deleting())).collect();
        }
        let stored = key.is::<PersistentVolumeClaim>() || key.is::<PersistentVolume>();
        if stored && event.change != Change::Deleted { vec![key.clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key) else { return Outcome::default() };
        let is_claim = key.is::<PersistentVolumeClaim>();
        let finalizer = if is_claim { CLAIM_PROTECTION } else { VOLUME_PROTECTION };
        let mut value = object.value();
        let changed = match object.is_deleting() {
            false => hold(&mut value, finalizer),
            true if is_claim && is_used(cx.world, key) => false,
            true if !is_claim && is_bound(object) => false,
            true => release(&mut value, finalizer),
        };
        Outcome { writes: changed.then(|| Write::update(object, value)).into_iter().collect(), again_at: None }
    }
}

/// Whether a pod that has a node and has not ended uses a claim.
fn is_used(world: &World, claim: &Key) -> bool {
    let uses = |pod: &Pod| {
        let has_node =
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
        has_node && claim_keys(pod).contains(claim)
    };
    let mut pods = world.all::<Pod>(Some(&claim.namespace));
    pods.any(|pod| !crate::pods::is_finished(pod) && pod.view::<Pod>().is_some_and(uses))
}

fn is_bound(volume: &Object) -> bool {
    let phase = volume.view::<PersistentVolume>().and_then(|volume| volume.status.as_ref()?.phase.as_deref());
    phase == Some("Bound")
}
