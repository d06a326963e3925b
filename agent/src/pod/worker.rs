//! A worker's loop: waits for one event, folds it into the state, then lets plan, act and publish do theirs.
//!
//! Starts, exits, drains and writes are jobs beside the loop, so a pod answers its deletion while it still starts.

use super::Mail;
use super::blueprint::Blueprint;
use super::jobs::{Done, Live, Stopping};
use super::plan::{Desired, Step, Wanted, grace_seconds, is_finished, plan};
use super::publish::Publisher;
use super::state::{Adoption, ContainerState, Current, Drain, Ground, PodState, Retry, Settled, Slot, after};
use crate::body::{Body, Session};
use crate::container::guest::Guest;
use crate::container::sandbox::Footing;
use crate::container::{Stage, log_dir};
use crate::probes::{Doors, Finding, Kind, Report};
use crate::volumes::{self, Volumes};
use ::state::Object;
use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::logs::LogFile;
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Answers of probes that wait for their pod.
const REPORTS_MAX: usize = 16;
/// What a pod whose object was removed by force gets to end.
const FORCED_GRACE_SECONDS: i64 = 2;
/// Longest time that a pod gets when the process ends, whatever its own grace period.
const SHUTDOWN_GRACE_SECONDS: i64 = 5;
/// The first and the longest rest between two tries to remove what a pod has left.
const CLEAR_REST_MIN: Duration = Duration::from_millis(500);
const CLEAR_REST_MAX: Duration = Duration::from_secs(60);

/// What is known of a pod from before its worker.
#[derive(Default)]
pub struct Past {
    /// An earlier agent may have left containers of it in Docker.
    pub is_in_docker: bool,
    /// What an earlier agent could not tell the cluster any more.
    pub untold: Option<PodStatus>,
    /// The newest session with the master.
    pub session: Session,
}

/// The worker of one pod.
pub struct Worker {
    pub(super) body: Arc<Body>,
    pub(super) object: Arc<Object>,
    pub(super) spec: Arc<Blueprint>,
    pub(super) uid: String,
    pub(super) full_name: String,
    pub(super) pod_dir: PathBuf,
    pub(super) log_dir: PathBuf,
    pub(super) state: PodState,
    /// The address that this worker must give back.
    pub(super) owned: Option<IpAddr>,
    /// Address and sandbox, once there.
    pub(super) footing: Option<Footing>,
    /// Docker has or had containers of this pod.
    pub(super) uses_docker: bool,
    pub(super) volumes: Arc<Volumes>,
    pub(super) live: HashMap<Slot, Live>,
    /// Starts under way: the number of the attempt, and the way to give it up.
    pub(super) starts: HashMap<Slot, (u64, AbortHandle)>,
    pub(super) attempts: u64,
    pub(super) doors: Arc<Doors>,
    pub(super) jobs: JoinSet<Done>,
    pub(super) reports: mpsc::Sender<Report>,
    inbox: mpsc::Receiver<Report>,
    pub(super) publisher: Publisher,
    pub(super) wake: Option<Timestamp>,
    pub(super) removing: bool,
    /// Times in a row that volumes could not be made.
    pub(super) mount_failures: u32,
    pub(super) finished: bool,
    /// The newest session with the master.
    pub(super) session: Session,
    gone_since: Option<Timestamp>,
    going_since: Option<Timestamp>,
    sources: u64,
}

enum Event {
    Shutdown,
    Mail,
    Done(Done),
    Report(Report),
    Timer,
}

