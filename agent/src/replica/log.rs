//! The file that holds the copy: a snapshot, and after it what has changed since.
//!
//! A line that names the format, then records: length (u32, little-endian), the first eight bytes of the body's SHA-256, the
//! body. A body is a sequence of entries, each the length of its head (u32), the head as JSON, and an object's own JSON where
//! the head says so. What comes before an `End` is valid together, or not at all: a batch that was cut off by a crash is as if
//! it had never begun. A new snapshot replaces the file in one rename. Readable by its owner only, since Secrets are in it.
//! Deliberately absent: when to write, and what.

use super::Saved;
use k8s_openapi::api::core::v1::PodStatus;
use manifests::Resource;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use state::{Key, Object, Revision, World};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sync::{ClusterFacts, Position};

/// First line of a file in this format.
const FORMAT: &[u8] = b"coracle replica 1\n";
/// Bytes before a record's body.
const RECORD_HEAD: usize = 12;
/// A record of a batch is closed when its body has this size.
const RECORD_BYTES: usize = 1 << 20;
/// Larger records were not written by us.
const RECORD_BYTES_MAX: usize = 64 << 20;
/// Changes may take this much room before a new snapshot is written in their place, and twice that of the snapshot.
const CHANGES_BYTES_MIN: u64 = 4 << 20;

/// Why a copy cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk's answer.
    #[error("{act}")]
    Disk {
        /// What was tried.
        act: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another version wrote it, or it is no such file at all.
    #[error("not of a format that this version reads")]
    Format,
    /// What was written whole is not whole any more.
    #[error("damaged at byte {at}")]
    Damaged {
        /// Where the damaged record begins.
        at: u64,
    },
    /// What was written makes no sense.
    #[error("record at byte {at} cannot be understood")]
    Content {
        /// Where the record begins.
        at: u64,
        /// What was wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn disk(act: &'static str) -> impl FnOnce(io::Error) -> LogError {
    move |source| LogError::Disk { act, source }
}

/// One entry, without the object's JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Head {
    /// An object, whose JSON of so many bytes follows.
    Put { group: String, plural: String, revision: u64, bytes: usize },
    /// An object is gone.
    Delete { group: String, plural: String, namespace: String, name: String },
    /// A pod's status that the master does not know; `None`: it does now.
    Status { uid: String, status: Option<Box<PodStatus>> },
    /// What holds for the whole cluster.
    Facts(ClusterFacts),
    /// From where the master may continue.
    Position(Option<Position>),
    /// What came before is valid.
    End,
}

/// How far a file is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes of the snapshot.
    snapshot: u64,
    /// Bytes in all.
    end: u64,
}

/// Entries to be written together.
#[derive(Default)]
pub struct Batch {
    records: Vec<u8>,
    body: Vec<u8>,
}

impl Batch {
    /// What holds for the whole cluster.
    pub fn facts(&mut self, facts: &ClusterFacts) {
        self.add(&Head::Facts(facts.clone()), &[]);
    }

    /// From where the master may continue.
    pub fn position(&mut self, position: Option<Position>) {
        self.add(&Head::Position(position), &[]);
    }

    /// An object is as given.
    pub fn put(&mut self, object: &Object) {
        let Resource { group, plural } = object.key().resource.clone();
        let (group, plural) = (group.into_owned(), plural.into_owned());
        let json = object.json();
        self.add(&Head::Put { group, plural, revision: object.revision().0, bytes: json.len() }, json);
    }

    /// An object is gone.
    pub fn delete(&mut self, key: &Key) {
        let Resource { group, plural } = key.resource.clone();
        let (group, plural) = (group.into_owned(), plural.into_owned());
        let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
        self.add(&Head::Delete { group, plural, namespace, name }, &[]);
    }

    /// A status that the master does not know, or does now.
    pub fn status(&mut self, uid: &str, status: Option<&PodStatus>) {
        self.add(&Head::Status { uid: uid.into(), status: status.cloned().map(Box::new) }, &[]);
    }

