//! What to do next for one pod: desired against observed, as steps.
//!
//! Pure, and asked again after every event; a step that was taken shows in the state, so asking twice does nothing twice.
//! Reads like the kubelet's rules: init containers one by one, sidecars beside them, restart policies, deadlines, and an
//! orderly way down.

use super::blueprint::Blueprint;
use super::state::{Adoption, Current, Drain, Ground, PodState, Retry, Settled, Slot, after, is_sidecar};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodSpec};

/// Kubernetes' default of `spec.terminationGracePeriodSeconds`.
pub const GRACE_SECONDS: i64 = 30;

/// What the cluster wants of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Desired<'a> {
    /// The pod's spec.
    pub spec: &'a Blueprint,
    /// Whether it is to run or to go.
    pub wanted: Wanted,
}

/// Whether a pod is to run or to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To run.
    Run,
    /// To be gone by then: its deletion was asked for.
    Gone {
        /// End of its grace period.
        by: Timestamp,
    },
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Look for containers of an earlier agent.
    Adopt,
    /// Make address, sandbox, directories and volumes.
    LayGround,
    /// Start a container.
    Start(Slot),
    /// Give up a start that is under way.
    Cancel(Slot),
    /// Tell that a container waits for its restart.
    BackOff(Slot),
    /// Ask a container to stop; it is killed at `by`.
    Stop {
        /// Which.
        slot: Slot,
        /// When its patience ends.
        by: Timestamp,
    },
    /// End a container now.
    Kill(Slot),
    /// Wait until no route leads to the pod.
    Drain,
    /// End the pod as a whole.
    Fail {
        /// `status.reason`
        reason: &'static str,
        /// `status.message`
        message: String,
    },
    /// All containers are done for good: give address, sandbox and volumes back.
    Settle,
    /// Nothing is left: the object may vanish.
    Remove,
    /// Ask again then, if nothing happens before.
    Wake(Timestamp),
}

/// What to do next. Steps are to be taken in order.
pub fn plan(desired: &Desired<'_>, state: &PodState, now: Timestamp) -> Vec<Step> {
    let mut plan = Plan { spec: desired.spec, state, now, steps: Vec::new(), wake: None };
    match desired.wanted {
        _ if state.adoption == Adoption::Needed => plan.steps.push(Step::Adopt),
        _ if state.adoption == Adoption::UnderWay => {}
        Wanted::Gone { by } => plan.go(by),
        Wanted::Run if state.verdict.is_some() => plan.end(after(now, grace_seconds(desired.spec))),
        Wanted::Run if is_finished(desired.spec, state) => plan.end(after(now, grace_seconds(desired.spec))),
        Wanted::Run => plan.run(),
    }
    plan.steps.extend(plan.wake.map(Step::Wake));
    plan.steps
}

/// Whether all containers are done and none will be started again; sidecars do not count.
pub fn is_finished(spec: &Blueprint, state: &PodState) -> bool {
    let for_good = |slot| match (spec.container(slot), state.container(slot).and_then(|c| c.ended())) {
        (Some(container), Some(ended)) => !restarts(spec, slot, container, ended.code),
        _ => false,
    };
    let init_failed = (0..state.init.len()).map(Slot::Init).any(|slot| {
        let failed = state.container(slot).and_then(|c| c.ended()).is_some_and(|ended| ended.code != 0);
        failed && for_good(slot)
    });
    init_failed || (!state.main.is_empty() && (0..state.main.len()).map(Slot::Main).all(for_good))
}

/// Whether a container that ended with this code is started again.
pub fn restarts(spec: &PodSpec, slot: Slot, container: &Container, code: i32) -> bool {
    let own = container.restart_policy.as_deref();
    let policy = own.or(spec.restart_policy.as_deref()).unwrap_or("Always");
    match (slot, policy) {
        (Slot::Ephemeral(_), _) | (_, "Never") => false,
        (_, "OnFailure") => code != 0,
        // an init container of a pod that restarts its containers is repeated until it succeeds
        (Slot::Init(_), _) => own == Some("Always") || code != 0,
        (Slot::Main(_), _) => true,
    }
}

/// The pod's grace period.
pub fn grace_seconds(spec: &PodSpec) -> i64 {
    spec.termination_grace_period_seconds.unwrap_or(GRACE_SECONDS).max(0)
}

struct Plan<'a> {
    spec: &'a Blueprint,
    state: &'a PodState,
    now: Timestamp,
    steps: Vec<Step>,
    wake: Option<Timestamp>,
}

