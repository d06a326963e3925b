//! The kernel's mounts as volumes use them: file systems in memory, binds of what was opened, and taking all of it away.
//!
//! Mounting needs CAP_SYS_ADMIN; an agent without it never comes here. Deliberately absent: what is mounted where (`mod`).

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, unmount};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Bit of CAP_SYS_ADMIN in a capability set.
const CAP_SYS_ADMIN: u32 = 21;
/// Rounds of unmounting before what is left counts as stuck.
const ROUNDS_MAX: usize = 8;

/// Whether this process may mount.
pub fn may_mount() -> bool {
    static MAY: LazyLock<bool> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
        u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set >> CAP_SYS_ADMIN & 1 == 1)
    });
    *MAY
}

/// The mount points at and below a path, deepest last.
pub fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    // the kernel names what it mounted on, not the links that lead there
    let path = path.canonicalize()?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(&path))
        .collect();
    found.sort();
    Ok(found)
}

/// Whether something is mounted exactly there. What is mounted is not touched: its server may be gone.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(true) };
    let parent = parent.canonicalize()?;
    Ok(below(&parent)?.contains(&parent.join(name)))
}

/// mountinfo writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = (byte == b'\\').then(|| bytes.get(at + 1..at + 4)).flatten();
        let code = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                plain.push(code);
                at += 4;
            }
            None => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(plain).into()
}

/// Unmounts everything at and below a path. Lazily: whoever still has a file open there keeps it, and the path is free.
///
/// # Errors
/// When something stays mounted.
pub fn clear(path: &Path) -> io::Result<()> {
    for _ in 0..ROUNDS_MAX {
        let mut points = match below(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if points.is_empty() {
            return Ok(());
        }
        while let Some(point) = points.pop() {
            match unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // it went with one above it
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                other => other?,
            }
        }
    }
    Err(io::Error::other(format!("{} is still mounted on", path.display())))
}

/// Mounts a file system in memory of at most this size.
pub fn memory(path: &Path, bytes_max: Option<u64>) -> io::Result<()> {
    let options = match bytes_max {
        Some(bytes) => format!("mode=0777,size={bytes}"),
        None => "mode=0777".into(),
    };
    let options = CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount("tmpfs", path, "tmpfs", flags, options.as_c_str())?)
}

/// Binds what was opened, whatever its name leads to by now, to a path of the node's own.
pub fn bind(opened: impl AsFd, path: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", opened.as_fd().as_raw_fd());
    Ok(mount_bind_recursive(source, path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mount_points_are_read_as_written() {
        for (written, read) in
            [("/a/b", "/a/b"), ("/with\\040blank", "/with blank"), ("/x\\134040", "/x\\040"), ("\\", "\\")]
        {
            assert_eq!(unescape(written), PathBuf::from(read));
        }
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/self")).unwrap());
    }
}
