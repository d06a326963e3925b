//! Removes a tree that guests wrote, whatever they wrote: links, depths, names, a file system mounted into it.
//!
//! What lies very deep is moved up to the root before it is looked into, so that depth costs neither stack nor descriptors.
//! All is unmounted first; whatever is mounted again meanwhile is not gone into.

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use rustix::fs::{AtFlags, OFlags, StatxFlags};
use std::io;
use std::path::Path;

/// Directories inside each other that are gone into.
const DEPTH_MAX: usize = 32;
/// What directories are called while they wait for their turn.
const MOVED: &str = ".coracle-removed";

/// Unmounts everything below a directory of the node's own and removes it. That it is not there is fine. Blocking.
///
/// # Errors
/// What stopped it; the rest stays for another try.
pub fn tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    super::mountpoints::clear(path)?;
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let parent = match Dir::open_ambient_dir(parent, cap_std::ambient_authority()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match parent.symlink_metadata(name) {
        Err(error) => return gone(Err(error)),
        Ok(meta) if !meta.is_dir() => return gone(parent.remove_file(name)),
        Ok(_) => {}
    }
    let root = open(&parent, Path::new(name))?;
    empty(&root)?;
    gone(parent.remove_dir(name))
}

/// Removes everything in a directory.
fn empty(root: &Dir) -> io::Result<()> {
    let mut moved = 0_u64;
    // what was moved up may not show in the listing under way
    while root.entries()?.next().is_some() {
        clear(root, root, DEPTH_MAX, &mut moved)?;
    }
    Ok(())
}

/// Removes what is in a directory; what lies too deep waits in the root.
fn clear(root: &Dir, dir: &Dir, depth: usize, moved: &mut u64) -> io::Result<()> {
    for entry in dir.entries()? {
        let entry = entry?;
        let name = entry.file_name();
        if !entry.file_type()?.is_dir() {
            dir.remove_file(&name)?;
            continue;
        }
        if dir.remove_dir(&name).is_ok() {
            continue;
        }
        // a directory can only be emptied or moved by whoever may write into it
        let below = open(dir, Path::new(&name))?;
        if mount_of(&below)? != mount_of(root)? {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{} is a mount point", name.display())));
        }
        if depth > 0 {
            clear(root, &below, depth - 1, moved)?;
            drop(below);
            dir.remove_dir(&name)?;
        } else {
            lift(root, dir, Path::new(&name), moved)?;
        }
    }
    Ok(())
}

/// The mount that a directory is part of; 0 where the kernel does not say.
fn mount_of(dir: &Dir) -> io::Result<u64> {
    let found = rustix::fs::statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(if found.stx_mask & StatxFlags::MNT_ID.bits() != 0 { found.stx_mnt_id } else { 0 })
}

fn lift(root: &Dir, dir: &Dir, name: &Path, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        let target = format!("{MOVED}.{moved}");
        if root.symlink_metadata(&target).is_err() {
            return dir.rename(name, root, target);
        }
    }
}

/// Opens a directory for reading and writing, even one that its owner closed to himself.
fn open(dir: &Dir, name: &Path) -> io::Result<Dir> {
    let opened = open_no_follow(dir, name);
    let closed = match &opened {
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        Ok(opened) => opened.dir_metadata()?.permissions().mode() & 0o700 != 0o700,
    };
    if !closed {
        return opened;
    }
    dir.set_permissions(name, Permissions::from_mode(0o700))?;
    open_no_follow(dir, name)
}

fn open_no_follow(dir: &Dir, name: &Path) -> io::Result<Dir> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed());
    Ok(Dir::from_std_file(dir.open_with(name, &options)?.into_std()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::mountpoints;

    #[test]
    fn whatever_was_written_goes_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        let pod = root.path().join("pod");
        std::fs::create_dir_all(pod.join("a/b")).unwrap();
        std::fs::create_dir(pod.join(".coracle-removed.1")).unwrap();
        std::fs::write(pod.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, pod.join("a/link")).unwrap();
        std::os::unix::fs::symlink("/", pod.join("root")).unwrap();
        let mut deep = Dir::open_ambient_dir(&pod, cap_std::ambient_authority()).unwrap();
        for _ in 0..3000 {
            deep.create_dir("down").unwrap();
            deep = deep.open_dir("down").unwrap();
        }
        drop(deep);
        std::fs::set_permissions(pod.join("a/b"), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        tree(&pod).unwrap();
        assert!(!pod.exists());
        assert!(outside.join("kept").exists());
        tree(&pod).unwrap();
    }

    #[test]
    fn what_is_mounted_is_unmounted_and_kept() {
        if !mountpoints::may_mount() {
            return println!("not run: needs the right to mount");
        }
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        let pod = root.path().join("pod");
        std::fs::create_dir_all(pod.join("a/bind")).unwrap();
        std::fs::create_dir_all(pod.join("memory")).unwrap();
        mountpoints::memory(&pod.join("memory"), Some(1 << 20)).unwrap();
        std::fs::write(pod.join("memory/file"), "x").unwrap();
        let opened = Dir::open_ambient_dir(&outside, cap_std::ambient_authority()).unwrap();
        mountpoints::bind(&opened, &pod.join("a/bind")).unwrap();
        assert!(pod.join("a/bind/kept").exists());
        // through a mount nothing is removed even if nobody unmounted
        let dir = Dir::open_ambient_dir(&pod, cap_std::ambient_authority()).unwrap();
        assert_eq!(empty(&dir).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(dir);
        tree(&pod).unwrap();
        assert!(outside.join("kept").exists() && !pod.exists());
        assert_eq!(mountpoints::below(root.path()).unwrap(), Vec::<std::path::PathBuf>::new());
    }
}