impl Plan<'_> {
    /// A pod that is to run.
    fn run(&mut self) {
        if let Some(seconds) = self.spec.active_deadline_seconds {
            let deadline = after(self.state.since, seconds);
            if self.now >= deadline {
                let message = "Pod was active on the node longer than the specified deadline".into();
                return self.steps.push(Step::Fail { reason: "DeadlineExceeded", message });
            }
            self.wake_at(deadline);
        }
        match &self.state.ground {
            Ground::Missing => self.steps.push(Step::LayGround),
            Ground::Failed { retry, .. } => match retry {
                Retry::Now => self.steps.push(Step::LayGround),
                Retry::At(at) if *at <= self.now => self.steps.push(Step::LayGround),
                Retry::At(at) => self.wake_at(*at),
                Retry::OnChange => {}
            },
            Ground::Laying => {}
            Ground::Ready => self.run_containers(),
            Ground::Lost => self.clear(),
        }
    }

    /// Ends what the lost sandbox has left, then makes the ground again.
    fn clear(&mut self) {
        for (slot, container) in self.state.slots() {
            match &container.current {
                Current::Starting { .. } => self.steps.push(Step::Cancel(slot)),
                Current::Running(running) if !running.killed => self.steps.push(Step::Kill(slot)),
                _ => {}
            }
        }
        if !self.state.slots().any(|(_, c)| c.is_live()) {
            self.steps.push(Step::LayGround);
        }
    }

    fn run_containers(&mut self) {
        for (i, container) in self.spec.ephemeral().iter().enumerate() {
            self.tend(Slot::Ephemeral(i), container);
        }
        let mut open = true;
        for (i, container) in self.spec.init().iter().enumerate() {
            let slot = Slot::Init(i);
            let Some(observed) = self.state.container(slot) else { continue };
            if is_sidecar(container) {
                if open {
                    self.tend(slot, container);
                }
                open &= observed.running().is_some_and(|running| running.started);
            } else if !self.state.initialized {
                if open {
                    self.tend(slot, container);
                }
                open &= observed.ended().is_some_and(|ended| ended.code == 0);
            }
            // sidecars are restarted on their own once the pod is initialized
            open |= self.state.initialized;
        }
        if open {
            for (i, container) in self.spec.containers.iter().enumerate() {
                self.tend(Slot::Main(i), container);
            }
        }
    }

    /// One container whose turn it is: start it, restart it when due, or stop it because it is ill.
    fn tend(&mut self, slot: Slot, container: &Container) {
        let Some(observed) = self.state.container(slot) else { return };
        match &observed.current {
            Current::Starting { .. } => {}
            Current::Waiting(waiting) => match waiting.retry {
                Retry::Now => self.steps.push(Step::Start(slot)),
                Retry::At(at) if at <= self.now => self.steps.push(Step::Start(slot)),
                Retry::At(at) => {
                    self.announce(slot);
                    self.wake_at(at);
                }
                Retry::OnChange => {}
            },
            Current::Running(running) => match (running.stopping, &running.unhealthy) {
                (Some(by), _) => self.insist(slot, by),
                (None, Some(unhealthy)) => {
                    let grace = unhealthy.grace_seconds.unwrap_or_else(|| grace_seconds(self.spec));
                    self.steps.push(Step::Stop { slot, by: after(self.now, grace) });
                }
                (None, None) => {}
            },
            Current::Ended(ended) if restarts(self.spec, slot, container, ended.code) => {
                match observed.crash.until(ended.finished_at.unwrap_or(self.now)) {
                    Some(at) if at > self.now => {
                        self.announce(slot);
                        self.wake_at(at);
                    }
                    _ => self.steps.push(Step::Start(slot)),
                }
            }
            Current::Ended(_) => {}
        }
    }

    /// A pod that is to go: out of the routes, then down, then away.
    fn go(&mut self, by: Timestamp) {
        let live = self.state.slots().any(|(_, c)| c.is_live());
        // a pod whose time is up is not drained any more
        if live && self.state.drain != Drain::Drained && self.now < by {
            if self.state.drain == Drain::Open {
                self.steps.push(Step::Drain);
            }
            return self.wake_at(by);
        }
        self.end(by);
        if !live && self.state.settled == Settled::Yes {
            self.steps.push(Step::Remove);
        }
    }

    /// Stops what lives: the main containers, then the sidecars in reverse order; then gives address and volumes back.
    fn end(&mut self, by: Timestamp) {
        for (slot, container) in self.state.slots() {
            if matches!(container.current, Current::Starting { .. }) {
                self.steps.push(Step::Cancel(slot));
            }
        }
        let is_up = |slot: &Slot| self.state.container(*slot).is_some_and(|c| c.running().is_some());
        let mains = (0..self.state.main.len()).map(Slot::Main);
        let mains = mains.chain((0..self.state.ephemeral.len()).map(Slot::Ephemeral));
        let mains: Vec<Slot> = mains.filter(is_up).collect();
        let turn = if mains.is_empty() {
            (0..self.state.init.len()).rev().map(Slot::Init).find(is_up).into_iter().collect()
        } else {
            mains
        };
        for &slot in &turn {
            let stopping = self.state.container(slot).and_then(|c| c.running()).and_then(|running| running.stopping);
            match stopping {
                // a shortened grace period shortens the patience
                Some(earlier) => self.insist(slot, earlier.min(by)),
                None => self.steps.push(Step::Stop { slot, by }),
            }
        }
        let live = self.state.slots().any(|(_, c)| c.is_live());
        if !live && self.state.settled == Settled::No && self.state.ground != Ground::Laying {
            self.steps.push(Step::Settle);
        }
    }

    fn insist(&mut self, slot: Slot, by: Timestamp) {
        let killed = self.state.container(slot).and_then(|c| c.running()).is_some_and(|running| running.killed);
        if killed {
            return;
        }
        if by <= self.now { self.steps.push(Step::Kill(slot)) } else { self.wake_at(by) }
    }

    fn announce(&mut self, slot: Slot) {
        if self.state.container(slot).is_some_and(|c| !c.announced) {
            self.steps.push(Step::BackOff(slot));
        }
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