impl Worker {
    /// A worker that takes the pod up where its status says an earlier agent left it. Reserves the pod's address, so make
    /// the workers of all known pods before running any.
    pub fn new(body: Arc<Body>, object: Arc<Object>, past: Past, now: Timestamp) -> Self {
        let Past { is_in_docker, untold, session } = past;
        let meta = object.meta();
        let namespace = meta.namespace.clone().unwrap_or_default();
        let empty = Pod::default();
        let mut pod = Cow::Borrowed(object.view::<Pod>().unwrap_or(&empty));
        if untold.is_some() {
            pod.to_mut().status.clone_from(&untold);
        }
        let spec = Arc::new(Blueprint::new(pod.spec.clone().unwrap_or_default()));
        let mut state = PodState::recover(&pod, &spec, now);
        if is_in_docker {
            state.adoption = Adoption::Needed;
        }
        let mut owned = None;
        if let Some(address) = state.address
            && !is_finished(&spec, &state)
        {
            let kept = spec.host_network != Some(true) && body.pools.lock().reserve(address);
            owned = kept.then_some(address);
            state.address = owned;
        }
        let (reports, inbox) = mpsc::channel(REPORTS_MAX);
        Self {
            full_name: format!("{}_{namespace}({})", meta.name, meta.uid),
            pod_dir: body.pod_dir(&meta.uid),
            log_dir: log_dir(&body.config.data_dir, &namespace, &meta.name, &meta.uid),
            uid: meta.uid.clone(),
            body,
            object,
            spec,
            state,
            owned,
            footing: None,
            uses_docker: is_in_docker,
            volumes: Arc::default(),
            live: HashMap::new(),
            starts: HashMap::new(),
            attempts: 0,
            doors: Arc::default(),
            jobs: JoinSet::new(),
            reports,
            inbox,
            publisher: Publisher::of(untold),
            wake: None,
            removing: false,
            mount_failures: 0,
            finished: false,
            session,
            gone_since: None,
            going_since: None,
            sources: 0,
        }
    }

    /// Works until the pod is gone, or until shutdown, which stops its containers and leaves the cluster's view alone.
    pub async fn run(mut self, mut mail: watch::Receiver<Mail>, shutdown: CancellationToken) {
        self.take_mail(&mail.borrow_and_update().clone());
        self.advance();
        while !self.finished {
            match self.next(&mut mail, &shutdown).await {
                // a pod that was about to go leaves no files to the next agent
                Event::Shutdown if self.removing => break,
                Event::Shutdown => return self.shut_down().await,
                Event::Mail => {
                    let latest = mail.borrow_and_update().clone();
                    self.take_mail(&latest);
                }
                Event::Done(done) => self.take_done(done),
                Event::Report(report) => self.take_report(report),
                Event::Timer => {}
            }
            self.advance();
        }
        self.leave(&shutdown).await;
    }

