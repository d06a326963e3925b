//! What the agent has observed of one pod: plain values, from which the plan and the status are computed.
//!
//! Deliberately absent: handles to what runs (the worker keeps those beside this), IO, the clock.

use super::blueprint::Blueprint;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use std::net::IpAddr;

/// First delay of a back-off.
const BACKOFF_SECONDS_MIN: i64 = 10;
/// Longest delay of a back-off.
const BACKOFF_SECONDS_MAX: i64 = 300;
/// Kubernetes' exit code and reason for a container that was made and could not be started.
const START_ERROR_CODE: i32 = 128;
const START_ERROR_REASON: &str = "StartError";
/// Kubernetes' exit code and reason for a container that was lost with its runtime.
const LOST_CODE: i32 = 255;
pub(super) const LOST_REASON: &str = "Unknown";

/// Which container of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// `spec.initContainers[i]`
    Init(usize),
    /// `spec.containers[i]`
    Main(usize),
    /// `spec.ephemeralContainers[i]`
    Ephemeral(usize),
}

/// One pod as observed.
#[derive(Clone, Debug, PartialEq)]
pub struct PodState {
    /// `status.startTime`: when this agent accepted the pod.
    pub since: Timestamp,
    /// `status.podIP`
    pub address: Option<IpAddr>,
    /// What containers stand on.
    pub ground: Ground,
    /// The init containers have done their work once.
    pub initialized: bool,
    /// In the order of the spec.
    pub init: Vec<ContainerState>,
    /// In the order of the spec.
    pub main: Vec<ContainerState>,
    /// In the order of the spec.
    pub ephemeral: Vec<ContainerState>,
    /// The pod as a whole was ended, whatever its containers say.
    pub verdict: Option<Verdict>,
    /// Whether requests may still be on their way here.
    pub drain: Drain,
    /// Whether address, sandbox and volumes were given back.
    pub settled: Settled,
    /// Whether containers of an earlier agent have been looked for.
    pub adoption: Adoption,
}

/// Whether a pod's address, sandbox and volumes were given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The pod has them.
    No,
    /// They are being given back.
    UnderWay,
    /// Nothing is left.
    Yes,
}

/// Whether the containers that an earlier agent left running have been looked for. Nothing else is done before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// They have not.
    Needed,
    /// Being looked for; waits for the engine if that is down.
    UnderWay,
    /// What there was is known.
    Done,
}

/// What containers stand on: address, directories, volumes.
#[derive(Clone, Debug, PartialEq)]
pub enum Ground {
    /// Not begun.
    Missing,
    /// Being made.
    Laying,
    /// There.
    Ready,
    /// The sandbox ended under the containers: they are ended too, and all is made again.
    Lost,
    /// Could not be made; `retry` says when to try again.
    Failed {
        /// When.
        retry: Retry,
        /// Failures in a row.
        failures: u32,
    },
}

/// Why a pod was ended as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// `status.reason`
    pub reason: String,
    /// `status.message`
    pub message: String,
}

/// The way out of the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Not begun.
    Open,
    /// Waiting until no route leads here.
    Draining,
    /// Nobody sends requests here any more.
    Drained,
}

/// When something that failed is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// At once.
    Now,
    /// Not before.
    At(Timestamp),
    /// When an object changes that it depends on.
    OnChange,
}

/// One container as observed.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerState {
    /// What it does now.
    pub current: Current,
    /// How its last instance ended.
    pub last: Option<Ended>,
    /// `restartCount`; also the number of the current instance's log.
    pub restarts: u32,
    /// Digest of what it runs, once known.
    pub image_id: String,
    /// Delay of restarts.
    pub crash: Backoff,
    /// Delay of image pulls.
    pub pull: Backoff,
    /// The current back-off has been told as an event.
    pub announced: bool,
}

/// What a container does now.
#[derive(Clone, Debug, PartialEq)]
pub enum Current {
    /// Not started, for a reason.
    Waiting(Waiting),
    /// A start is under way; what it was `before` is still what is shown.
    Starting {
        /// As what it is shown.
        before: Box<Current>,
    },
    /// It runs.
    Running(Running),
    /// It ended.
    Ended(Ended),
}

/// `state.waiting`
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// Kubernetes' reason; empty stands for the default (`ContainerCreating` or `PodInitializing`).
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When to try.
    pub retry: Retry,
}