    fn add(&mut self, head: &Head, raw: &[u8]) {
        // maps with string keys: nothing in it can fail to be JSON
        let head = serde_json::to_vec(head).unwrap_or_default();
        self.body.extend_from_slice(&length(&head));
        self.body.extend_from_slice(&head);
        self.body.extend_from_slice(raw);
        if self.body.len() >= RECORD_BYTES {
            self.close();
        }
    }

    fn close(&mut self) {
        let body = std::mem::take(&mut self.body);
        self.records.extend_from_slice(&length(&body));
        self.records.extend_from_slice(&checksum(&body));
        self.records.extend_from_slice(&body);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add(&Head::End, &[]);
        if !self.body.is_empty() {
            self.close();
        }
        self.records
    }
}

/// No body comes near 4 GiB: objects are bounded, and a record is closed after 1 MiB.
fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let mut short = [0; 8];
    for (to, from) in short.iter_mut().zip(Sha256::digest(body)) {
        *to = from;
    }
    short
}

/// The file, to be written.
pub struct Log {
    path: PathBuf,
    /// `None`: there is no file to which more can be added.
    open: Option<(File, Place)>,
}

impl Log {
    /// Continues a file that was read, or makes one at the first snapshot.
    pub fn new(path: PathBuf, place: Option<Place>) -> Self {
        let open = place.and_then(|place| match reopen(&path, place) {
            Ok(file) => Some((file, place)),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the copy of the cluster on disk is written anew");
                None
            }
        });
        Self { path, open }
    }

    /// Whether the next thing to write is a snapshot, because there is none or because it has become small beside what changed.
    pub fn wants_snapshot(&self) -> bool {
        let Some((_, place)) = &self.open else { return true };
        let changes = place.end - place.snapshot;
        changes > CHANGES_BYTES_MIN && changes > 2 * place.snapshot
    }

    /// Adds changes; they are on the disk when this returns.
    ///
    /// # Errors
    /// The disk's. A snapshot is wanted next then.
    pub fn append(&mut self, batch: Batch) -> Result<(), LogError> {
        let Some((mut file, mut place)) = self.open.take() else {
            let source = io::Error::new(io::ErrorKind::NotFound, "no snapshot to add to");
            return Err(LogError::Disk { act: "append", source });
        };
        let bytes = batch.finish();
        file.write_all(&bytes).map_err(disk("append"))?;
        file.sync_data().map_err(disk("flush what was appended"))?;
        place.end += bytes.len() as u64;
        self.open = Some((file, place));
        Ok(())
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// The disk's; the old file stays then.
    pub fn replace(&mut self, batch: Batch) -> Result<(), LogError> {
        self.open = None;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        make_private(dir).map_err(disk("make the directory"))?;
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(disk("make a new file"))?;
        let bytes = batch.finish();
        let written = file.write_all(FORMAT).and_then(|()| file.write_all(&bytes)).and_then(|()| file.sync_all());
        written.map_err(disk("write a new file"))?;
        fs::rename(&new, &self.path).map_err(disk("put the new file in place"))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(disk("flush the directory"))?;
        let end = (FORMAT.len() + bytes.len()) as u64;
        self.open = Some((file, Place { snapshot: end, end }));
        Ok(())
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn reopen(path: &Path, place: Place) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    // what a crash left half-written must not stand before what comes next
    file.set_len(place.end)?;
    file.seek(SeekFrom::Start(place.end))?;
    Ok(file)
}

/// Reads a file; `None` when there is none.
///
/// # Errors
/// [`LogError`]: nothing of it can be relied on.
pub fn read(path: &Path) -> Result<Option<Saved>, LogError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(disk("open the file")(error)),
    };
    let size = file.metadata().map_err(disk("look at the file"))?.len();
    let mut reader = Reader { file: BufReader::new(file), at: 0, size };
    let mut format = [0; FORMAT.len()];
    if !reader.fill(&mut format)? || format != FORMAT {
        return Err(LogError::Format);
    }
    let mut found = Found::default();
    while let Some((at, body)) = reader.record()? {
        found.take(&body, reader.at).map_err(|source| LogError::Content { at, source })?;
    }
    // a file appears with its first snapshot in it
    let (Some(facts), Some(place)) = (found.facts, found.place) else { return Err(LogError::Format) };
    let Found { world, position, mut statuses, .. } = found;
    statuses.retain(|uid, _| world.by_uid(uid).is_some());
    Ok(Some(Saved { facts, position, world, statuses, log: place }))
}

