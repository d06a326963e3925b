//! Carries out the steps of the plan, and folds in what became of those that took time.

use super::jobs::{self, Done, Live, Stopping};
use super::plan::Step;
use super::state::{Current, Drain, Ended, Ground, Retry, Running, Settled, Slot, Unhealthy, Verdict, Waiting, after};
use super::worker::Worker;
use crate::body::{LatestLog, LiveGuest};
use crate::container::guest::Guest;
use crate::container::sandbox::{self, Footing};
use crate::container::{Stage, Start, StartFailure, Started, field_path, termination};
use crate::probes::{self, Kind, Target};
use crate::volumes::{self, Again, VolumeError, Volumes, payload::Source};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use runtime::{Exit, ExitReason};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// First delay after volumes could not be made; doubles up to the longest.
const MOUNT_RETRY: SignedDuration = SignedDuration::from_millis(500);
/// A configuration that names what is not there is tried again at the latest after so long: files of the node tell nobody.
const CONFIG_RETRY_SECONDS: i64 = 10;
/// Longest delay after volumes could not be made.
const MOUNT_RETRY_MAX: SignedDuration = SignedDuration::from_secs(122);
/// What a program that does not handle SIGTERM exits with.
const TERMINATED_CODE: i32 = 143;
/// What a program that is killed exits with.
const KILLED_CODE: i32 = 137;

impl Worker {
    /// Carries out one step; what takes time becomes a job.
    pub(super) fn act(&mut self, step: Step, now: Timestamp) {
        match step {
            Step::Adopt => self.adopt(),
            Step::LayGround => self.lay_ground(),
            Step::Start(slot) => self.start(slot, now),
            Step::Cancel(slot) => self.cancel(slot),
            Step::BackOff(slot) => self.back_off(slot, now),
            Step::Stop { slot, by } => self.stop(slot, by),
            Step::Kill(slot) => {
                if let Some(running) = self.state.container_mut(slot).and_then(|c| c.running_mut()) {
                    running.killed = true;
                }
                if let Some(live) = self.live.get_mut(&slot) {
                    live.terminated = false;
                    live.guest.kill();
                }
            }
            Step::Drain => {
                self.state.drain = Drain::Draining;
                let super::plan::Wanted::Gone { by } = self.wanted(now) else { return };
                self.jobs.spawn(jobs::drain(self.body.clone(), self.state.address, by));
            }
            Step::Fail { reason, message } => {
                self.body.recorder.warning(&self.object, reason, &message);
                self.state.verdict = Some(Verdict { reason: reason.into(), message });
            }
            Step::Settle => self.settle(),
            Step::Remove => self.remove(now),
            Step::Wake(at) => self.wake = Some(at),
        }
    }

    /// The sandbox first, then the volumes, which may show the pod's address.
    fn lay_ground(&mut self) {
        self.mount_failures = match self.state.ground {
            Ground::Failed { failures, .. } => failures,
            _ => 0,
        };
        self.state.ground = Ground::Laying;
        if self.footing.is_some() {
            return self.lay_volumes();
        }
        let (body, object, spec) = (self.body.clone(), self.object.clone(), self.spec.clone());
        let (address, docker) = (self.state.address, self.uses_docker);
        self.jobs.spawn(async move { Done::Footing(sandbox::lay(&body, &object, &spec, address, docker).await) });
    }

    pub(super) fn take_footing(&mut self, result: Result<Footing, String>) {
        let footing = match result {
            Ok(footing) => footing,
            Err(message) => {
                let message = format!("Failed to create pod sandbox: {message}");
                self.body.recorder.warning(&self.object, "FailedCreatePodSandBox", &message);
                return self.ground_failed(Again::Later, Timestamp::now());
            }
        };
        if let Some(address) = self.owned
            && address != footing.address
        {
            self.body.pools.lock().release(address);
            self.owned = None;
        }
        if footing.owned {
            self.owned = Some(footing.address);
        }
        let is_new = self.state.address != Some(footing.address);
        self.state.address = Some(footing.address);
        if is_new && footing.owned {
            self.note_address(Timestamp::now());
        }
        if let Some(sandbox) = &footing.sandbox {
            self.uses_docker = true;
            for ((uid, _), live) in self.body.guests.lock().iter_mut() {
                if *uid == self.uid {
                    live.sandbox = Some(sandbox.clone());
                }
            }
            let guard = sandbox.guard.clone();
            let id = sandbox.id.clone();
            self.jobs.spawn(async move {
                guard.exited().await;
                Done::SandboxLost(id)
            });
        }
        self.footing = Some(footing);
        self.lay_volumes();
    }

