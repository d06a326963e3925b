//! Directories into an archive.

use std::collections::btree_set;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use cap_std::fs::{File, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

use super::view::{PATH_BYTES_MAX, Place, View};
use super::{Screen, words};

/// Writes the archive; `Ok(false)` if something is not in it that should be. `Err`: the archive cannot be written.
pub(super) fn pack(
    view: &View,
    dir: Option<&str>,
    paths: &[String],
    archive: impl Write,
    screen: &mut Screen,
) -> io::Result<bool> {
    let mut packing = Packing { view, archive: Builder::new(archive), screen, fine: true, told: false };
    for path in paths {
        let absolute = match dir {
            Some(dir) => view.absolute(&format!("{dir}/{path}")),
            None => view.absolute(path),
        };
        let name = packing.member_name(path);
        packing.tree(absolute, name)?;
    }
    packing.archive.into_inner()?.flush()?;
    Ok(packing.fine)
}

struct Packing<'a, W: Write> {
    view: &'a View,
    archive: Builder<W>,
    screen: &'a mut Screen,
    fine: bool,
    told: bool,
}

/// A directory whose entries are being written.
struct Open {
    path: PathBuf,
    name: PathBuf,
    rest: btree_set::IntoIter<OsString>,
}

impl<W: Write> Packing<'_, W> {
    /// The name in the archive: relative, whatever was asked for.
    fn member_name(&mut self, path: &str) -> PathBuf {
        if path.starts_with('/') && !std::mem::replace(&mut self.told, true) {
            self.screen.complain("tar: Removing leading `/' from member names\n");
        }
        let parts: Vec<Component> = Path::new(path).components().collect();
        let after = parts.iter().rposition(|part| *part == Component::ParentDir).map_or(0, |at| at + 1);
        parts[after..].iter().filter(|part| matches!(part, Component::Normal(_))).collect()
    }

    fn problem(&mut self, path: &Path, act: &str, error: &io::Error) {
        self.fine = false;
        self.screen.complain(&format!("tar: {}: {act}: {}\n", path.display(), words(error)));
    }

    fn tree(&mut self, path: PathBuf, name: PathBuf) -> io::Result<()> {
        let mut open: Vec<Open> = self.entry(path, name)?.into_iter().collect();
        while let Some(dir) = open.last_mut() {
            match dir.rest.next() {
                Some(entry) => {
                    let (path, name) = (dir.path.join(&entry), dir.name.join(&entry));
                    open.extend(self.entry(path, name)?);
                }
                None => drop(open.pop()),
            }
        }
        Ok(())
    }

    /// Writes one entry; a directory is to be gone through.
    fn entry(&mut self, path: PathBuf, name: PathBuf) -> io::Result<Option<Open>> {
        if path.as_os_str().len() > PATH_BYTES_MAX {
            self.problem(&path, "Cannot stat", &rustix::io::Errno::NAMETOOLONG.into());
            return Ok(None);
        }
        let found = match self.view.look(&path) {
            Ok(found) => found,
            Err(error) => {
                self.problem(&path, "Cannot stat", &error);
                return Ok(None);
            }
        };
        match found {
            None => self.directory(path, name, None),
            Some(found) if found.is_dir() => self.directory(path, name, Some(found)),
            Some(found) if found.is_file() => self.file(&path, &name).map(|()| None),
            Some(found) if found.is_symlink() => self.link(&path, &name, &found).map(|()| None),
            Some(_) => {
                self.screen.complain(&format!("tar: {}: special file ignored\n", path.display()));
                Ok(None)
            }
        }
    }

    fn directory(&mut self, path: PathBuf, name: PathBuf, found: Option<Metadata>) -> io::Result<Option<Open>> {
        // The root has no name.
        if !name.as_os_str().is_empty() {
            let mut header = header(EntryType::Directory, found.as_ref());
            self.archive.append_data(&mut header, name.join(""), io::empty())?;
        }
        match self.view.names(&path) {
            Ok(names) => Ok(Some(Open { path, name, rest: names.into_iter() })),
            Err(error) => {
                self.problem(&path, "Cannot open", &error);
                Ok(None)
            }
        }
    }

    fn file(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let opened = self.open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (found, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.problem(path, "Cannot open", &error);
                return Ok(());
            }
        };
        let mut header = header(EntryType::Regular, Some(&found));
        header.set_size(found.len());
        let mut content = Exactly { file, left: found.len(), problem: None };
        self.archive.append_data(&mut header, name, &mut content)?;
        if let Some(error) = content.problem.take() {
            self.problem(path, "Cannot read; padding with zeros", &error);
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let Place::In { root, path, .. } = self.view.place(path) else { return Err(rustix::io::Errno::NOENT.into()) };
        // What was a file a moment ago may be a pipe now, which would wait for a writer.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed());
        let file = root.open_with(path, &options)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("no longer a file")),
        }
    }

    fn link(&mut self, path: &Path, name: &Path, found: &Metadata) -> io::Result<()> {
        let Place::In { root, path: inner, .. } = self.view.place(path) else { return Ok(()) };
        match root.read_link_contents(inner) {
            Ok(target) => {
                let mut header = header(EntryType::Symlink, Some(found));
                self.archive.append_link(&mut header, name, target)
            }
            Err(error) => {
                self.problem(path, "Cannot read link", &error);
                Ok(())
            }
        }
    }
}

fn header(kind: EntryType, found: Option<&Metadata>) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(found.map_or(0o755, |found| found.mode() & 0o7777));
    header.set_uid(found.map_or(0, |found| found.uid().into()));
    header.set_gid(found.map_or(0, |found| found.gid().into()));
    header.set_mtime(found.map_or(0, |found| u64::try_from(found.mtime()).unwrap_or(0)));
    header
}

/// As many bytes as the header promised, whatever happens to the file meanwhile.
struct Exactly {
    file: File,
    left: u64,
    problem: Option<io::Error>,
}

impl Read for Exactly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let into = &mut into[..room];
        let read = match self.problem {
            None => self.file.read(into),
            Some(_) => Ok(0),
        };
        let read = match read {
            Ok(0) if room > 0 => {
                self.problem.get_or_insert_with(|| io::Error::other("file shrank"));
                into.fill(0);
                room
            }
            Ok(read) => read,
            Err(error) => {
                self.problem = Some(error);
                into.fill(0);
                room
            }
        };
        self.left -= read as u64;
        Ok(read)
    }
}
