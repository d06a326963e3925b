//! A pod's volumes on disk, and what of them a container sees.
//!
//! Everything of a pod lies below `pods/UID/` in the kubelet's layout; writes go through directory handles. Wasm guests are
//! shown directories only, so a single file (`subPath` of a file, a hostPath file) is shown through a directory of its own
//! that holds a hard link to it. Deliberately absent: CSI and the in-tree drivers of clouds, which this node refuses by name.

pub mod atomic;
mod claims;
pub mod emptydir;
pub mod hostpath;
pub mod mountpoints;
pub mod mounts;
mod nfs;
mod ownership;
pub mod payload;
pub mod reclaim;
pub mod remove;
#[cfg(test)]
mod tests;

pub use claims::storage_dir;

use cap_std::fs::{Dir, DirBuilder, DirBuilderExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath, ObjectFieldSelector, PodSpec,
    ProjectedVolumeSource, Volume, VolumeMount, VolumeProjection,
};
use ownership::Group;
use payload::Source;
use state::storage;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Where client libraries look for the pod's own account.
const ACCOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Name of the volume that shows it.
const ACCOUNT_VOLUME: &str = "kube-api-access";

/// Why a volume is not there. The message is Kubernetes' own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct VolumeError {
    /// For the event and the user.
    pub message: String,
    /// When another try makes sense.
    pub again: Again,
    /// The message is the event's whole text.
    is_whole: bool,
    /// It is what is to be expected of a pod that was placed a moment ago: nobody needs to be told yet.
    pub is_early: bool,
}

/// When another try makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// When an object changes.
    OnChange,
    /// After a while: somebody may mend the node.
    Later,
}

impl VolumeError {
    fn missing(message: String) -> Self {
        Self { message, again: Again::OnChange, is_whole: false, is_early: false }
    }

    pub(crate) fn later(message: String) -> Self {
        Self { message, again: Again::Later, is_whole: false, is_early: false }
    }

    fn unsupported(message: impl Into<String>) -> Self {
        Self::missing(message.into())
    }

    fn whole(self) -> Self {
        Self { is_whole: true, ..self }
    }

    /// The message of the event FailedMount about a volume.
    pub fn event(&self, volume: &str) -> String {
        if self.is_whole {
            self.message.clone()
        } else {
            format!("MountVolume.SetUp failed for volume {volume:?} : {self}")
        }
    }
}

/// A volume that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// Its path on the node.
    pub path: PathBuf,
    /// Nobody may write it, whatever the mount says.
    pub read_only: bool,
}

/// The volumes of a pod by name.
pub type Volumes = BTreeMap<String, Laid>;

/// The pod's volumes, the implicit one of its service account included.
pub fn wanted(spec: &PodSpec) -> Vec<Volume> {
    let mut volumes = spec.volumes.clone().unwrap_or_default();
    if wants_account(spec) {
        volumes.push(account_volume());
    }
    volumes
}

