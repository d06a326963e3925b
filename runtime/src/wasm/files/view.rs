//! The guest's paths: which mount one lies in, and where in it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use cap_std::fs::Metadata;

use super::Root;
use super::args::Kind;
use crate::spec::Mount;

/// Entries of one directory that are looked at.
const ENTRIES_MAX: usize = 1 << 20;
/// Bytes of a path.
pub(super) const PATH_BYTES_MAX: usize = 4096;

/// A container's directories under the guest's names.
pub(in crate::wasm) struct View {
    mounts: Vec<Mounted>,
    working_dir: PathBuf,
}

struct Mounted {
    guest: PathBuf,
    root: Root,
    read_only: bool,
}

/// Where a path leads.
pub(super) enum Place<'a> {
    /// Into a mount; the path in it is relative, `.` for the mount itself.
    In { root: &'a Root, path: PathBuf, read_only: bool },
    /// A directory that is only there because mounts lie below it.
    Above,
    /// Nowhere the guest can see.
    Nowhere,
}

impl View {
    pub(in crate::wasm) fn new<'a>(mounts: impl Iterator<Item = &'a Mount>, working_dir: Option<&str>) -> View {
        let mounted = |mount: &Mount| Mounted {
            guest: clean(Path::new("/"), Path::new(&mount.guest)),
            root: mount.host.clone(),
            read_only: mount.read_only,
        };
        View {
            mounts: mounts.map(mounted).collect(),
            working_dir: clean(Path::new("/"), Path::new(working_dir.unwrap_or("/"))),
        }
    }

    /// The absolute path, as far as names tell.
    pub(super) fn absolute(&self, path: &str) -> PathBuf {
        clean(&self.working_dir, Path::new(path))
    }

    /// Where an absolute path leads; of mounts in one another the inner one counts.
    pub(super) fn place(&self, path: &Path) -> Place<'_> {
        let around = self.mounts.iter().filter(|mount| path.starts_with(&mount.guest));
        match around.max_by_key(|mount| mount.guest.components().count()) {
            Some(mount) => {
                let inner = path.strip_prefix(&mount.guest).unwrap_or(path);
                let path = if inner.as_os_str().is_empty() { PathBuf::from(".") } else { inner.to_owned() };
                Place::In { root: &mount.root, path, read_only: mount.read_only }
            }
            None if self.mounts.iter().any(|mount| mount.guest.starts_with(path)) => Place::Above,
            None if path == Path::new("/") => Place::Above,
            None => Place::Nowhere,
        }
    }

    /// What lies at an absolute path, links not followed; `None` is a directory above mounts.
    pub(super) fn look(&self, path: &Path) -> io::Result<Option<Metadata>> {
        match self.place(path) {
            Place::In { root, path, .. } => root.symlink_metadata(path).map(Some),
            Place::Above => Ok(None),
            Place::Nowhere => Err(rustix::io::Errno::NOENT.into()),
        }
    }

    /// The names in a directory, sorted, so that an archive made twice is the same.
    pub(super) fn names(&self, path: &Path) -> io::Result<BTreeSet<OsString>> {
        let below = self.mounts.iter().filter_map(|mount| mount.guest.strip_prefix(path).ok()?.components().next());
        let mut names: BTreeSet<OsString> = below.map(|name| name.as_os_str().to_owned()).collect();
        if let Place::In { root, path, .. } = self.place(path) {
            for entry in root.read_dir(path)? {
                names.insert(entry?.file_name());
                if names.len() > ENTRIES_MAX {
                    return Err(io::Error::other(format!("more than {ENTRIES_MAX} entries")));
                }
            }
        }
        Ok(names)
    }

    /// `test`: links are followed, as far as they stay in their mount.
    pub(super) fn is(&self, kind: Kind, path: &str) -> bool {
        match self.place(&self.absolute(path)) {
            Place::In { root, path, .. } => root.metadata(path).is_ok_and(|found| match kind {
                Kind::Anything => true,
                Kind::Directory => found.is_dir(),
                Kind::File => found.is_file(),
            }),
            Place::Above => kind != Kind::File,
            Place::Nowhere => false,
        }
    }
}

/// `path` seen from `base`, without `.` and `..`; above `/` there is nothing.
fn clean(base: &Path, path: &Path) -> PathBuf {
    let mut cleaned = base.to_owned();
    for part in path.components() {
        match part {
            Component::RootDir => cleaned = PathBuf::from("/"),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::Normal(name) => cleaned.push(name),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_into_the_innermost_mount() {
        let dir = tempfile::tempdir().unwrap();
        let mounts =
            ["/data", "/data/deep/er", "/var/lib/x/"].map(|guest| Mount::open(dir.path(), guest, false).unwrap());
        let view = View::new(mounts.iter(), Some("/data/"));
        let place = |path: &str| match view.place(&view.absolute(path)) {
            Place::In { path, .. } => format!("in {}", path.display()),
            Place::Above => "above".into(),
            Place::Nowhere => "nowhere".into(),
        };
        let cases = [
            ("/data", "in ."),
            ("/data/a/b/", "in a/b"),
            ("a", "in a"),
            ("./a/../b", "in b"),
            ("/data/deep/er/z", "in z"),
            ("/data/deep", "in deep"),
            ("/database", "nowhere"),
            ("/var/lib", "above"),
            ("/var/lib/x", "in ."),
            ("/", "above"),
            ("../../../etc/passwd", "nowhere"),
            ("/data/../etc", "nowhere"),
        ];
        for (path, want) in cases {
            assert_eq!(place(path), want, "{path}");
        }
    }
}
