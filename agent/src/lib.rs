//! The node's body: keeps the pods of one node as the cluster wants them.
//!
//! Layer 4. Folds its slice of the cluster's events into a [`state::World`] of its own, plans each pod against what runs,
//! lets `runtime` and `netproxy` carry the steps out, and writes back what became of them. It lives on when the link to
//! the master is dead, and starts without one ([`replica`]). How a machine becomes a node of a cluster elsewhere is [`join`].
//! Deliberately absent: REST, placement, every object that is not this node's business.

mod addresses;
mod anyone;
mod arrival;
mod body;
mod calls;
mod config;
mod container;
mod docker;
mod duties;
mod events;
mod fields;
mod ground;
mod identity;
mod inbox;
pub mod join;
mod machine;
mod mesh;
mod node;
mod pod;
mod policy;
mod probes;
mod readiness;
pub mod replica;
mod routes;
#[cfg(test)]
mod tests;
mod volumes;

pub use config::{AgentConfig, LogLimits, PODS_MAX, RESOLV_CONF, Taint, WasmLimits};
pub use mesh::MeshConfig;
pub use netproxy::network::{Cidr, free_pair, hold, may_bind, may_configure};
pub use runtime::images;

use addresses::Pools;
use anyhow::Context;
use arc_swap::ArcSwap;
use arrival::{Arrival, Place};
use body::{Body, Session, Shared};
use events::Recorder;
use ground::Ground;
use inbox::Inbox;
use replica::{Keeper, Replica, Saved};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use sync::{Bulk, Down, IncomingCall, NodeEnd, Uplink};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Changes folded as one.
const BURST_MAX: usize = 256;
/// Calls of the master answered at once.
const CALLS_MAX: usize = 256;
/// Pods are given this long to stop when the process ends.
const SHUTDOWN: Duration = Duration::from_secs(6);
/// The cluster is told in so long, or not, that the machine is being switched off.
const GOODBYE: Duration = Duration::from_secs(1);
/// A session in which nothing has come for so long has told what was missed: what is unknown then may be swept away.
const QUIET: Duration = Duration::from_secs(10);
/// Port of the cluster's DNS.
const DNS_PORT: u16 = 53;

/// Runs the node until `shutdown`, then stops its Wasm containers and returns. The link may come and go; without it the node
/// goes on with what it knows, which to begin with is what was `saved` on its disk ([`replica::load`]).
///
/// Nothing of the node's state in the cluster is taken back at shutdown: an agent that starts again finds its pods, and the
/// cluster notices only an agent that stays away. When the whole machine is being switched off, the Node says so.
///
/// # Errors
/// When the node cannot work at all: its data directory cannot be made, the Wasm engine does not start, or its network
/// cannot be had.
pub async fn run(
    config: AgentConfig,
    link: NodeEnd,
    bulk: Bulk,
    saved: Option<Saved>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("make data directory {}", config.data_dir.display()))?;
    let closed = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let keeper = if config.keeps_replica {
        let (keeper, writer) = Keeper::new(&config.data_dir, saved.as_ref());
        tasks.spawn(writer.run(closed.clone()));
        keeper
    } else {
        Keeper::none()
    };
    let outcome = sail(config, link, bulk, saved, keeper, shutdown).await;
    // the last thing: all that came down is on the disk
    closed.cancel();
    while tasks.join_next().await.is_some() {}
    outcome
}

async fn sail(
    config: AgentConfig,
    link: NodeEnd,
    bulk: Bulk,
    saved: Option<Saved>,
    keeper: Keeper,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (mut news, calls, uplink) = link.split();
    let machine = machine::Machine::look(&config.data_dir);
    let sessions = watch::Sender::default();
    let mut replica = saved.as_ref().map(Replica::saved).unwrap_or_default();
    let mut tasks = JoinSet::new();
    tasks.spawn(node::beat(uplink.clone(), sessions.subscribe(), shutdown.clone()));
    let arrival = Arrival { config: &config, machine: &machine, uplink: &uplink, keeper: &keeper, sessions: &sessions };
    let Some(place) = arrival.run(&mut replica, &mut news, &shutdown).await else { return Ok(()) };

    let ground = Ground::prepare(&config, &place).await?;
    let (recorder, scribe) = Recorder::new(config.node_name.clone());
    tasks.spawn(scribe.run(uplink.clone(), sessions.subscribe(), shutdown.clone()));
    let (notes, duties) = mpsc::channel(duties::NOTES_MAX);
    let shore = Shore { place, ground: ground.clone(), machine, uplink, keeper, sessions, notes, recorder };
    let body = Arc::new(assemble(config, shore)?);
    let in_docker = staff(&body, calls, &mut tasks, &shutdown).await;
    let pod_network = mesh::start(&body, bulk);
    let node_changed = Arc::new(Notify::new());
    tasks.spawn(node::keep(body.clone(), node_changed.clone(), shutdown.clone()));
    let untold = saved.map(|saved| saved.untold(&replica, &body.keeper)).unwrap_or_default();
    let mut inbox = Inbox::new(body.clone(), replica, untold, node_changed, in_docker, duties, shutdown.clone());
    inbox.begin();
    follow(&mut inbox, news, &shutdown).await;
    if machine::is_stopping().await {
        // its Docker containers are stopped by others, and nobody will be here to tell how they end
        let _ = tokio::time::timeout(GOODBYE, node::say_goodbye(&body)).await;
    }
    inbox.close(SHUTDOWN).await;
    pod_network.close().await;
    tasks.shutdown().await;
    body.proxy.shutdown().await;
    ground.release().await
}

