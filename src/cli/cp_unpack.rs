//! The local half of `cp` from a pod: a tar stream becomes files below one path, and nowhere else.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tar::{Archive, EntryType};
use tokio::sync::mpsc;

use super::cp::clean;

/// The reading end of the stream.
pub struct Pipe {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Pipe {
    /// A pipe out of a channel; for threads that may block.
    pub fn new(receiver: mpsc::Receiver<Bytes>) -> Pipe {
        Pipe { receiver, piece: Bytes::new() }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// Writes the archive's files; `prefix` is what all their names begin with and is replaced by `destination`. `again` is the
/// command that copies links too.
pub fn unpack(mut from: impl Read, prefix: &str, destination: &Path, again: &str) -> io::Result<()> {
    let mut warned_of_links = false;
    let mut archive = Archive::new(&mut from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        let Some(rest) = rest_of(&name, prefix) else { return Err(io::Error::other("tar contents corrupted")) };
        let Some(path) = below(destination, rest) else {
            let outside = clean(&format!("{}/{rest}", destination.display()));
            eprintln!("warning: file {outside:?} is outside target destination, skipping");
            continue;
        };
        match kind {
            EntryType::Directory => fs::create_dir_all(&path).map_err(|error| at(&path, &error))?,
            EntryType::Symlink => {
                let link = link_of(&entry);
                let hint = match warned_of_links {
                    false => format!(" (consider using \"{again}\")"),
                    true => String::new(),
                };
                warned_of_links = true;
                eprintln!("warning: skipping symlink: {:?} -> {link:?}{hint}", path.display().to_string());
            }
            EntryType::Link => {
                let target = link_of(&entry);
                match rest_of(&target, prefix).and_then(|rest| below(destination, rest)) {
                    Some(first) => {
                        make_parent(&path)?;
                        fs::copy(&first, &path).map_err(|error| at(&path, &error))?;
                    }
                    None => eprintln!("warning: skipping link: {:?} -> {target:?}", path.display().to_string()),
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                make_parent(&path)?;
                let mut file = File::create(&path).map_err(|error| at(&path, &error))?;
                io::copy(&mut entry, &mut file).map_err(|error| at(&path, &error))?;
            }
            _ => eprintln!("warning: skipping special file: {:?}", path.display().to_string()),
        }
    }
    // What follows the archive's end is read too, so that who sends it can end.
    io::copy(&mut from, &mut io::sink()).map(drop)
}

fn link_of<R: Read>(entry: &tar::Entry<'_, R>) -> String {
    entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned()).unwrap_or_default()
}

fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|error| at(parent, &error)),
        None => Ok(()),
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A name without the prefix that all have; none if it has another.
fn rest_of<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    // `tar` keeps the `./` that it was called with.
    let name = if prefix.starts_with("./") { name } else { name.strip_prefix("./").unwrap_or(name) };
    let name = if prefix.is_empty() && name == "." { "" } else { name };
    if prefix.is_empty() && name.starts_with('/') {
        return None;
    }
    let rest = name.strip_prefix(prefix)?;
    // A name that only begins alike (`x-2` for `x`) is another one.
    (prefix.is_empty() || rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// The path of an entry, if it does not lead out of the destination.
fn below(destination: &Path, rest: &str) -> Option<PathBuf> {
    let relative = clean(rest.trim_start_matches('/'));
    match relative.as_str() {
        "." => Some(destination.to_path_buf()),
        ".." => None,
        path if path.starts_with("../") => None,
        path => Some(destination.join(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut out = Builder::new(Vec::new());
        for (name, kind, data) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            // names that the crate itself would refuse to write
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if is_link {
                header.as_gnu_mut().unwrap().linkname[..data.len()].copy_from_slice(data.as_bytes());
            }
            let content = if is_link { "" } else { data };
            header.set_size(content.len() as u64);
            header.set_cksum();
            out.append(&header, content.as_bytes()).unwrap();
        }
        out.into_inner().unwrap()
    }

    fn files(root: &Path) -> Vec<String> {
        fn walk(path: &Path, root: &Path, out: &mut Vec<String>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => walk(&path, root, out),
                    false => out.push(format!(
                        "{}={}",
                        path.strip_prefix(root).unwrap().display(),
                        fs::read_to_string(&path).unwrap()
                    )),
                }
            }
        }
        let mut out = Vec::new();
        walk(root, root, &mut out);
        out.sort();
        out
    }

    #[test]
    fn what_arrives() {
        use EntryType::{Directory, Link, Regular, Symlink};
        let check = |prefix: &str, entries: &[(&str, EntryType, &str)], expected: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            unpack(archive(entries).as_slice(), prefix, &dir.path().join("to"), "x").unwrap();
            assert_eq!(files(dir.path()), expected, "{prefix} {entries:?}");
        };
        check("tmp/x", &[("tmp/x", Regular, "1")], &["to=1"]);
        check("tmp/x", &[("tmp/x/", Directory, ""), ("tmp/x/a/b", Regular, "1")], &["to/a/b=1"]);
        check("", &[("./", Directory, ""), ("./a", Regular, "1")], &["to/a=1"]);
        check("x", &[("x/../../out", Regular, "1"), ("x/ok", Regular, "2")], &["to/ok=2"]);
        check(
            "x",
            &[("x/a", Regular, "1"), ("x/s", Symlink, "/etc/passwd"), ("x/h", Link, "x/a")],
            &["to/a=1", "to/h=1"],
        );
        check("x", &[("x/s", Symlink, ".."), ("x/s/a", Regular, "1")], &["to/s/a=1"]);
        check("x", &[("x/h", Link, "x/../../../etc/passwd")], &[]);
    }

    #[test]
    fn what_is_refused() {
        let refused = |prefix: &str, name: &str| {
            let dir = tempfile::tempdir().unwrap();
            let bytes = archive(&[(name, EntryType::Regular, "1")]);
            unpack(bytes.as_slice(), prefix, &dir.path().join("to"), "x").unwrap_err().to_string()
        };
        assert_eq!(refused("tmp/x", "etc/passwd"), "tar contents corrupted");
        assert_eq!(refused("tmp/x", "tmp/x-2"), "tar contents corrupted");
        assert_eq!(refused("", "/etc/passwd"), "tar contents corrupted");
        let dir = tempfile::tempdir().unwrap();
        assert!(unpack([1u8; 600].as_slice(), "x", &dir.path().join("to"), "x").is_err());
    }

    #[test]
    fn there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("deep/empty")).unwrap();
        fs::write(from.join("deep/file"), "x".repeat(100_000)).unwrap();
        let long = "n".repeat(180);
        fs::write(from.join(&long), "long").unwrap();
        let mut bytes = Vec::new();
        super::super::cp_pack::pack(&from, "data/copy", &mut bytes).unwrap();
        let to = dir.path().join("to");
        unpack(bytes.as_slice(), "data/copy", &to, "x").unwrap();
        assert_eq!(files(&to).len(), 2);
        assert!(to.join("deep/empty").is_dir());
        assert_eq!(fs::read_to_string(to.join("deep/file")).unwrap().len(), 100_000);
        assert_eq!(fs::read_to_string(to.join(long)).unwrap(), "long");
    }
}
