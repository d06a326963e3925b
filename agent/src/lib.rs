//! The node's body: keeps the pods of one node as the cluster wants them.
//!
//! Layer 4. Folds its slice of the cluster's events into a [`state::World`] of its own, plans each pod against what runs,
//! lets `runtime` and `netproxy` carry the steps out, and writes back what became of them. It lives on when the link to
//! the master is dead. Deliberately absent: REST, placement, every object that is not this node's business.

mod addresses;
mod body;
mod calls;
mod config;
mod container;
mod docker;
mod events;
mod fields;
mod frontage;
mod identity;
mod inbox;
mod node;
mod pod;
mod probes;
mod routes;
#[cfg(test)]
mod tests;
mod volumes;

pub use config::{AgentConfig, LogLimits, PODS_MAX, Taint, WasmLimits};
pub use netproxy::network::{Cidr, may_bind, may_configure};
pub use runtime::images;

use addresses::Pools;
use anyhow::Context;
use arc_swap::ArcSwap;
use body::{Body, Shared};
use events::Recorder;
use inbox::Inbox;
use netproxy::network;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use sync::{IncomingCall, NodeEnd, Uplink};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Changes folded as one.
const BURST_MAX: usize = 256;
/// Calls of the master answered at once.
const CALLS_MAX: usize = 256;
/// Pods are given this long to stop when the process ends.
const SHUTDOWN: Duration = Duration::from_secs(4);
/// Port of the cluster's DNS.
const DNS_PORT: u16 = 53;

/// Runs the node until `shutdown`, then stops its containers and returns. When the link ends before, the node goes on with
/// what it knows.
///
/// Nothing of the node's state in the cluster is taken back at shutdown: an agent that starts again finds its pods.
///
/// # Errors
/// When the node cannot work at all: its data directory cannot be made, the Wasm engine does not start, or its network
/// cannot be had.
pub async fn run(config: AgentConfig, link: NodeEnd, shutdown: CancellationToken) -> anyhow::Result<()> {
    let [user_space, _] = addresses::halves(config.pod_cidr);
    let networks = [user_space, config.service_cidr];
    let claims = !config.loopback;
    if claims {
        network::claim(&networks).await.context("claim the cluster's networks")?;
    }
    let (mut news, calls, uplink) = link.split();
    let (recorder, scribe) = Recorder::new(config.node_name.clone());
    let body = Arc::new(assemble(config, uplink.clone(), recorder)?);
    let node_changed = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(routes::keep(body.clone(), shutdown.clone()));
    tasks.spawn(scribe.run(uplink, shutdown.clone()));
    tasks.spawn(answer(body.clone(), calls, shutdown.clone()));
    let mut in_docker = HashSet::new();
    if let Some(docker) = &body.docker {
        tasks.spawn(docker.clone().watch(shutdown.clone()));
        tasks.spawn(docker::keep(body.clone(), shutdown.clone()));
        in_docker = docker::pods(docker).await;
    }
    let mut inbox = Inbox::new(body.clone(), node_changed.clone(), in_docker, shutdown.clone());
    let mut burst = Vec::new();
    let mut is_linked = true;
    let mut node = Some(node::keep(body.clone(), node_changed, shutdown.clone()));
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            received = news.recv_many(&mut burst, BURST_MAX), if is_linked => {
                is_linked = received > 0;
                if !is_linked {
                    tracing::warn!("the link to the master has ended; the node goes on with what it knows");
                    continue;
                }
                inbox.take(std::mem::take(&mut burst));
                // the node is kept from the moment its object is known to be there or not
                if let Some(node) = node.take() {
                    tasks.spawn(node);
                }
            }
            () = inbox.reap() => {}
        }
    }
    inbox.close(SHUTDOWN).await;
    tasks.shutdown().await;
    body.proxy.shutdown().await;
    if claims {
        network::release(&networks).await.context("release the cluster's networks")?;
    }
    Ok(())
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

/// Makes the parts that all rooms share.
fn assemble(config: AgentConfig, uplink: Uplink, recorder: Recorder) -> anyhow::Result<Body> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("make data directory {}", config.data_dir.display()))?;
    let mut engine = runtime::WasmConfig::new(config.data_dir.join("wasm"), config.commands.clone());
    engine.instances_max = config.wasm.instances_max;
    engine.instance_memory_bytes_max = config.wasm.instance_memory_bytes_max;
    engine.p3 = config.wasm.p3;
    let wasm = runtime::Wasm::new(engine).context("prepare the Wasm engine")?;
    let mut proxy = netproxy::ProxyConfig::new(config.data.clone());
    proxy.cluster_domain.clone_from(&config.cluster_domain);
    proxy.node_addresses = vec![config.node_ip];
    proxy.ingress_http_port = config.ingress_http_port;
    proxy.ingress_https_port = config.ingress_https_port;
    proxy.dns = config.cluster_dns.map(|address| (address, DNS_PORT).into());
    Ok(Body {
        replica: ArcSwap::default(),
        wasm,
        proxy: netproxy::Proxy::new(proxy),
        uplink,
        recorder,
        docker: docker::open(&config),
        images: runtime::images::Images::open(&config.data_dir.join("images"), runtime::images::ImageLimits::default())
            .context("open the store of images")?,
        pools: Shared::new(Pools::new(config.pod_cidr)),
        guests: Shared::new(HashMap::new()),
        logs: Shared::new(HashMap::new()),
        samples: calls::Samples::default(),
        loaded: Shared::new(HashSet::new()),
        filled: tokio::sync::watch::Sender::new(false),
        machine: node::Machine::look(&config.data_dir),
        routes_stale: tokio::sync::Notify::new(),
        routed: tokio::sync::watch::Sender::default(),
        config,
    })
}
