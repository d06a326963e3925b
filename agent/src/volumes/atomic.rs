//! Writes a payload so that a reader sees all of the old files or all of the new ones.
//!
//! The kubelet's layout: the files live in a directory named after the time, `..data` is a link to it, and every top-level
//! name is a link into `..data`. An update swaps the one link. All through a directory handle; nothing escapes it.

use super::ownership::Group;
use super::payload::Payload;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Makes `dir` show exactly `payload`, readable by a group if there is one; `true` when anything had to change. `now` names
/// the new directory.
pub fn write(dir: &Dir, payload: &Payload, group: Option<Group>, now: Timestamp) -> io::Result<bool> {
    let old = dir.read_link_contents(DATA).ok();
    let bits = group.map_or(0, |_| Group::bits(false, true));
    if let Some(old) = &old
        && is_current(dir, old, payload, bits)
    {
        return Ok(false);
    }
    let name = format!("..{}", now.strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    dir.create_dir(&name)?;
    let fresh = dir.open_dir(&name)?;
    for (path, file) in payload {
        if let Some(parent) = Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fresh.create_dir_all(parent)?;
        }
        let mut out = fresh.open_with(path, OpenOptions::new().write(true).create_new(true).mode(file.mode))?;
        out.write_all(&file.bytes)?;
        // the process's umask must not narrow what the volume promises
        out.set_permissions(Permissions::from_mode(file.mode))?;
    }
    if let Some(group) = group {
        group.own(&fresh, true)?;
        group.own_one(dir, &".".into(), true)?;
    }
    let _ = dir.remove_file(DATA_NEXT);
    dir.symlink_contents(&name, DATA_NEXT)?;
    dir.rename(DATA_NEXT, dir, DATA)?;
    link_names(dir, payload)?;
    if let Some(old) = old {
        dir.remove_dir_all(old)?;
    }
    Ok(true)
}

/// One link per top-level name; links to names that are gone are removed.
fn link_names(dir: &Dir, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for entry in dir.entries()? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(&*name) {
            dir.remove_file(&*name)?;
        }
    }
    for name in wanted {
        match dir.symlink_contents(format!("{DATA}/{name}"), name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

fn is_current(dir: &Dir, data: &Path, payload: &Payload, bits: u32) -> bool {
    let Ok(dir) = dir.open_dir(data) else { return false };
    let same = |(path, file): (&String, &super::payload::File)| {
        dir.read(path).is_ok_and(|bytes| bytes == file.bytes)
            && dir.metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o777 == file.mode | bits)
    };
    payload.iter().all(same) && count_files(&dir) == Some(payload.len())
}

fn count_files(dir: &Dir) -> Option<usize> {
    let mut files = 0;
    for entry in dir.entries().ok()? {
        let entry = entry.ok()?;
        files += if entry.file_type().ok()?.is_dir() { count_files(&entry.open_dir().ok()?)? } else { 1 };
    }
    Some(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::payload::File;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { bytes: text.into(), mode: 0o640 };
        files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    #[test]
    fn an_update_swaps_all_files_and_drops_what_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(root.path(), cap_std::ambient_authority()).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None, at(1)).unwrap());
        assert_eq!(std::fs::read_to_string(root.path().join("sub/b")).unwrap(), "2");
        assert!(!write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None, at(2)).unwrap(), "nothing changed");
        assert!(write(&dir, &payload(&[("a", "3")]), None, at(3)).unwrap());
        assert_eq!(std::fs::read_to_string(root.path().join("a")).unwrap(), "3");
        assert!(!root.path().join("sub").exists());
        let names: BTreeSet<String> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), 3, "one directory, ..data and a: {names:?}");
    }
}
