//! Claims: the volume a claim is bound to, as a directory of this node.
//!
//! A claim that is not bound yet is waited for. Deliberately absent: binding and making volumes (the master's), block devices.

use super::{Laid, VolumeError, disk, hostpath, nfs};
use crate::volumes::payload::Source;
use cap_std::fs::{Dir, DirBuilder, DirBuilderExt, Permissions, PermissionsExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod};
use state::storage::{self, ClaimUse};
use state::{Key, Object};
use std::io;
use std::path::{Path, PathBuf};

/// What binding a claim may take before anybody is told.
const BINDING: SignedDuration = SignedDuration::from_secs(3);

/// Where volumes of the built-in class lie.
pub fn storage_dir(data_dir: &Path) -> PathBuf {
    let dir = data_dir.join("storage");
    std::path::absolute(&dir).unwrap_or(dir)
}

/// Makes the volume of a claim usable by a pod.
pub fn lay(root: &Dir, pod_dir: &Path, used: &ClaimUse, source: Source<'_>) -> Result<Laid, VolumeError> {
    let (claim, volume) = find(used, source)?;
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &volume.spec else { return Err(waiting(used, source, "PV has no spec")) };
    let here = source.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    let node = source.world.view::<Node>("", here);
    if node.is_some_and(|node| !storage::reaches(volume, node)) {
        let message =
            format!("MountVolume.NodeAffinity check failed for volume {name:?} : no matching NodeSelectorTerms");
        return Err(VolumeError::missing(message).whole());
    }
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    if modes.iter().any(|mode| mode == storage::SINGLE_POD) && is_taken(used, source) {
        let message = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
        return Err(VolumeError::later(message.into()));
    }
    let read_only = used.read_only || (!modes.is_empty() && modes.iter().all(|mode| mode == "ReadOnlyMany"));
    show(root, pod_dir, used, name, volume, spec, read_only)
}

fn show(
    root: &Dir,
    pod_dir: &Path,
    used: &ClaimUse,
    name: &str,
    volume: &PersistentVolume,
    spec: &PersistentVolumeSpec,
    read_only: bool,
) -> Result<Laid, VolumeError> {
    if let Some(local) = &spec.local {
        let own = super::data_dir(pod_dir).map(|data_dir| storage_dir(data_dir).join(name));
        let path = PathBuf::from(&local.path);
        let made_here = storage::annotation(volume.metadata.annotations.as_ref(), storage::PROVISIONED_BY)
            == Some(storage::LOCAL_PATH);
        if made_here && own.as_ref() == Some(&path) {
            make(&path).map_err(|error| disk(&error))?;
        } else if !path.exists() {
            return Err(VolumeError::later(format!("path {:?} does not exist", local.path)));
        }
        return Ok(Laid { path, read_only });
    }
    if let Some(host) = &spec.host_path {
        return hostpath::lay(host).map(|path| Laid { path, read_only });
    }
    if let Some(source) = &spec.nfs {
        let options = spec.mount_options.as_deref().unwrap_or_default();
        return nfs::lay(root, pod_dir, &used.volume, source, options, read_only);
    }
    Err(VolumeError::unsupported(format!(
        "PersistentVolume {name:?} is of a type that this node does not support: it has local, hostPath and nfs"
    )))
}

/// Whether the files of a claim are given to the pod's group: not those of another machine, and not a directory of the node
/// that was there before.
pub fn is_owned_by_group(used: &ClaimUse, source: Source<'_>) -> bool {
    let volume = find(used, source).ok().and_then(|(_, volume)| volume.spec.as_ref());
    volume.is_some_and(|spec| spec.local.is_some())
}

/// A volume's own directory, which everybody may use.
fn make(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = super::open_or_create(parent)?;
    let mut builder = DirBuilder::new();
    builder.mode(0o777);
    match parent.create_dir_with(name, &builder) {
        Ok(()) => parent.set_permissions(name, Permissions::from_mode(0o777)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// The claim and the volume it is bound to.
fn find<'w>(
    used: &ClaimUse,
    source: Source<'w>,
) -> Result<(&'w PersistentVolumeClaim, &'w PersistentVolume), VolumeError> {
    let key = Key::of::<PersistentVolumeClaim>(source.namespace, &used.claim);
    let found = source.world.get(&key).and_then(|object| Some((object, object.view::<PersistentVolumeClaim>()?)));
    let Some((object, claim)) = found else {
        return Err(waiting(used, source, &format!("persistentvolumeclaim {:?} not found", used.claim)));
    };
    let is_owner = object.controller().is_some_and(|owner| Some(&owner.uid) == source.pod.metadata.uid.as_ref());
    if used.is_ephemeral && !is_owner {
        let (namespace, pod) = (source.namespace, source.pod.metadata.name.as_deref().unwrap_or_default());
        let claim = &used.claim;
        let why =
            format!("PVC \"{namespace}/{claim}\" was not created for pod \"{namespace}/{pod}\" (pod is not owner)");
        return Err(waiting(used, source, &why));
    }
    let volume = storage::volume_name(claim).filter(|_| storage::is_bound(claim));
    let Some(name) = volume else {
        let lost = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost");
        let why = if lost { "PVC has lost its PV" } else { "PVC is not bound" };
        return Err(waiting(used, source, why));
    };
    let Some(volume) = source.world.view::<PersistentVolume>("", name) else {
        return Err(waiting(used, source, &format!("persistentvolume {name:?} not found")));
    };
    if !storage::belongs(volume, claim) {
        return Err(waiting(used, source, &format!("PV {name} is not bound to this claim")));
    }
    let mode = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    if mode == Some("Block") {
        let volume = &used.volume;
        let why = format!("volume {volume} has volumeMode Block, but is specified in volumeMounts");
        return Err(VolumeError::unsupported(why));
    }
    Ok((claim, volume))
}

/// What the kubelet says while a claim cannot be used.
fn waiting(used: &ClaimUse, source: Source<'_>, why: &str) -> VolumeError {
    let (volume, claim, namespace) = (&used.volume, &used.claim, source.namespace);
    let message = format!(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process \
         volumes=[{volume}]: error processing PVC {namespace}/{claim}: {why}"
    );
    // looked at again by the clock too, so that it is told in the end
    VolumeError { is_early: is_just_placed(source.pod), ..VolumeError::later(message).whole() }
}

/// Whether a pod was given its node so recently that its claims may still be on their way to being bound.
fn is_just_placed(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let placed = conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "True");
    let since = placed.and_then(|condition| condition.last_transition_time.as_ref());
    since.is_some_and(|since| Timestamp::now().duration_since(since.0) < BINDING)
}

/// Whether an older pod of this node uses a claim that one pod at a time may use.
fn is_taken(used: &ClaimUse, source: Source<'_>) -> bool {
    let key = Key::of::<PersistentVolumeClaim>(source.namespace, &used.claim);
    let age = |meta: &state::Meta| (meta.creation_timestamp, meta.uid.clone());
    let own = source.pod.metadata.uid.as_deref().and_then(|uid| source.world.by_uid(uid)).map(|own| age(own.meta()));
    let takes = |object: &Object| {
        let Some(pod) = object.view::<Pod>() else { return false };
        let over = matches!(manifests::pods::phase(pod), "Succeeded" | "Failed");
        let older = own.as_ref().is_none_or(|own| age(object.meta()) < *own);
        !over
            && older
            && Some(object.meta().uid.as_str()) != source.pod.metadata.uid.as_deref()
            && storage::claim_keys(pod).contains(&key)
    };
    source.world.all::<Pod>(Some(source.namespace)).any(|object| takes(object))
}
