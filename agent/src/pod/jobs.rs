//! The acts of a worker that take time, and what they report when they are done.

use super::state::Slot;
use crate::body::Body;
use crate::container::{Door, StartFailure, Started};
use crate::probes::{Doors, Target, run_exec, send_http};
use crate::volumes::{VolumeError, Volumes};
use ::state::{Event, Object, Write};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::LifecycleHandler;
use runtime::Exit;
use runtime::logs::LogFile;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use sync::Rejected;
use tokio_util::task::AbortOnDropHandle;

/// How long a pod waits to vanish from the routes: whoever writes them may be gone.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// What a request that was sent a moment ago needs to arrive.
const DRAIN_SETTLE: Duration = Duration::from_millis(50);

/// What a job reports.
pub(super) enum Done {
    /// Volumes are laid, or the first that is not.
    Ground(Result<Volumes, (String, VolumeError)>),
    /// Volumes show the newest objects.
    Refreshed(Result<(), (String, VolumeError)>),
    /// A start has come to its end.
    Started(Slot, u64, Box<Result<Started, StartFailure>>),
    /// A guest is gone.
    Exited(Slot, String, Exit),
    /// A guest was asked to stop.
    Stopping,
    /// A postStart hook failed: its container is to be killed.
    HookFailed(Slot, String),
    /// No route leads to the pod.
    Drained,
    /// A status was written or refused.
    Written(Result<Vec<Event>, Rejected>),
    /// The object was removed or not.
    Removed(Result<(), Rejected>),
    /// Files are removed.
    Cleaned,
}

/// What the worker holds of a running container.
pub(super) struct Live {
    pub id: String,
    pub image: String,
    pub guest: runtime::Container,
    pub log: LogFile,
    pub door: Option<Door>,
    /// The port its door is at, open or not.
    pub port: Option<u16>,
    pub target: Arc<Target>,
    pub probes: Vec<AbortOnDropHandle<()>>,
    /// It was ended by us for want of signals, not by the end of its patience.
    pub terminated: bool,
}

impl Live {
    /// Out of the routes and asked to end; a command, which no signal can reach, is ended.
    pub fn stop_gently(&mut self) {
        self.probes.clear();
        match self.door.take() {
            Some(door) => {
                drop(door.guard);
                self.guest.stop();
            }
            None => self.guest.kill(),
        }
    }
}

/// Waits until the pod gets no new traffic.
pub(super) async fn drain(body: Arc<Body>, address: Option<IpAddr>, by: Timestamp) -> Done {
    let Some(address) = address else { return Done::Drained };
    let mut routed = body.routed.subscribe();
    if !routed.borrow().contains(&address) {
        return Done::Drained;
    }
    let patience = until(by).min(DRAIN_MAX);
    let left = tokio::time::timeout(patience, routed.wait_for(|routed| !routed.contains(&address))).await.is_ok();
    if !left {
        tracing::warn!(%address, "pod is still in the routes; stopping it all the same");
    }
    tokio::time::sleep(DRAIN_SETTLE.min(until(by))).await;
    Done::Drained
}

/// How a container is stopped: its hook, then its requests in flight, then itself.
pub(super) struct Stopping {
    pub guest: runtime::Container,
    pub door: Option<Door>,
    pub hook: Option<LifecycleHandler>,
    pub target: Arc<Target>,
    pub by: Timestamp,
}

impl Stopping {
    pub async fn run(self) -> Done {
        if let Some(hook) = &self.hook {
            // the hook's time is part of the grace period; its failure changes nothing
            let _ = tokio::time::timeout(until(self.by), run_hook(hook, &self.target)).await;
        }
        match self.door {
            Some(door) => {
                let _ = tokio::time::timeout(until(self.by), door.guard.drain()).await;
                self.guest.stop();
            }
            // WASI has no signals: what SIGTERM does to a program without a handler happens at once
            None => self.guest.kill(),
        }
        Done::Stopping
    }
}

/// Runs a lifecycle hook.
pub(super) async fn run_hook(hook: &LifecycleHandler, target: &Target) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    if let Some(action) = &hook.http_get {
        let doors: &Doors = &target.doors;
        let response = send_http(action, &target.container, target.address, doors).await?;
        let status = response.status();
        return if status.is_success() || status.is_redirection() { Ok(()) } else { Err(status.to_string()) };
    }
    if let Some(action) = &hook.exec {
        return run_exec(&target.guest, action).await;
    }
    Err("unknown handler".into())
}

/// Tells the pod's end and removes the object, or, where a finalizer holds it, says that the node has nothing of it left.
pub(super) async fn remove(body: Arc<Body>, object: Arc<Object>, last: Option<Write>) -> Done {
    let mut object = object;
    if let Some(write) = last
        && let Ok(events) = body.uplink.write(vec![write]).await
        && let Some(event) = events.into_iter().next_back()
    {
        object = event.object;
    }
    let uid = object.meta().uid.clone();
    if !object.meta().finalizers.is_empty() && object.meta().deletion_grace_period_seconds == Some(0) {
        return Done::Removed(Ok(()));
    }
    let write = if object.meta().finalizers.is_empty() {
        Write { key: object.key().clone(), value: None, expect: ::state::Expect::Uid(uid) }
    } else {
        let mut value = object.value();
        value["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        Write::update(&object, value)
    };
    Done::Removed(body.uplink.write(vec![write]).await.map(|_| ()))
}

fn until(by: Timestamp) -> Duration {
    let left: SignedDuration = by.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or_default()
}
