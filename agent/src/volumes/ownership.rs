//! `fsGroup`: a volume's files are given to a group, which may do with them what their owner may.
//!
//! As the kubelet does it: group, group bits and the directories' setgid bit, all through the volume's handle. Needs
//! privilege; an agent without it runs Wasm guests only, which have no user.

use cap_std::fs::{Dir, Permissions, PermissionsExt};
use k8s_openapi::api::core::v1::PodSpec;
use rustix::fs::{AtFlags, Gid, chownat};
use std::ffi::OsString;
use std::io;

/// Directories inside each other that are followed; what is deeper keeps its group.
const DEPTH_MAX: usize = 256;
const SETGID: u32 = 0o2000;

/// The group of a pod's volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    id: u32,
    /// Leave a volume alone whose root is right already.
    on_root_mismatch: bool,
}

impl Group {
    /// What a pod asks for. `None` without privilege.
    pub fn of(spec: &PodSpec) -> Option<Self> {
        let context = spec.security_context.as_ref()?;
        let id = u32::try_from(context.fs_group?).ok()?;
        let on_root_mismatch = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
        rustix::process::geteuid().is_root().then_some(Self { id, on_root_mismatch })
    }

    /// The bits that are added to a file's or directory's own.
    pub fn bits(is_dir: bool, read_only: bool) -> u32 {
        let common = if read_only { 0o440 } else { 0o660 };
        if is_dir { common | 0o110 | SETGID } else { common }
    }

    /// Gives a whole volume to the group.
    pub fn own(self, dir: &Dir, read_only: bool) -> io::Result<()> {
        let meta = dir.dir_metadata()?;
        let wanted = Self::bits(true, read_only);
        let right = cap_std::fs::MetadataExt::gid(&meta) == self.id && meta.permissions().mode() & wanted == wanted;
        if self.on_root_mismatch && right {
            return Ok(());
        }
        self.own_entries(dir, read_only, DEPTH_MAX)?;
        // the root last: it says that all the rest is done
        self.own_one(dir, &OsString::from("."), read_only)
    }

    fn own_entries(self, dir: &Dir, read_only: bool, depth: usize) -> io::Result<()> {
        for entry in dir.entries()? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && depth > 0 {
                self.own_entries(&entry.open_dir()?, read_only, depth - 1)?;
            }
            self.own_one(dir, &entry.file_name(), read_only)?;
        }
        Ok(())
    }

    /// Gives one entry of a directory to the group.
    pub fn own_one(self, dir: &Dir, name: &OsString, read_only: bool) -> io::Result<()> {
        chownat(dir, name.as_os_str(), None, Some(Gid::from_raw(self.id)), AtFlags::SYMLINK_NOFOLLOW)?;
        let meta = dir.symlink_metadata(name)?;
        if meta.is_symlink() {
            return Ok(());
        }
        let mode = meta.permissions().mode() & 0o7777;
        let wanted = mode | Self::bits(meta.is_dir(), read_only);
        if mode == wanted { Ok(()) } else { dir.set_permissions(name, Permissions::from_mode(wanted)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt as _};

    #[test]
    fn a_volume_is_the_groups_and_nothing_beside_it() {
        if !rustix::process::geteuid().is_root() {
            return println!("not run: needs root");
        }
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        std::fs::create_dir_all(volume.join("dir")).unwrap();
        std::fs::write(volume.join("dir/file"), "").unwrap();
        std::fs::write(root.path().join("outside"), "").unwrap();
        std::os::unix::fs::symlink("../outside", volume.join("link")).unwrap();
        let seen = |path: &str| {
            let meta = std::fs::symlink_metadata(root.path().join(path)).unwrap();
            (meta.gid(), meta.permissions().mode() & 0o7777)
        };
        std::fs::set_permissions(volume.join("dir/file"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(volume.join("dir"), std::fs::Permissions::from_mode(0o700)).unwrap();
        let outside = seen("outside");
        let dir = Dir::open_ambient_dir(&volume, cap_std::ambient_authority()).unwrap();
        let group = Group { id: 2000, on_root_mismatch: true };
        group.own(&dir, false).unwrap();
        assert_eq!((seen("volume/dir/file"), seen("volume/dir")), ((2000, 0o660), (2000, 0o2770)));
        assert_eq!((seen("outside"), seen("volume/link").0), (outside, 2000));
        std::fs::write(volume.join("new"), "").unwrap();
        rustix::fs::chown(volume.join("new"), None, Some(Gid::from_raw(7))).unwrap();
        group.own(&dir, false).unwrap();
        assert_eq!(seen("volume/new").0, 7, "the root was right already");
        Group { id: 2000, on_root_mismatch: false }.own(&dir, false).unwrap();
        assert_eq!(seen("volume/new").0, 2000);
    }
}