struct Reader {
    file: BufReader<File>,
    at: u64,
    size: u64,
}

impl Reader {
    /// `false` when the file ends before.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<bool, LogError> {
        match self.file.read_exact(bytes) {
            Ok(()) => {
                self.at += bytes.len() as u64;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(disk("read")(error)),
        }
    }

    /// The next record's place and body; `None` at the end, or where a crash cut the file off.
    fn record(&mut self) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let at = self.at;
        let mut head = [0; RECORD_HEAD];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let [a, b, c, d, expected @ ..] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length == 0 || self.at + length as u64 > self.size {
            return Ok(None);
        }
        if length > RECORD_BYTES_MAX {
            return Err(LogError::Damaged { at });
        }
        let mut body = vec![0; length];
        if !self.fill(&mut body)? {
            return Ok(None);
        }
        if checksum(&body) == expected {
            return Ok(Some((at, body)));
        }
        // the last record may have been written in part; one that others follow was whole once
        if self.at == self.size { Ok(None) } else { Err(LogError::Damaged { at }) }
    }
}

#[derive(Default)]
struct Found {
    world: World,
    facts: Option<ClusterFacts>,
    position: Option<Position>,
    statuses: HashMap<String, PodStatus>,
    place: Option<Place>,
    pending: Vec<Change>,
}

enum Change {
    Put(Arc<Object>),
    Head(Head),
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

impl Found {
    /// Takes one record, which ends at `end`.
    fn take(&mut self, mut body: &[u8], end: u64) -> Result<(), Fault> {
        while !body.is_empty() {
            let length = u32::from_le_bytes(*split(&mut body, 4)?.first_chunk().ok_or("no length")?) as usize;
            match serde_json::from_slice(split(&mut body, length)?)? {
                Head::Put { group, plural, revision, bytes } => {
                    let json = bytes::Bytes::copy_from_slice(split(&mut body, bytes)?);
                    let object = Object::decode(Resource::new(group, plural), Revision(revision), json)?;
                    self.pending.push(Change::Put(Arc::new(object)));
                }
                Head::End => {
                    self.apply();
                    let snapshot = self.place.map_or(end, |place| place.snapshot);
                    self.place = Some(Place { snapshot, end });
                }
                head => self.pending.push(Change::Head(head)),
            }
        }
        Ok(())
    }

