//! The scheduler among the controllers: woken, asked and committed like any of them.

use controllers::{Controller, Cx, Outcome};
use scheduler::Scheduler;
use state::{Event, Key, World};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The scheduler as one of the executor's controllers. Its summary of the nodes is the only state behind a lock, and
/// only the executor's loop takes it.
#[derive(Default)]
pub struct Placing(Mutex<Scheduler>);

impl Placing {
    fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller for Placing {
    fn name(&self) -> &'static str {
        "default-scheduler"
    }

    fn wakes(&self, event: &Event, world: &World) -> Vec<Key> {
        self.scheduler().wakes(event, world)
    }

    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome {
        let decision = self.scheduler().reconcile(key, cx.world, &mut cx.stamp);
        Outcome { writes: decision.writes, again_at: decision.again_at }
    }
}
