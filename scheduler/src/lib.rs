//! The mind that chooses nodes for pods: (pod, world) -> placement, or the reasons why not.
//!
//! Layer 2. A [`Scheduler`] keeps a per-node summary of what is promised, folded from events, so that one placement costs
//! a few nodes and no scan of pods. Plugins are one file each, in `filters` (may it go there?) and `scores` (where is
//! best?). Deliberately absent: IO, clocks, queues, preemption.

mod amounts;
mod capacity;
mod filters;
mod placement;
mod scores;
#[cfg(test)]
mod tests;
mod wanted;
mod writes;

use crate::amounts::Amounts;
use crate::capacity::Capacity;
use crate::wanted::Wanted;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use state::{Change, Event, Key, Object, Revision, Stamp, World, Write};
use std::collections::{BTreeMap, HashMap};

/// Name as the source of events, and the `spec.schedulerName` it serves.
pub const NAME: &str = "default-scheduler";
/// A refused pod is asked about again after this even if nothing changed; Kubernetes' flush of its queue.
const RETRY_SECONDS: i64 = 300;

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Name of the node.
    pub node: String,
    /// The binding: `spec.nodeName`, and condition PodScheduled True.
    pub write: Write,
}

/// Why a pod goes nowhere for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `0/1 nodes are available: 1 Insufficient cpu. ...`
    pub message: String,
}

/// What a pod needs.
#[derive(Debug, Default, PartialEq)]
pub struct Decision {
    /// Binding or refusal, and its Event.
    pub writes: Vec<Write>,
    /// When to ask again although no event came.
    pub again_at: Option<Timestamp>,
}

/// Decides about one pod on a world alone. For tests and tools; a server keeps a [`Scheduler`].
///
/// # Errors
/// [`Refused`] when no node can take it.
pub fn place(pod: &Object, world: &World, now: Timestamp) -> Result<Placement, Refused> {
    let wanted = Wanted::new(pod, world).ok_or_else(|| Refused { message: "not a pod".into() })?;
    let node = placement::choose(wanted, &Capacity::of(world), seed(pod))?;
    let write = writes::binding(pod, &node, now);
    Ok(Placement { node, write })
}

/// The scheduler of a server: what is promised on each node, and the pods that wait for room.
#[derive(Default)]
pub struct Scheduler {
    capacity: Capacity,
    /// The last revision folded in.
    revision: Revision,
    /// Pods that were refused.
    waiting: BTreeMap<Key, Waiting>,
    /// Uids of pods that were placed, until their binding is seen.
    assumed: HashMap<Key, String>,
}

struct Waiting {
    request: Amounts,
    /// Whether other pods' coming and going matters to it.
    sociable: bool,
    /// Whether claims and volumes matter to it.
    stores: bool,
}

impl Scheduler {
    /// A scheduler that knows nothing yet; feed it with [`Scheduler::wakes`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Folds an event in and says which pods should be asked about (again). `world` contains the event. Events come in
    /// the order of their revisions, or, after a start or a gap, as every object of the world once.
    pub fn wakes(&mut self, event: &Event, world: &World) -> Vec<Key> {
        if event.revision <= self.revision && world.revision() > self.revision {
            // objects are shown again: events were missed
            self.capacity.rebuild(world);
            self.revision = world.revision();
        }
        // an object that is shown again is as it is now, so folding it in twice is folding it in once
        self.capacity.fold(event);
        self.revision = self.revision.max(event.revision);
        if event.key().is::<Pod>() {
            self.pod_changed(event)
        } else if event.key().is::<Node>() {
            self.node_changed(event)
        } else if is_storage(event.key()) {
            self.waiting.iter().filter(|(_, waiting)| waiting.stores).map(|(key, _)| key.clone()).collect()
        } else {
            Vec::new()
        }
    }

    fn pod_changed(&mut self, event: &Event) -> Vec<Key> {
        let (now, before) = (&event.object, event.previous.as_ref());
        let mut woken = Vec::new();
        if event.change == Change::Deleted || !is_wanting(now) {
            self.waiting.remove(event.key());
        } else if before.is_none_or(|before| !is_wanting(before) || state::spec_differs(&before.value(), &now.value()))
        {
            woken.push(event.key().clone());
        }
        let left = before.and_then(|before| node_of(before)).filter(|_| {
            event.change == Change::Deleted || !is_counted(now) || before.is_some_and(|before| resized(before, now))
        });
        if let Some(room) = left.and_then(|node| self.capacity.room(node)) {
            let fits = |waiting: &Waiting| filters::fits(&waiting.request, room) || waiting.sociable;
            woken.extend(self.waiting.iter().filter(|(_, waiting)| fits(waiting)).map(|(key, _)| key.clone()));
        } else if node_of(now).is_some() && before.is_none_or(|before| node_of(before).is_none()) {
            woken.extend(self.waiting.iter().filter(|(_, waiting)| waiting.sociable).map(|(key, _)| key.clone()));
        }
        woken
    }