    async fn next(&mut self, mail: &mut watch::Receiver<Mail>, shutdown: &CancellationToken) -> Event {
        let due = [self.wake, self.publisher.wake()].into_iter().flatten().min();
        let nap = due.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Event::Shutdown,
            // the inbox drops its end only at shutdown
            changed = mail.changed() => if changed.is_ok() { Event::Mail } else { Event::Shutdown },
            Some(joined) = self.jobs.join_next() => joined.map_or(Event::Timer, Event::Done),
            Some(report) = self.inbox.recv() => Event::Report(report),
            () = tokio::time::sleep(nap.unwrap_or_default()), if nap.is_some() => Event::Timer,
        }
    }

    /// Plans and acts until nothing more can be done at once, then tells the cluster.
    fn advance(&mut self) {
        loop {
            self.wake = None;
            let now = Timestamp::now();
            let desired = Desired { spec: &self.spec.clone(), wanted: self.wanted(now) };
            let steps = plan(&desired, &self.state, now);
            let again = steps.iter().any(|step| matches!(step, Step::Fail { .. } | Step::Cancel(_) | Step::Settle));
            for step in steps {
                self.act(step, now);
            }
            if !again {
                break;
            }
        }
        if !self.finished {
            self.publish(Timestamp::now());
        }
    }

    /// What the cluster wants of this pod now.
    pub(super) fn wanted(&self, now: Timestamp) -> Wanted {
        if let Some(since) = self.gone_since {
            return Wanted::Gone { by: after(since, FORCED_GRACE_SECONDS.min(grace_seconds(&self.spec))) };
        }
        if !self.object.is_deleting() {
            return Wanted::Run;
        }
        let grace = self.object.meta().deletion_grace_period_seconds.unwrap_or_else(|| grace_seconds(&self.spec));
        Wanted::Gone { by: after(self.going_since.unwrap_or(now), grace) }
    }

    /// Whether the object is gone already, so that there is nothing to write any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone_since.is_some()
    }

    /// A newer version of the pod, whoever brought it. Versions that only this node knows have the same revision.
    pub(super) fn take_object(&mut self, object: &Arc<Object>) {
        if object.revision() >= self.object.revision() && object.meta().uid == self.uid {
            self.replace_object(object);
        }
    }

    fn replace_object(&mut self, object: &Arc<Object>) {
        let old = std::mem::replace(&mut self.object, object.clone());
        if self.object.is_deleting() && self.going_since.is_none() {
            self.going_since = Some(Timestamp::now());
        }
        let Some(spec) = object.view::<Pod>().and_then(|pod| pod.spec.as_ref()) else { return };
        if *spec != **self.spec {
            self.spec = Arc::new(Blueprint::new(spec.clone()));
            self.state.ephemeral.resize_with(self.spec.ephemeral().len(), ContainerState::fresh);
            self.restart_changed();
        }
        let (old, new) = (old.meta(), self.object.meta());
        if old.labels != new.labels || old.annotations != new.annotations {
            self.refresh_volumes();
        }
    }

    /// A session has begun: what could not be told is told. Where the world was replaced, revisions do not compare.
    fn take_session(&mut self, mail: &Mail) {
        if mail.session == self.session {
            return;
        }
        let replaced = mail.session.era != self.session.era;
        self.session = mail.session;
        if replaced && mail.object.meta().uid == self.uid {
            self.replace_object(&mail.object);
        }
        self.publisher.greet(replaced);
    }

    fn take_mail(&mut self, mail: &Mail) {
        self.take_session(mail);
        self.take_object(&mail.object);
        if self.object.is_deleting() && self.going_since.is_none() {
            self.going_since = Some(Timestamp::now());
        }
        if mail.gone && self.gone_since.is_none() {
            self.gone_since = Some(Timestamp::now());
        }
        if mail.sources != self.sources {
            self.sources = mail.sources;
            self.retry_on_change();
            self.refresh_volumes();
        }
    }

    /// Something that the pod refers to has changed: what waited for that is tried again.
    fn retry_on_change(&mut self) {
        if let Ground::Failed { retry, .. } = &mut self.state.ground {
            *retry = Retry::Now;
        }
        let PodState { init, main, ephemeral, .. } = &mut self.state;
        for container in init.iter_mut().chain(main).chain(ephemeral) {
            if let Current::Waiting(waiting) = &mut container.current
                && (waiting.retry == Retry::OnChange || waiting.reason == Stage::Config.reason())
            {
                waiting.retry = Retry::Now;
            }
        }
    }

    /// Containers whose image was changed in the spec are restarted with the new one.
    fn restart_changed(&mut self) {
        let spec = self.spec.clone();
        for (slot, live) in &self.live {
            let Some(container) = spec.container(*slot) else { continue };
            if container.image.as_deref().unwrap_or_default() != live.image
                && let Some(running) = self.state.container_mut(*slot).and_then(|c| c.running_mut())
            {
                let message = format!("Container {} definition changed, will be restarted", container.name);
                running.unhealthy = Some(super::state::Unhealthy { message, grace_seconds: None });
            }
        }
        self.retry_on_change();
    }

    fn take_report(&mut self, report: Report) {
        let Report { slot, id, kind, finding } = report;
        let spec = self.spec.clone();
        let Some(container) = spec.container(slot) else { return };
        let Some(running) = self.state.container_mut(slot).and_then(|c| c.running_mut()) else { return };
        if running.id != id || running.stopping.is_some() {
            return;
        }
        let unhealthy = |running: &mut super::state::Running, word: &str, grace_seconds| {
            let message = format!("Container {} failed {word} probe, will be restarted", container.name);
            running.unhealthy = Some(super::state::Unhealthy { message, grace_seconds });
        };
        let grace = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
            probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds)
        };
        match (kind, finding) {
            (_, Finding::Failure(message)) => {
                let message = format!("{} probe failed: {message}", kind.word());
                self.tell(slot, true, "Unhealthy", &message);
            }
            (Kind::Startup, Finding::Good) => {
                running.started = true;
                self.watch_health(slot);
            }
            (Kind::Startup, Finding::Bad) => unhealthy(running, "startup", grace(&container.startup_probe)),
            (Kind::Liveness, Finding::Bad) => unhealthy(running, "liveness", grace(&container.liveness_probe)),
            (Kind::Liveness, Finding::Good) => {}
            (Kind::Readiness, Finding::Good) => running.ready = true,
            (Kind::Readiness, Finding::Bad) => running.ready = false,
        }
    }

    fn take_done(&mut self, done: Done) {
        match done {
            Done::Ground(result) => self.take_ground(result),
            Done::Refreshed(Ok(())) | Done::Stopping | Done::Cleaned => {}
            Done::Settled => self.state.settled = Settled::Yes,
            Done::Refreshed(Err((volume, error))) => self.tell_mount_failure(&volume, &error),
            Done::Exceeded(message) => self.evict(message),
            Done::Adopted(found) => self.take_adopted(*found),
            Done::Footing(result) => self.take_footing(result),
            Done::SandboxLost(id) => self.take_sandbox_loss(&id),
            Done::Started(slot, attempt, result) => self.take_start(slot, attempt, *result),
            Done::Exited(slot, id, exit) => self.take_exit(slot, &id, exit),
            Done::HookFailed(slot, message) => self.take_hook_failure(slot, &message),
            Done::Drained => self.state.drain = Drain::Drained,
            Done::Written(result) => self.take_written(result),
            Done::Removed(session, result) => self.take_removed(session, result),
        }
    }

    /// Ends the containers because this process ends: within their grace, as far as a process that ends has time. The pod's
    /// status is not touched: the next agent finds it.
    async fn shut_down(mut self) {
        for (_, (_, start)) in self.starts.drain() {
            start.abort();
        }
        // Docker's containers outlive the agent: the next one takes them over
        self.live.retain(|_, live| matches!(live.guest, Guest::Wasm(_)));
        let grace = grace_seconds(&self.spec).min(SHUTDOWN_GRACE_SECONDS);
        let by = after(Timestamp::now(), grace);
        let (spec, mut stops, mut guests) = (self.spec.clone(), Vec::new(), Vec::new());
        for (slot, live) in &mut self.live {
            live.probes.clear();
            let hook = spec.container(*slot).and_then(|container| container.lifecycle.as_ref()?.pre_stop.clone());
            guests.push(live.guest.clone());
            let (guest, door, target) = (live.guest.clone(), live.door.take(), live.target.clone());
            stops.push(Stopping { guest, door, hook, target, by }.run());
        }
        let ended = async {
            futures::future::join_all(stops).await;
            futures::future::join_all(guests.iter().map(Guest::exited)).await;
        };
        let patience = Duration::from_secs(grace.unsigned_abs());
        if tokio::time::timeout(patience, ended).await.is_err() {
            guests.iter().for_each(Guest::kill);
        }
        self.live.values().filter_map(|live| live.log.as_ref()).for_each(LogFile::close);
    }

    /// The last thing a worker does, as often as it takes.
    async fn leave(mut self, shutdown: &CancellationToken) {
        self.body.keeper.forget(&self.uid);
        self.body.logs.lock().retain(|(uid, _), _| *uid != self.uid);
        self.body.guests.lock().retain(|(uid, _), _| *uid != self.uid);
        let mut rest = CLEAR_REST_MIN;
        while let Err(error) = self.clear().await {
            tracing::warn!(pod = %self.object.key(), error = format!("{error:#}"), "pod not removed from the node");
            // what stays behind is found and removed by the next agent
            if shutdown.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                return;
            }
            rest = (rest * 2).min(CLEAR_REST_MAX);
        }
        if let Some(address) = self.owned.take() {
            self.body.ready.lock().remove(&address);
            self.body.pools.lock().release(address);
        }
    }

    /// Removes what Docker and the disk still have of the pod, each also where the other cannot be.
    async fn clear(&self) -> anyhow::Result<()> {
        let containers = match &self.body.docker {
            Some(docker) if self.uses_docker => docker.remove_pod(&self.uid).await.context("containers"),
            _ => Ok(()),
        };
        let (pod_dir, log_dir) = (self.pod_dir.clone(), self.log_dir.clone());
        tokio::task::spawn_blocking(move || {
            volumes::teardown(&pod_dir)?;
            volumes::remove::tree(&log_dir)
        })
        .await?
        .context("files")?;
        containers
    }
}