/// Answers the master's calls, each on its own, so many at once.
async fn answer(body: Arc<Body>, mut calls: mpsc::Receiver<IncomingCall>, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(CALLS_MAX));
    loop {
        let call = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            call = calls.recv() => call,
        };
        let Some(incoming) = call else { return };
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let body = body.clone();
        tokio::spawn(async move {
            calls::answer(body, incoming).await;
            drop(permit);
        });
    }
}

/// Starts the tasks that all pods share. Returns the pods of which Docker has containers.
async fn staff(
    body: &Arc<Body>,
    calls: mpsc::Receiver<IncomingCall>,
    tasks: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) -> HashSet<String> {
    tasks.spawn(routes::keep(body.clone(), shutdown.clone()));
    tasks.spawn(policy::keep(body.clone(), shutdown.clone()));
    tasks.spawn(answer(body.clone(), calls, shutdown.clone()));
    let Some(docker) = &body.docker else { return HashSet::new() };
    tasks.spawn(docker.clone().watch(shutdown.clone()));
    tasks.spawn(docker::keep(body.clone(), shutdown.clone()));
    docker::pods(docker).await
}

/// Takes the master's news until shutdown, whether there is a link or not.
async fn follow(inbox: &mut Inbox, mut news: mpsc::Receiver<Down>, shutdown: &CancellationToken) {
    let mut burst = Vec::new();
    let mut is_linked = true;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            received = news.recv_many(&mut burst, BURST_MAX), if is_linked => {
                is_linked = received > 0;
                if is_linked {
                    inbox.take(std::mem::take(&mut burst));
                } else {
                    tracing::warn!("the link to the master has ended; the node goes on with what it knows");
                }
            }
            turn = inbox.turn() => inbox.take_turn(turn),
            () = tokio::time::sleep(QUIET), if inbox.is_settling() => inbox.settle(),
        }
    }
}

/// What is known when the node can be assembled.
struct Shore {
    place: Place,
    ground: Ground,
    machine: machine::Machine,
    uplink: Uplink,
    keeper: Keeper,
    sessions: watch::Sender<Session>,
    notes: mpsc::Sender<duties::Note>,
    recorder: Recorder,
}

/// The node's images: what is not here is asked of the master before it is asked of a registry.
fn open_images(config: &AgentConfig, uplink: &Uplink) -> anyhow::Result<images::Images> {
    let master = Arc::new(container::origin::Master(uplink.clone()));
    let (dir, limits) = (config.data_dir.join("images"), images::ImageLimits::default());
    images::Images::open_with(&dir, limits, images::RegistryConfig::default(), Some(master))
        .context("open the store of images")
}

/// Makes the parts that all rooms share.
fn assemble(config: AgentConfig, shore: Shore) -> anyhow::Result<Body> {
    let Shore { place: Place { cluster, pod_cidr }, ground, machine, uplink, keeper, sessions, notes, recorder } =
        shore;
    let mut engine = runtime::WasmConfig::new(config.data_dir.join("wasm"), config.commands.clone());
    engine.instances_max = config.wasm.instances_max;
    engine.instance_memory_bytes_max = config.wasm.instance_memory_bytes_max;
    engine.p3 = config.wasm.p3;
    let wasm = runtime::Wasm::new(engine).context("prepare the Wasm engine")?;
    let mut proxy = netproxy::ProxyConfig::new(config.data.clone());
    proxy.cluster_domain.clone_from(&cluster.cluster_domain);
    proxy.node_addresses = vec![config.node_ip];
    proxy.ingress_http_port = config.ingress_http_port;
    proxy.ingress_https_port = config.ingress_https_port;
    proxy.resolv_conf.clone_from(&config.resolv_conf);
    proxy.stack = ground.stack().cloned();
    proxy.dns = cluster.cluster_dns.map(|address| (address, DNS_PORT).into());
    let images = open_images(&config, &uplink)?;
    Ok(Body {
        replica: ArcSwap::default(),
        keeper,
        sessions,
        endpoints: watch::Sender::default(),
        wasm,
        proxy: netproxy::Proxy::new(proxy),
        uplink,
        notes,
        recorder,
        docker: docker::open(&config, &ground, pod_cidr),
        ground,
        images,
        pools: Shared::new(Pools::new(pod_cidr)),
        ready: Shared::new(HashMap::new()),
        guests: Shared::new(HashMap::new()),
        logs: Shared::new(HashMap::new()),
        samples: calls::Samples::default(),
        loaded: Shared::new(HashSet::new()),
        filled: watch::Sender::new(false),
        machine,
        routes_stale: Notify::new(),
        policies: policy::Policies::default(),
        nodes_changed: Notify::new(),
        routed: watch::Sender::default(),
        api: ArcSwap::new(Arc::new(config.api(cluster.api))),
        cluster,
        pod_cidr,
        config,
    })
}
