//! What of the pod's volumes one container sees: `volumeMounts` with their `subPath`, as directories for a Wasm guest.

use super::Volumes;
use cap_std::fs::Dir;
use k8s_openapi::api::core::v1::{PodSpec, VolumeMount};
use runtime::Mount;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a mount cannot be shown: reason `CreateContainerError`.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The pod has no such volume.
    #[error("volume {0:?} not found")]
    Volume(String),
    /// The path cannot be opened or made.
    #[error("failed to prepare subPath for volumeMount {volume:?}: {path}")]
    Open {
        /// The volume.
        volume: String,
        /// What in it.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file can only be shown when it can be linked or may be copied.
    #[error(
        "cannot mount file {path} at {guest}: a Wasm guest sees directories; a writable file must be on the node's own file system"
    )]
    File {
        /// The file.
        path: String,
        /// Where it should be.
        guest: String,
        /// Why linking failed.
        #[source]
        source: io::Error,
    },
}

/// The mounts of a container. `files_dir` is a directory of the container's own, for single files. Blocking.
pub fn mounts(
    spec: &PodSpec,
    wanted: Option<&[VolumeMount]>,
    volumes: &Volumes,
    files_dir: &Path,
    expand: impl Fn(&str) -> String,
) -> Result<Vec<Mount>, MountError> {
    let mut mounts = Vec::new();
    let mut files: BTreeMap<String, (PathBuf, bool)> = BTreeMap::new();
    for mount in super::wanted_mounts(spec, wanted) {
        let root = volumes.get(&mount.name).ok_or_else(|| MountError::Volume(mount.name.clone()))?;
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => path.clone(),
            (_, Some(expression)) => expand(expression),
            _ => String::new(),
        };
        let read_only = mount.read_only == Some(true) || shows_objects(spec, &mount.name);
        match open(root, &sub_path, read_only).map_err(|source| MountError::Open {
            volume: mount.name.clone(),
            path: sub_path.clone(),
            source,
        })? {
            Opened::Dir(dir) => {
                mounts.push(Mount { host: Arc::new(dir), guest: mount.mount_path.clone(), read_only });
            }
            Opened::File(path) => {
                let (parent, dir) = show_file(&path, &mount.mount_path, files_dir, read_only)?;
                let (_, all_read_only) = files.entry(parent).or_insert((dir, true));
                *all_read_only &= read_only;
            }
        }
    }
    for (guest, (dir, read_only)) in files {
        let opened = Mount::open(&dir, guest.clone(), read_only);
        mounts.push(opened.map_err(|source| MountError::Open { volume: guest, path: String::new(), source })?);
    }
    Ok(mounts)
}

enum Opened {
    Dir(Dir),
    File(PathBuf),
}

/// Opens a volume or what lies at `sub_path` in it; a missing sub-path of a writable volume becomes a directory. The handle
/// keeps links in the volume from leading out of it.
fn open(root: &Path, sub_path: &str, read_only: bool) -> io::Result<Opened> {
    if sub_path.is_empty() && root.is_file() {
        return Ok(Opened::File(root.to_owned()));
    }
    let dir = Dir::open_ambient_dir(root, cap_std::ambient_authority())?;
    if sub_path.is_empty() {
        return Ok(Opened::Dir(dir));
    }
    match dir.metadata(sub_path) {
        Ok(meta) if meta.is_dir() => dir.open_dir(sub_path).map(Opened::Dir),
        // resolved inside the handle, so that a link cannot name a file outside
        Ok(_) => Ok(Opened::File(root.join(dir.canonicalize(sub_path)?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !read_only => {
            dir.create_dir_all(sub_path)?;
            dir.open_dir(sub_path).map(Opened::Dir)
        }
        Err(error) => Err(error),
    }
}

/// Puts a link to (or, if it may not be written, a copy of) a file under its guest name into a directory that stands for the
/// guest's parent directory. Returns that guest directory and the one on the node.
fn show_file(file: &Path, guest: &str, files_dir: &Path, read_only: bool) -> Result<(String, PathBuf), MountError> {
    let (parent, name) = guest.trim_end_matches('/').rsplit_once('/').unwrap_or(("", guest));
    let parent = if parent.is_empty() { "/" } else { parent };
    let dir = files_dir.join(parent.replace('/', "~"));
    let link = || -> io::Result<()> {
        std::fs::create_dir_all(&dir)?;
        let at = dir.join(name);
        let _ = std::fs::remove_file(&at);
        match std::fs::hard_link(file, &at) {
            Err(_) if read_only => std::fs::copy(file, &at).map(|_| ()),
            other => other,
        }
    };
    match link() {
        Ok(()) => Ok((parent.to_owned(), dir)),
        Err(source) => Err(MountError::File { path: file.display().to_string(), guest: guest.into(), source }),
    }
}

/// Volumes whose files are objects' data are never writable.
fn shows_objects(spec: &PodSpec, name: &str) -> bool {
    let volumes = super::wanted(spec);
    let volume = volumes.iter().find(|volume| volume.name == name);
    volume.is_some_and(|v| {
        v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some()
    })
}
