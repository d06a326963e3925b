//! Frames of events, made once for all nodes.

use crate::wire::{self, kind};
use bytes::Bytes;
use state::{Change, Event, Key, Revision};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Frames that are kept.
const FRAMES_MAX: usize = 1024;
/// Bytes that are kept: of frames, and of the objects in them, which may be far more.
const FRAMES_BYTES_MAX: usize = 16 << 20;
/// Forms of one event that are kept: nodes see different parts of some objects.
const FORMS_MAX: usize = 4;

/// The newest events' frames. Nodes are fed at nearly the same time, so few are enough.
#[derive(Default)]
pub(crate) struct EventCache(Mutex<Frames>);

#[derive(Default)]
struct Frames {
    /// The JSON of each form, and its frame; not the object, whose typed view is large.
    known: BTreeMap<Name, Vec<(Bytes, Bytes)>>,
    /// Oldest first; a name as often as it has forms.
    order: VecDeque<(Name, usize)>,
    bytes: usize,
}

type Name = (Revision, Key, u8);

impl EventCache {
    /// The frame of an event.
    pub(crate) fn encode(&self, event: &Event) -> Bytes {
        let change = match event.change {
            Change::Added => 0,
            Change::Modified => 1,
            Change::Deleted => 2,
        };
        let name = (event.revision, event.key().clone(), change);
        if let Some(frame) = self.lock().find(&name, event.object.json()) {
            return frame;
        }
        // encoded outside the lock: two nodes may both do it, which is harmless
        let frame = wire::encode(kind::EVENT, &wire::event(event));
        self.lock().keep(name, event.object.json().clone(), frame.clone());
        frame
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Frames> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frames {
    fn find(&self, name: &Name, json: &Bytes) -> Option<Bytes> {
        let forms = self.known.get(name)?;
        let is_same = |known: &Bytes| (known.as_ptr() == json.as_ptr() && known.len() == json.len()) || known == json;
        forms.iter().find(|(known, _)| is_same(known)).map(|(_, frame)| frame.clone())
    }

    fn keep(&mut self, name: Name, json: Bytes, frame: Bytes) {
        let bytes = frame.len() + json.len();
        if bytes > FRAMES_BYTES_MAX / 4 || self.find(&name, &json).is_some() {
            return;
        }
        let forms = self.known.entry(name.clone()).or_default();
        if forms.len() >= FORMS_MAX {
            return;
        }
        self.bytes += bytes;
        self.order.push_back((name, bytes));
        forms.push((json, frame));
        while self.order.len() > FRAMES_MAX || self.bytes > FRAMES_BYTES_MAX {
            let Some((oldest, bytes)) = self.order.pop_front() else { break };
            self.bytes -= bytes;
            if let Some(forms) = self.known.get_mut(&oldest) {
                forms.remove(0);
                if forms.is_empty() {
                    self.known.remove(&oldest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use manifests::Resource;
    use serde_json::json;
    use state::Object;
    use std::sync::Arc;

    fn event(revision: u64, label: &str) -> Event {
        let value = json!({"metadata": {"name": "a"}, "label": label});
        let object = Object::encode(Resource::new("", "nodes"), Revision(revision), value).unwrap();
        Event { revision: Revision(revision), change: Change::Modified, object: Arc::new(object), previous: None }
    }

    #[test]
    fn a_frame_is_made_once_for_each_form_of_an_event() {
        let cache = EventCache::default();
        let (whole, reduced) = (event(1, "whole"), event(1, "reduced"));
        let first = cache.encode(&whole);
        assert_eq!(cache.encode(&event(1, "whole")).as_ptr(), first.as_ptr(), "the same bytes");
        assert_ne!(cache.encode(&reduced), first);
        assert_eq!(cache.encode(&whole).as_ptr(), first.as_ptr());
    }

    #[test]
    fn old_frames_go() {
        let cache = EventCache::default();
        for revision in 0..3 * FRAMES_MAX as u64 {
            cache.encode(&event(revision, "x"));
        }
        let frames = cache.lock();
        assert_eq!((frames.order.len(), frames.known.len()), (FRAMES_MAX, FRAMES_MAX));
        let kept: usize = frames.known.values().flatten().map(|(json, frame)| json.len() + frame.len()).sum();
        assert_eq!(kept, frames.bytes);
    }
}
