//! The one that writes: takes what waits, checks it in order, makes it durable at once, shows it to all.

use crate::log::{Log, Superseded};
use crate::{CommitError, Limits, Shared};
use state::{Change, Event, Expect, Key, Object, Revision, World, Write};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// What the writer is asked.
pub(crate) enum Request {
    Commit { writes: Vec<Write>, reply: oneshot::Sender<Result<Vec<Event>, CommitError>> },
    Rest,
    Close,
}

/// A commit that passed its checks and waits for the disk.
struct Passed {
    events: Vec<Event>,
    reply: oneshot::Sender<Result<Vec<Event>, CommitError>>,
}

/// The writing side of a store. Runs on a thread of its own.
pub struct Writer {
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Request>,
    log: Log,
    superseded: Superseded,
    /// Revisions of the durable events in the history, oldest first.
    window: VecDeque<Revision>,
    limits: Limits,
    /// Events since the last rest.
    unrested: usize,
}

/// After so many events the writer rests unasked: while many objects change, their views must not pile up.
const UNRESTED_EVENTS_MAX: usize = 1_000;

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Request>,
        log: Log,
        superseded: Superseded,
        window: VecDeque<Revision>,
        limits: Limits,
    ) -> Self {
        Self { shared, inbox, log, superseded, window, limits, unrested: 0 }
    }

    /// Writes until [`crate::Store::close`]. Blocks.
    pub fn run(mut self) {
        while let Some(first) = self.inbox.blocking_recv() {
            if matches!(first, Request::Rest) {
                self.rest();
                continue;
            }
            let mut world = World::clone(&self.shared.world.load());
            let mut group = Vec::new();
            let mut closing = self.take(first, &mut world, &mut group);
            while !closing
                && group.len() < self.limits.group_commits_max
                && let Ok(next) = self.inbox.try_recv()
            {
                closing = self.take(next, &mut world, &mut group);
            }
            self.publish(world, group);
            if self.unrested >= UNRESTED_EVENTS_MAX {
                self.rest();
            }
            if closing {
                break;
            }
        }
    }

    /// Drops what is decoded again when somebody needs it.
    fn rest(&mut self) {
        self.unrested = 0;
        let mut world = World::clone(&self.shared.world.load());
        world.rest();
        self.shared.world.store(Arc::new(world));
        self.shared.history.rest();
    }

    /// Checks one request against the world so far; says whether it was the last.
    fn take(&self, request: Request, world: &mut World, group: &mut Vec<Passed>) -> bool {
        let (writes, reply) = match request {
            Request::Commit { writes, reply } => (writes, reply),
            // not while there is work
            Request::Rest => return false,
            Request::Close => return true,
        };
        let mut trial = world.clone();
        match writes.into_iter().map(|write| fold(&mut trial, write, &self.limits)).collect() {
            Ok(events) => {
                *world = trial;
                group.push(Passed { events, reply });
            }
            // whoever asked may be gone: then nobody minds
            Err(error) => drop(reply.send(Err(error))),
        }
        false
    }

    fn publish(&mut self, world: World, group: Vec<Passed>) {
        if group.is_empty() {
            return;
        }
        let head = world.revision();
        let events: Vec<Arc<Event>> = group.iter().flat_map(|passed| &passed.events).cloned().map(Arc::new).collect();
        let durable: Vec<Arc<Event>> =
            events.iter().filter(|event| !(self.limits.volatile)(&event.key().resource)).cloned().collect();
        if let Err(error) = self.write(&durable, head) {
            tracing::error!(%error, "the log cannot be written");
            let error = Arc::new(error);
            for passed in group {
                drop(passed.reply.send(Err(CommitError::Disk(error.clone()))));
            }
            return;
        }
        self.unrested += events.len();
        self.shared.world.store(Arc::new(world));
        self.shared.history.extend(events, head);
        for passed in group {
            drop(passed.reply.send(Ok(passed.events)));
        }
    }

    fn write(&mut self, durable: &[Arc<Event>], head: Revision) -> Result<(), redb::Error> {
        let before = self.superseded.len();
        for event in durable {
            if let Some(previous) = &event.previous {
                self.superseded.push_back((event.revision.0, previous.revision().0));
            }
            if event.change == Change::Deleted {
                self.superseded.push_back((event.revision.0, event.revision.0));
            }
        }
        let excess = (self.window.len() + durable.len()).saturating_sub(self.limits.history_events_max);
        let floor = match excess.checked_sub(1).and_then(|last| self.window.get(last)) {
            Some(revision) => *revision,
            None => Revision(0),
        };
        let result = self.log.append(durable, head, &mut self.superseded, floor);
        if result.is_err() {
            self.superseded.truncate(before);
            return result;
        }
        self.window.extend(durable.iter().map(|event| event.revision));
        self.window.drain(..excess.min(self.window.len()));
        Ok(())
    }
}

impl Drop for Writer {
    /// However the writer ends, its watchers must not wait for ever.
    fn drop(&mut self) {
        self.shared.history.close();
    }
}

/// Does one write to a world, if what it expects holds.
fn fold(world: &mut World, write: Write, limits: &Limits) -> Result<Event, CommitError> {
    let current = world.get(&write.key).cloned();
    check(&write.key, &write.expect, current.as_deref())?;
    let revision = Revision(world.revision().0 + 1);
    let event = match (write.value, current) {
        (Some(value), previous) => {
            let object = Object::encode(write.key.resource.clone(), revision, value)
                .map_err(|error| CommitError::Malformed { key: write.key.clone(), source: Some(Arc::new(error)) })?;
            if *object.key() != write.key {
                return Err(CommitError::Malformed { key: write.key, source: None });
            }
            let bytes = object.json().len();
            if bytes > limits.object_bytes_max {
                return Err(CommitError::TooLarge { key: write.key, bytes, bytes_max: limits.object_bytes_max });
            }
            let change = if previous.is_some() { Change::Modified } else { Change::Added };
            Event { revision, change, object: Arc::new(object), previous }
        }
        (None, Some(previous)) => {
            let object = previous.at(revision);
            Event { revision, change: Change::Deleted, object, previous: Some(previous) }
        }
        (None, None) => return Err(CommitError::Absent { key: write.key }),
    };
    world.fold(&event);
    Ok(event)
}

fn check(key: &Key, expect: &Expect, current: Option<&Object>) -> Result<(), CommitError> {
    match (expect, current) {
        (Expect::Absent, None) => Ok(()),
        (Expect::Absent, Some(_)) => Err(CommitError::Exists { key: key.clone() }),
        (Expect::At(_) | Expect::Uid(_), None) => Err(CommitError::Absent { key: key.clone() }),
        (Expect::At(expected), Some(object)) if object.revision() != *expected => {
            Err(CommitError::Conflict { key: key.clone(), expected: *expected, found: object.revision() })
        }
        (Expect::Uid(expected), Some(object)) if object.meta().uid != *expected => {
            let (expected, found) = (expected.clone(), object.meta().uid.clone());
            Err(CommitError::Uid { key: key.clone(), expected, found })
        }
        _ => Ok(()),
    }
}
