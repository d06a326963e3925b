//! The mind that chooses nodes for pods: (pod, world) -> placement, or the reasons why not.
//!
//! Layer 2. A [`Scheduler`] keeps a per-node summary of what is promised ([`Capacity`]), folded from events, so that one
//! placement costs a few nodes and no scan of pods. Plugins are one file each. Deliberately absent: IO, clocks, queues,
//! preemption.

use jiff::Timestamp;
use state::{Event, Key, Object, Stamp, World, Write};

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
    let _ = (pod, world, now);
    Err(Refused { message: "no nodes available to schedule pods".into() })
}

/// The scheduler of a server: what is promised on each node, and the pods that wait for room.
#[derive(Default)]
pub struct Scheduler {}

impl Scheduler {
    /// A scheduler that knows nothing yet; feed it with [`Scheduler::wakes`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Folds an event in and says which pods should be asked about (again). `world` contains the event.
    pub fn wakes(&mut self, event: &Event, world: &World) -> Vec<Key> {
        let _ = (event, world);
        Vec::new()
    }

    /// Decides about one pod. Its placement counts from now on, before it is committed; so ask again about the same
    /// key when the writes were refused.
    pub fn reconcile(&mut self, key: &Key, world: &World, stamp: &mut Stamp<'_>) -> Decision {
        let _ = (key, world, stamp);
        Decision::default()
    }
}
