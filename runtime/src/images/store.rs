//! The node's images on disk: `blobs/sha256/HEX`, one program or archive each, `refs/NAME.json`, which name stands for which, and
//! `partial/HEX`, what has come of blobs that are still on their way.
//!
//! Everything here blocks. The directory may be used by several processes at once (a server and `coracle image`):
//! files appear by renaming, what is changed in several steps is changed under the lock of `lock`, and a blob in use is
//! held by a shared lock on the blob itself, which the kernel takes back when its process dies. The least recently used
//! blobs go when the whole grows too large, but for those that were imported: nobody could bring them back.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempPath};

use super::ImageLimits;
use super::error::{ImageError, PullError};
use crate::digest::{file_digest, hex};

/// A used blob's time is only written again after this long, to spare the disk.
const TOUCH_AFTER: Duration = Duration::from_secs(3600);
/// Names of images remembered; beyond that the oldest goes.
const RECORDS_MAX: usize = 4096;
/// Fetches that broke off and are remembered; beyond that the oldest goes.
const PARTIALS_MAX: usize = 8;
/// They are forgotten after so long.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Blobs whose digest was checked since this process began.
const VERIFIED_MAX: usize = 4096;

/// What the image says of how its program is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// The program's name, the first of its arguments when the pod gives no command: `app.wasm`.
    pub name: String,
    /// The image's entrypoint, with the program first; empty if it has none.
    pub entrypoint: Vec<String>,
    /// What follows the entrypoint unless the pod gives arguments.
    pub cmd: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// The working directory, if the image has one.
    pub working_dir: Option<String>,
}

/// How an image came into the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// From a file, by whoever administers the machine.
    Imported,
    /// From the node's master, which has it imported.
    Master,
    /// From a registry or an address that anybody may ask.
    Public,
    /// From a registry to which credentials were shown: only by them its name may be had.
    #[default]
    Private,
}

/// What an image holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Content {
    /// A Wasm program.
    #[default]
    Program,
    /// A container image, as an archive that container engines load; the digest is its config's, which is the image's id.
    Archive,
}

/// One image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The complete name: `docker.io/library/app:latest`.
    pub reference: String,
    /// `sha256:...` of the manifest (or index) that the name stood for, or of the file behind an address.
    pub digest: String,
    /// 64 hexadecimal digits: the digest of the program, which is the blob's name.
    pub blob: String,
    /// The program's size.
    pub bytes: u64,
    /// When it was pulled or imported, RFC 3339.
    pub created: String,
    /// How it wants to be run.
    #[serde(default)]
    pub config: ImageConfig,
    /// How it came here.
    #[serde(default)]
    pub source: Source,
    /// What it is.
    #[serde(default)]
    pub content: Content,
}

/// Keeps a blob from being removed, by whatever process, as long as it lives.
#[derive(Debug, Clone)]
pub struct Pin(#[allow(dead_code)] Arc<File>);

/// The directory.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    limits: ImageLimits,
    pins: Mutex<HashMap<String, Weak<File>>>,
    verified: Mutex<HashMap<String, Stamp>>,
}

/// What tells whether a file is still the one that was checked.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Stamp {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Stamp { bytes: metadata.len(), modified, inode: metadata.ino() }
    }
}

/// What `remove` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The name that is gone.
    pub untagged: String,
    /// The program that went with it (`sha256:...`), unless another name stands for it or a container uses it.
    pub deleted: Option<String>,
}

