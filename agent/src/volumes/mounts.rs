//! What of the pod's volumes one container sees: `volumeMounts` with their `subPath`, as directories for a Wasm guest and
//! as paths for Docker.
//!
//! What lies at a `subPath` is found through the volume's handle, so that a link or a race in the volume leads nowhere else.
//! A Wasm guest gets the handle itself. Docker takes paths only, so what was opened is bound to a path of the node's own, as
//! the kubelet does.

use super::{Laid, Volumes, mountpoints, remove};
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use k8s_openapi::api::core::v1::{PodSpec, VolumeMount};
use runtime::Mount;
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a mount cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The pod has no such volume.
    #[error("volume {0:?} not found")]
    Volume(String),
    /// What the spec asks for cannot be meant.
    #[error("{0}")]
    Spec(String),
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
    /// One directory of a Wasm guest is read-only or it is not.
    #[error("cannot mount read-only and writable files into {0}: a Wasm guest sees directories")]
    Mixed(String),
}

impl MountError {
    /// Whether the reason is `CreateContainerConfigError`, as with the kubelet, and not `CreateContainerError`.
    pub fn is_spec(&self) -> bool {
        matches!(self, Self::Spec(_) | Self::Volume(_) | Self::Open { .. })
    }
}

/// One mount for Docker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Path on the node: a directory, file, socket or device.
    pub host: PathBuf,
    /// Absolute path in the container.
    pub container: String,
    /// Refuse writes.
    pub read_only: bool,
    /// `HostToContainer` or `Bidirectional`; `None` is Kubernetes' None.
    pub propagation: Option<String>,
}

/// The mounts of a Wasm container. `files_dir` is a directory of the container's own, for single files. Blocking.
pub fn mounts(
    spec: &PodSpec,
    wanted: Option<&[VolumeMount]>,
    volumes: &Volumes,
    files_dir: &Path,
    expand: impl Fn(&str) -> String,
) -> Result<Vec<Mount>, MountError> {
    reset(files_dir)?;
    let mut mounts = Vec::new();
    let mut files: BTreeMap<String, (PathBuf, bool)> = BTreeMap::new();
    for mount in super::wanted_mounts(spec, wanted) {
        let (laid, sub_path) = look_up(&mount, volumes, &expand)?;
        let read_only = mount.read_only == Some(true) || laid.read_only;
        match open(laid, &sub_path).map_err(failed(&mount, &sub_path))? {
            Opened::Dir(dir) => {
                mounts.push(Mount { host: Arc::new(dir), guest: mount.mount_path.clone(), read_only });
            }
            Opened::File(dir, file) => {
                let (parent, name) = split(&mount.mount_path);
                let fresh = (files_dir.join(files.len().to_string()), read_only);
                let (shown, all) = files.entry(parent.to_owned()).or_insert(fresh);
                if *all != read_only {
                    return Err(MountError::Mixed(parent.into()));
                }
                show_file(&dir, &file, shown, name, read_only).map_err(|source| MountError::File {
                    path: file.display().to_string(),
                    guest: mount.mount_path.clone(),
                    source,
                })?;
            }
        }
    }
    for (guest, (dir, read_only)) in files {
        let opened = Mount::open(&dir, guest.clone(), read_only);
        mounts.push(opened.map_err(|source| MountError::Open { volume: guest, path: String::new(), source })?);
    }
    Ok(mounts)
}

/// The mounts of a Docker container. `files_dir` is a directory of the container's own, for what lies at sub-paths; it is
/// unmounted with the pod's directory. Blocking.
pub fn binds(
    spec: &PodSpec,
    wanted: Option<&[VolumeMount]>,
    volumes: &Volumes,
    files_dir: &Path,
    expand: impl Fn(&str) -> String,
) -> Result<Vec<Bind>, MountError> {
    reset(files_dir)?;
    let mut binds = Vec::new();
    for (index, mount) in super::wanted_mounts(spec, wanted).into_iter().enumerate() {
        let (laid, sub_path) = look_up(&mount, volumes, &expand)?;
        let host = if sub_path.is_empty() {
            laid.path.clone()
        } else {
            let target = files_dir.join(index.to_string());
            bind_sub_path(laid, &sub_path, &target).map_err(failed(&mount, &sub_path))?;
            target
        };
        binds.push(Bind {
            host,
            read_only: mount.read_only == Some(true) || laid.read_only,
            propagation: mount.mount_propagation.clone().filter(|propagation| propagation != "None"),
            container: mount.mount_path,
        });
    }
    Ok(binds)
}

fn failed<'a>(mount: &'a VolumeMount, sub_path: &'a str) -> impl FnOnce(io::Error) -> MountError + use<'a> {
    move |source| MountError::Open { volume: mount.name.clone(), path: sub_path.to_owned(), source }
}

