//! The inbox's part in the node's own duties: it holds the world in which they are decided.

use super::Inbox;
use crate::duties::{self, Note, Reports, decide, is_about_local, is_local};
use crate::identity::Random;
use crate::replica::Folded;
use jiff::{SignedDuration, Timestamp};
use state::{Change, Event, Expect, Key, Object, Revision, Write};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;
use sync::Rejected;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// An agent that starts waits so long for its master's word before it decides on what it knows from its disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rounds of decisions in one go: a Job, its pods, its status, and what that leads to.
const ROUNDS_MAX: usize = 32;
/// Events remembered as told.
const TOLD_MAX: usize = 256;
/// Longest sleep until the next look: clocks may be set.
const LOOK: Duration = Duration::from_secs(60);

/// What the inbox keeps for the duties.
pub struct Desk {
    notes: mpsc::Receiver<Note>,
    reports: Reports,
    /// Jobs that are not on the disk yet.
    held: HashSet<String>,
    /// Jobs of the master's that were asked to give way.
    giving_way: HashSet<Key>,
    /// Events that were told.
    told: HashSet<String>,
    again_at: Option<Timestamp>,
    started: Instant,
}

impl Desk {
    /// One that has decided nothing yet.
    pub fn new(notes: mpsc::Receiver<Note>) -> Self {
        let (reports, started) = (Reports::default(), Instant::now());
        let (held, giving_way, told) = (HashSet::new(), HashSet::new(), HashSet::new());
        Self { notes, reports, held, giving_way, told, again_at: None, started }
    }

    /// Waits for a note, or until it is time to look again.
    pub async fn wait(&mut self) -> Option<Note> {
        let nap = self.again_at.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        let retry = self.reports.wake().map(|at| at.saturating_duration_since(Instant::now()));
        let patience = PATIENCE.checked_sub(self.started.elapsed());
        let nap = [nap, retry, patience, Some(LOOK)].into_iter().flatten().min().unwrap_or(LOOK);
        tokio::select! {
            note = self.notes.recv() => note,
            () = tokio::time::sleep(nap) => None,
        }
    }
}

impl Inbox {
    /// Does what is due now.
    pub fn work(&mut self, note: Option<Note>) {
        match note {
            Some(Note::Write(writes, reply)) => self.write(writes, reply),
            Some(Note::Kept(uid)) => drop(self.duties.held.remove(&uid)),
            Some(Note::Reported(objects, outcome)) => self.reported(&objects, outcome),
            None => {}
        }
        self.look();
    }

    /// Decides and acts until there is nothing more to do, and tells the master what is new.
    pub fn look(&mut self) {
        // a first word of the master's may change what is known from the disk
        if !self.replica.is_current && self.duties.started.elapsed() < PATIENCE {
            return;
        }
        let node = self.body.config.node_name.clone();
        let now = Timestamp::now();
        for round in 0..ROUNDS_MAX {
            let decision = decide(&self.replica.world, &node, &self.duties.held, now, &mut Random::new());
            self.duties.again_at = decision.again_at;
            if round == 0 {
                self.make_room(decision.master);
            }
            for (about, event) in decision.told {
                self.tell_event(&about, &event);
            }
            if decision.local.is_empty() {
                break;
            }
            self.change(decision.local);
        }
        if self.duties.again_at.is_some_and(|at| at <= now) {
            self.duties.again_at = now.checked_add(SignedDuration::from_secs(1)).ok();
        }
        self.report(now);
    }

    /// Tells people, once: what lasts is decided again and again.
    fn tell_event(&mut self, about: &Key, event: &serde_json::Value) {
        let Some(object) = self.replica.world.get(about) else { return };
        let text = |field: &str| event[field].as_str().unwrap_or_default();
        if self.duties.told.len() >= TOLD_MAX {
            self.duties.told.clear();
        }
        if !self.duties.told.insert(format!("{about} {} {}", text("reason"), text("message"))) {
            return;
        }
        self.body.recorder.tell(object, event["type"] == "Warning", text("reason"), text("message"), None);
    }

