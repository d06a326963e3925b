//! The minds of the cluster: what Kubernetes' controller manager decides, as functions from a world to writes.
//!
//! Layer 2. A controller says which keys an event concerns ([`Controller::wakes`]) and what one key needs
//! ([`Controller::reconcile`]); the executor in `server` commits the writes. One file per controller, each reading like
//! its paragraph in Kubernetes' documentation. Deliberately absent: IO, clocks, randomness, queues, expectations: the
//! executor shows a controller the world that holds its last writes before it asks again.

pub mod balancer;
pub mod cronjob;
pub mod csr;
pub mod deployment;
pub mod disconnect;
pub mod disruption;
mod edit;
pub mod endpoints;
pub mod events;
pub mod eviction;
pub mod garbage;
#[cfg(test)]
mod harness;
pub mod ipam;
pub mod job;
pub mod namespace;
pub mod node;
mod ownership;
pub mod podgc;
mod pods;
pub mod replicaset;
pub mod serviceaccount;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod volume;

pub use pods::is_finished;

use jiff::Timestamp;
use state::{Event, Key, Stamp, World, Write};
use std::net::Ipv4Addr;

/// What a key needs.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Writes, all decided on the same world; each key is written at most once.
    pub writes: Vec<Write>,
    /// When to ask about this key again although no event came, if ever.
    pub again_at: Option<Timestamp>,
}

/// What a controller decides on.
pub struct Cx<'a> {
    /// The cluster.
    pub world: &'a World,
    /// Now.
    pub now: Timestamp,
    /// Identities of new objects.
    pub stamp: Stamp<'a>,
}

/// A mind: pure, and asked about one key at a time.
pub trait Controller: Send + Sync {
    /// Its name in logs and as the source of its events: `deployment-controller`.
    fn name(&self) -> &'static str;
    /// The keys an event concerns. `world` already contains the event, and may contain later ones. Costs work on the
    /// event's object and its owners only.
    fn wakes(&self, event: &Event, world: &World) -> Vec<Key>;
    /// What a key needs, if anything. A settled key answers no writes.
    fn reconcile(&self, cx: &mut Cx<'_>, key: &Key) -> Outcome;
}

/// What the controllers must be told about this cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When this master started: no node is judged before it had one grace period to renew its lease.
    pub started_at: Timestamp,
    /// PEM of the cluster's CA, published in every namespace as ConfigMap `kube-root-ca.crt`.
    pub root_ca_pem: String,
    /// Seconds without a lease renewal after which a node counts as unreachable; Kubernetes' 40.
    pub node_grace_seconds: i64,
    /// Seconds after which core Events are deleted; Kubernetes' 3600.
    pub event_ttl_seconds: i64,
    /// How fast nodes in trouble may be emptied.
    pub pace: node::Pace,
    /// The pods' network: first address and prefix length. Without it Nodes are given no `spec.podCIDR`.
    pub cluster_cidr: Option<(Ipv4Addr, u8)>,
    /// Prefix length of a node's part of it (`--node-cidr-mask-size-ipv4`); `None` is [`ipam::default_mask`].
    pub node_cidr_mask: Option<u8>,
    /// Reads what a CertificateSigningRequest asks for. Without it nobody approves them but people.
    pub read_request: Option<csr::ReadRequest>,
}

impl Settings {
    /// Kubernetes' defaults, without a pod network and without approval of nodes.
    pub fn new(started_at: Timestamp, root_ca_pem: String) -> Self {
        Self {
            started_at,
            root_ca_pem,
            node_grace_seconds: 40,
            event_ttl_seconds: 3600,
            pace: node::Pace::default(),
            cluster_cidr: None,
            node_cidr_mask: None,
            read_request: None,
        }
    }
}

/// Every controller there is.
pub fn all(settings: Settings) -> Vec<Box<dyn Controller>> {
    let started_at = settings.started_at;
    let mut all: Vec<Box<dyn Controller>> = vec![
        Box::new(deployment::Deployments),
        Box::new(replicaset::ReplicaSets),
        Box::new(job::Jobs),
        Box::new(cronjob::CronJobs { seat: cronjob::Seat::Master }),
        Box::new(endpoints::EndpointsOfServices),
        Box::new(serviceaccount::Belongings { root_ca_pem: settings.root_ca_pem }),
        Box::new(namespace::Namespaces),
        Box::new(garbage::Garbage),
        Box::new(node::NodeLifecycle { started_at, grace_seconds: settings.node_grace_seconds }),
        Box::new(node::NodeEviction { pace: settings.pace }),
        Box::new(node::NodeLeftovers),
        Box::new(eviction::Eviction { started_at }),
        Box::new(podgc::PodCollector),
        Box::new(disruption::Disruption),
        Box::new(balancer::Balancer),
        Box::new(csr::Cleaner),
        Box::new(tokens::TokenCleaner),
        Box::new(volume::Binder),
        Box::new(volume::LocalPath),
        Box::new(volume::Protection),
        Box::new(volume::EphemeralClaims),
        Box::new(events::EventExpiry { ttl_seconds: settings.event_ttl_seconds }),
    ];
    if let Some(cluster) = settings.cluster_cidr {
        all.push(Box::new(ipam::NodeIpam::new(cluster, settings.node_cidr_mask)));
    }
    if let Some(read_request) = settings.read_request {
        all.push(Box::new(csr::Approver { read_request }));
    }
    all
}