/// Takes away what an earlier instance of the container was shown.
fn reset(files_dir: &Path) -> Result<(), MountError> {
    remove::tree(files_dir).map_err(|source| MountError::Open {
        volume: String::new(),
        path: files_dir.display().to_string(),
        source,
    })
}

/// The volume of a mount, and the part of it that is wanted.
fn look_up<'v>(
    mount: &VolumeMount,
    volumes: &'v Volumes,
    expand: &impl Fn(&str) -> String,
) -> Result<(&'v Laid, String), MountError> {
    let laid = volumes.get(&mount.name).ok_or_else(|| MountError::Volume(mount.name.clone()))?;
    if mount.recursive_read_only.as_deref() == Some("Enabled") {
        let message =
            format!("volume {:?} requires recursive read-only mounts, which this node does not have", mount.name);
        return Err(MountError::Spec(message));
    }
    let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expression)) => match missing(expression, expand) {
            Some(name) => return Err(MountError::Spec(format!("missing value for {name:?}"))),
            None => expand(expression),
        },
        _ => String::new(),
    };
    if sub_path.starts_with('/') {
        return Err(MountError::Spec(format!("error SubPath `{sub_path}` must not be an absolute path")));
    }
    if sub_path.split('/').any(|part| part == "..") {
        return Err(MountError::Spec(format!("unable to provision SubPath `{sub_path}`: must not contain '..'")));
    }
    Ok((laid, sub_path))
}

/// The first variable of an expression that has no value.
fn missing<'e>(expression: &'e str, expand: &impl Fn(&str) -> String) -> Option<&'e str> {
    let mut rest = expression;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            let reference = format!("$({name})");
            if expand(&reference) == reference {
                return Some(name);
            }
            rest = after;
        }
    }
    None
}

enum Opened {
    Dir(Dir),
    /// Where it is, and its name there with no link in it.
    File(Dir, PathBuf),
}

