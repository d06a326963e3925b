//! Binds claims to volumes, one to one, and says what becomes of a volume whose claim is gone.
//!
//! A claim gets the smallest volume that suits it; where there is none, whoever its class names is asked to make one. A claim
//! whose class waits for its first consumer is left alone until the scheduler has chosen. A claim that names no class gets
//! the default one. A released volume is kept or left to whoever made it to delete; nothing here recycles.

use super::{PROVISIONER, claim_of, reference, tell_once};
use crate::edit::annotate;
use crate::{Controller, Cx, Outcome};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};
use state::record::Note;
use state::storage::{self, annotation};
use state::{Change, Event, Key, Object, World, Write, rfc3339};
use std::sync::Arc;

const NAME: &str = "persistentvolume-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// The controller. Its keys are claims and volumes.
pub struct Binder;

impl Controller for Binder {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        let key = event.key();
        if key.is::<PersistentVolumeClaim>() {
            let versions = [Some(&event.object), event.previous.as_ref()].into_iter().flatten();
            let volumes = versions.filter_map(|claim| storage::volume_name(claim.view::<PersistentVolumeClaim>()?));
            let mut keys: Vec<Key> = volumes.map(|name| Key::of::<PersistentVolume>("", name)).collect();
            keys.dedup();
            keys.push(key.clone());
            return keys;
        }
        if key.is::<PersistentVolume>() {
            let versions = [Some(&event.object), event.previous.as_ref()].into_iter().flatten();
            let mut keys: Vec<Key> = versions.filter_map(|volume| claim_of(volume)).collect();
            keys.push(key.clone());
            let is_free = is_free(&event.object) && event.change != Change::Deleted;
            keys.extend(waiting(world).filter(|claim| is_free || asks_for(world, claim, &key.name)));
            keys.sort();
            keys.dedup();
            return keys;
        }
        if key.is::<StorageClass>() { waiting(world).collect() } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).cloned() else { return Outcome::default() };
        let writes =
            if let Some(claim) = object.view::<PersistentVolumeClaim>().filter(|_| key.is::<PersistentVolumeClaim>()) {
                match annotation(claim.metadata.annotations.as_ref(), BIND_COMPLETED) {
                    Some(_) => bound(cx, &object, claim),
                    None if object.is_deleting() => Vec::new(),
                    None => unbound(cx, &object, claim),
                }
            } else if let Some(volume) = object.view::<PersistentVolume>() {
                sync_volume(cx, &object, volume)
            } else {
                Vec::new()
            };
        Outcome { writes, again_at: None }
    }
}

/// Claims that have no volume.
fn waiting(world: &World) -> impl Iterator<Item = Key> {
    let is_waiting =
        |claim: &&Arc<Object>| claim.view::<PersistentVolumeClaim>().is_some_and(|claim| !storage::is_bound(claim));
    world.all::<PersistentVolumeClaim>(None).filter(is_waiting).map(|claim| claim.key().clone())
}

fn asks_for(world: &World, claim: &Key, volume: &str) -> bool {
    let claim = world.get(claim).and_then(|claim| claim.view::<PersistentVolumeClaim>());
    claim.and_then(storage::volume_name) == Some(volume)
}

fn is_free(volume: &Object) -> bool {
    let phase = volume.view::<PersistentVolume>().and_then(|volume| volume.status.as_ref()?.phase.as_deref());
    phase == Some("Available")
}

fn unbound(cx: &mut Cx<'_>, object: &Arc<Object>, claim: &PersistentVolumeClaim) -> Vec<Write> {
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()).is_none() {
        let mut value = object.value();
        value["status"]["phase"] = "Pending".into();
        return vec![Write::update(object, value)];
    }
    if let Some(name) = storage::volume_name(claim) {
        return asked_for(cx, object, claim, name);
    }
    let Some(class) = storage::class_of_claim(claim) else {
        if let Some(class) = storage::default_class(cx.world) {
            let mut value = object.value();
            value["spec"]["storageClassName"] = class.into();
            return vec![Write::update(object, value)];
        }
        return match storage::best(cx.world, claim, |_| true) {
            Some(volume) => bind(cx, object, claim, volume),
            None => no_volume(cx, object),
        };
    };
    let found = cx.world.view::<StorageClass>("", class);
    let node = annotation(claim.metadata.annotations.as_ref(), storage::SELECTED_NODE);
    let chosen = node.and_then(|node| cx.world.view::<k8s_openapi::api::core::v1::Node>("", node));
    let waits = found.is_some_and(storage::waits_for_consumer);
    let may_take = |volume: &PersistentVolume| match (waits, chosen) {
        (true, None) => storage::belongs(volume, claim),
        (true, Some(node)) => storage::belongs(volume, claim) || storage::reaches(volume, node),
        (false, _) => true,
    };
    if let Some(volume) = storage::best(cx.world, claim, may_take) {
        return bind(cx, object, claim, volume);
    }
    match found {
        _ if class.is_empty() => no_volume(cx, object),
        None => {
            let message = format!("storageclass.storage.k8s.io {class:?} not found");
            tell(cx, object, &Note::warning(NAME, "ProvisioningFailed", &message))
        }
        Some(_) if waits && node.is_none() => {
            let message = "waiting for first consumer to be created before binding";
            tell(cx, object, &Note::normal(NAME, "WaitForFirstConsumer", message))
        }
        Some(class) => ask(cx, object, &class.provisioner),
    }
}

