//! The master's one loop: events wake keys, controllers answer writes, the store commits them, the writes' events come
//! back. No policy here; what is to be done is in `controllers`.
//!
//! A key is never asked twice at once, and is asked again only after its last writes are in the world, so no
//! controller keeps expectations. One outcome is one commit: all of it or nothing.

use crate::entropy::{Entropy, now};
use controllers::{Controller, Cx};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use jiff::{SignedDuration, Timestamp};
use state::{Change, Event, Key, Stamp, World};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use store::{CommitError, Store, Watch, WatchError};
use tokio_util::sync::CancellationToken;

/// Commits under way at once: enough to fill a group commit, few enough that snapshots stay fresh.
const COMMITS_IN_FLIGHT_MAX: usize = 64;
/// A key that failed is asked again after this, doubling.
const BACK_OFF_MS: i64 = 50;
/// And never later than this.
const BACK_OFF_MS_MAX: i64 = 60_000;

/// One controller's interest in one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Task {
    controller: usize,
    key: Key,
}

type Done = (Task, Result<Vec<Event>, CommitError>);

/// Runs the controllers against the store.
pub struct Executor {
    store: Store,
    controllers: Vec<Box<dyn Controller>>,
    queue: VecDeque<Task>,
    queued: HashSet<Task>,
    timers: BTreeSet<(Timestamp, Task)>,
    /// Tasks whose commit is under way, and whether they were woken meanwhile.
    busy: HashMap<Task, bool>,
    commits: FuturesUnordered<BoxFuture<'static, Done>>,
    failures: HashMap<Task, u32>,
}

impl Executor {
    /// An executor of these controllers.
    pub fn new(store: Store, controllers: Vec<Box<dyn Controller>>) -> Self {
        Self {
            store,
            controllers,
            queue: VecDeque::new(),
            queued: HashSet::new(),
            timers: BTreeSet::new(),
            busy: HashMap::new(),
            commits: FuturesUnordered::new(),
            failures: HashMap::new(),
        }
    }

    /// Runs until shutdown or until the store closes.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut watch = self.begin();
        loop {
            while self.commits.len() < COMMITS_IN_FLIGHT_MAX
                && let Some(task) = self.queue.pop_front()
            {
                self.queued.remove(&task);
                self.ask(task);
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(done) = self.commits.next() => self.finish(done),
                event = watch.next() => match event {
                    Ok(event) => self.wake(&event, &self.store.world()),
                    Err(WatchError::Closed) => return,
                    Err(WatchError::Expired { .. }) => watch = self.begin(),
                },
                () = until(self.timers.first().map(|(at, _)| *at)) => self.ring(now()),
            }
        }
    }

    /// Starts watching, and wakes everything that exists at that moment: after a start, or after falling behind.
    fn begin(&mut self) -> Watch {
        loop {
            let world = self.store.world();
            let Ok(watch) = self.store.watch(world.revision()) else { continue };
            for object in world.iter() {
                let event = Event {
                    revision: object.revision(),
                    change: Change::Added,
                    object: object.clone(),
                    previous: None,
                };
                self.wake(&event, &world);
            }
            return watch;
        }
    }

    fn wake(&mut self, event: &Event, world: &World) {
        let woken: Vec<Task> = self
            .controllers
            .iter()
            .enumerate()
            .flat_map(|(controller, mind)| {
                mind.wakes(event, world).into_iter().map(move |key| Task { controller, key })
            })
            .collect();
        for task in woken {
            self.enqueue(task);
        }
    }

    fn enqueue(&mut self, task: Task) {
        if let Some(again) = self.busy.get_mut(&task) {
            *again = true;
        } else if self.queued.insert(task.clone()) {
            self.queue.push_back(task);
        }
    }

    fn ring(&mut self, now: Timestamp) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, task)) = self.timers.pop_first() {
                self.enqueue(task);
            }
        }
    }

    fn ask(&mut self, task: Task) {
        let world: Arc<World> = self.store.world();
        let now = now();
        let mut cx = Cx { world: &world, now, stamp: Stamp { now, identities: &mut Entropy } };
        let outcome = self.controllers[task.controller].reconcile(&mut cx, &task.key);
        if let Some(at) = outcome.again_at {
            self.timers.insert((at, task.clone()));
        }
        if outcome.writes.is_empty() {
            self.failures.remove(&task);
            return;
        }
        self.busy.insert(task.clone(), false);
        let store = self.store.clone();
        self.commits.push(Box::pin(async move {
            let result = store.commit(outcome.writes).await;
            (task, result)
        }));
    }

    fn finish(&mut self, (task, result): Done) {
        let woken = self.busy.remove(&task).unwrap_or(false);
        match result {
            Ok(_) => {
                self.failures.remove(&task);
                if woken {
                    self.enqueue(task);
                }
            }
            Err(CommitError::Closed) => {}
            Err(error) => self.retry(task, &error),
        }
    }

    /// A refused commit is asked again: at once the first time (somebody else was faster), later and later after that.
    fn retry(&mut self, task: Task, error: &CommitError) {
        let failures = self.failures.entry(task.clone()).or_insert(0);
        *failures += 1;
        if *failures == 1 {
            return self.enqueue(task);
        }
        let delay_ms = BACK_OFF_MS.saturating_mul(1 << (*failures).min(20)).min(BACK_OFF_MS_MAX);
        if *failures > 4 {
            let controller = self.controllers[task.controller].name();
            tracing::warn!(controller, key = %task.key, %error, delay_ms, "writes refused again");
        }
        self.timers.insert((now() + SignedDuration::from_millis(delay_ms), task));
    }
}

/// Sleeps until a moment; without one, for ever.
async fn until(at: Option<Timestamp>) {
    match at {
        None => std::future::pending().await,
        Some(at) => {
            let left = at.duration_since(now());
            let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
            // timers are kept in wall-clock time: look again at least once an hour, in case the clock was set
            tokio::time::sleep(left.min(Duration::from_secs(3600))).await;
        }
    }
}
