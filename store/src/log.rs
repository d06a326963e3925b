//! The log on disk: one record per change, numbered by revision; the current state is the last record of each key.
//!
//! Each change's JSON is written once. A record that a later one supersedes stays for the length of the history, then the
//! next append takes it away. At start the log is read through once, in order.

use crate::{Limits, OpenError};
use manifests::Resource;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use state::{Change, Event, Key, Object, Revision, World};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Layout of this file; raised when it changes.
const FORMAT: &str = "format";
const FORMAT_KNOWN: u64 = 1;
/// Revisions up to here may be in use: volatile ones leave no record, and must not be given out again.
const RESERVED: &str = "reserved";
/// Records superseded up to this revision are gone.
const FLOOR: &str = "floor";
/// Revisions reserved at a time: one small write per so many volatile changes.
const RESERVE_REVISIONS: u64 = 10_000;

/// A record that is in the way: superseded at revision `.0`, written at `.1`.
pub(crate) type Superseded = VecDeque<(u64, u64)>;

pub(crate) struct Log {
    database: Database,
    reserved: u64,
    floor: u64,
}

/// What the log said at start.
pub(crate) struct Loaded {
    pub world: World,
    pub events: Vec<Arc<Event>>,
    pub floor: Revision,
    pub head: Revision,
    pub superseded: Superseded,
}

pub(crate) fn open(file: &Path, limits: &Limits) -> Result<(Log, Loaded), OpenError> {
    let disk = |source: redb::Error| OpenError::Disk { file: file.to_owned(), source: Box::new(source) };
    let database = Builder::new().set_cache_size(limits.cache_bytes).create(file).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { file: file.to_owned() },
        error => disk(error.into()),
    })?;
    let meta = read_meta(&database).map_err(disk)?;
    if let Some(found) = meta.format
        && found != FORMAT_KNOWN
    {
        return Err(OpenError::Format { file: file.to_owned(), found, known: FORMAT_KNOWN });
    }
    let mut loaded = read_log(file, &database, meta.floor)?;
    // what was reserved may have been given out to volatile changes before the last stop
    let head = loaded.head.max(Revision(meta.reserved));
    loaded.head = head;
    loaded.world.advance(head);
    Ok((Log { database, reserved: meta.reserved, floor: meta.floor }, loaded))
}

#[derive(Default)]
struct Meta {
    format: Option<u64>,
    reserved: u64,
    floor: u64,
}

fn read_meta(database: &Database) -> Result<Meta, redb::Error> {
    let read = database.begin_read()?;
    let table = match read.open_table(META) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Meta::default()),
        Err(error) => return Err(error.into()),
    };
    let number = |name: &str| -> Result<Option<u64>, redb::Error> { Ok(table.get(name)?.map(|value| value.value())) };
    Ok(Meta { format: number(FORMAT)?, reserved: number(RESERVED)?.unwrap_or(0), floor: number(FLOOR)?.unwrap_or(0) })
}

fn read_log(file: &Path, database: &Database, floor: u64) -> Result<Loaded, OpenError> {
    let disk = |source: redb::Error| OpenError::Disk { file: file.to_owned(), source: Box::new(source) };
    let floor = Revision(floor);
    let mut loaded =
        Loaded { world: World::default(), events: Vec::new(), floor, head: floor, superseded: Superseded::new() };
    let read = database.begin_read().map_err(|error| disk(error.into()))?;
    let table = match read.open_table(LOG) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(loaded),
        Err(error) => return Err(disk(error.into())),
    };
    for entry in table.iter().map_err(|error| disk(error.into()))? {
        let (revision, bytes) = entry.map_err(|error| disk(error.into()))?;
        let revision = Revision(revision.value());
        let (change, object) = decode(revision, bytes.value()).map_err(|source| OpenError::Damaged {
            file: file.to_owned(),
            revision,
            source,
        })?;
        let previous = loaded.world.get(object.key()).cloned();
        if let Some(previous) = &previous {
            loaded.superseded.push_back((revision.0, previous.revision().0));
        }
        if change == Change::Deleted {
            loaded.superseded.push_back((revision.0, revision.0));
        }
        let event = Event { revision, change, object: Arc::new(object), previous };
        loaded.world.fold(&event);
        loaded.head = revision;
        if revision > floor {
            loaded.events.push(Arc::new(event));
        }
    }
    Ok(loaded)
}

