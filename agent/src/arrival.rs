//! From nothing to a place in the cluster: the node learns which cluster it is in, registers, and is given its part of the pod
//! network. Only then can networks be set up.
//!
//! What is on disk is enough, but the master is waited for a moment: what it says is newer. Deliberately absent: pods.

use crate::body::Session;
use crate::config::AgentConfig;
use crate::machine::{Machine, Pressure};
use crate::node::{self, Readiness, Report};
use crate::replica::{Keeper, Replica};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use netproxy::network::Cidr;
use state::{Key, Write};
use std::pin::pin;
use std::time::Duration;
use sync::{ClusterFacts, Down, Rejected, Uplink};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Changes folded as one.
const BURST_MAX: usize = 256;
/// A node that has what it needs on its disk waits so long for its master.
const MASTER_PATIENCE: Duration = Duration::from_millis(700);
/// A session in which nothing has come for so long has nothing more to tell for now.
const QUIET: Duration = Duration::from_millis(200);
/// A node that is given no part of the pod network for so long says that it is not ready.
const NETWORK_PATIENCE: Duration = Duration::from_secs(1);
/// Until a write that was not done is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What a node must know before it can work.
pub struct Place {
    /// Its cluster.
    pub cluster: ClusterFacts,
    /// Its part of the pod network.
    pub pod_cidr: Cidr,
}

/// A node on its way.
pub struct Arrival<'a> {
    /// As given.
    pub config: &'a AgentConfig,
    /// Where it runs.
    pub machine: &'a Machine,
    /// To the master.
    pub uplink: &'a Uplink,
    /// Told of what comes down.
    pub keeper: &'a Keeper,
    /// Told of the first session in which the Node is there.
    pub sessions: &'a watch::Sender<Session>,
}

impl Arrival<'_> {
    /// Waits until the node has its place. `None` at shutdown.
    pub async fn run(
        &self,
        replica: &mut Replica,
        news: &mut mpsc::Receiver<Down>,
        shutdown: &CancellationToken,
    ) -> Option<Place> {
        let mut writes: JoinSet<Result<(), Rejected>> = JoinSet::new();
        let mut patience = pin!(tokio::time::sleep(MASTER_PATIENCE));
        let (mut is_patient, mut is_linked, mut is_settled) = (true, true, false);
        let mut burst = Vec::new();
        let mut due = Instant::now();
        let mut told_at: Option<Instant> = None;
        loop {
            let is_current = replica.is_current || is_settled;
            if let Some(place) = self.place(replica)
                && (is_current || !is_patient)
            {
                return Some(place);
            }
            let is_late = told_at.is_some_and(|at| at.elapsed() >= NETWORK_PATIENCE);
            if is_current && writes.is_empty() && due <= Instant::now() {
                if let Some(write) = self.due(replica, is_late) {
                    let uplink = self.uplink.clone();
                    writes.spawn(async move { uplink.write(vec![write]).await.map(|_| ()) });
                }
                told_at.get_or_insert_with(Instant::now);
                due = Instant::now() + if is_late { RETRY } else { NETWORK_PATIENCE };
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                received = news.recv_many(&mut burst, BURST_MAX), if is_linked => {
                    is_linked = received > 0;
                    let folded = replica.fold(std::mem::take(&mut burst));
                    self.keeper.show(replica, &folded.touched);
                    self.greet(replica);
                    if folded.session {
                        due = Instant::now();
                    }
                }
                Some(written) = writes.join_next() => {
                    if let Ok(Err(error)) = written {
                        if !matches!(error, Rejected::Disconnected) {
                            tracing::warn!(%error, "the node is not registered");
                        }
                        due = Instant::now() + RETRY;
                    }
                }
                () = patience.as_mut(), if is_patient => is_patient = false,
                () = tokio::time::sleep_until(due), if is_current && writes.is_empty() => {}
                () = tokio::time::sleep(QUIET), if replica.sessions > 0 && !is_current => is_settled = true,
            }
        }
    }

    /// What the node must know, if it is known.
    fn place(&self, replica: &Replica) -> Option<Place> {
        let cluster = replica.facts.clone()?;
        let node = replica.world.view::<Node>("", &self.config.node_name)?;
        let text = node.spec.as_ref()?.pod_cidr.as_deref()?;
        match text.parse() {
            Ok(pod_cidr) => Some(Place { cluster, pod_cidr }),
            Err(error) => {
                tracing::error!(%error, "the node's spec.podCIDR cannot be used");
                None
            }
        }
    }

    /// A Node that is there and has no network, or none at all, is put right. A new one is ready: by the time that a pod is
    /// bound to it, it has its network, or says otherwise.
    fn due(&self, replica: &Replica, is_late: bool) -> Option<Write> {
        let current = replica.world.get(&Key::of::<Node>("", &self.config.node_name));
        if current.is_some() && !is_late {
            return None;
        }
        let report = Report {
            readiness: if current.is_none() { Readiness::Ready } else { Readiness::NoNetwork },
            pressure: Pressure::look(self.machine, &self.config.data_dir),
            docker: &Err("Docker has not answered yet".into()),
            network: None,
            endpoints: None,
            pod_cidr: None,
        };
        node::write(self.config, self.machine, current, &report, Timestamp::now())
    }

    /// The heart beats for a Node that is there.
    fn greet(&self, replica: &Replica) {
        if replica.world.get(&Key::of::<Node>("", &self.config.node_name)).is_some() {
            let session = Session { number: replica.sessions, era: replica.era };
            self.sessions.send_if_modified(|current| std::mem::replace(current, session) != session);
        }
    }
}