fn tell(cx: &mut Cx<'_>, about: &Object, note: &Note<'_>) -> Vec<Write> {
    tell_once(cx.world, &mut cx.stamp, about, note).into_iter().collect()
}

fn no_volume(cx: &mut Cx<'_>, claim: &Object) -> Vec<Write> {
    let message = "no persistent volumes available for this claim and no storage class is set";
    tell(cx, claim, &Note::normal(NAME, "FailedBinding", message))
}

/// Asks the provisioner for a volume, by annotation.
fn ask(cx: &mut Cx<'_>, claim: &Object, provisioner: &str) -> Vec<Write> {
    if provisioner == "kubernetes.io/no-provisioner" {
        return no_volume_of_class(cx, claim);
    }
    let mut value = claim.value();
    let changed = PROVISIONER.map(|name| annotate(&mut value, name, provisioner));
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
         administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
    );
    let mut writes = tell(cx, claim, &Note::normal(NAME, "ExternalProvisioning", &message));
    if changed.contains(&true) {
        writes.push(Write::update(claim, value));
    }
    writes
}

fn no_volume_of_class(cx: &mut Cx<'_>, claim: &Object) -> Vec<Write> {
    let message = "storageclass has no provisioner and no persistent volume is available for this claim";
    tell(cx, claim, &Note::warning(NAME, "ProvisioningFailed", message))
}

/// A claim that names its volume waits for that one.
fn asked_for(cx: &mut Cx<'_>, object: &Arc<Object>, claim: &PersistentVolumeClaim, name: &str) -> Vec<Write> {
    let Some(volume) = cx.world.view::<PersistentVolume>("", name) else { return Vec::new() };
    let is_free = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none());
    if !is_free && !storage::belongs(volume, claim) {
        let message = format!("volume {name:?} already bound to a different claim.");
        return tell(cx, object, &Note::warning(NAME, "FailedBinding", &message));
    }
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let fault = if !storage::is_large_enough(volume, claim) {
        Some("requested PV is too small or of another volumeMode")
    } else if storage::class_of_volume(volume) != storage::class_of_claim(claim).unwrap_or_default() {
        Some("storageClassName does not match")
    } else if wanted.iter().any(|mode| !modes.contains(mode)) {
        Some("incompatible accessMode")
    } else {
        None
    };
    match fault {
        Some(fault) => {
            let message = format!("Cannot bind to requested volume {name:?}: {fault}");
            tell(cx, object, &Note::warning(NAME, "VolumeMismatch", &message))
        }
        None => bind(cx, object, claim, volume),
    }
}

/// Both sides at once.
fn bind(cx: &Cx<'_>, object: &Object, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Write> {
    let Some(name) = volume.metadata.name.as_deref() else { return Vec::new() };
    let Some(other) = cx.world.get(&Key::of::<PersistentVolume>("", name)) else { return Vec::new() };
    let mut taken = other.value();
    if taken["spec"]["claimRef"].is_null() {
        annotate(&mut taken, BOUND_BY_CONTROLLER, "yes");
    }
    if taken["spec"]["claimRef"]["uid"].as_str() != Some(object.meta().uid.as_str()) {
        taken["spec"]["claimRef"] = reference(object);
    }
    put_phase(&mut taken, "Bound", None, cx.now);
    let mut value = object.value();
    if storage::volume_name(claim).is_none() {
        annotate(&mut value, BOUND_BY_CONTROLLER, "yes");
        value["spec"]["volumeName"] = name.into();
    }
    annotate(&mut value, BIND_COMPLETED, "yes");
    show(&mut value, &taken);
    [(other.as_ref(), taken), (object, value)]
        .into_iter()
        .filter(|(old, new)| old.value() != *new)
        .map(|(old, new)| Write::update(old, new))
        .collect()
}

/// What a bound claim says of its volume.
fn show(claim: &mut Value, volume: &Value) {
    claim["status"]["phase"] = "Bound".into();
    claim["status"]["accessModes"] = volume["spec"]["accessModes"].clone();
    claim["status"]["capacity"] = json!({"storage": volume["spec"]["capacity"]["storage"]});
}

