//! Carries out the steps of the plan, and folds in what became of those that took time.

use super::jobs::{self, Done, Live, Stopping};
use super::plan::Step;
use super::state::{
    Current, Drain, Ended, Ground, Retry, Running, Slot, Unhealthy, Verdict, Waiting, after, container_spec,
};
use super::worker::Worker;
use crate::body::LatestLog;
use crate::container::{Stage, Start, StartFailure, Started, field_path};
use crate::probes::{self, Kind, Target};
use crate::volumes::{self, Again, VolumeError, Volumes, payload::Source};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use runtime::{Exit, ExitReason};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// First delay after volumes could not be made; doubles up to the longest.
const MOUNT_RETRY: SignedDuration = SignedDuration::from_millis(500);
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
            Step::LayGround => self.lay_ground(now),
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

    fn lay_ground(&mut self, now: Timestamp) {
        if self.state.address.is_none() {
            let address = if self.spec.host_network == Some(true) {
                Some(self.body.config.node_ip)
            } else {
                self.owned = self.body.pool.lock().take();
                self.owned
            };
            let Some(address) = address else {
                let message = "Failed to create pod sandbox: no address left in the node's pod network";
                self.body.recorder.warning(&self.object, "FailedCreatePodSandBox", message);
                return self.ground_failed(Again::Later, now);
            };
            self.state.address = Some(address);
        }
        let failures = match self.state.ground {
            Ground::Failed { failures, .. } => failures,
            _ => 0,
        };
        self.mount_failures = failures;
        self.state.ground = Ground::Laying;
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

    pub(super) fn tell_mount_failure(&self, volume: &str, error: &VolumeError) {
        let message = format!("MountVolume.SetUp failed for volume {volume:?} : {error}");
        self.body.recorder.warning(&self.object, "FailedMount", &message);
    }

    /// Brings the files of the pod's volumes up to date with the world.
    pub(super) fn refresh_volumes(&mut self) {
        if self.state.ground != Ground::Ready || self.state.settled {
            return;
        }
        let work = self.volume_work();
        self.jobs.spawn(async move {
            let refreshed = tokio::task::spawn_blocking(move || work.refresh()).await;
            Done::Refreshed(refreshed.unwrap_or(Ok(())))
        });
    }

    fn start(&mut self, slot: Slot, now: Timestamp) {
        let Some(address) = self.state.address else { return };
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
            slot,
            instance,
            address,
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
                started.container.kill();
                started.log.close();
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
        let (Some(wanted), Some(address)) = (container_spec(&spec, slot), self.state.address) else { return };
        let Some(container) = self.state.container_mut(slot) else { return };
        container.restarts = container.next_instance();
        container.image_id = started.image_id;
        container.pull.reset();
        if let Current::Starting { before } = &container.current
            && let Current::Ended(ended) = &**before
        {
            container.last = Some(ended.clone());
        }
        container.current = Current::Running(Running {
            id: started.id.clone(),
            since: started.since,
            started: wanted.startup_probe.is_none(),
            ready: wanted.readiness_probe.is_none(),
            stopping: None,
            killed: false,
            unhealthy: None,
        });
        let latest = LatestLog { instance: container.restarts, file: started.log.clone() };
        self.body.logs.lock().insert((self.uid.clone(), wanted.name.clone()), latest);
        if let Some(door) = &started.door {
            self.doors.open(door.port, door.handler.clone());
        }
        let target = Arc::new(Target {
            guest: started.container.clone(),
            container: wanted.clone(),
            address,
            doors: self.doors.clone(),
        });
        let guest = started.container.clone();
        let id = started.id.clone();
        self.jobs.spawn(async move {
            let exit = guest.exited().await;
            Done::Exited(slot, id, exit)
        });
        self.live.insert(
            slot,
            Live {
                id: started.id,
                image: wanted.image.clone().unwrap_or_default(),
                guest: started.container,
                log: started.log,
                port: started.door.as_ref().map(|door| door.port),
                door: started.door,
                target: target.clone(),
                probes: Vec::new(),
                terminated: false,
            },
        );
        self.run_post_start(slot, wanted, target);
        match &wanted.startup_probe {
            Some(probe) => self.watch(slot, Kind::Startup, probe),
            None => self.watch_health(slot),
        }
    }

    fn run_post_start(&mut self, slot: Slot, container: &Container, target: Arc<Target>) {
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone()) else {
            return;
        };
        self.jobs.spawn(async move {
            match jobs::run_hook(&hook, &target).await {
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
        let Some(container) = container_spec(&spec, slot) else { return };
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
        let image = container_spec(&spec, slot).and_then(|container| container.image.clone()).unwrap_or_default();
        if stage == Stage::Pull {
            self.tell(slot, true, "Failed", &format!("Failed to pull image {image:?}: {message}"));
        }
        let shown = if stage == Stage::Pull { stage.reason() } else { &message };
        self.tell(slot, true, "Failed", &format!("Error: {shown}"));
        let Some(container) = self.state.container_mut(slot) else { return };
        let Current::Starting { before } = &container.current else { return };
        if let Current::Ended(ended) = &**before {
            // its instance number is used up only by a start that succeeds
            container.last = Some(ended.clone());
        }
        let backoff = match stage {
            Stage::ImageName | Stage::Config => None,
            Stage::Pull => Some(&mut container.pull),
            Stage::Create | Stage::Run => Some(&mut container.crash),
        };
        let retry = match backoff {
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
        let Some(wanted) = container_spec(&spec, slot) else { return };
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
        let (Some(wanted), Some(live)) = (container_spec(&spec, slot), self.live.get_mut(&slot)) else { return };
        live.probes.clear();
        live.terminated = true;
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
        live.log.close();
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

    /// All containers are done for good: address and volumes go back.
    fn settle(&mut self) {
        self.state.settled = true;
        if let Some(address) = self.owned.take() {
            self.body.pool.lock().release(address);
        }
        let pod_dir = self.pod_dir.clone();
        self.jobs.spawn(async move {
            let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(pod_dir)).await;
            if let Ok(Err(error)) = removed
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "volumes of a finished pod not removed");
            }
            Done::Cleaned
        });
    }

    /// An event about one container.
    pub(super) fn tell(&self, slot: Slot, warning: bool, reason: &str, message: &str) {
        let name = container_spec(&self.spec, slot).map(|container| container.name.as_str()).unwrap_or_default();
        self.body.recorder.tell(&self.object, warning, reason, message, Some(field_path(slot, name)));
    }
}

/// What laying volumes needs, away from the worker.
struct VolumeWork {
    object: Arc<::state::Object>,
    spec: Arc<k8s_openapi::api::core::v1::PodSpec>,
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
