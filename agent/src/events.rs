//! Kubernetes Events of this node: told by any room, written by one task, counted up where they repeat.
//!
//! Telling never waits and never fails a pod: when too much is told at once, or while there is no link, the rest is dropped with
//! a log line. What was told without a link is written, with its own time, when a session begins.
//! Deliberately absent: what an Event looks like (`state::record`).

use crate::body::Session;
use crate::identity::Random;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use state::record::{self, Note};
use state::{Event, Expect, Key, Object, Stamp, World, Write};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use sync::{Rejected, Uplink};
use tokio::sync::{mpsc, watch};
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
/// Without a link, events wait for the next session; they are tried after so long all the same.
const OFFLINE_RETRY: Duration = Duration::from_secs(60);

/// Takes notes from every room.
#[derive(Clone)]
pub struct Recorder {
    notes: mpsc::Sender<Told>,
    /// Notes were dropped since the last was written.
    is_full: Arc<AtomicBool>,
}

struct Told {
    about: Arc<Object>,
    warning: bool,
    reason: String,
    message: String,
    field_path: Option<String>,
    at: Timestamp,
}

impl Recorder {
    /// A recorder and the task that writes what it is told.
    pub fn new(node: String) -> (Self, Scribe) {
        let (sender, notes) = mpsc::channel(NOTES_MAX);
        let is_full = Arc::new(AtomicBool::new(false));
        let scribe = Scribe { node, notes, is_full: is_full.clone(), memory: Memory::default() };
        (Self { notes: sender, is_full }, scribe)
    }

    /// Something that needs attention, about a whole object.
    pub fn warning(&self, about: &Arc<Object>, reason: &str, message: &str) {
        self.tell(about, true, reason, message, None);
    }

    /// As the others, about a part of an object such as `spec.containers{web}`.
    pub fn tell(&self, about: &Arc<Object>, warning: bool, reason: &str, message: &str, field_path: Option<String>) {
        let (reason, message, at) = (reason.into(), message.into(), Timestamp::now());
        let told = Told { about: about.clone(), warning, reason, message, field_path, at };
        if let Err(error) = self.notes.try_send(told) {
            let told = error.into_inner();
            tracing::debug!(about = %told.about.key(), told.reason, told.message, "event dropped");
            if !self.is_full.swap(true, Ordering::Relaxed) {
                tracing::warn!("events are dropped: too many wait to be written");
            }
        }
    }
}

/// Writes what the recorder is told.
pub struct Scribe {
    node: String,
    notes: mpsc::Receiver<Told>,
    is_full: Arc<AtomicBool>,
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
    pub async fn run(mut self, uplink: Uplink, mut sessions: watch::Receiver<Session>, shutdown: CancellationToken) {
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
            loop {
                sessions.mark_unchanged();
                batch = self.write_all(&uplink, std::mem::take(&mut batch)).await;
                if batch.is_empty() {
                    break;
                }
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    _ = tokio::time::timeout(OFFLINE_RETRY, sessions.changed()) => {}
                }
            }
            self.is_full.store(false, Ordering::Relaxed);
        }
    }

    /// Writes what was told, as few commits as it takes: two notes that say the same need two. Returns what could not be
    /// written for want of a link.
    async fn write_all(&mut self, uplink: &Uplink, mut told: Vec<Told>) -> Vec<Told> {
        let mut identities = Random::new();
        while !told.is_empty() {
            let mut writes: Vec<(Write, Told)> = Vec::new();
            let mut later = Vec::new();
            for note in told {
                match self.write_of(&note, &mut identities) {
                    Some(write) if writes.iter().any(|(other, _)| other.key == write.key) => later.push(note),
                    Some(write) => writes.push((write, note)),
                    None => {}
                }
            }
            let mut left = self.commit(uplink, writes).await;
            if !left.is_empty() {
                left.extend(later);
                return left;
            }
            told = later;
        }
        Vec::new()
    }

    fn write_of(&mut self, told: &Told, identities: &mut Random) -> Option<Write> {
        let now = told.at;
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

    /// All at once; where one of them is refused, each on its own. Returns those for which there was no link.
    async fn commit(&mut self, uplink: &Uplink, writes: Vec<(Write, Told)>) -> Vec<Told> {
        if writes.is_empty() {
            return Vec::new();
        }
        let now = Timestamp::now();
        match uplink.write(writes.iter().map(|(write, _)| write.clone()).collect()).await {
            Ok(events) => events.iter().for_each(|event| self.memory.keep(event, now)),
            Err(Rejected::Disconnected) => {
                writes.iter().for_each(|(write, _)| self.memory.unwritten(&write.key));
                return writes.into_iter().map(|(_, told)| told).collect();
            }
            Err(_) => {
                let mut writes = writes.into_iter();
                while let Some((write, told)) = writes.next() {
                    if let Err(Rejected::Disconnected) = self.commit_one(uplink, write, now).await {
                        return std::iter::once(told).chain(writes.map(|(_, told)| told)).collect();
                    }
                }
            }
        }
        Vec::new()
    }

    async fn commit_one(&mut self, uplink: &Uplink, write: Write, now: Timestamp) -> Result<(), Rejected> {
        let is_new = write.expect == Expect::Absent;
        let key = write.key.clone();
        let outcome = match uplink.write(vec![write.clone()]).await {
            // an event of that name is left from an earlier life of this agent, or somebody removed ours
            Err(Rejected::Conflict(_)) if is_new => uplink.write(vec![renamed(write, now)]).await,
            outcome => outcome,
        };
        match outcome {
            Ok(events) => events.iter().for_each(|event| self.memory.keep(event, now)),
            Err(Rejected::Disconnected) => {
                self.memory.unwritten(&key);
                return Err(Rejected::Disconnected);
            }
            Err(_) => self.memory.forget(&key),
        }
        Ok(())
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

    /// The last write did not happen: the next one is no repetition of it.
    fn unwritten(&mut self, key: &Key) {
        if let Some((_, written)) = self.held.get_mut(key) {
            *written = Timestamp::MIN;
        }
    }

    fn forget(&mut self, key: &Key) {
        self.world.remove(key);
        self.held.remove(key);
        self.order.retain(|kept| kept != key);
    }
}
