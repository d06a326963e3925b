//! What goes down a link: a welcome, the node's slice or what changed in it, then every change as it is committed.
//!
//! A node resumes where it left off if the log still holds that history ([`crate::lineages`]); else it gets its slice whole.
//! Positions that a node is told are of durable changes only, so that a master which was killed can still tell how much of
//! its history a node knows.

use crate::lineages::Lineages;
use k8s_openapi::api::core::v1::Node;
use state::{Change, Event, Key, Revision, World};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use store::{Store, Watch, WatchError};
use sync::{ClusterFacts, Down, Position, Welcome, slice};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Events of the log looked at together, so that of several states of an object the last is sent.
const BURST_EVENTS_MAX: usize = 256;
/// A node that was sent changes is told that they were all after this.
const SETTLED: Duration = Duration::from_secs(1);
/// A node that was sent nothing is told how far the cluster has come this often, if it has.
const REACHED_INTERVAL: Duration = Duration::from_secs(30);

/// The last durable change that anybody here has seen. Never ahead of the log.
#[derive(Clone, Default)]
pub struct Durable(Arc<AtomicU64>);

impl Durable {
    /// As of the start.
    pub fn new(revision: Revision) -> Self {
        Self(Arc::new(AtomicU64::new(revision.0)))
    }

    /// Takes note of an event of the store's.
    pub fn see(&self, event: &Event) {
        if !is_volatile(event.key()) {
            self.0.fetch_max(event.revision.0, Ordering::AcqRel);
        }
    }

    fn get(&self) -> Revision {
        Revision(self.0.load(Ordering::Acquire))
    }
}

fn is_volatile(key: &Key) -> bool {
    manifests::by_resource(&key.resource).is_some_and(|kind| kind.volatile)
}

/// What feeding needs.
pub struct Feed<'a> {
    /// Where the events come from.
    pub store: &'a Store,
    /// Which histories a node may continue.
    pub lineages: &'a Lineages,
    /// How far the durable history goes.
    pub durable: &'a Durable,
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

/// The other side has hung up.
struct HungUp;

impl From<HungUp> for End {
    fn from(_: HungUp) -> Self {
        Self::Gone
    }
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
        let resumed = from.and_then(|from| self.resume(&from).map(|watch| (from.revision, watch)));
        tracing::debug!(node = self.node, resumed = resumed.is_some(), "a node is fed");
        let lineage = self.lineages.current.clone();
        self.send(Down::Welcome(Welcome { lineage, cluster: facts, resumed: resumed.is_some() })).await?;
        let (mut told, mut watch) = match resumed {
            Some(resumed) => resumed,
            None => self.reset().await?,
        };
        // the last durable change that was passed on, or was none of the node's
        let mut passed = told;
        // when the node is told how far it is, if there is something to tell
        let mut reached_at = Instant::now() + SETTLED;
        loop {
            let seen = self.durable.get();
            let burst = tokio::select! {
                burst = burst(&mut watch) => burst,
                () = sleep_until(reached_at), if seen > told && watch.is_idle() => {
                    // whatever is durable up to here has been taken from the watch before
                    self.send(Down::Reached(seen)).await?;
                    told = seen;
                    reached_at = Instant::now() + REACHED_INTERVAL;
                    continue;
                }
            };
            match burst {
                Ok(burst) => {
                    for event in &burst {
                        self.durable.see(event);
                        if !is_volatile(event.key()) {
                            passed = event.revision;
                        }
                    }
                    if self.leaves && burst.iter().any(|event| self.is_my_end(event, started)) {
                        return Ok(End::Deleted);
                    }
                    if self.pass(burst).await? {
                        reached_at = Instant::now() + SETTLED;
                    } else if passed > told && Instant::now() >= reached_at {
                        self.send(Down::Reached(passed)).await?;
                        told = passed;
                        reached_at = Instant::now() + REACHED_INTERVAL;
                    }
                }
                Err(WatchError::Expired { .. }) => (told, watch) = self.reset().await?,
                Err(WatchError::Closed) => return Ok(End::Gone),
            }
        }
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
    async fn reset(&self) -> Result<(Revision, Watch), HungUp> {
        loop {
            // asked first: what is durable by then is in the world
            let revision = self.durable.get();
            let world = self.store.world();
            let Ok(watch) = self.store.watch(world.revision()) else { continue };
            let objects = slice::objects(&world, self.node);
            self.send(Down::Reset { revision, objects }).await?;
            return Ok((revision, watch));
        }
    }

    /// Sends what a burst means to the node; says whether that was anything.
    async fn pass(&self, burst: Vec<Arc<Event>>) -> Result<bool, HungUp> {
        let world = self.store.world();
        let events = slice_of(&burst, &world, self.node);
        let is_something = !events.is_empty();
        for event in events {
            self.send(Down::Event(event)).await?;
        }
        Ok(is_something)
    }

    fn is_my_end(&self, event: &Event, started: Revision) -> bool {
        event.change == Change::Deleted && event.revision > started && *event.key() == Key::of::<Node>("", self.node)
    }

    async fn send(&self, message: Down) -> Result<(), HungUp> {
        self.down.send(message).await.map_err(|_| HungUp)
    }
}

/// The next event, and those that are there with it. Cancel-safe: only the first is waited for.
async fn burst(watch: &mut Watch) -> Result<Vec<Arc<Event>>, WatchError> {
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
