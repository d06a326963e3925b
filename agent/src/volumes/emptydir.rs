//! emptyDir volumes: a directory of the pod's own, on disk or in memory, and how full it is.
//!
//! In memory it is a tmpfs of the size asked for. An agent that may not mount uses a directory in /dev/shm that only it can
//! enter; there, as on disk, the size is watched and not enforced by the kernel. Deliberately absent: huge pages.

use super::{Laid, VolumeError, disk, mountpoints, remove};
use cap_std::fs::{Dir, DirBuilder, DirBuilderExt, MetadataExt, Permissions, PermissionsExt};
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::io;
use std::path::{Path, PathBuf};

/// Where an agent that may not mount keeps files in memory.
const SHARED_MEMORY: &str = "/dev/shm";
/// Type of a file system in memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// What a block counts in `st_blocks`.
const BLOCK_BYTES: u64 = 512;
/// Directories inside each other that are looked into.
const DEPTH_MAX: usize = 256;

/// Makes a volume below `pod_dir`, whose handle is `root`.
pub fn lay(
    root: &Dir,
    pod_dir: &Path,
    name: &str,
    source: &EmptyDirVolumeSource,
    spec: &PodSpec,
) -> Result<Laid, VolumeError> {
    let path = pod_dir.join(place(name));
    let fault = |error: io::Error| disk(&error);
    match source.medium.as_deref().unwrap_or_default() {
        "" => {
            root.create_dir_all(place(name)).map_err(fault)?;
            open_to_all(&root.open_dir(place(name)).map_err(fault)?).map_err(fault)?;
            Ok(Laid { path, read_only: false })
        }
        "Memory" if mountpoints::may_mount() => {
            root.create_dir_all(place(name)).map_err(fault)?;
            if !mountpoints::is_mounted(&path).map_err(fault)? {
                mountpoints::memory(&path, size(source, spec)).map_err(fault)?;
            }
            Ok(Laid { path, read_only: false })
        }
        "Memory" => {
            let path = memory_dir(pod_dir).map(|dir| dir.join(name)).map_err(fault)?;
            let dir = super::open_or_create(&path).map_err(fault)?;
            open_to_all(&dir).map_err(fault)?;
            Ok(Laid { path, read_only: false })
        }
        medium => Err(VolumeError::unsupported(format!("storage medium {medium:?} is not supported by this node"))),
    }
}

fn place(name: &str) -> String {
    format!("volumes/kubernetes.io~empty-dir/{name}")
}

/// As the kubelet: whoever the container runs as may write.
fn open_to_all(dir: &Dir) -> io::Result<()> {
    let mode = dir.dir_metadata()?.permissions().mode();
    if mode & 0o777 == 0o777 { Ok(()) } else { dir.set_permissions(".", Permissions::from_mode(0o777)) }
}

/// The size of a volume in memory: its own limit, or what the pod may use at all.
fn size(source: &EmptyDirVolumeSource, spec: &PodSpec) -> Option<u64> {
    let own = limit(source.size_limit.as_ref());
    let memory = |container: &Container| limit(container.resources.as_ref()?.limits.as_ref()?.get("memory"));
    let pod: Option<u64> = spec.containers.iter().map(memory).sum();
    [own, pod].into_iter().flatten().filter(|bytes| *bytes > 0).min()
}

fn limit(quantity: Option<&Quantity>) -> Option<u64> {
    quantity.and_then(manifests::quantity::bytes).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)
}

/// Where the pods of this node have their files in memory: named after the data directory, for a user may run several nodes.
fn memory_root(data_dir: &Path) -> PathBuf {
    let hash = state::record::fnv1a_64(data_dir.as_os_str().as_encoded_bytes().iter().copied());
    Path::new(SHARED_MEMORY).join(format!("coracle-{}-{hash:016x}", rustix::process::geteuid().as_raw()))
}

/// The directory in memory of one pod, made in one that nobody else may enter.
fn memory_dir(pod_dir: &Path) -> io::Result<PathBuf> {
    let (Some(data_dir), Some(uid)) = (super::data_dir(pod_dir), pod_dir.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if rustix::fs::statfs(SHARED_MEMORY)?.f_type as i64 != TMPFS_MAGIC {
        return Err(io::Error::other(format!("{SHARED_MEMORY} is no memory, and this node may not mount")));
    }
    let root = memory_root(data_dir);
    let shared = Dir::open_ambient_dir(SHARED_MEMORY, cap_std::ambient_authority())?;
    let name = root.file_name().unwrap_or_default();
    let mut private = DirBuilder::new();
    private.mode(0o700);
    match shared.create_dir_with(name, &private) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = shared.symlink_metadata(name)?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{} belongs to somebody else", root.display())));
    }
    // through the handle of what was looked at
    match shared.open_dir(name)?.create_dir_with(uid, &private) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(root.join(uid)),
    }
}

/// Removes what a pod has in memory outside its directory.
pub fn forget(pod_dir: &Path) -> io::Result<()> {
    let (Some(data_dir), Some(uid)) = (super::data_dir(pod_dir), pod_dir.file_name()) else { return Ok(()) };
    if mountpoints::may_mount() {
        return Ok(());
    }
    let root = memory_root(data_dir);
    remove::tree(&root.join(uid))?;
    // the last pod takes the directory along
    let _ = std::fs::remove_dir(root);
    Ok(())
}

/// Removes what pods that nobody knows have in memory.
pub fn sweep(data_dir: &Path, is_known: impl Fn(&str) -> bool) {
    if !mountpoints::may_mount() {
        super::remove_strangers(&memory_root(data_dir), is_known);
    }
}

/// What measuring a pod's volumes found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measured {
    /// All hold what they may.
    Within,
    /// One holds more: the kubelet's words.
    Over(String),
    /// They are not there any more.
    Gone,
}

/// Measures the volumes of a pod that have a `sizeLimit`. Blocking.
pub fn measure(spec: &PodSpec, volumes: &super::Volumes) -> Measured {
    let mut found = Measured::Gone;
    for volume in spec.volumes.iter().flatten() {
        let Some(wanted) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref()) else { continue };
        let Some((bytes_max, laid)) = limit(Some(wanted)).zip(volumes.get(&volume.name)) else { continue };
        let Ok(dir) = Dir::open_ambient_dir(&laid.path, cap_std::ambient_authority()) else { continue };
        found = Measured::Within;
        if usage(&dir, DEPTH_MAX) > bytes_max {
            let name = &volume.name;
            return Measured::Over(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", wanted.0));
        }
    }
    found
}

/// Whether a pod has volumes whose size is to be watched.
pub fn is_limited(spec: &PodSpec) -> bool {
    let has = |source: &EmptyDirVolumeSource| limit(source.size_limit.as_ref()).is_some();
    spec.volumes.iter().flatten().any(|volume| volume.empty_dir.as_ref().is_some_and(has))
}

/// Bytes that a directory takes on its file system. What cannot be read counts nothing; a file with several names counts
/// as often.
fn usage(dir: &Dir, depth: usize) -> u64 {
    let Ok(entries) = dir.entries() else { return 0 };
    let mut bytes = 0_u64;
    for entry in entries.flatten() {
        let Ok(meta) = dir.symlink_metadata(entry.file_name()) else { continue };
        bytes = bytes.saturating_add(meta.blocks().saturating_mul(BLOCK_BYTES));
        if meta.is_dir()
            && depth > 0
            && let Ok(below) = entry.open_dir()
        {
            bytes = bytes.saturating_add(usage(&below, depth - 1));
        }
    }
    bytes
}