    /// A container turned out to be Docker's in a pod without a sandbox.
    fn make_again(&mut self, slot: Slot) {
        if let Some(container) = self.state.container_mut(slot) {
            container.current = Current::Waiting(Waiting::turn());
        }
        self.uses_docker = true;
        self.lose_ground();
    }

    fn lose_ground(&mut self) {
        let message = "Pod sandbox changed, it will be killed and re-created.";
        self.body.recorder.tell(&self.object, false, "SandboxChanged", message, None);
        self.footing = None;
        self.state.ground = Ground::Lost;
        // it was not their fault
        let slots: Vec<Slot> = self.state.slots().map(|(slot, _)| slot).collect();
        for slot in slots {
            if let Some(container) = self.state.container_mut(slot) {
                container.crash.reset();
            }
        }
    }

    /// The sandbox has ended though nobody asked it to: what stands on it is ended too, and all is made again.
    pub(super) fn take_sandbox_loss(&mut self, id: &str) {
        let current = self.footing.as_ref().and_then(|footing| footing.sandbox.as_ref());
        if self.state.settled != Settled::No || current.is_none_or(|sandbox| sandbox.id != id) {
            return;
        }
        self.lose_ground();
    }

    fn lay_volumes(&mut self) {
        let work = self.volume_work();
        self.jobs.spawn(async move {
            let laid = tokio::task::spawn_blocking(move || work.lay()).await;
            Done::Ground(laid.unwrap_or_else(|panic| Err((String::new(), VolumeError::later(panic.to_string())))))
        });
    }

    fn volume_work(&self) -> VolumeWork {
        VolumeWork {
            object: self.object.clone(),
            spec: self.spec.clone(),
            pod_dir: self.pod_dir.clone(),
            world: self.body.world(),
            facts: self.body.facts(self.state.address),
        }
    }

    pub(super) fn take_ground(&mut self, result: Result<Volumes, (String, VolumeError)>) {
        match result {
            Ok(volumes) => {
                self.volumes = Arc::new(volumes);
                self.state.ground = Ground::Ready;
                if volumes::emptydir::is_limited(&self.spec) {
                    self.jobs.spawn(jobs::watch_sizes(self.spec.clone(), self.volumes.clone()));
                }
            }
            Err((volume, error)) => {
                self.tell_mount_failure(&volume, &error);
                self.ground_failed(error.again, Timestamp::now());
            }
        }
    }

    fn ground_failed(&mut self, again: Again, now: Timestamp) {
        let failures = self.mount_failures;
        let delay = MOUNT_RETRY.checked_mul(1 << failures.min(8)).unwrap_or(MOUNT_RETRY_MAX).min(MOUNT_RETRY_MAX);
        let retry = match again {
            Again::OnChange => Retry::OnChange,
            Again::Later => Retry::At(now.checked_add(delay).unwrap_or(now)),
        };
        self.state.ground = Ground::Failed { retry, failures: failures + 1 };
    }

    /// A volume holds more than it may: the pod ends, as the kubelet's eviction would have it.
    pub(super) fn evict(&mut self, message: String) {
        if self.state.verdict.is_none() && !self.object.is_deleting() {
            self.body.recorder.warning(&self.object, "Evicted", &message);
            self.state.verdict = Some(Verdict { reason: "Evicted".into(), message });
        }
    }

    pub(super) fn tell_mount_failure(&self, volume: &str, error: &VolumeError) {
        if !error.is_early {
            self.body.recorder.warning(&self.object, "FailedMount", &error.event(volume));
        }
    }

    /// Brings the files of the pod's volumes up to date with the world.
    pub(super) fn refresh_volumes(&mut self) {
        if self.state.ground != Ground::Ready || self.state.settled != Settled::No {
            return;
        }
        let work = self.volume_work();
        self.jobs.spawn(async move {
            let refreshed = tokio::task::spawn_blocking(move || work.refresh()).await;
            Done::Refreshed(refreshed.unwrap_or(Ok(())))
        });
    }

