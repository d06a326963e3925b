//! The master's end of a session.

use super::{EventCache, SessionError};
use crate::wire::{self, Answer, Answered, Frame, Made, Welcomed, Writes, kind};
use crate::{Down, Hello, Limits, Rejected, VERSION};
use bytes::Bytes;
use serde_json::Value;
use state::{Change, Event, Key, Object, Write};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Bytes of objects in one part of a snapshot.
const PART_BYTES: usize = 512 << 10;
/// Bytes of a Hello: all that a node may send before the master knows what it wants.
const HELLO_BYTES_MAX: usize = 16 << 10;

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum MasterAction {
    /// The session begins.
    Hello(Hello),
    /// Commit, then [`MasterSession::answer`].
    Writes(u64, Vec<Write>),
    /// The node lives; then [`MasterSession::renewed`].
    Renew(u64),
}

/// The session as the master sees it.
pub(crate) struct MasterSession {
    limits: Limits,
    /// The name in the node's certificate.
    node: String,
    /// Names the session to further connections.
    name: String,
    version: Option<u32>,
    is_welcomed: bool,
    /// What each unanswered batch wanted: the key of each write and a digest of its value.
    unanswered: BTreeMap<u64, Vec<(Key, u64)>>,
    last_id: u64,
}

impl MasterSession {
    /// A session with the node of a certificate.
    pub(crate) fn new(node: String, name: String, limits: Limits) -> Self {
        Self { limits, node, name, version: None, is_welcomed: false, unanswered: BTreeMap::new(), last_id: 0 }
    }

    /// How large frames may be that come. What nodes send is not inflated to more than a frame may have.
    pub(crate) fn bounds(&self) -> wire::Bounds {
        match self.version {
            None => wire::Bounds { frame_bytes_max: HELLO_BYTES_MAX, body_bytes_max: HELLO_BYTES_MAX },
            Some(_) => {
                let max = self.limits.frame_bytes_max;
                wire::Bounds { frame_bytes_max: max, body_bytes_max: max }
            }
        }
    }

    /// What follows from a frame.
    pub(crate) fn receive(&mut self, frame: Frame) -> Result<Option<MasterAction>, SessionError> {
        match (frame.kind, self.version) {
            (kind::HELLO, None) => self.hello(wire::json("hello", &frame.body)?).map(Some),
            (kind::GOODBYE, _) => {
                let wire::Goodbye { reason, refused, dismissed } = wire::json("goodbye", &frame.body)?;
                Err(SessionError::Goodbye { reason, refused, dismissed })
            }
            (kind::IGNORABLE.., _) => Ok(None),
            (_, None) => Err(SessionError::Order("something came before the hello")),
            (kind::HELLO, _) => Err(SessionError::Order("a second hello")),
            (kind::WRITES, _) => {
                let Writes { id, writes } = wire::json("writes", &frame.body)?;
                let writes: Vec<Write> = writes.into_iter().map(Write::from).collect();
                self.ask(id, writes.iter().map(|write| (write.key.clone(), digest(write.value.as_ref()))).collect())?;
                Ok(Some(MasterAction::Writes(id, writes)))
            }
            (kind::RENEW, _) => {
                let wire::Renew { id } = wire::json("renew", &frame.body)?;
                self.ask(id, Vec::new())?;
                Ok(Some(MasterAction::Renew(id)))
            }
            (other, _) => Err(wire::WireError::Kind(other).into()),
        }
    }

    /// The frames of a message. The first message must be the welcome.
    pub(crate) fn send(&mut self, message: &Down, events: &EventCache) -> Result<Vec<Bytes>, SessionError> {
        let max = self.limits.frame_bytes_max;
        let frames = match message {
            Down::Welcome(_) if self.is_welcomed => return Err(SessionError::Order("a second welcome")),
            Down::Welcome(welcome) => {
                self.is_welcomed = true;
                let welcomed = Welcomed {
                    version: self.version.unwrap_or(VERSION),
                    lineage: welcome.lineage.clone(),
                    cluster: welcome.cluster.clone(),
                    resumed: welcome.resumed,
                    session: self.name.clone(),
                    batches: self.limits.up_batches_max,
                    asks: self.limits.asks_max as usize,
                };
                vec![wire::encode(kind::WELCOME, &wire::to_json(&welcomed))]
            }
            _ if !self.is_welcomed => return Err(SessionError::Order("a message before the welcome")),
            Down::Reset { revision, objects } => parts(objects)
                .map(|(part, last)| wire::encode(kind::SNAPSHOT, &wire::snapshot(*revision, last, part)))
                .collect(),
            Down::Event(event) => vec![events.encode(event)],
            Down::Reached(revision) => {
                vec![wire::encode(kind::REACHED, &wire::to_json(&wire::Reached { revision: *revision }))]
            }
        };
        match frames.iter().any(|frame| frame.len() > max) {
            true => Err(SessionError::TooLong { what: "a message to the node", max }),
            false => Ok(frames),
        }
    }