impl Log {
    /// Appends a group of changes in one durable transaction, and takes away what the history no longer needs.
    /// `head` is the revision after them.
    pub(crate) fn append(
        &mut self,
        events: &[Arc<Event>],
        head: Revision,
        superseded: &mut Superseded,
        floor: Revision,
    ) -> Result<(), redb::Error> {
        let reserved = if head.0 > self.reserved { head.0 + RESERVE_REVISIONS } else { self.reserved };
        if events.is_empty() && reserved == self.reserved {
            return Ok(());
        }
        let outdated = superseded.partition_point(|(at, _)| *at <= floor.0);
        let mut write = self.database.begin_write()?;
        write.set_two_phase_commit(true);
        {
            let mut log = write.open_table(LOG)?;
            for event in events {
                log.insert(event.revision.0, encode(event).as_slice())?;
            }
            for (_, revision) in superseded.range(..outdated) {
                log.remove(revision)?;
            }
            let mut meta = write.open_table(META)?;
            if self.reserved == 0 {
                meta.insert(FORMAT, FORMAT_KNOWN)?;
            }
            if reserved != self.reserved {
                meta.insert(RESERVED, reserved)?;
            }
            if outdated > 0 {
                meta.insert(FLOOR, floor.0)?;
            }
        }
        write.commit()?;
        self.reserved = reserved;
        if outdated > 0 {
            self.floor = floor.0;
            superseded.drain(..outdated);
        }
        Ok(())
    }
}

/// `change, group length, plural length, group, plural, JSON`; lengths are one byte.
fn encode(event: &Event) -> Vec<u8> {
    let key: &Key = event.key();
    let (group, plural) = (key.resource.group.as_bytes(), key.resource.plural.as_bytes());
    let json = event.object.json();
    let mut record = Vec::with_capacity(3 + group.len() + plural.len() + json.len());
    let change = match event.change {
        Change::Added => 0,
        Change::Modified => 1,
        Change::Deleted => 2,
    };
    // names of groups and plurals are DNS names: at most 253 bytes
    record.extend_from_slice(&[change, group.len() as u8, plural.len() as u8]);
    record.extend_from_slice(group);
    record.extend_from_slice(plural);
    record.extend_from_slice(json);
    record
}

fn decode(revision: Revision, record: &[u8]) -> Result<(Change, Object), Option<state::DecodeError>> {
    let parse = || -> Option<(Change, Resource, &[u8])> {
        let (head, rest) = record.split_at_checked(3)?;
        let change = match head[0] {
            0 => Change::Added,
            1 => Change::Modified,
            2 => Change::Deleted,
            _ => return None,
        };
        let (group, rest) = rest.split_at_checked(head[1].into())?;
        let (plural, json) = rest.split_at_checked(head[2].into())?;
        let text = |bytes| std::str::from_utf8(bytes).ok();
        Some((change, known(text(group)?, text(plural)?), json))
    };
    let (change, resource, json) = parse().ok_or(None)?;
    let object = Object::decode(resource, revision, json.to_vec().into()).map_err(Some)?;
    Ok((change, object))
}

/// The static name of a built-in resource, so that thousands of keys do not each own one.
fn known(group: &str, plural: &str) -> Resource {
    let row = manifests::kinds().iter().find(|kind| kind.group == group && kind.plural == plural);
    row.map_or_else(|| Resource::new(group, plural), manifests::Kind::resource)
}
