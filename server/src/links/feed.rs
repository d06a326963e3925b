//! What goes down a link: a welcome, the node's slice or what changed in it, then every change as it is committed.
//!
//! A node resumes where it left off if the log still holds that history ([`crate::lineages`]); else it gets its slice whole.
//! Positions that a node is told are of durable changes only, so that a master which was killed can still tell how much of
//! its history a node knows.

use super::router::{Queue, Router};
use crate::lineages::Lineages;
use k8s_openapi::api::core::v1::Node;
use state::{Change, Event, Key, Revision, World};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use store::{Store, Watch, WatchError};
use sync::{ClusterFacts, Down, Position, Welcome, slice};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Events looked at together, so that of several states of an object the last is sent.
const BURST_EVENTS_MAX: usize = 256;
/// A node that was sent changes is told that they were all after this.
const SETTLED: Duration = Duration::from_secs(1);
/// A node that was sent nothing is told how far the cluster has come this often, if it has.
const REACHED_INTERVAL: Duration = Duration::from_secs(30);

/// What feeding needs.
pub struct Feed<'a> {
    /// Where the events come from.
    pub store: &'a Store,
    /// Which histories a node may continue.
    pub lineages: &'a Lineages,
    /// Who brings the changes, and knows how far the durable history goes.
    pub router: &'a Router,
    /// Who is fed.
    pub node: &'a str,
    /// Where the messages go.
    pub down: &'a mpsc::Sender<Down>,
    /// Whether the node must leave when its Node is deleted.
    pub leaves: bool,
}

/// Why feeding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The node or the store is gone.
    Gone,
    /// The Node was deleted.
    Deleted,
}

/// How far a node has come.
#[derive(Clone, Copy)]
struct Place {
    /// Whatever concerned it up to here was sent.
    passed: Revision,
    /// It was told that nothing else has happened up to here; always the revision of a durable change.
    told: Revision,
}