    fn apply(&mut self) {
        for change in self.pending.drain(..) {
            match change {
                Change::Put(object) => self.world.put(object),
                Change::Head(Head::Delete { group, plural, namespace, name }) => {
                    self.world.remove(&Key::new(Resource::new(group, plural), &namespace, &name));
                }
                Change::Head(Head::Status { uid, status: Some(status) }) => {
                    self.statuses.insert(uid, *status);
                }
                Change::Head(Head::Status { uid, status: None }) => {
                    self.statuses.remove(&uid);
                }
                Change::Head(Head::Facts(facts)) => self.facts = Some(facts),
                Change::Head(Head::Position(position)) => {
                    if let Some(position) = &position {
                        self.world.advance(position.revision);
                    }
                    self.position = position;
                }
                Change::Head(Head::Put { .. } | Head::End) => {}
            }
        }
    }
}

fn split<'a>(body: &mut &'a [u8], length: usize) -> Result<&'a [u8], Fault> {
    let (head, rest) = body.split_at_checked(length).ok_or("an entry is longer than its record")?;
    *body = rest;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn object(name: &str, revision: u64, text: &str) -> Object {
        let value = json!({"metadata": {"namespace": "n", "name": name, "uid": name}, "data": {"text": text}});
        let resource = Resource::of::<k8s_openapi::api::core::v1::Secret>();
        Object::encode(resource, Revision(revision), value).unwrap()
    }

    fn facts() -> ClusterFacts {
        serde_json::from_value(json!({
            "clusterCidr": "10.42.0.0/16", "serviceCidr": "10.43.0.0/16", "clusterDomain": "cluster.local",
            "api": "10.0.0.1:6443", "nodeCaPem": "", "serverCaPem": "",
        }))
        .unwrap()
    }

    fn snapshot(texts: &[&str]) -> Batch {
        let mut batch = Batch::default();
        batch.facts(&facts());
        for (revision, text) in (1..).zip(texts) {
            batch.put(&object(&format!("o{revision}"), revision, text));
        }
        let revision = Revision(texts.len() as u64);
        batch.position(Some(Position { lineage: "a".into(), revision }));
        batch
    }

    fn names(saved: &Saved) -> Vec<String> {
        saved.world.iter().map(|object| format!("{}@{}", object.key().name, object.revision())).collect()
    }

    #[test]
    fn a_crash_leaves_what_was_whole_and_damage_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private/world");
        assert!(read(&path).unwrap().is_none());
        let mut log = Log::new(path.clone(), None);
        assert!(log.wants_snapshot());
        log.replace(snapshot(&["one", "two"])).unwrap();
        assert!(!log.wants_snapshot());
        let first = fs::metadata(&path).unwrap().len();
        let mut batch = Batch::default();
        batch.put(&object("o3", 3, &"x".repeat(RECORD_BYTES)));
        batch.delete(object("o1", 1, "").key());
        batch.position(Some(Position { lineage: "a".into(), revision: Revision(4) }));
        log.append(batch).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(fs::metadata(dir.path().join("private")).unwrap().permissions().mode() & 0o777, 0o700);
        let whole = fs::read(&path).unwrap();
        let saved = read(&path).unwrap().unwrap();
        assert_eq!(names(&saved), ["o2@2", "o3@3"]);
        assert_eq!(saved.position().unwrap().revision, Revision(4));
        assert_eq!(saved.facts, facts());
        assert_eq!(saved.log, Place { snapshot: first, end: whole.len() as u64 });

        // cut off anywhere behind the snapshot: the snapshot, and what comes next goes where it ended
        let cuts = [first, first + 1, first + 12, first + 5000, whole.len() as u64 - 1];
        for cut in cuts {
            fs::write(&path, &whole[..cut as usize]).unwrap();
            let saved = read(&path).unwrap().unwrap();
            assert_eq!(names(&saved), ["o1@1", "o2@2"], "cut at {cut}");
            let mut log = Log::new(path.clone(), Some(saved.log));
            let mut batch = Batch::default();
            batch.put(&object("o9", 9, "later"));
            log.append(batch).unwrap();
            assert_eq!(names(&read(&path).unwrap().unwrap()), ["o1@1", "o2@2", "o9@9"]);
        }
        // a flipped bit in what others follow, a snapshot cut off, another format, nothing
        let mut flipped = whole.clone();
        flipped[FORMAT.len() + RECORD_HEAD + 9] ^= 4;
        for damaged in [flipped, whole[..first as usize - 1].to_vec(), b"coracle replica 2\n".to_vec(), Vec::new()] {
            fs::write(&path, damaged).unwrap();
            assert!(read(&path).is_err());
        }
    }

    #[test]
    fn changes_give_way_to_a_snapshot_when_they_have_grown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("world");
        let mut log = Log::new(path.clone(), None);
        log.replace(snapshot(&["one"])).unwrap();
        let mut written = 0;
        while !log.wants_snapshot() {
            let mut batch = Batch::default();
            batch.put(&object("o1", 2 + written, &"y".repeat(RECORD_BYTES / 2)));
            log.append(batch).unwrap();
            written += 1;
        }
        assert!(written > 4, "{written}");
        log.replace(snapshot(&["one"])).unwrap();
        assert!(!log.wants_snapshot());
        assert_eq!(names(&read(&path).unwrap().unwrap()), ["o1@1"]);
        // what cannot be written is said, and the next try is a snapshot
        fs::remove_dir_all(dir.path()).unwrap();
        fs::write(dir.path(), b"in the way").unwrap();
        assert!(log.replace(snapshot(&[])).is_err() && log.wants_snapshot());
        fs::remove_file(dir.path()).unwrap();
    }
}
