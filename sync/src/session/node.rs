//! The node's end of a session.

use super::SessionError;
use crate::wire::{self, Answer, Answered, Frame, Part, Renew, Welcomed, WriteBody, Writes, kind};
use crate::{Down, Hello, Limits, Rejected};
use bytes::Bytes;
use state::{Change, Event, Object, Revision, Write};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What further connections of an open session need.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    /// The session's name, under which they join.
    pub(crate) name: String,
    /// Asks that may be under way.
    pub(crate) asks: usize,
}

/// What the driver is to do. `T` is whatever it wants back with an answer.
#[derive(Debug)]
pub(crate) enum NodeAction<T> {
    /// The session is open; further connections may join it.
    Opened(Opened),
    /// Hand it to the node.
    Deliver(Down),
    /// A batch or a heartbeat is answered.
    Answer(T, Result<Vec<Event>, Rejected>),
    /// Dial a connection for this call.
    Dial(u64),
}

/// The session as the node sees it.
pub(crate) struct NodeSession<T> {
    limits: Limits,
    is_open: bool,
    /// What may be unanswered at once.
    batches_max: usize,
    next_id: u64,
    unanswered: BTreeMap<u64, (Vec<Write>, T)>,
    /// Must a reset come before anything else?
    owes_reset: bool,
    snapshot: Option<Snapshot>,
}

/// A snapshot of which parts are missing.
struct Snapshot {
    at: Revision,
    objects: Vec<Arc<Object>>,
    bytes: usize,
}

impl<T> NodeSession<T> {
    /// A session that begins with the returned frame.
    pub(crate) fn begin(hello: &Hello, limits: Limits) -> (Self, Bytes) {
        let session = Self {
            limits,
            is_open: false,
            batches_max: 0,
            next_id: 1,
            unanswered: BTreeMap::new(),
            owes_reset: true,
            snapshot: None,
        };
        (session, wire::encode(kind::HELLO, &wire::to_json(hello)))
    }

    /// How large frames may be that come.
    pub(crate) fn bounds(limits: &Limits) -> wire::Bounds {
        wire::Bounds { frame_bytes_max: limits.frame_bytes_max, body_bytes_max: limits.body_bytes_max }
    }

    /// What follows from a frame.
    pub(crate) fn receive(&mut self, frame: Frame) -> Result<Vec<NodeAction<T>>, SessionError> {
        match (frame.kind, self.is_open) {
            (kind::WELCOME, false) => self.welcome(wire::json("welcome", &frame.body)?),
            (kind::GOODBYE, _) => {
                let wire::Goodbye { reason, refused, dismissed } = wire::json("goodbye", &frame.body)?;
                Err(SessionError::Goodbye { reason, refused, dismissed })
            }
            (kind::IGNORABLE.., _) => Ok(Vec::new()),
            (kind::WELCOME, true) => Err(SessionError::Order("a second welcome")),
            (_, false) => Err(SessionError::Order("something came before the welcome")),
            (kind::SNAPSHOT, _) => self.part(wire::read_snapshot(frame.body)?),
            (kind::EVENT | kind::REACHED, _) if self.owes_reset || self.snapshot.is_some() => {
                Err(SessionError::Order("a change came before the snapshot it changes"))
            }
            (kind::EVENT, _) => Ok(vec![NodeAction::Deliver(Down::Event(wire::read_event(frame.body)?))]),
            (kind::REACHED, _) => {
                let wire::Reached { revision } = wire::json("reached", &frame.body)?;
                Ok(vec![NodeAction::Deliver(Down::Reached(revision))])
            }
            (kind::ANSWER | kind::RENEWED, _) => self.answer(wire::json("answer", &frame.body)?),
            (kind::DIAL, _) => {
                let wire::Dial { stream } = wire::json("dial", &frame.body)?;
                Ok(vec![NodeAction::Dial(stream)])
            }
            (other, _) => Err(wire::WireError::Kind(other).into()),
        }
    }