impl Store {
    /// Makes the directories, and removes what broken-off writes have left.
    pub(super) fn open(dir: &Path, limits: ImageLimits) -> Result<Store, ImageError> {
        for part in [dir.to_owned(), dir.join("blobs/sha256"), dir.join("refs"), dir.join("partial"), dir.join("tmp")] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&part);
            made.map_err(|error| ImageError::store(&part, error))?;
        }
        let found = fs::metadata(dir).map_err(|error| ImageError::store(dir, error))?;
        if found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 != 0 {
            let kept = fs::set_permissions(dir, Permissions::from_mode(0o700));
            kept.map_err(|error| ImageError::store(dir, error))?;
        }
        let store = Store { dir: dir.to_owned(), limits, pins: Mutex::default(), verified: Mutex::default() };
        let lock = store.lock().map_err(|error| ImageError::store(dir, error))?;
        store.sweep().map_err(|error| ImageError::store(dir.join("tmp"), error))?;
        drop(lock);
        Ok(store)
    }

    pub(super) fn blob_path(&self, blob: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(blob)
    }

    fn record_path(&self, reference: &str) -> PathBuf {
        self.dir.join("refs").join(format!("{}.json", hex(&Sha256::digest(reference))))
    }

    fn lock(&self) -> io::Result<File> {
        let file = File::options().create(true).truncate(false).write(true).open(self.dir.join("lock"))?;
        file.lock()?;
        Ok(file)
    }

    /// Removes temporary files that no living process holds.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.dir.join("tmp"))? {
            let path = entry?.path();
            remove_unused(&path);
        }
        let mut partial = Vec::new();
        for entry in fs::read_dir(self.dir.join("partial"))? {
            let entry = entry?;
            partial.push((entry.metadata()?.modified()?, entry.path()));
        }
        partial.sort();
        let surplus = partial.len().saturating_sub(PARTIALS_MAX);
        for (place, (modified, path)) in partial.into_iter().enumerate() {
            if place < surplus || modified.elapsed().is_ok_and(|age| age > PARTIAL_AGE_MAX) {
                remove_unused(&path);
            }
        }
        Ok(())
    }

    /// What has come of a blob so far, to be read and continued. It becomes a blob by `commit`, and stays otherwise, unless
    /// it is told to clean up.
    pub(super) fn partial(&self, blob: &str) -> io::Result<NamedTempFile> {
        let path = self.dir.join("partial").join(blob);
        let _lock = self.lock()?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let busy = |_| io::Error::new(io::ErrorKind::WouldBlock, "another process is fetching this image");
        file.try_lock().map_err(busy)?;
        let mut file = NamedTempFile::from_parts(file, TempPath::try_from_path(path)?);
        file.disable_cleanup(true);
        Ok(file)
    }

    /// A file that becomes a blob by `commit`, and vanishes otherwise.
    pub(super) fn temporary(&self) -> io::Result<NamedTempFile> {
        // The lock of the store keeps a sweep from seeing the file before it is locked.
        let _lock = self.lock()?;
        let file = NamedTempFile::new_in(self.dir.join("tmp"))?;
        file.as_file().lock()?;
        Ok(file)
    }

    /// Makes a complete file the blob of this digest, removing others if there is no room.
    pub(super) fn commit(&self, file: NamedTempFile, blob: &str) -> Result<Pin, PullError> {
        let disk = || PullError::disk(format!("cannot store sha256:{blob}"));
        file.as_file().sync_all().map_err(disk())?;
        let _lock = self.lock().map_err(disk())?;
        if let Some(pin) = self.pin(blob).map_err(disk())? {
            return Ok(pin);
        }
        let metadata = file.as_file().metadata().map_err(disk())?;
        self.make_room(metadata.len())?;
        file.as_file().lock_shared().map_err(disk())?;
        let kept = file.persist(self.blob_path(blob)).map_err(|error| disk()(error.error))?;
        sync_dir(&self.dir.join("blobs/sha256")).map_err(disk())?;
        self.remember(blob, Stamp::of(&metadata));
        let kept = Arc::new(kept);
        lock(&self.pins).insert(blob.to_owned(), Arc::downgrade(&kept));
        Ok(Pin(kept))
    }

    /// Holds a blob that is there and intact. A damaged one is removed.
    pub(super) fn pin(&self, blob: &str) -> io::Result<Option<Pin>> {
        let path = self.blob_path(blob);
        let known = lock(&self.pins).get(blob).and_then(Weak::upgrade);
        let file = match known {
            Some(file) if file.metadata()?.nlink() > 0 => file,
            _ => match File::open(&path) {
                Ok(file) => Arc::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        // Again for a known one, which changes nothing.
        file.lock_shared()?;
        let metadata = file.metadata()?;
        if metadata.nlink() == 0 {
            return Ok(None);
        }
        if !self.is_intact(blob, &path, &metadata)? {
            tracing::warn!(file = %path.display(), "a stored image is damaged and will be fetched again");
            fs::remove_file(&path)?;
            return Ok(None);
        }
        self.touch(blob, &file, &metadata);
        let mut pins = lock(&self.pins);
        if pins.len() >= RECORDS_MAX {
            pins.retain(|_, pin| pin.strong_count() > 0);
        }
        pins.insert(blob.to_owned(), Arc::downgrade(&file));
        Ok(Some(Pin(file)))
    }

    fn is_intact(&self, blob: &str, path: &Path, metadata: &fs::Metadata) -> io::Result<bool> {
        if lock(&self.verified).get(blob) == Some(&Stamp::of(metadata)) {
            return Ok(true);
        }
        let intact = file_digest(path)? == blob;
        if intact {
            self.remember(blob, Stamp::of(metadata));
        }
        Ok(intact)
    }

    fn remember(&self, blob: &str, stamp: Stamp) {
        let mut verified = lock(&self.verified);
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(blob.to_owned(), stamp);
    }

    /// Only the order of removal depends on it.
    fn touch(&self, blob: &str, file: &File, metadata: &fs::Metadata) {
        let now = SystemTime::now();
        let old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age > TOUCH_AFTER);
        if metadata.modified().is_ok_and(old)
            && file.set_modified(now).is_ok()
            && let Ok(metadata) = file.metadata()
        {
            self.remember(blob, Stamp::of(&metadata));
        }
    }

    /// Removes the least recently used blobs that nobody holds until there is room; the caller holds the lock.
    fn make_room(&self, wanted: u64) -> Result<(), PullError> {
        let disk = || PullError::disk("cannot make room in the image store");
        let mut blobs = Vec::new();
        for entry in fs::read_dir(self.dir.join("blobs/sha256")).map_err(disk())? {
            let entry = entry.map_err(disk())?;
            if let Ok(metadata) = entry.metadata() {
                blobs.push((metadata.modified().map_err(disk())?, metadata.len(), entry.path()));
            }
        }
        blobs.sort();
        let mut used: u64 = blobs.iter().map(|(_, bytes, _)| bytes).sum();
        if used.saturating_add(wanted) <= self.limits.bytes_max {
            return Ok(());
        }
        let records = self.records().map_err(disk())?;
        let is_imported =
            |blob: &str| records.iter().any(|(_, stored)| stored.blob == blob && stored.source == Source::Imported);
        for (_, bytes, path) in blobs {
            if used.saturating_add(wanted) <= self.limits.bytes_max {
                return Ok(());
            }
            let blob = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !is_imported(&blob) && remove_unused(&path) {
                used = used.saturating_sub(bytes);
                for (record, stored) in &records {
                    if stored.blob == blob {
                        fs::remove_file(record).map_err(disk())?;
                    }
                }
            }
        }
        match used.saturating_add(wanted) <= self.limits.bytes_max {
            true => Ok(()),
            false => Err(PullError::Full { bytes: wanted, used, bytes_max: self.limits.bytes_max }),
        }
    }

    /// What a name stands for, whether or not its blob is still there.
    pub(super) fn find(&self, reference: &str) -> io::Result<Option<Stored>> {
        let found = self.read_record(&self.record_path(reference))?;
        Ok(found.filter(|stored| stored.reference == reference))
    }

    /// Absent or unreadable as JSON is none: it is only a cache.
    fn read_record(&self, path: &Path) -> io::Result<Option<Stored>> {
        let mut text = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(2 * self.limits.manifest_bytes_max).read_to_end(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(serde_json::from_slice(&text).ok().filter(|stored: &Stored| is_digest(&stored.blob)))
    }

    /// Makes a name stand for a blob.
    pub(super) fn record(&self, stored: &Stored) -> io::Result<()> {
        let text = serde_json::to_vec(stored)?;
        let mut file = self.temporary()?;
        let _lock = self.lock()?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        let path = self.record_path(&stored.reference);
        file.persist(&path).map_err(|error| error.error)?;
        sync_dir(&self.dir.join("refs"))?;
        self.bound_records(&path)
    }

    fn bound_records(&self, newest: &Path) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join("refs"))? {
            let entry = entry?;
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
        found.sort();
        let mut surplus = found.len().saturating_sub(RECORDS_MAX);
        for (_, path) in found.into_iter().filter(|(_, path)| path != newest) {
            if surplus == 0 {
                break;
            }
            if self.read_record(&path)?.is_none_or(|stored| stored.source != Source::Imported) {
                fs::remove_file(path)?;
                surplus -= 1;
            }
        }
        Ok(())
    }

    fn records(&self) -> io::Result<Vec<(PathBuf, Stored)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join("refs"))? {
            let path = entry?.path();
            if let Some(stored) = self.read_record(&path)? {
                found.push((path, stored));
            }
        }
        Ok(found)
    }

    /// All images whose program is there, by name.
    pub(super) fn list(&self) -> io::Result<Vec<Stored>> {
        let found = self.records()?.into_iter().map(|(_, stored)| stored);
        let mut found: Vec<Stored> = found.filter(|stored| self.blob_path(&stored.blob).is_file()).collect();
        found.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(found)
    }

    /// Forgets a name, and its program if no other name stands for it and no container uses it.
    pub(super) fn remove(&self, reference: &str) -> io::Result<Option<Removed>> {
        let _lock = self.lock()?;
        let Some(stored) = self.find(reference)? else { return Ok(None) };
        fs::remove_file(self.record_path(reference))?;
        let blob = stored.blob;
        let path = self.blob_path(&blob);
        let unused = !self.records()?.iter().any(|(_, other)| other.blob == blob) && remove_unused(&path);
        Ok(Some(Removed { untagged: stored.reference, deleted: unused.then(|| format!("sha256:{blob}")) }))
    }
}

