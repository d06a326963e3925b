//! Kubernetes Events of this node: told by any room, written by one task, counted up where they repeat.
//!
//! Telling never waits and never fails a pod: when too much is told at once, the rest is dropped with a log line.
//! Deliberately absent: what an Event looks like (`state::record`).

use crate::identity::Random;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use state::record::{self, Note};
use state::{Event, Expect, Key, Object, Stamp, World, Write};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use sync::{Rejected, Uplink};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Who this node says it is, in Kubernetes' words.
const COMPONENT: &str = "kubelet";
/// Notes waiting to be written.
const NOTES_MAX: usize = 4_096;
/// Notes written together.
const BATCH_NOTES_MAX: usize = 64;
/// Events remembered, so that a repetition counts up.
const REMEMBERED_MAX: usize = 1_024;
/// An event that repeats is written at most this often; what comes in between is counted with the next.
const REPEAT_SECONDS: i64 = 10;

/// Takes notes from every room.
#[derive(Clone)]
pub struct Recorder {
    notes: mpsc::Sender<Told>,
}

struct Told {
    about: Arc<Object>,
    warning: bool,
    reason: String,
    message: String,
    field_path: Option<String>,
}

impl Recorder {
    /// A recorder and the task that writes what it is told.
    pub fn new(node: String) -> (Self, Scribe) {
        let (sender, notes) = mpsc::channel(NOTES_MAX);
        (Self { notes: sender }, Scribe { node, notes, memory: Memory::default() })
    }

    /// Something that needs attention, about a whole object.
    pub fn warning(&self, about: &Arc<Object>, reason: &str, message: &str) {
        self.tell(about, true, reason, message, None);
    }

    /// As the others, about a part of an object such as `spec.containers{web}`.
    pub fn tell(&self, about: &Arc<Object>, warning: bool, reason: &str, message: &str, field_path: Option<String>) {
        let told = Told { about: about.clone(), warning, reason: reason.into(), message: message.into(), field_path };
        if self.notes.try_send(told).is_err() {
            tracing::warn!(about = %about.key(), reason, message, "event dropped");
        }
    }
}

/// Writes what the recorder is told.
pub struct Scribe {
    node: String,
    notes: mpsc::Receiver<Told>,
    memory: Memory,
}

/// The events this node wrote last: the world in which `record::event` finds what to count up.
#[derive(Default)]
struct Memory {
    world: World,
    order: VecDeque<Key>,
    held: HashMap<Key, (u64, Timestamp)>,
}

impl Scribe {
    /// Writes until shutdown.
    pub async fn run(mut self, uplink: Uplink, shutdown: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            let more = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                more = self.notes.recv_many(&mut batch, BATCH_NOTES_MAX) => more,
            };
            if more == 0 {
                return;
            }
            self.write_all(&uplink, std::mem::take(&mut batch)).await;
        }
    }

    /// Writes what was told, as few commits as it takes: two notes that say the same need two.
    async fn write_all(&mut self, uplink: &Uplink, mut told: Vec<Told>) {
        let mut identities = Random::new();
        while !told.is_empty() {
            let now = Timestamp::now();
            let mut writes: Vec<Write> = Vec::new();
            let mut later = Vec::new();
            for note in told {
                match self.write_of(&note, &mut identities, now) {
                    Some(write) if writes.iter().any(|other| other.key == write.key) => later.push(note),
                    Some(write) => writes.push(write),
                    None => {}
                }
            }
            self.commit(uplink, writes, now).await;
            told = later;
        }
    }

    fn write_of(&mut self, told: &Told, identities: &mut Random, now: Timestamp) -> Option<Write> {
        let note = Note {
            warning: told.warning,
            reason: &told.reason,
            message: &told.message,
            component: COMPONENT,
            host: Some(&self.node),
            field_path: told.field_path.as_deref(),
        };
        let mut stamp = Stamp { now, identities };
        let mut write = record::event(&self.memory.world, &mut stamp, &told.about, &note);
        if write.expect != Expect::Absent
            && let Some((held, written)) = self.memory.held.get_mut(&write.key)
        {
            if now.duration_since(*written) < SignedDuration::from_secs(REPEAT_SECONDS) {
                *held += 1;
                return None;
            }
            let value = write.value.as_mut()?;
            value["count"] = (value["count"].as_u64().unwrap_or(1) + std::mem::take(held)).into();
            *written = now;
        }
        Some(write)
    }

    /// All at once; where one of them is refused, each on its own.
    async fn commit(&mut self, uplink: &Uplink, writes: Vec<Write>, now: Timestamp) {
        if writes.is_empty() {
            return;
        }
        match uplink.write(writes.clone()).await {
            Ok(events) => events.iter().for_each(|event| self.memory.keep(event, now)),
            Err(_) => {
                for write in writes {
                    self.commit_one(uplink, write, now).await;
                }
            }
        }
    }

    async fn commit_one(&mut self, uplink: &Uplink, write: Write, now: Timestamp) {
        let is_new = write.expect == Expect::Absent;
        match uplink.write(vec![write.clone()]).await {
            Ok(events) => events.iter().for_each(|event| self.memory.keep(event, now)),
            // an event of that name is left from an earlier life of this agent, or somebody removed ours
            Err(Rejected::Conflict(_)) if is_new => {
                if let Ok(events) = uplink.write(vec![renamed(write, now)]).await {
                    events.iter().for_each(|event| self.memory.keep(event, now));
                }
            }
            Err(_) => self.memory.forget(&write.key),
        }
    }
}

/// The same event under a name of its own.
fn renamed(mut write: Write, now: Timestamp) -> Write {
    let stem = write.key.name.rsplit_once('.').map_or(&*write.key.name, |(stem, _)| stem);
    let name = format!("{stem}.{:016x}", now.as_nanosecond() as u64);
    if let Some(value) = write.value.as_mut() {
        value["metadata"]["name"] = name.as_str().into();
    }
    write.key = Key::of::<v1::Event>(&write.key.namespace, &name);
    write
}

impl Memory {
    fn keep(&mut self, event: &Event, now: Timestamp) {
        self.world.fold(event);
        if self.held.insert(event.key().clone(), (0, now)).is_none() {
            self.order.push_back(event.key().clone());
        }
        while self.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.world.remove(&oldest);
                self.held.remove(&oldest);
            }
        }
    }

    fn forget(&mut self, key: &Key) {
        self.world.remove(key);
        self.held.remove(key);
        self.order.retain(|kept| kept != key);
    }
}
