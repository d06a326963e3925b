//! An archive into directories.

use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use cap_std::fs::{OpenOptions, OpenOptionsExt};
use rustix::io::Errno;
use tar::EntryType;

use super::args::Unpack;
use super::members::{Member, Members};
use super::view::{Place, View};
use super::{Root, Screen, words};

/// What programs may do to files of others.
const UMASK: u32 = 0o022;

/// Takes an archive in; `Ok(false)` if something of it could not be. `Err`: it cannot be read on. Owners are the
/// agent's; times of directories are not kept.
pub(super) fn unpack(view: &View, options: &Unpack, input: impl Read, screen: &mut Screen) -> io::Result<bool> {
    let into = view.absolute(options.dir.as_deref().unwrap_or("."));
    let there = match view.place(&into) {
        Place::In { root, path, .. } => root.metadata(path).is_ok_and(|found| found.is_dir()),
        Place::Above => true,
        Place::Nowhere => false,
    };
    if !there {
        return Err(io::Error::other(format!("{}: Cannot open: {}", into.display(), words(&Errno::NOENT.into()))));
    }
    let mut unpacking = Unpacking { view, options, into, told: false };
    let mut members = Members::new(input);
    let mut fine = true;
    while let Some(member) = members.next()? {
        if let Err(problem) = unpacking.take(&member, &mut members, screen) {
            fine = false;
            screen.complain(&format!("tar: {}: {problem}\n", member.path.display()));
        }
    }
    Ok(fine)
}

struct Unpacking<'a> {
    view: &'a View,
    options: &'a Unpack,
    into: PathBuf,
    told: bool,
}

impl Unpacking<'_> {
    fn take(&mut self, member: &Member, content: &mut impl Read, screen: &mut Screen) -> Result<(), String> {
        if member.path.is_absolute() && !std::mem::replace(&mut self.told, true) {
            screen.complain("tar: Removing leading `/' from member names\n");
        }
        let to = self.named(&member.path)?;
        let (root, path, read_only) = match self.view.place(&to) {
            Place::In { root, path, read_only } => (root, path, read_only),
            Place::Above if member.kind.is_dir() => return Ok(()),
            Place::Above => return Err(cannot("open", &Errno::ISDIR.into())),
            Place::Nowhere => return Err(cannot("open", &Errno::NOENT.into())),
        };
        if member.kind.is_dir() && root.metadata(&path).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        if read_only {
            return Err(cannot("open", &Errno::ROFS.into()));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            root.create_dir_all(parent).map_err(|error| cannot("mkdir", &error))?;
        }
        match member.kind {
            EntryType::Directory => self.directory(root, &path, member),
            EntryType::Regular | EntryType::Continuous => self.file(root, &path, member, content),
            EntryType::Symlink => link(root, &path, member),
            EntryType::Link => self.hard_link(root, &path, member),
            EntryType::GNUSparse => Err("Cannot extract: sparse files are not supported".into()),
            _ => Err(cannot("create special file", &Errno::PERM.into())),
        }
    }

    /// The absolute path of a member's name.
    fn named(&self, name: &Path) -> Result<PathBuf, String> {
        let mut path = self.into.clone();
        for part in name.components() {
            match part {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => return Err("Member name contains '..'".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(path)
    }

    /// Never more than what chmod of a plain user can give.
    fn permissions(&self, member: &Member) -> Permissions {
        let mode = member.mode & 0o777;
        Permissions::from_mode(if self.options.same_modes { mode } else { mode & !UMASK })
    }

    fn directory(&self, root: &Root, path: &Path, member: &Member) -> Result<(), String> {
        root.create_dir(path).map_err(|error| cannot("mkdir", &error))?;
        // Always passable for the agent that goes on writing into it.
        let mode = self.permissions(member).mode() | 0o700;
        root.set_permissions(path, cap_std::fs::Permissions::from_std(Permissions::from_mode(mode)))
            .map_err(|error| cannot("change mode", &error))
    }

    fn file(&self, root: &Root, path: &Path, member: &Member, content: &mut impl Read) -> Result<(), String> {
        clear(root, path)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = root.open_with(path, &options).map_err(|error| cannot("open", &error))?.into_std();
        io::copy(content, &mut file).map_err(|error| cannot("write", &error))?;
        file.set_permissions(self.permissions(member)).map_err(|error| cannot("change mode", &error))?;
        let modified = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(member.modified));
        if let Some(modified) = modified
            && !self.options.touch
        {
            file.set_modified(modified).map_err(|error| cannot("utime", &error))?;
        }
        Ok(())
    }

    fn hard_link(&self, root: &Root, path: &Path, member: &Member) -> Result<(), String> {
        let Place::In { root: from, path: original, .. } = self.view.place(&self.named(&member.link)?) else {
            return Err(cannot("hard link", &Errno::NOENT.into()));
        };
        if !std::sync::Arc::ptr_eq(from, root) {
            return Err(cannot("hard link", &Errno::XDEV.into()));
        }
        clear(root, path)?;
        root.hard_link(original, root, path).map_err(|error| cannot("hard link", &error))
    }
}

/// A link the guest could make itself: a relative one. Where it leads is looked at when it is followed.
fn link(root: &Root, path: &Path, member: &Member) -> Result<(), String> {
    if member.link.is_absolute() {
        let target = member.link.display();
        return Err(format!("Cannot create symlink to '{target}': {}", words(&Errno::PERM.into())));
    }
    clear(root, path)?;
    root.symlink(&member.link, path).map_err(|error| cannot("create symlink", &error))
}

/// Makes way for a new file, so that one that is a link is replaced instead of written through.
fn clear(root: &Root, path: &Path) -> Result<(), String> {
    match root.remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot("unlink", &error)),
        _ => Ok(()),
    }
}

fn cannot(act: &str, error: &io::Error) -> String {
    format!("Cannot {act}: {}", words(error))
}