/// Removes a file that nobody holds; whoever waits to hold it sees then that it is gone.
fn remove_unused(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    file.try_lock().is_ok() && fs::remove_file(path).is_ok()
}

/// A panic elsewhere leaves these maps usable.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// `sha256:...` of some bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &Store, name: &str, bytes: &[u8], age: u64) -> Result<Pin, PullError> {
        let mut file = store.temporary().unwrap();
        file.write_all(bytes).unwrap();
        let blob = hex(&Sha256::digest(bytes));
        let pin = store.commit(file, &blob)?;
        pin.0.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        let (created, config) = (String::new(), ImageConfig::default());
        let digest = format!("sha256:{blob}");
        let (bytes, source, content) = (bytes.len() as u64, Source::Public, Content::Program);
        let stored = Stored { reference: name.into(), digest, blob, bytes, created, config, source, content };
        store.record(&stored).unwrap();
        Ok(pin)
    }

    fn names(store: &Store) -> Vec<String> {
        store.list().unwrap().into_iter().map(|stored| stored.reference).collect()
    }

    #[test]
    fn the_least_recently_used_goes_unless_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let limits = ImageLimits { bytes_max: 250, ..ImageLimits::default() };
        let store = Store::open(dir.path(), limits).unwrap();
        let held = put(&store, "a", &[1; 100], 900).unwrap();
        drop(put(&store, "b", &[2; 100], 500).unwrap());
        drop(put(&store, "c", &[3; 100], 700).unwrap());
        // b was the older of what nobody holds when c came.
        assert_eq!(names(&store), ["a", "c"]);
        // Another process sees the same lock.
        let other = Store::open(dir.path(), ImageLimits { bytes_max: 250, ..ImageLimits::default() }).unwrap();
        let refused = put(&other, "d", &[4; 200], 0).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "200 bytes do not fit into the image store: 100 of 250 bytes are in use or imported"
        );
        drop(held);
        drop(put(&other, "d", &[4; 200], 0).unwrap());
        assert_eq!(names(&store), ["d"]);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn what_was_imported_stays_and_what_broke_off_can_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let limits = ImageLimits { bytes_max: 250, ..ImageLimits::default() };
        let store = Store::open(dir.path(), limits).unwrap();
        drop(put(&store, "imported", &[1; 100], 900).unwrap());
        let imported = store.find("imported").unwrap().unwrap();
        store.record(&Stored { source: Source::Imported, ..imported }).unwrap();
        drop(put(&store, "b", &[2; 100], 500).unwrap());
        drop(put(&store, "c", &[3; 100], 100).unwrap());
        assert_eq!(names(&store), ["c", "imported"]);
        assert!(matches!(put(&store, "d", &[4; 200], 0), Err(PullError::Full { used: 100, .. })));

        let blob = hex(&Sha256::digest(b"whole"));
        let mut file = store.partial(&blob).unwrap();
        assert!(store.partial(&blob).is_err(), "one at a time");
        file.write_all(b"wh").unwrap();
        drop(file);
        // also in the next process
        let store = Store::open(dir.path(), limits).unwrap();
        let mut file = store.partial(&blob).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "wh");
        file.write_all(b"ole").unwrap();
        drop(store.commit(file, &blob).unwrap());
        assert!(store.pin(&blob).unwrap().is_some());
        assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn damage_is_seen_and_names_share_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), ImageLimits::default()).unwrap();
        drop(put(&store, "a", b"program", 10).unwrap());
        drop(put(&store, "b", b"program", 10).unwrap());
        assert_eq!(store.remove("a").unwrap().unwrap().deleted, None);
        let blob = hex(&Sha256::digest(b"program"));
        let again = Store::open(dir.path(), ImageLimits::default()).unwrap();
        fs::write(store.blob_path(&blob), b"pr0gram").unwrap();
        assert!(again.pin(&blob).unwrap().is_none());
        assert!(!store.blob_path(&blob).exists());
        drop(put(&store, "b", b"program", 10).unwrap());
        let held = store.pin(&blob).unwrap().unwrap();
        assert_eq!(again.remove("b").unwrap().unwrap().deleted, None);
        assert!(again.remove("b").unwrap().is_none());
        drop(held);
        assert!(store.blob_path(&blob).exists());
    }
}