    /// The frame that says what became of a batch.
    pub(crate) fn answer(&mut self, id: u64, outcome: Result<Vec<Event>, Rejected>) -> Bytes {
        let wanted = self.unanswered.remove(&id).unwrap_or_default();
        let outcome = match outcome {
            Ok(events) => Answered::Done(events.iter().filter_map(|event| made(&wanted, event)).collect()),
            Err(rejected) => rejected.into(),
        };
        wire::encode(kind::ANSWER, &wire::to_json(&Answer { id, outcome }))
    }

    /// The frame that answers a heartbeat.
    pub(crate) fn renewed(&mut self, id: u64, outcome: Result<(), Rejected>) -> Bytes {
        self.unanswered.remove(&id);
        let outcome = outcome.map_or_else(Answered::from, |()| Answered::Done(Vec::new()));
        wire::encode(kind::RENEWED, &wire::to_json(&Answer { id, outcome }))
    }

    fn hello(&mut self, hello: Hello) -> Result<MasterAction, SessionError> {
        if hello.node != self.node {
            return Err(SessionError::Order("the node says another name than its certificate"));
        }
        if hello.version == 0 {
            return Err(SessionError::Order("the node speaks no version"));
        }
        self.version = Some(hello.version.min(VERSION));
        Ok(MasterAction::Hello(hello))
    }

    fn ask(&mut self, id: u64, wanted: Vec<(Key, u64)>) -> Result<(), SessionError> {
        if id <= self.last_id {
            return Err(SessionError::Order("a number was used twice"));
        }
        if self.unanswered.len() >= self.limits.up_batches_max {
            return Err(SessionError::Order("too much is unanswered"));
        }
        self.last_id = id;
        self.unanswered.insert(id, wanted);
        Ok(())
    }
}

/// The slice in pieces, and whether each is the last; one empty piece when there is nothing.
fn parts(objects: &[Arc<Object>]) -> impl Iterator<Item = (&[Arc<Object>], bool)> {
    let mut rest = Some(objects);
    std::iter::from_fn(move || {
        let objects = rest.take()?;
        let mut bytes = 0;
        let fits = |object: &&Arc<Object>| {
            let is_first = bytes == 0;
            bytes += object.json().len();
            is_first || bytes <= PART_BYTES
        };
        let (part, left) = objects.split_at(objects.iter().take_while(fits).count());
        rest = (!left.is_empty()).then_some(left);
        Some((part, rest.is_none()))
    })
}

/// What a node is told of an event that its batch made. The object travels only when it is not what the node wrote.
fn made(wanted: &[(Key, u64)], event: &Event) -> Option<Made> {
    let write = wanted.iter().position(|(key, _)| key == event.key())?;
    let value = (event.change != Change::Deleted).then(|| event.object.value());
    let is_same = value.as_ref().is_none_or(|value| digest(Some(value)) == wanted[write].1);
    let object = if is_same { None } else { value };
    Some(Made { revision: event.revision, change: event.change.into(), write, object })
}

/// A digest of a value but for its revision. Within one process, against no adversary: a node could only deceive itself.
fn digest(value: Option<&Value>) -> u64 {
    struct Sink(DefaultHasher);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Sink(DefaultHasher::new());
    let Some(value) = value else { return 0 };
    for (name, field) in value.as_object().into_iter().flatten() {
        name.hash(&mut sink.0);
        // writing into a hasher does not fail
        let _ = match (name.as_str(), field.as_object()) {
            ("metadata", Some(metadata)) => metadata
                .iter()
                .filter(|(name, _)| *name != "resourceVersion")
                .try_for_each(|entry| serde_json::to_writer(&mut sink, &entry)),
            _ => serde_json::to_writer(&mut sink, field),
        };
    }
    sink.0.finish()
}