/// A running container.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// `containerID`, with its scheme.
    pub id: String,
    /// `startedAt`
    pub since: Timestamp,
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    /// The readiness probe says so, or there is none.
    pub ready: bool,
    /// Asked to stop; killed at this time.
    pub stopping: Option<Timestamp>,
    /// Killed already.
    pub killed: bool,
    /// A probe found it must be restarted.
    pub unhealthy: Option<Unhealthy>,
}

/// Why a running container must be restarted.
#[derive(Clone, Debug, PartialEq)]
pub struct Unhealthy {
    /// For the event: `Container web failed liveness probe, will be restarted`.
    pub message: String,
    /// The probe's own `terminationGracePeriodSeconds`.
    pub grace_seconds: Option<i64>,
}

/// `state.terminated`
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// `containerID`, with its scheme.
    pub id: String,
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, ...
    pub reason: String,
    /// For people; may be empty.
    pub message: String,
    /// When it began, if it did.
    pub started_at: Option<Timestamp>,
    /// When it was gone.
    pub finished_at: Option<Timestamp>,
}

/// A delay that doubles from 10 s to 5 min and is forgotten after 10 quiet minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    entry: Option<(i64, Timestamp)>,
}

impl Backoff {
    /// Until when a failure at `failed_at` delays the next try; `None`: not at all.
    pub fn until(&self, failed_at: Timestamp) -> Option<Timestamp> {
        let (seconds, updated) = self.entry?;
        (!is_quiet(failed_at, updated)).then(|| after(failed_at, seconds))
    }

    /// Counts a try at `now` whose predecessor failed at `failed_at`.
    pub fn count(&mut self, failed_at: Timestamp, now: Timestamp) {
        let seconds = match self.entry {
            Some((seconds, updated)) if !is_quiet(failed_at, updated) => (seconds * 2).min(BACKOFF_SECONDS_MAX),
            _ => BACKOFF_SECONDS_MIN,
        };
        self.entry = Some((seconds, now));
    }

    /// The current delay in words: `10s`, `1m20s`, `5m0s`.
    pub fn words(&self) -> String {
        let seconds = self.entry.map_or(0, |(seconds, _)| seconds);
        if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
    }

    /// Forgets all failures.
    pub fn reset(&mut self) {
        self.entry = None;
    }
}

fn is_quiet(failed_at: Timestamp, updated: Timestamp) -> bool {
    failed_at.duration_since(updated) > SignedDuration::from_secs(2 * BACKOFF_SECONDS_MAX)
}

/// `at` plus seconds, saturating.
pub fn after(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

impl Waiting {
    /// Waits for its turn.
    pub fn turn() -> Self {
        Self { reason: "", message: String::new(), retry: Retry::Now }
    }
}

impl ContainerState {
    pub(super) fn fresh() -> Self {
        Self {
            current: Current::Waiting(Waiting::turn()),
            last: None,
            restarts: 0,
            image_id: String::new(),
            crash: Backoff::default(),
            pull: Backoff::default(),
            announced: false,
        }
    }

    /// What a container was when the agent last wrote its status. One that ran was lost with the agent.
    fn recover(status: &ContainerStatus, now: Timestamp) -> Self {
        let mut container = Self::fresh();
        container.restarts = u32::try_from(status.restart_count).unwrap_or(0);
        container.image_id = status.image_id.clone();
        let id = status.container_id.clone().unwrap_or_default();
        container.last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref()).map(ended);
        let Some(state) = &status.state else { return container };
        if let Some(terminated) = &state.terminated {
            container.current = Current::Ended(ended(terminated));
        } else if let Some(running) = &state.running {
            container.current = Current::Ended(Ended {
                id,
                code: LOST_CODE,
                reason: LOST_REASON.into(),
                message: String::new(),
                started_at: running.started_at.as_ref().map(|time| time.0),
                finished_at: Some(now),
            });
        } else if let Some(last) = container.last.take() {
            // it waited for a restart; the same instance is what ended
            container.current = Current::Ended(last);
        }
        container
    }

    /// The running part, if it runs.
    pub fn running(&self) -> Option<&Running> {
        match &self.current {
            Current::Running(running) => Some(running),
            _ => None,
        }
    }

    /// The running part, if it runs.
    pub fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.current {
            Current::Running(running) => Some(running),
            _ => None,
        }
    }

    /// How it ended, if it has and nothing new is under way.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.current {
            Current::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// Whether something of it is alive or coming to life.
    pub fn is_live(&self) -> bool {
        matches!(self.current, Current::Running(_) | Current::Starting { .. })
    }

    /// Its start failed after it was made: it counts as an instance that ran and failed, so that the restart policy decides.
    pub fn fail_to_start(&mut self, message: String, now: Timestamp) {
        let instance = self.next_instance();
        if let Current::Starting { before } = &self.current
            && let Current::Ended(ended) = &**before
        {
            self.last = Some(ended.clone());
        }
        self.restarts = instance;
        self.announced = false;
        self.current = Current::Ended(Ended {
            id: String::new(),
            code: START_ERROR_CODE,
            reason: START_ERROR_REASON.into(),
            message,
            started_at: None,
            finished_at: Some(now),
        });
    }

    /// Number of the next instance: its `restartCount` and its log's name.
    pub fn next_instance(&self) -> u32 {
        let had_one = match &self.current {
            Current::Starting { before } => matches!(**before, Current::Ended(_)),
            current => matches!(current, Current::Ended(_)),
        };
        if had_one || self.last.is_some() { self.restarts + 1 } else { self.restarts }
    }
}

