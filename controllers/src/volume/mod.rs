//! Storage: claims are bound to volumes, volumes are made for claims, and neither vanishes under a pod.
//!
//! One file per controller. Deliberately absent: files and mounts (the node's), the choice of a node (the scheduler's).

mod binder;
mod ephemeral;
mod protection;
mod provisioner;
#[cfg(test)]
mod tests;

pub use binder::Binder;
pub use ephemeral::EphemeralClaims;
pub use protection::Protection;
pub use provisioner::LocalPath;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Value, json};
use state::record::{self, Note};
use state::{Key, Object, Stamp, World, Write};

/// Annotation of a claim: who is to make its volume, as now and as before.
const PROVISIONER: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];

/// The event, unless it was told already: these controllers are asked again and again while a claim waits.
fn tell_once(world: &World, stamp: &mut Stamp<'_>, about: &Object, note: &Note<'_>) -> Option<Write> {
    let write = record::event(world, stamp, about, note);
    world.get(&write.key).is_none().then_some(write)
}

/// The claim that a volume's `claimRef` names, whether it is there or not.
fn claim_of(volume: &Object) -> Option<Key> {
    let volume = volume.view::<k8s_openapi::api::core::v1::PersistentVolume>()?;
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let (namespace, name) = (reference.namespace.as_deref()?, reference.name.as_deref()?);
    Some(Key::of::<PersistentVolumeClaim>(namespace, name))
}

/// A complete reference to a claim.
fn reference(claim: &Object) -> Value {
    let meta = claim.meta();
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": meta.namespace, "name": meta.name, "uid": meta.uid, "resourceVersion": claim.revision().to_string(),
    })
}

/// Adds a finalizer; says whether that changed anything.
fn hold(value: &mut Value, finalizer: &str) -> bool {
    let Some(metadata) = value["metadata"].as_object_mut() else { return false };
    let own = metadata.entry("finalizers").or_insert_with(|| json!([]));
    let Some(own) = own.as_array_mut() else { return false };
    let missing = !own.iter().any(|name| name == finalizer);
    if missing {
        own.push(finalizer.into());
    }
    missing
}

/// Takes a finalizer away; says whether that changed anything.
fn release(value: &mut Value, finalizer: &str) -> bool {
    let Some(metadata) = value["metadata"].as_object_mut() else { return false };
    let Some(own) = metadata.get_mut("finalizers").and_then(Value::as_array_mut) else { return false };
    let before = own.len();
    own.retain(|name| name != finalizer);
    let changed = own.len() != before;
    if own.is_empty() {
        metadata.remove("finalizers");
    }
    changed
}