    /// Changes what only this node knows.
    fn change(&mut self, writes: Vec<Write>) {
        let mut touched = BTreeSet::new();
        let mut new_jobs = Vec::new();
        for write in writes {
            let key = write.key;
            match write.value.map(|value| Object::encode(key.resource.clone(), Revision(0), value)) {
                Some(Ok(object)) => {
                    if write.expect == Expect::Absent && key.is::<k8s_openapi::api::batch::v1::Job>() {
                        new_jobs.push(object.meta().uid.clone());
                    }
                    self.replica.world.put(Arc::new(object));
                }
                Some(Err(error)) => {
                    tracing::error!(%key, %error, "what the node has made cannot be kept");
                    continue;
                }
                None => self.replica.world.remove(&key),
            }
            touched.insert(key);
        }
        self.body.keeper.show(&self.replica, &touched);
        for uid in new_jobs {
            self.hold(uid);
        }
        self.show(Folded { touched, ..Folded::default() });
    }

    /// A Job makes no pods before it is on the disk: an agent that starts again must know that it was there.
    fn hold(&mut self, uid: String) {
        if !self.body.keeper.keeps() {
            return;
        }
        self.duties.held.insert(uid.clone());
        let (body, number) = (self.body.clone(), self.body.keeper.urge());
        tokio::spawn(async move {
            body.keeper.kept(number).await;
            let _ = body.notes.send(Note::Kept(uid)).await;
        });
    }

    /// A worker writes about a pod that only this node knows.
    fn write(&mut self, writes: Vec<Write>, reply: oneshot::Sender<Result<Vec<Event>, Rejected>>) {
        let world = &self.replica.world;
        let is_right = |write: &Write| {
            is_about_local(write, world)
                && match (&write.expect, world.get(&write.key)) {
                    (Expect::Uid(uid), Some(object)) => object.meta().uid == *uid,
                    (Expect::At(revision), Some(_)) => *revision == Revision(0),
                    _ => false,
                }
        };
        let outcome = if writes.iter().all(is_right) {
            self.change(writes);
            Ok(Vec::new())
        } else {
            Err(Rejected::Conflict("the master knows it by now".into()))
        };
        // a worker that is gone does not wait
        let _ = reply.send(outcome);
    }

    /// Asks the master to delete Jobs that must give way; one that cannot be told waits.
    fn make_room(&mut self, writes: Vec<Write>) {
        let world = &self.replica.world;
        self.duties.giving_way.retain(|key| world.get(key).is_some());
        for write in writes {
            // of what is the master's only that is a node's to ask, and without a say on the revision
            let Some(job) = self.replica.world.get(&write.key).filter(|_| write.value.is_none()) else { continue };
            if self.duties.giving_way.insert(write.key.clone()) {
                let write = Write { key: write.key, value: None, expect: Expect::Uid(job.meta().uid.clone()) };
                let body = self.body.clone();
                tokio::spawn(async move {
                    if let Err(error) = body.uplink.write(vec![write]).await {
                        tracing::debug!(%error, "a Job that must give way is not deleted");
                    }
                });
            }
        }
    }

    fn report(&mut self, now: Timestamp) {
        let due = self.duties.reports.due(&self.replica.world, &self.duties.held, now);
        for report in due.reports {
            tokio::spawn(duties::send(self.body.uplink.clone(), report, self.body.notes.clone()));
        }
        if !due.local.is_empty() {
            self.change(due.local);
        }
    }

    fn reported(&mut self, objects: &[Arc<Object>], outcome: Result<Vec<Event>, Rejected>) {
        if self.duties.reports.take(objects, outcome.as_ref().err())
            && let Some(job) = objects.first()
        {
            let why = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
            let message = format!("What this node has made by itself is not taken by the cluster: {why}");
            self.body.recorder.warning(job, "NotReported", &message);
        }
        // what the master has is known at once, and comes down the link too
        let is_news = |event: &Event| {
            let known = self.replica.world.get(event.key());
            event.change == Change::Added && known.is_some_and(|known| is_local(known))
        };
        let news: Vec<Event> = outcome.unwrap_or_default().into_iter().filter(is_news).collect();
        let touched: BTreeSet<Key> = news.iter().map(|event| event.key().clone()).collect();
        for event in news {
            self.replica.world.put(event.object);
        }
        if !touched.is_empty() {
            self.body.keeper.show(&self.replica, &touched);
            self.show(Folded { touched, ..Folded::default() });
        }
    }

    /// A session has begun: what could not be told is told.
    pub(super) fn greet_duties(&mut self) {
        self.duties.reports.greet();
        self.duties.giving_way.clear();
    }
}
