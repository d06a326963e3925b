//! VolumeBinding and VolumeRestrictions: a pod goes where its claims' volumes are or can be made.
//!
//! A claim whose class waits for its first consumer is decided here, with the node: the placement reserves a volume for it or
//! tells the provisioner which node was chosen, in the same commit that binds the pod.

use super::Reason;
use crate::wanted::Wanted;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Map, Value, json};
use state::storage::{self, ClaimUse, annotation};
use state::{Key, Object, World, Write};
use std::sync::Arc;

const CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
const NONE_TO_BIND: &str = "node(s) didn't find available persistent volumes to bind";
const GONE: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const IN_USE: &str =
    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

/// What a pod's claims ask of its node.
#[derive(Default)]
pub(crate) struct Claims<'a> {
    /// Why no node will do.
    pub(crate) refusal: Option<Reason>,
    /// Volumes that are there already.
    bound: Vec<&'a PersistentVolume>,
    /// A claim says it has a volume that does not exist.
    lost: bool,
    /// Claims that wait for a node.
    waiting: Vec<Waiting<'a>>,
}

struct Waiting<'a> {
    object: &'a Arc<Object>,
    claim: &'a PersistentVolumeClaim,
    class: &'a StorageClass,
}

impl<'a> Claims<'a> {
    pub(crate) fn of(wanted: &Wanted<'a>) -> Self {
        let mut claims = Self::default();
        for used in storage::claims(&wanted.object.meta().name, wanted.spec) {
            if let Err(reason) = claims.add(wanted, &used) {
                claims.refusal = Some(reason);
                break;
            }
        }
        claims
    }