    fn node_changed(&self, event: &Event) -> Vec<Key> {
        let offers = |object: &Object| {
            let node = object.view::<Node>();
            let status = node.and_then(|node| node.status.as_ref());
            let spec = node.and_then(|node| node.spec.as_ref());
            let allocatable = status.and_then(|status| status.allocatable.clone());
            let handlers = status.and_then(|status| status.runtime_handlers.clone());
            let closed = spec.map(|spec| (spec.unschedulable == Some(true), spec.taints.clone()));
            (allocatable, handlers, closed, object.meta().labels.clone())
        };
        let path = |object: &Object| object.meta().annotations.get(state::storage::STORAGE_PATH).cloned();
        let differs = |before: &std::sync::Arc<Object>| {
            offers(before) != offers(&event.object) || path(before) != path(&event.object)
        };
        let news = event.previous.as_ref().is_none_or(differs);
        if event.change == Change::Deleted || !news { Vec::new() } else { self.waiting.keys().cloned().collect() }
    }

    /// Decides about one pod. Its placement counts from now on, before it is committed; so ask again about the same
    /// key when the writes were refused.
    pub fn reconcile(&mut self, key: &Key, world: &World, stamp: &mut Stamp<'_>) -> Decision {
        if let Some(uid) = self.assumed.remove(key) {
            let bound = world.by_uid(&uid).is_some_and(|pod| node_of(pod).is_some());
            if !bound {
                self.capacity.forget(&uid);
            }
        }
        let pod = world.get(key).filter(|pod| is_wanting(pod)).cloned();
        let Some((pod, wanted)) = pod.as_ref().and_then(|pod| Some((pod, Wanted::new(pod, world)?))) else {
            self.waiting.remove(key);
            return Decision::default();
        };
        let request = wanted.request.clone();
        let stores = !state::storage::claims(&pod.meta().name, wanted.spec).is_empty();
        let spread = wanted.spec.topology_spread_constraints.is_some();
        // a claim may be for one pod at a time
        let sociable = wanted.spec.affinity.is_some() || spread || stores;
        match placement::choose(wanted, &self.capacity, seed(pod)) {
            Ok(node) => {
                self.waiting.remove(key);
                self.capacity.assume(pod, &node);
                self.assumed.insert(key.clone(), pod.meta().uid.clone());
                let mut writes = writes::placed(pod, &node, world, stamp);
                if stores {
                    writes.extend(storage_writes(pod, &node, world));
                }
                Decision { writes, again_at: None }
            }
            Err(refused) => {
                self.waiting.insert(key.clone(), Waiting { request, sociable, stores });
                let again_at = stamp.now.checked_add(SignedDuration::from_secs(RETRY_SECONDS)).ok();
                Decision { writes: writes::refused(pod, &refused, world, stamp), again_at }
            }
        }
    }
}

/// What claims that waited for a node are told.
fn storage_writes(pod: &Object, node: &str, world: &World) -> Vec<Write> {
    let (wanted, node) = (Wanted::new(pod, world), world.view::<Node>("", node));
    wanted.zip(node).map(|(wanted, node)| filters::Claims::of(&wanted).writes(world, node)).unwrap_or_default()
}

fn is_storage(key: &Key) -> bool {
    key.is::<PersistentVolumeClaim>() || key.is::<PersistentVolume>() || key.is::<StorageClass>()
}

/// The same pod is always decided the same way, and different pods start at different nodes.
fn seed(pod: &Object) -> u64 {
    state::record::fnv1a_64(pod.meta().uid.bytes())
}

/// Whether a pod wants a node from us.
fn is_wanting(pod: &Object) -> bool {
    let Some(spec) = pod.view::<Pod>().and_then(|pod| pod.spec.as_ref()) else { return false };
    let ours = spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == NAME);
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    ours && !gated && !pod.is_deleting() && node_of(pod).is_none() && is_counted(pod)
}

/// Whether a pod needs its room: it has not ended.
fn is_counted(pod: &Object) -> bool {
    let phase = pod.view::<Pod>().and_then(|pod| pod.status.as_ref()?.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn resized(before: &Object, now: &Object) -> bool {
    let request = |pod: &Object| Some(amounts::request(pod.view::<Pod>()?.spec.as_ref()?, false));
    request(before) != request(now)
}

fn node_of(pod: &Object) -> Option<&str> {
    let node = pod.view::<Pod>()?.spec.as_ref()?.node_name.as_deref()?;
    (!node.is_empty()).then_some(node)
}