    fn start(&mut self, slot: Slot, now: Timestamp) {
        let Some(footing) = self.footing.clone() else { return };
        if matches!(slot, Slot::Main(_)) {
            self.state.initialized = true;
        }
        let Some(container) = self.state.container_mut(slot) else { return };
        let instance = container.next_instance();
        if let Current::Ended(ended) = &container.current {
            container.crash.count(ended.finished_at.unwrap_or(now), now);
        }
        container.announced = false;
        let before = std::mem::replace(&mut container.current, Current::Waiting(Waiting::turn()));
        container.current = Current::Starting { before: Box::new(before) };
        self.attempts += 1;
        let attempt = self.attempts;
        let start = Start {
            body: self.body.clone(),
            object: self.object.clone(),
            spec: self.spec.clone(),
            slot,
            instance,
            footing,
            volumes: self.volumes.clone(),
            pod_dir: self.pod_dir.clone(),
            log_dir: self.log_dir.clone(),
        };
        let job = self.jobs.spawn(async move { Done::Started(slot, attempt, Box::new(start.run().await)) });
        self.starts.insert(slot, (attempt, job));
    }

    fn cancel(&mut self, slot: Slot) {
        if let Some((_, start)) = self.starts.remove(&slot) {
            start.abort();
        }
        if let Some(container) = self.state.container_mut(slot)
            && let Current::Starting { before } = &mut container.current
        {
            container.current = std::mem::replace(before, Current::Waiting(Waiting::turn()));
        }
    }

    pub(super) fn take_start(&mut self, slot: Slot, attempt: u64, result: Result<Started, StartFailure>) {
        if self.starts.get(&slot).is_none_or(|(current, _)| *current != attempt) {
            // given up in the meantime
            if let Ok(started) = result {
                started.guest.kill();
                if let Some(log) = started.log {
                    log.close();
                }
            }
            return;
        }
        self.starts.remove(&slot);
        match result {
            Ok(started) => self.started(slot, started),
            Err(failure) => self.not_started(slot, failure, Timestamp::now()),
        }
    }

    fn started(&mut self, slot: Slot, started: Started) {
        let spec = self.spec.clone();
        let Some(wanted) = spec.container(slot) else { return };
        let Some(container) = self.state.container_mut(slot) else { return };
        container.restarts = container.next_instance();
        container.image_id = started.image_id.clone();
        container.pull.reset();
        if let Current::Starting { before } = &container.current
            && let Current::Ended(ended) = &**before
        {
            container.last = Some(ended.clone());
        }
        let (is_started, is_ready) = (wanted.startup_probe.is_none(), wanted.readiness_probe.is_none());
        if let Some(target) = self.hold(slot, wanted, started, is_started, is_ready) {
            self.run_post_start(slot, wanted, target);
        }
    }

    /// Keeps a container that runs, started just now or found: its end, its routes, its probes.
    pub(super) fn hold(
        &mut self,
        slot: Slot,
        wanted: &Container,
        started: Started,
        is_started: bool,
        is_ready: bool,
    ) -> Option<Arc<Target>> {
        let address = self.state.address?;
        let container = self.state.container_mut(slot)?;
        container.current = Current::Running(Running {
            id: started.id.clone(),
            since: started.since,
            started: is_started,
            ready: is_ready,
            stopping: None,
            killed: false,
            unhealthy: None,
        });
        let key = (self.uid.clone(), wanted.name.clone());
        if let Some(file) = &started.log {
            let latest = LatestLog { instance: container.restarts, file: file.clone() };
            self.body.logs.lock().insert(key.clone(), latest);
        }
        let live = LiveGuest {
            guest: started.guest.clone(),
            sandbox: self.footing.as_ref().and_then(|footing| footing.sandbox.clone()),
            address,
            tty: wanted.tty == Some(true),
        };
        self.body.guests.lock().insert(key, live);
        if let Some(door) = &started.door {
            self.doors.open(door.port, door.handler.clone());
        }
        let target = Arc::new(Target {
            guest: started.guest.clone(),
            container: wanted.clone(),
            address,
            ground: self.body.ground.clone(),
            doors: self.doors.clone(),
        });
        let guest = started.guest.clone();
        let id = started.id.clone();
        let last_words = termination::LastWords::of(wanted, &started);
        self.jobs.spawn(async move {
            let mut exit = guest.exited().await;
            if let Some(message) = last_words.read(&guest, &exit).await {
                exit.message = message;
            }
            Done::Exited(slot, id, exit)
        });
        self.live.insert(
            slot,
            Live {
                id: started.id,
                image: wanted.image.clone().unwrap_or_default(),
                guest: started.guest,
                log: started.log,
                port: started.door.as_ref().map(|door| door.port),
                door: started.door,
                target: target.clone(),
                probes: Vec::new(),
                _pin: started.pin,
                terminated: false,
            },
        );
        match &wanted.startup_probe {
            Some(probe) if !is_started => self.watch(slot, Kind::Startup, probe),
            _ => self.watch_health(slot),
        }
        Some(target)
    }