impl Feed<'_> {
    /// Feeds a node that knows what was up to `from`, until it is gone.
    pub async fn run(&self, facts: ClusterFacts, from: Option<Position>) -> End {
        match self.feed(facts, from).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn feed(&self, facts: ClusterFacts, from: Option<Position>) -> Result<End, End> {
        let started = self.store.world().revision();
        // before anything is looked at, so that nothing falls in between
        let mut queue = self.router.enter(self.node);
        let resumed = from.and_then(|from| self.resume(&from).map(|watch| (from.revision, watch)));
        tracing::debug!(node = self.node, resumed = resumed.is_some(), "a node is fed");
        let lineage = self.lineages.current.clone();
        self.send(Down::Welcome(Welcome { lineage, cluster: facts, resumed: resumed.is_some() })).await?;
        let mut place = match resumed {
            Some((known, watch)) => {
                self.catch_up(Place { passed: known, told: known }, watch, queue.after, started).await?
            }
            None => self.reset().await?,
        };
        // when the node is told how far it is, if there is something to tell
        let mut reached_at = Instant::now() + SETTLED;
        loop {
            tokio::select! {
                biased;
                first = queue.events.recv() => match first {
                    Some(first) => {
                        let burst = burst(first, &mut queue, place.passed);
                        if self.pass(&burst, &mut place, started).await? {
                            reached_at = Instant::now() + SETTLED;
                        }
                    }
                    None => {
                        queue = self.router.enter(self.node);
                        place = match self.store.watch(place.passed) {
                            Ok(watch) => self.catch_up(place, watch, queue.after, started).await?,
                            Err(_) => self.reset().await?,
                        };
                    }
                },
                () = sleep_until(reached_at) => {
                    let durable = self.router.durable();
                    if !queue.events.is_empty() || queue.events.is_closed() {
                        continue;
                    }
                    if durable > place.told {
                        self.send(Down::Reached(durable)).await?;
                        place.told = durable;
                    }
                    reached_at = Instant::now() + REACHED_INTERVAL;
                }
            }
        }
    }

    /// Passes on what the log has, until the queue goes on from there. What the log has no more is sent as the slice whole.
    async fn catch_up(&self, from: Place, mut watch: Watch, until: Revision, started: Revision) -> Result<Place, End> {
        let mut place = from;
        while place.passed < until && !watch.is_idle() {
            match logged(&mut watch).await {
                Ok(burst) => drop(self.pass(&burst, &mut place, started).await?),
                Err(WatchError::Expired { .. }) => return self.reset().await,
                Err(WatchError::Closed) => return Err(End::Gone),
            }
        }
        Ok(place)
    }

    /// The events after a position, if the log holds the history up to it. A node whose Node was deleted while it was away
    /// has joined anew: it begins anew too, and registers itself.
    fn resume(&self, from: &Position) -> Option<Watch> {
        let world = self.store.world();
        let is_registered = world.get(&Key::of::<Node>("", self.node)).is_some();
        if !is_registered || !self.lineages.holds(from, world.revision()) {
            return None;
        }
        self.store.watch(from.revision).ok()
    }

    /// Sends the slice whole.
    async fn reset(&self) -> Result<Place, End> {
        // asked first: what is durable by then is in the world
        let told = self.router.durable();
        let world = self.store.world();
        let objects = slice::objects(&world, self.node);
        self.send(Down::Reset { revision: told, objects }).await?;
        Ok(Place { passed: world.revision(), told })
    }

    /// Sends what a burst means to the node; says whether that was anything.
    async fn pass(&self, burst: &[Arc<Event>], place: &mut Place, started: Revision) -> Result<bool, End> {
        if self.leaves && burst.iter().any(|event| self.is_my_end(event, started)) {
            return Err(End::Deleted);
        }
        let world = self.store.world();
        let events = slice_of(burst, &world, self.node);
        let is_something = !events.is_empty();
        for event in events {
            self.send(Down::Event(event)).await?;
        }
        if let Some(last) = burst.last() {
            place.passed = place.passed.max(last.revision);
        }
        Ok(is_something)
    }

    fn is_my_end(&self, event: &Event, started: Revision) -> bool {
        event.change == Change::Deleted && event.revision > started && *event.key() == Key::of::<Node>("", self.node)
    }

    async fn send(&self, message: Down) -> Result<(), End> {
        self.down.send(message).await.map_err(|_| End::Gone)
    }
}

/// An event that has come and those that wait behind it, without what the node knows already.
fn burst(first: Arc<Event>, queue: &mut Queue, passed: Revision) -> Vec<Arc<Event>> {
    let mut events = vec![first];
    while events.len() < BURST_EVENTS_MAX
        && let Ok(event) = queue.events.try_recv()
    {
        events.push(event);
    }
    events.retain(|event| event.revision > passed);
    events
}

/// The next event of the log, and those that are there with it.
async fn logged(watch: &mut Watch) -> Result<Vec<Arc<Event>>, WatchError> {
    let mut events = vec![watch.next().await?];
    while events.len() < BURST_EVENTS_MAX && !watch.is_idle() {
        match futures::FutureExt::now_or_never(watch.next()) {
            Some(Ok(event)) => events.push(event),
            // found again by the next call
            Some(Err(_)) | None => break,
        }
    }
    Ok(events)
}

/// What events mean to a node. Of changes of the same object that follow each other only the last is left.
fn slice_of(burst: &[Arc<Event>], world: &World, node: &str) -> Vec<Event> {
    let events: Vec<Event> = burst.iter().flat_map(|event| slice::events(event, world, node)).collect();
    let mut next: HashMap<Key, Change> = HashMap::new();
    let mut kept: Vec<Event> = Vec::with_capacity(events.len());
    for event in events.into_iter().rev() {
        let follows = next.insert(event.key().clone(), event.change);
        if event.change == Change::Modified && follows == Some(Change::Modified) {
            continue;
        }
        kept.push(event);
    }
    kept.reverse();
    kept
}
