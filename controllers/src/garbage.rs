//! The garbage collector: what is owned goes when its owners are gone.
//!
//! Background: the owner vanishes, then its dependents are deleted. Foreground: the owner waits, with a finalizer, until the
//! dependents that block it are gone. Orphan: the owner waits until its dependents no longer name it.

use crate::{Controller, Cx, Outcome, ownership};
use state::{Change, Deletion, Event, FOREGROUND, Key, ORPHAN, Object, OwnerRef, Propagation, World, Write};
use std::sync::Arc;

/// The controller.
pub struct Garbage;

impl Controller for Garbage {
    fn name(&self) -> &'static str {
        "garbage-collector-controller"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let (object, meta) = (&event.object, event.object.meta());
        if event.change == Change::Deleted {
            let dependents = world.owned_by(&meta.uid).map(|dependent| dependent.key().clone());
            // an owner may have waited for this one
            let owners = meta.owner_references.iter().filter_map(|owner| world.by_uid(&owner.uid));
            let waiting = owners.filter(|owner| is_waiting(owner)).map(|owner| owner.key().clone());
            return dependents.chain(waiting).collect();
        }
        let uids = |object: &Object| -> Vec<String> {
            object.meta().owner_references.iter().map(|owner| owner.uid.clone()).collect()
        };
        let news = event.previous.as_ref().is_none_or(|before| uids(before) != uids(object));
        let owned = news && !meta.owner_references.is_empty();
        if owned || (object.is_deleting() && holds(object)) { vec![event.key().clone()] } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).cloned() else { return Outcome::default() };
        let has = |finalizer: &str| object.meta().finalizers.iter().any(|own| own == finalizer);
        let writes = match object.is_deleting() {
            true if has(ORPHAN) => orphan(cx.world, &object),
            true if has(FOREGROUND) => foreground(cx, &object),
            true => Vec::new(),
            false => dependent(cx, &object),
        };
        Outcome { writes, again_at: None }
    }
}

fn holds(object: &Object) -> bool {
    object.meta().finalizers.iter().any(|finalizer| finalizer == FOREGROUND || finalizer == ORPHAN)
}

/// Whether an owner waits for its dependents to go.
fn is_waiting(owner: &Object) -> bool {
    owner.is_deleting() && owner.meta().finalizers.iter().any(|finalizer| finalizer == FOREGROUND)
}

fn dependents(world: &World, owner: &Object) -> Vec<Arc<Object>> {
    let mut dependents: Vec<_> = world.owned_by(&owner.meta().uid).cloned().collect();
    dependents.sort_by(|a, b| a.key().cmp(b.key()));
    dependents
}

/// Cuts the dependents loose, then lets the owner go.
fn orphan(world: &World, owner: &Object) -> Vec<Write> {
    let release = |dependent: &Arc<Object>| ownership::release(dependent, &owner.meta().uid);
    let mut writes: Vec<Write> = dependents(world, owner).iter().map(release).collect();
    writes.push(without(owner, ORPHAN));
    writes
}

/// Lets the owner go when no dependent blocks it; until then, its dependents are deleted.
fn foreground(cx: &Cx<'_>, owner: &Object) -> Vec<Write> {
    let dependents = dependents(cx.world, owner);
    let blocks = |dependent: &Arc<Object>| {
        let mut owners = dependent.meta().owner_references.iter();
        owners.any(|reference| reference.uid == owner.meta().uid && reference.block_owner_deletion == Some(true))
    };
    let deletions: Vec<Write> =
        dependents.iter().filter(|dependent| !dependent.is_deleting()).flat_map(|d| dependent(cx, d)).collect();
    let gone = |dependent: &Arc<Object>| {
        let write = deletions.iter().find(|write| write.key == *dependent.key());
        write.is_some_and(|write| write.value.is_none())
    };
    if dependents.iter().any(|dependent| blocks(dependent) && !gone(dependent)) {
        return deletions;
    }
    deletions.into_iter().chain([without(owner, FOREGROUND)]).collect()
}

