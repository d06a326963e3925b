//! What all rooms of the node share: its configuration, its world, and its hands.
//!
//! Deliberately absent: behaviour. Whoever holds a `Body` reads the world and calls the hands directly.

use crate::addresses::Pools;
use crate::calls::Samples;
use crate::config::AgentConfig;
use crate::container::guest::Guest;
use crate::container::sandbox::Sandbox;
use crate::duties;
use crate::events::Recorder;
use crate::fields::PodFacts;
use crate::ground::Ground;
use crate::machine::Machine;
use crate::policy::Policies;
use crate::replica::Keeper;
use crate::routes::Routed;
use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Node;
use netproxy::Proxy;
use netproxy::network::Cidr;
use runtime::Wasm;
use runtime::docker::Docker;
use runtime::images::Images;
use runtime::logs::LogFile;
use state::{Event, Key, World, Write};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sync::{ClusterFacts, Rejected, Uplink};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// What all rooms share.
pub struct Body {
    /// As given.
    pub config: AgentConfig,
    /// What the node was told of its cluster before it set up its networks.
    pub cluster: ClusterFacts,
    /// Where the API server is now.
    pub api: ArcSwap<SocketAddr>,
    /// The node's part of the pod network.
    pub pod_cidr: Cidr,
    /// What pods' addresses stand on.
    pub ground: Ground,
    /// What concerns this node.
    pub replica: ArcSwap<World>,
    /// The copy of it on disk.
    pub keeper: Keeper,
    /// The newest session with the master: what could not be told is told again when this changes.
    pub sessions: watch::Sender<Session>,
    /// `ip:port` at which other nodes may reach this one directly, for its Node's annotation; `None` while that is not known.
    pub endpoints: watch::Sender<Option<Vec<SocketAddr>>>,
    /// The Wasm engine.
    pub wasm: Wasm,
    /// Sockets and routes.
    pub proxy: Proxy,
    /// The way to the master.
    pub uplink: Uplink,
    /// To the inbox, about what only this node knows.
    pub notes: mpsc::Sender<duties::Note>,
    /// Tells people.
    pub recorder: Recorder,
    /// The container engine beside ours; `None` where this node may not use one.
    pub docker: Option<Docker>,
    /// Wasm images from registries.
    pub images: Images,
    /// Pod addresses.
    pub pools: Shared<Pools>,
    /// Addresses of this node's pods, and whether they are ready now.
    pub ready: Shared<HashMap<IpAddr, bool>>,
    /// What runs now, for calls.
    pub guests: Shared<HashMap<GuestKey, LiveGuest>>,
    /// The latest log of every container, for readers and followers.
    pub logs: Shared<HashMap<GuestKey, LatestLog>>,
    /// What calls for figures of use saw last.
    pub samples: Samples,
    /// Digests of `file://` programs that this agent has loaded.
    pub loaded: Shared<HashSet<String>>,
    /// What the machine has, as the Node says it.
    pub machine: Machine,
    /// Whether all that the master had to tell has been known once: what is unknown is a stranger then.
    pub filled: watch::Sender<bool>,
    /// Something that the routes are made of has changed.
    pub routes_stale: Notify,
    /// Who may talk to whom.
    pub policies: Policies,
    /// Some Node is another: where the pod network goes.
    pub nodes_changed: Notify,
    /// Addresses that get new traffic.
    pub routed: watch::Sender<Routed>,
}

/// Which session with the master it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Counts sessions of this agent; 0: there was none yet.
    pub number: u64,
    /// Counts the times the replica was replaced whole ([`crate::replica::Replica`]).
    pub era: u64,
}

/// Pod uid and container name.
pub type GuestKey = (String, String);

/// A container that runs, with what calls need to know of its pod.
#[derive(Clone)]
pub struct LiveGuest {
    /// The container.
    pub guest: Guest,
    /// Its pod's sandbox, where there is one.
    pub sandbox: Option<Sandbox>,
    /// The pod's address.
    pub address: IpAddr,
    /// The container has a terminal.
    pub tty: bool,
}

/// The log of a container's latest instance.
#[derive(Clone)]
pub struct LatestLog {
    /// Number of the instance.
    pub instance: u32,
    /// Open while it runs.
    pub file: LogFile,
}

/// A value behind a lock that is only ever held for a moment.
pub struct Shared<T>(Mutex<T>);

impl<T: Default> Default for Shared<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Shared<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// The value. A panic elsewhere leaves it whole: no operation on it stops half-way.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body {
    /// The world now.
    pub fn world(&self) -> Arc<World> {
        self.replica.load_full()
    }

    /// The name of this node's object.
    pub fn node_key(&self) -> Key {
        Key::of::<Node>("", &self.config.node_name)
    }

    /// Writes where the objects are known: what only this node knows is changed here, all else by the master.
    ///
    /// # Errors
    /// As [`Uplink::write`].
    pub async fn write(&self, writes: Vec<Write>) -> Result<Vec<Event>, Rejected> {
        let world = self.world();
        if !writes.iter().all(|write| duties::is_about_local(write, &world)) {
            return self.uplink.write(writes).await;
        }
        let (reply, answer) = oneshot::channel();
        self.notes.send(duties::Note::Write(writes, reply)).await.map_err(|_| Rejected::Disconnected)?;
        answer.await.map_err(|_| Rejected::Disconnected)?
    }

    /// What the downward API says beside the pod.
    pub fn facts(&self, address: Option<IpAddr>) -> PodFacts {
        PodFacts {
            pod_ip: address.map(|address| address.to_string()).unwrap_or_default(),
            host_ip: self.config.node_ip.to_string(),
            allocatable: BTreeMap::from_iter(self.machine.resources(self.config.pods_max)),
        }
    }

    /// Where a pod's files are.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(uid)
    }
}