/// A bound claim keeps its volume, and may ask for more of it.
fn bound(cx: &mut Cx<'_>, object: &Arc<Object>, claim: &PersistentVolumeClaim) -> Vec<Write> {
    let found = storage::volume_name(claim).and_then(|name| {
        let volume = cx.world.get(&Key::of::<PersistentVolume>("", name))?;
        Some((volume, volume.view::<PersistentVolume>()?))
    });
    let Some((other, volume)) = found else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return lost(cx, object, "ClaimLost", message);
    };
    if volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some()) && !storage::belongs(volume, claim) {
        let message = "Two claims are bound to the same volume, this one is bound incorrectly";
        return lost(cx, object, "ClaimMisbound", message);
    }
    let mut writes = bind(cx, object, claim, volume);
    if storage::request(claim) > storage::capacity(volume) && !object.is_deleting() {
        if may_grow(cx.world, claim, volume) {
            writes = grow(object, other, &writes);
        } else {
            let message = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
            writes.extend(tell(cx, object, &Note::warning(NAME, "VolumeResizeFailed", message)));
        }
    }
    writes
}

fn may_grow(world: &World, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let class = storage::class_of_claim(claim).and_then(|class| world.view::<StorageClass>("", class));
    let maker = annotation(volume.metadata.annotations.as_ref(), storage::PROVISIONED_BY);
    maker == Some(storage::LOCAL_PATH) && class.is_some_and(|class| class.allow_volume_expansion == Some(true))
}

/// A directory has no size of its own: what is asked for is so.
fn grow(claim: &Object, volume: &Object, before: &[Write]) -> Vec<Write> {
    let now = |object: &Object| {
        let write = before.iter().find(|write| write.key == *object.key());
        write.and_then(|write| write.value.clone()).unwrap_or_else(|| object.value())
    };
    let (mut own, mut other) = (now(claim), now(volume));
    other["spec"]["capacity"]["storage"] = own["spec"]["resources"]["requests"]["storage"].clone();
    show(&mut own, &other);
    vec![Write::update(volume, other), Write::update(claim, own)]
}

fn lost(cx: &mut Cx<'_>, claim: &Object, reason: &str, message: &str) -> Vec<Write> {
    let mut value = claim.value();
    if value["status"]["phase"] == "Lost" {
        return Vec::new();
    }
    value["status"] = json!({"phase": "Lost"});
    let mut writes = tell(cx, claim, &Note::warning(NAME, reason, message));
    writes.push(Write::update(claim, value));
    writes
}

fn sync_volume(cx: &mut Cx<'_>, object: &Arc<Object>, volume: &PersistentVolume) -> Vec<Write> {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let Some(uid) = reference.and_then(|reference| reference.uid.as_deref()).filter(|uid| !uid.is_empty()) else {
        return set_phase(cx, object, "Available", None);
    };
    let claim = claim_of(object).and_then(|key| cx.world.get(&key).cloned()).filter(|claim| claim.meta().uid == uid);
    let Some(claim) = claim else { return released(cx, object, volume, phase) };
    let Some(view) = claim.view::<PersistentVolumeClaim>() else { return Vec::new() };
    match storage::volume_name(view) {
        Some(name) if name == object.meta().name => set_phase(cx, object, "Bound", None),
        // the claim has another volume: this one goes back to where it came from
        Some(_) if object.meta().annotations.contains_key(BOUND_BY_CONTROLLER) => {
            let mut value = object.value();
            value["spec"].as_object_mut().map(|spec| spec.remove("claimRef"));
            if let Some(annotations) = crate::edit::annotations(&mut value) {
                annotations.remove(BOUND_BY_CONTROLLER);
            }
            put_phase(&mut value, "Available", None, cx.now);
            vec![Write::update(object, value)]
        }
        Some(_) => released(cx, object, volume, phase),
        // it is about to be bound by its claim
        None => Vec::new(),
    }
}

/// The claim is gone: what was in the volume stays until somebody decides.
fn released(cx: &mut Cx<'_>, object: &Arc<Object>, volume: &PersistentVolume, phase: &str) -> Vec<Write> {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let maker = annotation(volume.metadata.annotations.as_ref(), storage::PROVISIONED_BY);
    let (reason, message) = match policy {
        _ if phase == "Failed" => return Vec::new(),
        Some("Recycle") => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
        Some("Delete") if maker != Some(storage::LOCAL_PATH) => {
            let name = &object.meta().name;
            let why = "no deletable volume plugin matched";
            ("VolumeFailedDelete", format!("error getting deleter volume plugin for volume {name:?}: {why}"))
        }
        _ => return set_phase(cx, object, "Released", None),
    };
    let mut writes = set_phase(cx, object, "Failed", Some(&message));
    writes.extend(tell(cx, object, &Note::warning(NAME, reason, &message)));
    writes
}

fn set_phase(cx: &Cx<'_>, object: &Object, phase: &str, message: Option<&str>) -> Vec<Write> {
    let mut value = object.value();
    let changed = put_phase(&mut value, phase, message, cx.now);
    changed.then(|| Write::update(object, value)).into_iter().collect()
}

/// Sets a volume's phase; says whether it had another.
fn put_phase(volume: &mut Value, phase: &str, message: Option<&str>, now: Timestamp) -> bool {
    if volume["status"]["phase"] == phase {
        return false;
    }
    volume["status"] = json!({"phase": phase, "lastPhaseTransitionTime": rfc3339(now)});
    if let Some(message) = message {
        volume["status"]["message"] = message.into();
    }
    true
}