fn without(object: &Object, finalizer: &str) -> Write {
    let mut value = object.value();
    if let Some(finalizers) = value["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|own| own != finalizer);
    }
    Write::update(object, value)
}

/// Deletes an object whose owners are all gone or going; one that still has an owner only forgets the others.
fn dependent(cx: &Cx<'_>, object: &Object) -> Vec<Write> {
    let owners = &object.meta().owner_references;
    let solid =
        |owner: &&OwnerRef| cx.world.by_uid(&owner.uid).map_or_else(|| !is_ours(owner), |found| !is_waiting(found));
    let waiting = owners.iter().any(|owner| cx.world.by_uid(&owner.uid).is_some_and(|found| is_waiting(found)));
    let kept = owners.iter().filter(solid).count();
    if owners.is_empty() || kept == owners.len() {
        return Vec::new();
    }
    if kept > 0 {
        let mut value = object.value();
        owners.iter().filter(|owner| !solid(owner)).for_each(|owner| ownership::drop_owner(&mut value, &owner.uid));
        return vec![Write::update(object, value)];
    }
    // below an owner that waits, everything waits for what it owns
    let deep = waiting && cx.world.owned_by(&object.meta().uid).next().is_some();
    let held = object.meta().finalizers.iter().any(|finalizer| finalizer == ORPHAN);
    let propagation = (deep && !held).then_some(Propagation::Foreground);
    Write::delete_gracefully(object, Deletion { grace_seconds: None, propagation }, cx.now).into_iter().collect()
}

/// Whether an owner's absence means that it is gone: of a kind we do not serve we know nothing.
fn is_ours(owner: &OwnerRef) -> bool {
    manifests::by_kind(&owner.api_version, &owner.kind).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::Deployments;
    use crate::harness::Sandbox;
    use crate::replicaset::ReplicaSets;
    use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
    use k8s_openapi::api::core::v1::Pod;

    const WEB: &str = "
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: default}, spec: {replicas: 2,
  selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: a}]}}}}
";

    fn sandbox() -> (Sandbox, Key) {
        let mut sandbox = Sandbox::new(vec![Box::new(Garbage), Box::new(Deployments), Box::new(ReplicaSets)]);
        sandbox.apply(WEB).sail();
        (sandbox, Key::of::<Deployment>("default", "web"))
    }

    fn how(propagation: Propagation) -> Deletion {
        Deletion { grace_seconds: None, propagation: Some(propagation) }
    }

    #[test]
    fn background_takes_all_after_the_owner() {
        let (mut sandbox, key) = sandbox();
        sandbox.delete(&key, how(Propagation::Background));
        assert!(sandbox.world.get(&key).is_none());
        sandbox.sail();
        assert_eq!(sandbox.world.all::<ReplicaSet>(None).count() + sandbox.world.all::<Pod>(None).count(), 0);
    }

    #[test]
    fn foreground_takes_all_before_the_owner() {
        let (mut sandbox, key) = sandbox();
        sandbox.delete(&key, how(Propagation::Foreground)).settle();
        let pods: Vec<_> = sandbox.world.all::<Pod>(None).collect();
        assert!(pods.len() == 2 && pods.iter().all(|pod| pod.is_deleting()));
        assert!(sandbox.world.get(&key).is_some() && sandbox.world.all::<ReplicaSet>(None).count() == 1);
        sandbox.sail();
        assert!(sandbox.world.get(&key).is_none());
        assert_eq!(sandbox.world.all::<ReplicaSet>(None).count() + sandbox.world.all::<Pod>(None).count(), 0);
    }

    #[test]
    fn orphans_stay_and_are_nobodys() {
        let (mut sandbox, key) = sandbox();
        sandbox.delete(&key, how(Propagation::Orphan)).sail();
        assert!(sandbox.world.get(&key).is_none());
        let sets: Vec<_> = sandbox.world.all::<ReplicaSet>(None).collect();
        assert!(sets.len() == 1 && sets[0].meta().owner_references.is_empty());
        assert_eq!(sandbox.world.all::<Pod>(None).count(), 2);
    }
}
