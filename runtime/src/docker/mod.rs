//! Containers of Docker: the other kind, for images that are no WebAssembly.
//!
//! A pod's containers share a *sandbox* ([`Docker::sandbox`]): a container that does nothing and holds the pod's
//! address on the node's own bridge network, its IPC and, where asked for, its processes. Each container
//! ([`Docker::start`]) joins it; each restart is a new container of Docker's. Everything made here carries labels, so
//! that nothing else is ever touched and an agent that comes back finds its pods ([`Docker::find`]): its own end does
//! not end them. One task ([`Docker::watch`]) tells whether the engine is there and who has ended.
//!
//! This is the only room that names bollard, and no type of bollard leaves it. Deliberately absent: what a Pod is (the
//! agent flattens it into a [`SandboxSpec`] and [`DockerContainerSpec`]s), restart policy, files of volumes, ports of
//! the node, and who has which address.

mod connect;
mod container;
mod create;
mod error;
mod find;
mod frames;
mod gc;
mod health;
mod image;
mod lives;
mod logs;
mod network;
mod pause;
mod sandbox;
mod session;
mod spec;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{RwLock, Semaphore, watch};

pub use container::DockerContainer;
pub use error::{DockerError, PullError};
pub use spec::{
    Collected, DockerConfig, DockerContainerSpec, DockerDevice, DockerMount, DockerResources, DockerSecurity,
    FoundContainer, FoundPod, FoundSandbox, FoundState, Health, ImageInfo, ImageLimits, PodId, RegistryAuth, Sandbox,
    SandboxSpec, Seccomp,
};

const LABEL_OWNER: &str = "coracle.dev/node";
const LABEL_KIND: &str = "coracle.dev/kind";
const LABEL_ATTEMPT: &str = "coracle.dev/attempt";
const LABEL_IMAGE: &str = "coracle.dev/image";
const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
const LABEL_CONTAINER: &str = "io.kubernetes.container.name";
const KIND_SANDBOX: &str = "sandbox";
const KIND_CONTAINER: &str = "container";

/// Containers that are looked at at once when they end.
const CHECKS_MAX: usize = 16;

/// The node's Docker. Clones are the same one.
#[derive(Clone)]
pub struct Docker(Arc<Inner>);

struct Inner {
    config: DockerConfig,
    connection: connect::Connection,
    health: watch::Sender<Health>,
    /// The network and the sandboxes' image were there when last looked at.
    prepared: tokio::sync::Mutex<bool>,
    lives: lives::Lives,
    checks: Semaphore,
    pods: Pods,
    pulls: image::Pulls,
    uses: image::Uses,
    oom_score_adj_min: i64,
}

impl Docker {
    /// Nothing is asked of the engine yet.
    pub fn new(config: DockerConfig) -> Docker {
        let connection = connect::Connection::new(config.endpoint.as_deref());
        Docker(Arc::new(Inner {
            config,
            connection,
            health: watch::Sender::new(Health::Unknown),
            prepared: tokio::sync::Mutex::default(),
            lives: lives::Lives::default(),
            checks: Semaphore::new(CHECKS_MAX),
            pods: Pods::default(),
            pulls: image::Pulls::default(),
            uses: image::Uses::default(),
            oom_score_adj_min: oom_score_adj_min(),
        }))
    }

    /// Whether the engine is there: kept true by [`Docker::watch`].
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }
}

/// How far a container may be kept from the kernel's killer. Without CAP_SYS_RESOURCE nobody may go below where they
/// are, and runc fails without a word. The engine is taken to have the privileges that this process has.
fn oom_score_adj_min() -> i64 {
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
    if privileged {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
    own.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Keeps what makes a pod's objects apart from what removes them: a caller who gives up leaves an act to be finished,
/// and a removal waits for it instead of overlooking what it is about to make.
#[derive(Default)]
struct Pods(Mutex<HashMap<String, Weak<RwLock<()>>>>);

impl Pods {
    /// Of a pod by its uid: shared by what starts containers, exclusive for making the sandbox and for removing.
    fn lock(&self, uid: &str) -> Arc<RwLock<()>> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = pods.get(uid).and_then(Weak::upgrade) {
            return lock;
        }
        pods.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(RwLock::new(()));
        pods.insert(uid.to_owned(), Arc::downgrade(&lock));
        lock
    }
}