/// Opens a volume or what lies at `sub_path` in it; a missing sub-path of a writable volume becomes a directory. The handle
/// keeps links in the volume from leading out of it.
fn open(laid: &Laid, sub_path: &str) -> io::Result<Opened> {
    if sub_path.is_empty() && laid.path.is_file() {
        let (Some(parent), Some(name)) = (laid.path.parent(), laid.path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        return Ok(Opened::File(Dir::open_ambient_dir(parent, cap_std::ambient_authority())?, name.into()));
    }
    let dir = Dir::open_ambient_dir(&laid.path, cap_std::ambient_authority())?;
    if sub_path.is_empty() {
        return Ok(Opened::Dir(dir));
    }
    match dir.metadata(sub_path) {
        Ok(meta) if meta.is_dir() => dir.open_dir(sub_path).map(Opened::Dir),
        Ok(meta) if meta.is_file() => {
            let file = dir.canonicalize(sub_path)?;
            Ok(Opened::File(dir, file))
        }
        Ok(_) => Err(io::Error::other("neither a directory nor a file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !laid.read_only => {
            make(&dir, sub_path)?;
            dir.open_dir(sub_path).map(Opened::Dir)
        }
        Err(error) => Err(error),
    }
}

/// Makes a directory in a volume that may be used as the volume itself may.
fn make(dir: &Dir, sub_path: &str) -> io::Result<()> {
    dir.create_dir_all(sub_path)?;
    let mode = dir.dir_metadata()?.permissions().mode() & 0o7777;
    dir.set_permissions(sub_path, Permissions::from_mode(mode))
}

/// Binds what lies at `sub_path` to `target`.
fn bind_sub_path(laid: &Laid, sub_path: &str, target: &Path) -> io::Result<()> {
    let dir = Dir::open_ambient_dir(&laid.path, cap_std::ambient_authority())?;
    let found = match dir.metadata(sub_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !laid.read_only => {
            make(&dir, sub_path)?;
            dir.metadata(sub_path)
        }
        other => other,
    }?;
    let mut options = OpenOptions::new();
    // only a name for what is there: a pipe or a device is not touched by it
    options.read(true).custom_flags(OFlags::PATH.bits().cast_signed());
    if found.is_dir() {
        let opened = dir.open_dir(sub_path)?;
        std::fs::create_dir_all(target)?;
        mountpoints::bind(&opened, target)
    } else {
        let opened = dir.open_with(sub_path, &options)?;
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::File::create(target)?;
        mountpoints::bind(&opened, target)
    }
}

/// The guest's directory and its entry there.
fn split(guest: &str) -> (&str, &str) {
    let (parent, name) = guest.trim_end_matches('/').rsplit_once('/').unwrap_or(("", guest));
    (if parent.is_empty() { "/" } else { parent }, name)
}

/// Puts a link to (or, if it may not be written, a copy of) a file into a directory that stands for the guest's.
fn show_file(dir: &Dir, file: &Path, shown: &Path, name: &str, read_only: bool) -> io::Result<()> {
    std::fs::create_dir_all(shown)?;
    let shown = Dir::open_ambient_dir(shown, cap_std::ambient_authority())?;
    match dir.hard_link(file, &shown, name) {
        Err(_) if read_only => dir.copy(file, &shown, name).map(|_| ()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &str, sub_path: &str) -> VolumeMount {
        let sub_path = (!sub_path.is_empty()).then(|| sub_path.to_owned());
        VolumeMount { name: "v".into(), mount_path: path.into(), sub_path, ..VolumeMount::default() }
    }

    fn spec() -> PodSpec {
        PodSpec { automount_service_account_token: Some(false), ..PodSpec::default() }
    }

    fn as_is(text: &str) -> String {
        text.replace("$(NAME)", "value")
    }

    fn volume(root: &Path, read_only: bool) -> Volumes {
        let path = root.join("volume");
        std::fs::create_dir_all(path.join("sub")).unwrap();
        std::fs::write(path.join("sub/file"), "text").unwrap();
        std::fs::write(root.join("secret"), "secret").unwrap();
        let _ = std::os::unix::fs::symlink("../..", path.join("sub/out"));
        let _ = std::os::unix::fs::symlink("sub/file", path.join("link"));
        Volumes::from([("v".to_owned(), Laid { path, read_only })])
    }

    #[test]
    fn a_guest_is_shown_directories_and_files_and_nothing_outside() {
        let root = tempfile::tempdir().unwrap();
        let volumes = volume(root.path(), false);
        let files = root.path().join("files");
        let wanted = [mount("/all", ""), mount("/made", "new/dir"), mount("/etc/x.conf", "link")];
        let shown = mounts(&spec(), Some(&wanted), &volumes, &files, as_is).unwrap();
        let guests: Vec<&str> = shown.iter().map(|mount| mount.guest.as_str()).collect();
        assert_eq!(guests, ["/all", "/made", "/etc"]);
        assert_eq!(shown[2].host.read_to_string("x.conf").unwrap(), "text");
        assert!(root.path().join("volume/new/dir").is_dir());
        for (sub_path, why) in [
            ("sub/out/secret", "failed to prepare subPath"),
            ("../secret", "must not contain '..'"),
            ("/etc", "must not be an absolute path"),
        ] {
            let error = mounts(&spec(), Some(&[mount("/a", sub_path)]), &volumes, &files, as_is).err().unwrap();
            assert!(error.to_string().contains(why), "{sub_path}: {error}");
        }
        let mixed = [mount("/etc/a", "link"), VolumeMount { read_only: Some(true), ..mount("/etc/b", "link") }];
        let error = mounts(&spec(), Some(&mixed), &volumes, &files, as_is).err().unwrap();
        assert!(matches!(error, MountError::Mixed(_)));
        let expression = |text: &str| VolumeMount { sub_path_expr: Some(text.into()), ..mount("/a", "") };
        let error = mounts(&spec(), Some(&[expression("a$$(X)$(Y)")]), &volumes, &files, as_is).err().unwrap();
        assert_eq!((error.to_string().as_str(), error.is_spec()), ("missing value for \"Y\"", true));
        mounts(&spec(), Some(&[expression("$(NAME)")]), &volumes, &files, as_is).unwrap();
        assert!(root.path().join("volume/value").is_dir());
    }

    #[test]
    fn docker_is_given_what_was_opened() {
        if !mountpoints::may_mount() {
            return println!("not run: needs the right to mount");
        }
        let root = tempfile::tempdir().unwrap();
        let volumes = volume(root.path(), false);
        let files = root.path().join("pod/files");
        let wanted = [mount("/all", ""), mount("/dir", "sub"), mount("/file", "link"), mount("/new", "made")];
        let shown = binds(&spec(), Some(&wanted), &volumes, &files, as_is).unwrap();
        assert_eq!(shown[0].host, root.path().join("volume"));
        // swapped after it was opened: what the container sees stays what was checked
        std::fs::remove_file(root.path().join("volume/link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("volume/link")).unwrap();
        assert_eq!(std::fs::read_to_string(&shown[2].host).unwrap(), "text");
        assert_eq!(std::fs::read_to_string(shown[1].host.join("file")).unwrap(), "text");
        assert!(shown[3].host.is_dir());
        let escape = binds(&spec(), Some(&[mount("/x", "sub/out/secret")]), &volumes, &files, as_is);
        assert!(escape.is_err());
        let again = binds(&spec(), Some(&wanted[..2]), &volumes, &files, as_is).unwrap();
        assert_eq!(mountpoints::below(&files).unwrap(), [again[1].host.canonicalize().unwrap()]);
        remove::tree(&root.path().join("pod")).unwrap();
        assert_eq!(mountpoints::below(root.path()).unwrap(), Vec::<PathBuf>::new());
        assert!(root.path().join("volume/sub/file").exists());
    }
}