    fn add(&mut self, wanted: &Wanted<'a>, used: &ClaimUse) -> Result<(), Reason> {
        let name = &used.claim;
        let refuse = |text: String| Err(Reason { text, for_good: true });
        let key = Key::of::<PersistentVolumeClaim>(&wanted.object.key().namespace, name);
        let found = wanted.world.get(&key).and_then(|object| Some((object, object.view::<PersistentVolumeClaim>()?)));
        let Some((object, claim)) = found else {
            return refuse(match used.is_ephemeral {
                true => format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"),
                false => format!("persistentvolumeclaim {name:?} not found"),
            });
        };
        if used.is_ephemeral && object.controller().is_none_or(|owner| owner.uid != wanted.object.meta().uid) {
            let (namespace, pod) = (&key.namespace, &wanted.object.key().name);
            return refuse(format!(
                "PVC \"{namespace}/{name}\" was not created for pod \"{namespace}/{pod}\" (pod is not owner)"
            ));
        }
        if object.is_deleting() {
            return refuse(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let volume = storage::volume_name(claim);
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        if let (Some("Lost"), Some(volume)) = (phase, volume) {
            return refuse(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"));
        }
        let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
        if modes.iter().any(|mode| mode == storage::SINGLE_POD) && is_used(wanted, &key) {
            return Err(Reason { text: IN_USE.into(), for_good: false });
        }
        if storage::is_bound(claim) {
            match volume.and_then(|volume| wanted.world.view::<PersistentVolume>("", volume)) {
                Some(volume) => self.bound.push(volume),
                None => self.lost = true,
            }
            return Ok(());
        }
        let class = storage::class_of_claim(claim).or_else(|| storage::default_class(wanted.world));
        let class = class.and_then(|class| wanted.world.view::<StorageClass>("", class));
        match class.filter(|class| storage::waits_for_consumer(class) && volume.is_none()) {
            Some(class) => self.waiting.push(Waiting { object, claim, class }),
            None => return refuse("pod has unbound immediate PersistentVolumeClaims".into()),
        }
        Ok(())
    }

    /// How each waiting claim would be served on a node. `None` when one would not.
    fn serve(&self, world: &'a World, node: &Node) -> Option<Vec<(&Waiting<'a>, Option<&'a PersistentVolume>)>> {
        let mut taken: Vec<&str> = Vec::new();
        let mut served = Vec::new();
        for waiting in &self.waiting {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let annotations = waiting.claim.metadata.annotations.as_ref();
            if annotation(annotations, storage::SELECTED_NODE).is_some_and(|chosen| chosen != name) {
                return None;
            }
            let free = |volume: &PersistentVolume| {
                storage::reaches(volume, node)
                    && volume.metadata.name.as_deref().is_none_or(|name| !taken.contains(&name))
            };
            let volume = storage::best(world, waiting.claim, free);
            if volume.is_none() && !can_make(waiting.class, node) {
                return None;
            }
            taken.extend(volume.and_then(|volume| volume.metadata.name.as_deref()));
            served.push((waiting, volume));
        }
        Some(served)
    }

    /// What a placement on a node writes beside the binding.
    pub(crate) fn writes(&self, world: &'a World, node: &Node) -> Vec<Write> {
        let served = self.serve(world, node).unwrap_or_default();
        let write = |(waiting, volume): (&Waiting<'a>, Option<&'a PersistentVolume>)| match volume {
            Some(volume) => reserve(world, volume, waiting.object),
            None => select(waiting.object, node.metadata.name.as_deref().unwrap_or_default()),
        };
        served.into_iter().filter_map(write).collect()
    }
}

/// Whether somebody makes a volume of a class on a node.
fn can_make(class: &StorageClass, node: &Node) -> bool {
    match class.provisioner.as_str() {
        "kubernetes.io/no-provisioner" => false,
        storage::LOCAL_PATH => annotation(node.metadata.annotations.as_ref(), storage::STORAGE_PATH).is_some(),
        _ => true,
    }
}

/// Whether another pod that has a node uses a claim.
fn is_used(wanted: &Wanted<'_>, claim: &Key) -> bool {
    let uses = |pod: &Pod| {
        let has_node =
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        has_node && !matches!(phase, Some("Succeeded" | "Failed")) && storage::claim_keys(pod).contains(claim)
    };
    let mut pods = wanted.world.all::<Pod>(Some(&claim.namespace));
    pods.any(|pod| pod.meta().uid != wanted.object.meta().uid && pod.view::<Pod>().is_some_and(uses))
}

/// Reserves a volume for a claim; the binder does the rest.
fn reserve(world: &World, volume: &PersistentVolume, claim: &Object) -> Option<Write> {
    let old = world.get(&Key::of::<PersistentVolume>("", volume.metadata.name.as_deref()?))?;
    let mut value = old.value();
    if !value["spec"]["claimRef"].is_null() {
        return None;
    }
    let meta = claim.meta();
    value["spec"]["claimRef"] = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": meta.namespace, "name": meta.name, "uid": meta.uid,
    });
    annotate(&mut value, "pv.kubernetes.io/bound-by-controller", "yes");
    Some(Write::update(old, value))
}

/// Tells the provisioner which node was chosen.
fn select(claim: &Object, node: &str) -> Option<Write> {
    let mut value = claim.value();
    annotate(&mut value, storage::SELECTED_NODE, node).then(|| Write::update(claim, value))
}

fn annotate(value: &mut Value, name: &str, text: &str) -> bool {
    let Some(metadata) = value["metadata"].as_object_mut() else { return false };
    let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    let Some(annotations) = annotations.as_object_mut() else { return false };
    annotations.insert(name.into(), text.into()).as_ref().and_then(Value::as_str) != Some(text)
}

pub(super) fn filter(claims: &Claims<'_>, wanted: &Wanted<'_>, node: &Node) -> Vec<Reason> {
    if claims.lost {
        return Reason::for_good(GONE);
    }
    if claims.bound.iter().any(|volume| !storage::reaches(volume, node)) {
        return Reason::for_good(CONFLICT);
    }
    if claims.serve(wanted.world, node).is_none() { Reason::for_good(NONE_TO_BIND) } else { Vec::new() }
}
