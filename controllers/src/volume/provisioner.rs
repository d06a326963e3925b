//! Makes volumes of the built-in class: a directory of the node that the claim's pod goes to.
//!
//! Here only the object comes about; the node makes the directory when a pod first mounts it, and removes it when the
//! volume is released. The size is a promise, not a limit: a directory has none.

use super::{PROVISIONER, reference, tell_once};
use crate::{Controller, Cx, Outcome};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;
use state::record::Note;
use state::storage::{self, LOCAL_PATH, annotation};
use state::{Event, Key, Object, World, Write};
use std::sync::Arc;

const NAME: &str = LOCAL_PATH;
/// Access modes that a directory of one node has.
const MODES: [&str; 2] = ["ReadWriteOnce", storage::SINGLE_POD];

/// The controller. Its keys are claims.
pub struct LocalPath;

impl Controller for LocalPath {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        if event.key().is::<PersistentVolumeClaim>() {
            return vec![event.key().clone()];
        }
        if !event.key().is::<Node>() {
            return Vec::new();
        }
        let path = |node: &Object| node.meta().annotations.get(storage::STORAGE_PATH).cloned();
        let news = event.previous.as_ref().map(|before| path(before)) != Some(path(&event.object));
        let waiting = |claim: &&Arc<Object>| claim.view().is_some_and(|claim| wants(world, claim).is_some());
        let claims = world.all::<PersistentVolumeClaim>(None).filter(waiting).map(|claim| claim.key().clone());
        if news { claims.collect() } else { Vec::new() }
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let Some(object) = cx.world.get(key).cloned() else { return Outcome::default() };
        let claim = object.view::<PersistentVolumeClaim>().filter(|_| !object.is_deleting());
        let Some((claim, class)) = claim.and_then(|claim| Some((claim, wants(cx.world, claim)?))) else {
            return Outcome::default();
        };
        Outcome { writes: provision(cx, &object, claim, class), again_at: None }
    }
}

/// The class of a claim that waits for a volume of ours.
fn wants<'w>(world: &'w World, claim: &PersistentVolumeClaim) -> Option<&'w StorageClass> {
    let annotations = claim.metadata.annotations.as_ref();
    let asked = PROVISIONER.iter().any(|name| annotation(annotations, name) == Some(LOCAL_PATH));
    let class = world.view::<StorageClass>("", storage::class_of_claim(claim)?)?;
    let ready = !storage::waits_for_consumer(class) || annotation(annotations, storage::SELECTED_NODE).is_some();
    (asked && ready && storage::volume_name(claim).is_none()).then_some(class)
}

fn provision(cx: &mut Cx<'_>, object: &Object, claim: &PersistentVolumeClaim, class: &StorageClass) -> Vec<Write> {
    let name = format!("pvc-{}", object.meta().uid);
    let key = Key::of::<PersistentVolume>("", &name);
    if cx.world.get(&key).is_some() {
        return Vec::new();
    }
    let class_name = class.metadata.name.as_deref().unwrap_or_default();
    let failed = |cx: &mut Cx<'_>, why: &str| {
        let message = format!("failed to provision volume with StorageClass {class_name:?}: {why}");
        tell_once(cx.world, &mut cx.stamp, object, &Note::warning(NAME, "ProvisioningFailed", &message))
    };
    if let Some(why) = unsupported(claim, class) {
        return failed(cx, why).into_iter().collect();
    }
    let chosen = annotation(claim.metadata.annotations.as_ref(), storage::SELECTED_NODE);
    let Some((node, dir)) = place(cx.world, chosen) else {
        let mut writes: Vec<Write> = failed(cx, "no node has a directory for volumes").into_iter().collect();
        if chosen.is_some_and(|node| cx.world.get(&Key::of::<Node>("", node)).is_none()) {
            // the scheduler is to choose again
            let mut value = object.value();
            if let Some(annotations) = crate::edit::annotations(&mut value) {
                annotations.remove(storage::SELECTED_NODE);
            }
            writes.push(Write::update(object, value));
        }
        return writes;
    };
    let mut value = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": {storage::PROVISIONED_BY: LOCAL_PATH},
            // the directory goes before the object does
            "finalizers": [storage::VOLUME_PROTECTION, LOCAL_PATH],
        },
        "spec": {
            "accessModes": claim.spec.as_ref().and_then(|spec| spec.access_modes.clone()),
            "capacity": {"storage": object.value()["spec"]["resources"]["requests"]["storage"]},
            "claimRef": reference(object),
            "local": {"path": format!("{}/{name}", dir.trim_end_matches('/'))},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
            ]}]}},
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class_name,
            "volumeMode": "Filesystem",
        },
        "status": {"phase": "Pending"},
    });
    cx.stamp.complete(&mut value, false);
    let message = format!("Successfully provisioned volume {name}");
    let note = Note::normal(NAME, "ProvisioningSucceeded", &message);
    let told = tell_once(cx.world, &mut cx.stamp, object, &note);
    [Write::create(key, value)].into_iter().chain(told).collect()
}

/// Why a directory of a node is not what a claim wants.
fn unsupported(claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<&'static str> {
    let spec = claim.spec.as_ref()?;
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some("block volumes are not supported");
    }
    if spec.access_modes.iter().flatten().any(|mode| !MODES.contains(&mode.as_str())) {
        return Some("only the access modes ReadWriteOnce and ReadWriteOncePod are supported");
    }
    if spec.selector.is_some() {
        return Some("claim.Spec.Selector is not supported");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Some("data sources are not supported");
    }
    if class.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Some("mount options are not supported");
    }
    class.parameters.as_ref().is_some_and(|all| !all.is_empty()).then_some("parameters are not supported")
}

/// The node whose directory it is: the chosen one, else the first that is ready.
fn place<'w>(world: &'w World, chosen: Option<&str>) -> Option<(&'w str, &'w str)> {
    let dir = |node: &'w Object| {
        let dir = node.meta().annotations.get(storage::STORAGE_PATH).map(String::as_str)?;
        Some((node.meta().name.as_str(), dir))
    };
    if let Some(node) = chosen {
        return dir(world.get(&Key::of::<Node>("", node))?);
    }
    let is_ready = |node: &&Arc<Object>| {
        let view = node.view::<Node>();
        let spec = view.and_then(|node| node.spec.as_ref());
        let conditions = view.and_then(|node| node.status.as_ref()?.conditions.as_deref()).unwrap_or_default();
        spec.is_none_or(|spec| spec.unschedulable != Some(true))
            && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let nodes = world.all::<Node>(None).filter(is_ready).filter_map(|node| dir(node));
    nodes.min()
}