impl PodState {
    /// What is known of a pod when the agent first sees it: nothing, or what its status tells of an earlier agent.
    pub fn recover(pod: &Pod, spec: &Blueprint, now: Timestamp) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let find = |statuses: &Option<Vec<ContainerStatus>>, container: &Container| {
            let status = statuses.iter().flatten().find(|status| status.name == container.name);
            status.map_or_else(ContainerState::fresh, |status| ContainerState::recover(status, now))
        };
        let init = spec.init().iter().map(|c| find(&status.init_container_statuses, c)).collect();
        let main: Vec<_> = spec.containers.iter().map(|c| find(&status.container_statuses, c)).collect();
        let ephemeral = spec.ephemeral().iter().map(|c| find(&status.ephemeral_container_statuses, c)).collect();
        let verdict = match (status.phase.as_deref(), status.reason) {
            (Some("Failed"), Some(reason)) if !reason.is_empty() => {
                Some(Verdict { reason, message: status.message.unwrap_or_default() })
            }
            _ => None,
        };
        Self {
            since: status.start_time.map_or(now, |time| time.0),
            address: status.pod_ip.and_then(|ip| ip.parse().ok()),
            ground: Ground::Missing,
            initialized: main.iter().any(|c| c.ended().is_some() || c.last.is_some()),
            init,
            main,
            ephemeral,
            verdict,
            drain: Drain::Open,
            settled: Settled::No,
            adoption: Adoption::Done,
        }
    }

    /// One container.
    pub fn container(&self, slot: Slot) -> Option<&ContainerState> {
        match slot {
            Slot::Init(i) => self.init.get(i),
            Slot::Main(i) => self.main.get(i),
            Slot::Ephemeral(i) => self.ephemeral.get(i),
        }
    }

    /// One container.
    pub fn container_mut(&mut self, slot: Slot) -> Option<&mut ContainerState> {
        match slot {
            Slot::Init(i) => self.init.get_mut(i),
            Slot::Main(i) => self.main.get_mut(i),
            Slot::Ephemeral(i) => self.ephemeral.get_mut(i),
        }
    }

    /// All containers in the order of their start.
    pub fn slots(&self) -> impl DoubleEndedIterator<Item = (Slot, &ContainerState)> {
        let init = self.init.iter().enumerate().map(|(i, c)| (Slot::Init(i), c));
        let ephemeral = self.ephemeral.iter().enumerate().map(|(i, c)| (Slot::Ephemeral(i), c));
        init.chain(self.main.iter().enumerate().map(|(i, c)| (Slot::Main(i), c))).chain(ephemeral)
    }
}

/// Whether an init container keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn ended(terminated: &k8s_openapi::api::core::v1::ContainerStateTerminated) -> Ended {
    Ended {
        id: terminated.container_id.clone().unwrap_or_default(),
        code: terminated.exit_code,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone().unwrap_or_default(),
        started_at: terminated.started_at.as_ref().map(|time| time.0),
        finished_at: terminated.finished_at.as_ref().map(|time| time.0),
    }
}
