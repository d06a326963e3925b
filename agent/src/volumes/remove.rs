//! Removes a tree that guests wrote, whatever they wrote: links, depths, names, a file system mounted into it.
//!
//! A directory that is not empty is moved up to the root before it is looked into, so that depth costs neither stack nor
//! descriptors. The kernel lets nobody move or remove a mount point, so nothing is ever removed through one.

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use rustix::fs::OFlags;
use std::io;
use std::path::Path;

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
    loop {
        let mut clean = true;
        for entry in root.entries()? {
            let entry = entry?;
            clean = false;
            let name = entry.file_name();
            if !entry.file_type()?.is_dir() {
                root.remove_file(&name)?;
            } else if root.remove_dir(&name).is_err() {
                let dir = open(root, Path::new(&name))?;
                flatten(root, &dir, &mut moved)?;
                drop(dir);
                root.remove_dir(&name)?;
            }
        }
        if clean {
            return Ok(());
        }
    }
}

/// Empties one directory; what is in its directories waits in the root.
fn flatten(root: &Dir, dir: &Dir, moved: &mut u64) -> io::Result<()> {
    for entry in dir.entries()? {
        let entry = entry?;
        let name = entry.file_name();
        if !entry.file_type()?.is_dir() {
            dir.remove_file(&name)?;
        } else if dir.remove_dir(&name).is_err() {
            // a directory can only be moved by whoever may write into it
            open(dir, Path::new(&name))?;
            lift(root, dir, Path::new(&name), moved)?;
        }
    }
    Ok(())
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
        std::fs::set_permissions(pod.join("a/b"), std::os::unix::fs::PermissionsExt::from_mode(0)).unwrap();
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
        assert!(empty(&dir).is_err());
        drop(dir);
        tree(&pod).unwrap();
        assert!(outside.join("kept").exists() && !pod.exists());
        assert_eq!(mountpoints::below(root.path()).unwrap(), Vec::<std::path::PathBuf>::new());
    }
}