/// A container's mounts, the implicit one of its service account included.
pub fn wanted_mounts(spec: &PodSpec, mounts: Option<&[VolumeMount]>) -> Vec<VolumeMount> {
    let mut mounts = mounts.unwrap_or_default().to_vec();
    if wants_account(spec) && !mounts.iter().any(|mount| mount.mount_path == ACCOUNT_PATH) {
        mounts.push(VolumeMount {
            mount_path: ACCOUNT_PATH.into(),
            name: ACCOUNT_VOLUME.into(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    mounts
}

/// Unless the pod says no, or brings its own (as the API server's admission may have added).
fn wants_account(spec: &PodSpec) -> bool {
    let own = |container: &k8s_openapi::api::core::v1::Container| {
        container.volume_mounts.iter().flatten().any(|mount| mount.mount_path == ACCOUNT_PATH)
    };
    spec.automount_service_account_token != Some(false) && !spec.containers.iter().any(own)
}

/// The cluster's certificate and the namespace. No token: this node has none to give that the API would accept.
fn account_volume() -> Volume {
    let key = |key: &str| KeyToPath { key: key.into(), path: key.into(), mode: None };
    let authority =
        ConfigMapProjection { items: Some(vec![key("ca.crt")]), name: "kube-root-ca.crt".into(), optional: Some(true) };
    let field = ObjectFieldSelector { api_version: None, field_path: "metadata.namespace".into() };
    let namespace =
        DownwardAPIVolumeFile { field_ref: Some(field), path: "namespace".into(), ..DownwardAPIVolumeFile::default() };
    let sources = vec![
        VolumeProjection { config_map: Some(authority), ..VolumeProjection::default() },
        VolumeProjection {
            downward_api: Some(DownwardAPIProjection { items: Some(vec![namespace]) }),
            ..VolumeProjection::default()
        },
    ];
    Volume {
        name: ACCOUNT_VOLUME.into(),
        projected: Some(ProjectedVolumeSource { default_mode: None, sources: Some(sources) }),
        ..Volume::default()
    }
}

/// Makes all volumes of a pod below `pod_dir`, or brings their files up to date. Blocking.
///
/// # Errors
/// The first volume that cannot be made, by name.
pub fn lay(
    pod_dir: &Path,
    spec: &PodSpec,
    source: Source<'_>,
    now: Timestamp,
) -> Result<Volumes, (String, VolumeError)> {
    let root = open_or_create(pod_dir).map_err(|error| (String::new(), disk(&error)))?;
    if let Some(name) = device(spec) {
        return Err((name, VolumeError::unsupported("block devices (volumeDevices) are not supported by this node")));
    }
    let mut volumes = Volumes::new();
    for volume in wanted(spec) {
        let laid = lay_one(&root, pod_dir, &volume, spec, source, now);
        let laid = laid.map_err(|error| (volume.name.clone(), error))?;
        volumes.insert(volume.name, laid);
    }
    Ok(volumes)
}

/// The first volume that a container wants as a device.
fn device(spec: &PodSpec) -> Option<String> {
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.find_map(|container| Some(container.volume_devices.as_ref()?.first()?.name.clone()))
}

/// Brings the files of those volumes up to date that show objects. Blocking.
pub fn refresh(
    pod_dir: &Path,
    spec: &PodSpec,
    source: Source<'_>,
    now: Timestamp,
) -> Result<(), (String, VolumeError)> {
    let root = open_or_create(pod_dir).map_err(|error| (String::new(), disk(&error)))?;
    for volume in wanted(spec) {
        if let Some(plugin) = plugin(&volume) {
            lay_payload(&root, pod_dir, &volume, plugin, spec, source, now)
                .map_err(|error| (volume.name.clone(), error))?;
        }
    }
    Ok(())
}

fn lay_one(
    root: &Dir,
    pod_dir: &Path,
    volume: &Volume,
    spec: &PodSpec,
    source: Source<'_>,
    now: Timestamp,
) -> Result<Laid, VolumeError> {
    if let Some(plugin) = plugin(volume) {
        return lay_payload(root, pod_dir, volume, plugin, spec, source, now);
    }
    if let Some(host) = &volume.host_path {
        return hostpath::lay(host).map(|path| Laid { path, read_only: false });
    }
    if let Some(share) = &volume.nfs {
        return nfs::lay(root, pod_dir, &volume.name, share, &[], false);
    }
    let laid = if let Some(empty) = &volume.empty_dir {
        emptydir::lay(root, pod_dir, &volume.name, empty, spec)?
    } else {
        let name = source.pod.metadata.name.as_deref().unwrap_or_default();
        let used = storage::claims(name, spec).into_iter().find(|used| used.volume == volume.name);
        let Some(used) = used else { return Err(unsupported(volume)) };
        let laid = claims::lay(root, pod_dir, &used, source)?;
        if !claims::is_owned_by_group(&used, source) {
            return Ok(laid);
        }
        laid
    };
    if let Some(group) = Group::of(spec).filter(|_| !laid.read_only) {
        let dir = Dir::open_ambient_dir(&laid.path, cap_std::ambient_authority()).map_err(|error| disk(&error))?;
        group.own(&dir, false).map_err(|error| disk(&error))?;
    }
    Ok(laid)
}

/// Writes the files that show objects.
fn lay_payload(
    root: &Dir,
    pod_dir: &Path,
    volume: &Volume,
    plugin: &str,
    spec: &PodSpec,
    source: Source<'_>,
    now: Timestamp,
) -> Result<Laid, VolumeError> {
    let payload = payload::payload(volume, source)?;
    let path = format!("volumes/kubernetes.io~{plugin}/{}", volume.name);
    root.create_dir_all(&path).map_err(|error| disk(&error))?;
    let dir = root.open_dir(&path).map_err(|error| disk(&error))?;
    atomic::write(&dir, &payload, Group::of(spec), now).map_err(|error| disk(&error))?;
    Ok(Laid { path: pod_dir.join(path), read_only: true })
}

/// The kubelet's directory name for a volume whose files are objects' data; `None` for all others.
fn plugin(volume: &Volume) -> Option<&'static str> {
    match volume {
        Volume { config_map: Some(_), .. } => Some("configmap"),
        Volume { secret: Some(_), .. } => Some("secret"),
        Volume { downward_api: Some(_), .. } => Some("downward-api"),
        Volume { projected: Some(_), .. } => Some("projected"),
        _ => None,
    }
}

fn unsupported(volume: &Volume) -> VolumeError {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let kinds = value.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let kind = kinds.into_iter().find(|name| *name != "name").unwrap_or("none");
    VolumeError::unsupported(format!("no volume plugin matched: volumes of type {kind} are not supported by this node"))
}

/// The node's data directory, of which a pod's directory is part.
fn data_dir(pod_dir: &Path) -> Option<&Path> {
    pod_dir.parent()?.parent()
}

/// Gives back all that a pod has on the node: what was mounted for it, its memory, its directory. Blocking.
///
/// # Errors
/// What stopped it; the rest stays for another try.
pub fn teardown(pod_dir: &Path) -> io::Result<()> {
    emptydir::forget(pod_dir)?;
    remove::tree(pod_dir)
}

/// Gives back what pods that nobody knows have on the node: those that vanished while no agent ran. Blocking.
pub fn sweep(data_dir: &Path, is_known: impl Fn(&str) -> bool) {
    emptydir::sweep(data_dir, &is_known);
    remove_strangers(&data_dir.join("pods"), &is_known);
}

/// Removes the entries of a directory of the node's own that nobody knows. Blocking.
pub fn remove_strangers(dir: &Path, is_known: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if !is_known(&entry.file_name().to_string_lossy())
            && let Err(error) = remove::tree(&entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "orphaned directory not removed");
        }
    }
}

fn disk(error: &io::Error) -> VolumeError {
    VolumeError::later(error.to_string())
}

/// Opens a directory of the node's own, making it when missing.
pub fn open_or_create(path: &Path) -> io::Result<Dir> {
    match Dir::open_ambient_dir(path, cap_std::ambient_authority()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
            std::fs::create_dir_all(parent)?;
            let parent = Dir::open_ambient_dir(parent, cap_std::ambient_authority())?;
            let mut builder = DirBuilder::new();
            builder.mode(0o750);
            match parent.create_dir_with(name, &builder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            parent.open_dir(name)
        }
        other => other,
    }
}
