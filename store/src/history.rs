//! The last events, shared by all watchers: each watcher holds only its place.

use crate::{Limits, Shared, WatchError};
use state::{Change, Event, Key, Object, Revision};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// Events a watcher takes at a time, so that it locks the history seldom.
const BATCH_EVENTS_MAX: usize = 64;

pub(crate) struct History {
    ring: RwLock<Ring>,
    head: watch::Sender<Head>,
    limits: Limits,
}

struct Ring {
    events: BTreeMap<Revision, Arc<Event>>,
    /// Where the last change of each volatile object is, if it is one that the next makes superfluous. Heartbeats of a
    /// large cluster would push everything else out.
    fleeting: HashMap<Key, Revision>,
    bytes: usize,
    /// Every event after this revision is here.
    floor: Revision,
}

#[derive(Clone, Copy)]
struct Head {
    revision: Revision,
    closed: bool,
}

impl History {
    pub(crate) fn new(events: Vec<Arc<Event>>, floor: Revision, revision: Revision, limits: Limits) -> Self {
        let ring = Ring { events: BTreeMap::new(), fleeting: HashMap::new(), bytes: 0, floor };
        let history =
            Self { ring: RwLock::new(ring), head: watch::Sender::new(Head { revision, closed: false }), limits };
        history.extend(events, revision);
        history
    }

    /// Appends events and wakes the watchers.
    pub(crate) fn extend(&self, events: impl IntoIterator<Item = Arc<Event>>, revision: Revision) {
        {
            let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                if (self.limits.volatile)(&event.key().resource) {
                    ring.supersede(&event);
                }
                ring.bytes += event.object.json().len();
                ring.events.insert(event.revision, event);
            }
            while ring.events.len() > self.limits.history_events_max || ring.bytes > self.limits.history_bytes_max {
                let Some((_, oldest)) = ring.events.pop_first() else { break };
                ring.bytes -= oldest.object.json().len();
                ring.floor = oldest.revision;
                if ring.fleeting.get(oldest.key()) == Some(&oldest.revision) {
                    ring.fleeting.remove(oldest.key());
                }
            }
        }
        self.head.send_modify(|head| head.revision = revision);
    }

    /// Drops typed views that nobody has asked for since the world rested.
    pub(crate) fn rest(&self) {
        // freed when nobody waits for the ring
        let mut replaced = Vec::new();
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for event in ring.events.values_mut() {
            let rested = |object: &Arc<Object>| object.rested().map(Arc::new);
            let (object, previous) = (rested(&event.object), event.previous.as_ref().and_then(rested));
            if object.is_none() && previous.is_none() {
                continue;
            }
            let rested = Event {
                object: object.unwrap_or_else(|| event.object.clone()),
                previous: previous.or_else(|| event.previous.clone()),
                ..**event
            };
            replaced.push(std::mem::replace(event, Arc::new(rested)));
        }
        drop(ring);
    }

    /// Ends all watches.
    pub(crate) fn close(&self) {
        self.head.send_modify(|head| head.closed = true);
    }

    pub(crate) fn watch(shared: &Arc<Shared>, from: Revision) -> Result<Watch, WatchError> {
        let ring = shared.history.ring.read().unwrap_or_else(PoisonError::into_inner);
        if from < ring.floor {
            return Err(WatchError::Expired { oldest: ring.floor });
        }
        let head = shared.history.head.subscribe();
        Ok(Watch { shared: shared.clone(), head, seen: from, taken: VecDeque::new() })
    }

    /// The next events after `seen`; none when there are none yet.
    fn after(&self, seen: Revision) -> Result<VecDeque<Arc<Event>>, WatchError> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if seen < ring.floor {
            return Err(WatchError::Expired { oldest: ring.floor });
        }
        let after = ring.events.range((Bound::Excluded(seen), Bound::Unbounded));
        Ok(after.take(BATCH_EVENTS_MAX).map(|(_, event)| event.clone()).collect())
    }

    /// Whether a watcher that has seen so much is neither behind nor too slow.
    fn ends_at(&self, seen: Revision) -> bool {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        seen >= ring.floor && ring.events.last_key_value().is_none_or(|(last, _)| *last <= seen)
    }
}

impl Ring {
    /// Takes away the change that a volatile object had before this one.
    fn supersede(&mut self, event: &Event) {
        let before = if is_fleeting(event) {
            self.fleeting.insert(event.key().clone(), event.revision)
        } else {
            self.fleeting.remove(event.key())
        };
        if let Some(old) = before.and_then(|revision| self.events.remove(&revision)) {
            self.bytes -= old.object.json().len();
        }
    }
}

/// Whether nobody misses a change of a volatile object when there is a later one. Who watches some labels only would miss one
/// that moved the object in or out.
fn is_fleeting(event: &Event) -> bool {
    let is_labelled_as = |previous: &Arc<Object>| previous.meta().labels == event.object.meta().labels;
    event.change == Change::Modified && event.previous.as_ref().is_some_and(is_labelled_as)
}

/// A place in the history, moving forward.
pub struct Watch {
    shared: Arc<Shared>,
    head: watch::Receiver<Head>,
    seen: Revision,
    taken: VecDeque<Arc<Event>>,
}

impl Watch {
    /// The next event; waits for it. Cancel-safe.
    ///
    /// # Errors
    /// [`WatchError::Expired`] when this watcher was too slow, [`WatchError::Closed`] when the store closes.
    pub async fn next(&mut self) -> Result<Arc<Event>, WatchError> {
        loop {
            if let Some(event) = self.taken.pop_front() {
                self.seen = event.revision;
                return Ok(event);
            }
            let head = *self.head.borrow_and_update();
            self.taken = self.shared.history.after(self.seen)?;
            if !self.taken.is_empty() {
                continue;
            }
            if head.closed {
                return Err(WatchError::Closed);
            }
            self.head.changed().await.map_err(|_| WatchError::Closed)?;
        }
    }

    /// The store's last revision, for bookmarks. Every event up to it has been returned once [`Watch::is_idle`] holds.
    pub fn head(&self) -> Revision {
        self.head.borrow().revision
    }

    /// Whether nothing is waiting to be returned.
    pub fn is_idle(&self) -> bool {
        self.taken.is_empty() && self.shared.history.ends_at(self.seen)
    }
}