    /// Whether another batch or heartbeat may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.unanswered.len() < self.batches_max
    }

    /// The frame of a batch. One that is too large is refused here, and `token` given back.
    pub(crate) fn write(&mut self, writes: Vec<Write>, token: T) -> Result<Bytes, (T, Rejected)> {
        let id = self.next_id;
        let body = Writes { id, writes: writes.iter().cloned().map(WriteBody::from).collect() };
        let body = wire::to_json(&body);
        if body.len() > self.limits.frame_bytes_max {
            let refusal =
                format!("{} bytes of writes at once; {} are allowed", body.len(), self.limits.frame_bytes_max);
            return Err((token, Rejected::Failed(refusal)));
        }
        self.next_id += 1;
        self.unanswered.insert(id, (writes, token));
        Ok(wire::encode(kind::WRITES, &body))
    }

    /// The frame of a heartbeat.
    pub(crate) fn renew(&mut self, token: T) -> Bytes {
        let id = self.next_id;
        self.next_id += 1;
        self.unanswered.insert(id, (Vec::new(), token));
        wire::encode(kind::RENEW, &wire::to_json(&Renew { id }))
    }

    /// Ends it: what has no answer now never gets one.
    pub(crate) fn end(&mut self) -> Vec<T> {
        std::mem::take(&mut self.unanswered).into_values().map(|(_, token)| token).collect()
    }

    fn welcome(&mut self, welcomed: Welcomed) -> Result<Vec<NodeAction<T>>, SessionError> {
        if welcomed.version == 0 || welcomed.version > crate::VERSION {
            return Err(SessionError::Order("the master speaks a version that was not offered"));
        }
        self.is_open = true;
        self.batches_max = welcomed.batches.clamp(1, self.limits.up_batches_max.max(1));
        self.owes_reset = !welcomed.resumed;
        let asks = welcomed.asks.min(self.limits.asks_max as usize);
        let opened = Opened { name: welcomed.session.clone(), asks };
        Ok(vec![NodeAction::Opened(opened), NodeAction::Deliver(Down::Welcome(welcomed.welcome()))])
    }

    fn part(&mut self, part: Part) -> Result<Vec<NodeAction<T>>, SessionError> {
        let max = self.limits.snapshot_bytes_max;
        let snapshot = self.snapshot.get_or_insert_with(|| Snapshot { at: part.at, objects: Vec::new(), bytes: 0 });
        if snapshot.at != part.at {
            return Err(SessionError::Order("parts of different snapshots"));
        }
        snapshot.bytes = snapshot.bytes.saturating_add(part.bytes);
        if snapshot.bytes > max {
            return Err(SessionError::TooLong { what: "the node's slice", max });
        }
        snapshot.objects.extend(part.objects);
        if !part.last {
            return Ok(Vec::new());
        }
        self.owes_reset = false;
        let whole = self.snapshot.take().map(|whole| Down::Reset { revision: whole.at, objects: whole.objects });
        Ok(whole.map(NodeAction::Deliver).into_iter().collect())
    }

    fn answer(&mut self, answer: Answer) -> Result<Vec<NodeAction<T>>, SessionError> {
        let Some((writes, token)) = self.unanswered.remove(&answer.id) else {
            return Err(SessionError::Order("an answer to what was not asked"));
        };
        let outcome = match answer.outcome {
            Answered::Done(made) => made.into_iter().map(|made| event_of(&writes, made)).collect(),
            Answered::Conflict(message) => Err(Rejected::Conflict(message)),
            Answered::Failed(message) => Err(Rejected::Failed(message)),
            Answered::Disconnected => Err(Rejected::Disconnected),
        };
        Ok(vec![NodeAction::Answer(token, outcome)])
    }
}

/// The event that a write has made: its object is what was written, unless the master says otherwise.
fn event_of(writes: &[Write], made: wire::Made) -> Result<Event, Rejected> {
    let unreadable = |what: &str| Rejected::Failed(format!("the master's answer {what}"));
    let write = writes.get(made.write).ok_or_else(|| unreadable("names a write that was not made"))?;
    let names = || {
        let mut names = serde_json::json!({"metadata": {"name": &*write.key.name}});
        if !write.key.namespace.is_empty() {
            names["metadata"]["namespace"] = (*write.key.namespace).into();
        }
        names
    };
    let value = made.object.or_else(|| write.value.clone()).unwrap_or_else(names);
    let object = Object::encode(write.key.resource.clone(), made.revision, value)
        .map_err(|error| unreadable(&format!("holds no object: {error}")))?;
    let change = Change::from(made.change);
    Ok(Event { revision: made.revision, change, object: Arc::new(object), previous: None })
}
