//! The acts of a worker that take time, and what they report when they are done.

use super::adopt::Found;
use super::blueprint::Blueprint;
use super::state::Slot;
use crate::body::{Body, Session};
use crate::container::guest::Guest;
use crate::container::sandbox::{Footing, Sandbox};
use crate::container::{Door, StartFailure, Started};
use crate::policy;
use crate::probes::{Target, run_hook};
use crate::volumes::emptydir::Measured;
use crate::volumes::{self, VolumeError, Volumes};
use ::state::{Event, Object, Write};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::LifecycleHandler;
use runtime::Exit;
use runtime::images::Pin;
use runtime::logs::LogFile;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sync::Rejected;
use tokio_util::task::AbortOnDropHandle;

/// How long a pod waits to vanish from the routes: whoever writes them may be gone.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// What a request that was sent a moment ago needs to arrive.
const DRAIN_SETTLE: Duration = Duration::from_millis(50);

/// How long a sandbox may take to end.
const SANDBOX_END_MAX: Duration = Duration::from_secs(10);
/// Volumes that are still busy are tried again for so long; what stays goes with the pod.
const SETTLE_RETRY_MAX: Duration = Duration::from_secs(4);
/// How often volumes that have a limit are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// What a job reports.
pub(super) enum Done {
    /// What an earlier agent left is known.
    Adopted(Box<Found>),
    /// Address and sandbox are there or not.
    Footing(Result<Footing, String>),
    /// The sandbox of this id ended.
    SandboxLost(String),
    /// Volumes are laid, or the first that is not.
    Ground(Result<Volumes, (String, VolumeError)>),
    /// Volumes show the newest objects.
    Refreshed(Result<(), (String, VolumeError)>),
    /// A volume holds more than it may.
    Exceeded(String),
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
    /// The object was removed or not, in this session.
    Removed(Session, Result<(), Rejected>),
    /// A hook has run.
    Cleaned,
    /// Address, sandbox and volumes are given back.
    Settled,
}

/// What the worker holds of a running container.
pub(super) struct Live {
    pub id: String,
    pub image: String,
    pub guest: Guest,
    /// A Wasm guest's log; Docker keeps its own.
    pub log: Option<LogFile>,
    pub door: Option<Door>,
    /// The port its door is at, open or not.
    pub port: Option<u16>,
    pub target: Arc<Target>,
    pub probes: Vec<AbortOnDropHandle<()>>,
    /// Keeps its image in the node's store.
    pub _pin: Option<Pin>,
    /// It was ended by us for want of signals, not by the end of its patience.
    pub terminated: bool,
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

/// Measures the volumes that have a limit until one is over it, or all are gone.
pub(super) async fn watch_sizes(spec: Arc<Blueprint>, volumes: Arc<Volumes>) -> Done {
    loop {
        tokio::time::sleep(MEASURE_EVERY).await;
        let (spec, volumes) = (spec.clone(), volumes.clone());
        match tokio::task::spawn_blocking(move || volumes::emptydir::measure(&spec, &volumes)).await {
            Ok(Measured::Over(message)) => return Done::Exceeded(message),
            Ok(Measured::Gone) => return Done::Cleaned,
            Ok(Measured::Within) | Err(_) => {}
        }
    }
}

/// How a container is stopped: its hook, then its requests in flight, then itself.
pub(super) struct Stopping {
    pub guest: Guest,
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
        if let Some(door) = self.door {
            let _ = tokio::time::timeout(until(self.by), door.guard.drain()).await;
        }
        self.guest.stop();
        Done::Stopping
    }
}

/// What a pod gives back when its containers are done for good.
pub(super) struct Settling {
    pub body: Arc<Body>,
    pub uid: String,
    pub pod_dir: PathBuf,
    pub sandbox: Option<Sandbox>,
    pub address: Option<IpAddr>,
}

impl Settling {
    /// Dead containers stay for their logs until the pod itself goes.
    pub async fn run(self) -> Done {
        // which holds its network open
        policy::forget(&self.body, &self.uid);
        if let Some(sandbox) = self.sandbox {
            sandbox.guard.kill();
            if tokio::time::timeout(SANDBOX_END_MAX, sandbox.guard.exited()).await.is_err() {
                tracing::warn!(pod = self.uid, "the pod's sandbox does not end");
            }
        }
        let (pod_dir, mut delay) = (self.pod_dir, Duration::from_millis(50));
        loop {
            let dir = pod_dir.clone();
            match tokio::task::spawn_blocking(move || volumes::teardown(&dir)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => {
                    tracing::warn!(%error, dir = %pod_dir.display(), "volumes of a finished pod not removed")
                }
                Err(panic) => tracing::error!(%panic, "volumes of a finished pod not removed"),
            }
            if delay > SETTLE_RETRY_MAX {
                break;
            }
            tokio::time::sleep(delay).await;
            delay *= 4;
        }
        if let Some(address) = self.address {
            self.body.ready.lock().remove(&address);
            self.body.pools.lock().release(address);
        }
        Done::Settled
    }
}

/// Tells the pod's end and removes the object, or, where a finalizer holds it, says that the node has nothing of it left.
pub(super) async fn remove(body: Arc<Body>, object: Arc<Object>, last: Option<Write>, session: Session) -> Done {
    let mut object = object;
    if let Some(write) = last
        && let Ok(events) = body.write(vec![write]).await
        && let Some(event) = events.into_iter().next_back()
    {
        object = event.object;
    }
    let uid = object.meta().uid.clone();
    if !object.meta().finalizers.is_empty() && object.meta().deletion_grace_period_seconds == Some(0) {
        return Done::Removed(session, Ok(()));
    }
    let write = if object.meta().finalizers.is_empty() {
        Write { key: object.key().clone(), value: None, expect: ::state::Expect::Uid(uid) }
    } else {
        let mut value = object.value();
        value["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        Write::update(&object, value)
    };
    Done::Removed(session, body.write(vec![write]).await.map(|_| ()))
}

fn until(by: Timestamp) -> Duration {
    let left: SignedDuration = by.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or_default()
}