    fn run_post_start(&mut self, slot: Slot, container: &Container, target: Arc<Target>) {
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone()) else {
            return;
        };
        self.jobs.spawn(async move {
            match probes::run_hook(&hook, &target).await {
                Ok(()) => Done::Cleaned,
                Err(message) => Done::HookFailed(slot, message),
            }
        });
    }

    pub(super) fn take_hook_failure(&mut self, slot: Slot, message: &str) {
        self.tell(slot, true, "FailedPostStartHook", &format!("PostStartHook failed: {message}"));
        if let Some(running) = self.state.container_mut(slot).and_then(|c| c.running_mut()) {
            running.unhealthy = Some(Unhealthy { message: "FailedPostStartHook".into(), grace_seconds: None });
        }
    }

    /// Begins the probes that wait for the startup probe.
    pub(super) fn watch_health(&mut self, slot: Slot) {
        let spec = self.spec.clone();
        let Some(container) = spec.container(slot) else { return };
        for (kind, probe) in
            [(Kind::Readiness, &container.readiness_probe), (Kind::Liveness, &container.liveness_probe)]
        {
            if let Some(probe) = probe {
                self.watch(slot, kind, probe);
            }
        }
    }

    fn watch(&mut self, slot: Slot, kind: Kind, probe: &Probe) {
        let Some(live) = self.live.get_mut(&slot) else { return };
        let (target, id, reports) = (live.target.clone(), live.id.clone(), self.reports.clone());
        let task = tokio::spawn(probes::watch(kind, probe.clone(), target, slot, id, reports));
        live.probes.push(AbortOnDropHandle::new(task));
    }

    fn not_started(&mut self, slot: Slot, failure: StartFailure, now: Timestamp) {
        let StartFailure { stage, message } = failure;
        let spec = self.spec.clone();
        let image = spec.container(slot).and_then(|container| container.image.clone()).unwrap_or_default();
        if stage == Stage::Pull {
            self.tell(slot, true, "Failed", &format!("Failed to pull image {image:?}: {message}"));
        }
        if stage == Stage::NeverPull {
            self.tell(slot, true, stage.reason(), &message);
        }
        let shown = if matches!(stage, Stage::Pull | Stage::NeverPull) { stage.reason() } else { &message };
        self.tell(slot, true, "Failed", &format!("Error: {shown}"));
        let Some(container) = self.state.container_mut(slot) else { return };
        let Current::Starting { before } = &container.current else { return };
        if let Current::Ended(ended) = &**before {
            // its instance number is used up only by a start that succeeds
            container.last = Some(ended.clone());
        }
        let backoff = match stage {
            Stage::ImageName | Stage::Config => None,
            Stage::Sandbox => return self.make_again(slot),
            Stage::Pull | Stage::NeverPull => Some(&mut container.pull),
            Stage::Run => return container.fail_to_start(message, now),
            Stage::Create => Some(&mut container.crash),
        };
        let retry = match backoff {
            None if stage == Stage::Config => Retry::At(after(now, CONFIG_RETRY_SECONDS)),
            None => Retry::OnChange,
            Some(backoff) => {
                backoff.count(now, now);
                Retry::At(backoff.until(now).unwrap_or_else(|| after(now, 10)))
            }
        };
        container.announced = false;
        container.current = Current::Waiting(Waiting { reason: stage.reason(), message, retry });
    }

    /// Tells, once, that a container waits for another try.
    fn back_off(&mut self, slot: Slot, now: Timestamp) {
        let pulls = |current: &Current| matches!(current, Current::Waiting(w) if w.reason == Stage::Pull.reason());
        if self.state.container(slot).is_some_and(|c| pulls(&c.current)) {
            // the failure itself is told before the waiting for the next try takes its place
            self.publish(now);
        }
        let spec = self.spec.clone();
        let Some(wanted) = spec.container(slot) else { return };
        let image = wanted.image.as_deref().unwrap_or_default();
        let Some(container) = self.state.container_mut(slot) else { return };
        container.announced = true;
        match &mut container.current {
            Current::Waiting(waiting) if waiting.reason == Stage::Pull.reason() => {
                let back_off = format!("Back-off pulling image {image:?}");
                waiting.message = format!("{back_off}: {}: {}", waiting.reason, waiting.message);
                waiting.reason = "ImagePullBackOff";
                self.tell(slot, false, "BackOff", &back_off);
                self.tell(slot, true, "Failed", "Error: ImagePullBackOff");
            }
            Current::Ended(_) => {
                let message = format!("Back-off restarting failed container {} in pod {}", wanted.name, self.full_name);
                self.tell(slot, true, "BackOff", &message);
            }
            _ => {}
        }
    }

    fn stop(&mut self, slot: Slot, by: Timestamp) {
        let spec = self.spec.clone();
        let (Some(wanted), Some(live)) = (spec.container(slot), self.live.get_mut(&slot)) else { return };
        live.probes.clear();
        live.terminated = matches!(live.guest, Guest::Wasm(_));
        let stopping = Stopping {
            guest: live.guest.clone(),
            door: live.door.take(),
            hook: wanted.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone()),
            target: live.target.clone(),
            by,
        };
        let Some(running) = self.state.container_mut(slot).and_then(|c| c.running_mut()) else { return };
        running.stopping = Some(by);
        let message = match &running.unhealthy {
            Some(unhealthy) => unhealthy.message.clone(),
            None => format!("Stopping container {}", wanted.name),
        };
        self.tell(slot, false, "Killing", &message);
        self.jobs.spawn(stopping.run());
    }

    pub(super) fn take_exit(&mut self, slot: Slot, id: &str, exit: Exit) {
        if self.live.get(&slot).is_none_or(|live| live.id != id) {
            return;
        }
        let Some(live) = self.live.remove(&slot) else { return };
        if let Some(log) = &live.log {
            log.close();
        }
        let key = (self.uid.clone(), self.spec.container(slot).map(|c| c.name.clone()).unwrap_or_default());
        self.body.guests.lock().remove(&key);
        if let Some(port) = live.port {
            self.doors.close(port);
        }
        let by_signal = live.terminated && exit.code == KILLED_CODE && exit.reason == ExitReason::Error;
        let Some(container) = self.state.container_mut(slot) else { return };
        container.announced = false;
        container.current = Current::Ended(Ended {
            id: live.id.clone(),
            code: if by_signal { TERMINATED_CODE } else { exit.code },
            reason: exit.reason.as_str().into(),
            message: if by_signal { String::new() } else { exit.message },
            started_at: Some(exit.started_at),
            finished_at: Some(exit.finished_at),
        });
    }

    /// All containers are done for good: address, sandbox and volumes go back.
    fn settle(&mut self) {
        self.state.settled = Settled::UnderWay;
        let settling = jobs::Settling {
            body: self.body.clone(),
            uid: self.uid.clone(),
            pod_dir: self.pod_dir.clone(),
            sandbox: self.footing.take().and_then(|footing| footing.sandbox),
            address: self.owned.take(),
        };
        self.jobs.spawn(settling.run());
    }

    /// An event about one container.
    pub(super) fn tell(&self, slot: Slot, warning: bool, reason: &str, message: &str) {
        let name = self.spec.container(slot).map(|container| container.name.as_str()).unwrap_or_default();
        self.body.recorder.tell(&self.object, warning, reason, message, Some(field_path(slot, name)));
    }
}

/// What laying volumes needs, away from the worker.
struct VolumeWork {
    object: Arc<::state::Object>,
    spec: Arc<super::blueprint::Blueprint>,
    pod_dir: std::path::PathBuf,
    world: Arc<::state::World>,
    facts: crate::fields::PodFacts,
}

impl VolumeWork {
    fn lay(self) -> Result<Volumes, (String, VolumeError)> {
        self.with(|source| volumes::lay(&self.pod_dir, &self.spec, source, Timestamp::now()))
    }

    fn refresh(self) -> Result<(), (String, VolumeError)> {
        self.with(|source| volumes::refresh(&self.pod_dir, &self.spec, source, Timestamp::now()))
    }

    fn with<T>(&self, act: impl FnOnce(Source<'_>) -> T) -> T {
        let empty = Pod::default();
        let pod = self.object.view::<Pod>().unwrap_or(&empty);
        let namespace = self.object.meta().namespace.as_deref().unwrap_or_default();
        act(Source { pod, namespace, world: &self.world, facts: &self.facts })
    }
}
