//! The node's part of the pod network between nodes: who the others are, where this one is, and the rules for Docker's bridge.
//!
//! Others are known from the replica's Nodes, which are on disk too, so nodes that reach each other talk on without a master.
//! Deliberately absent: how packets travel (`sync::mesh`), the device (`netproxy::network`).

mod icmp;
#[cfg(test)]
mod tests;
mod wire;

use crate::body::Body;
use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use netproxy::network::{Cidr, Forwarding};
use runtime::docker::{Docker, Health};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use state::{Key, Object, World};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use sync::mesh::{self, Neighbour, Network};
use sync::slice::ENDPOINTS;
use sync::{Bulk, Identity};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wire::{Device, Wire, WireConfig};

/// How often this host is asked for its address.
const ADDRESS_PERIOD: Duration = Duration::from_secs(30);
/// Until what failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How often the firewall's rules are put right: others rewrite them, and tell nobody.
const RULES_PERIOD: Duration = Duration::from_secs(300);
/// The rules are taken away by then, or not.
const RULES_PATIENCE: Duration = Duration::from_secs(2);

/// What a node needs to reach the pods of others.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// Its certificate, as it is renewed: shown to other nodes.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// UDP port at which other nodes reach this one.
    pub port: u16,
}

impl MeshConfig {
    /// The usual port.
    pub fn new(identity: watch::Receiver<Arc<Identity>>) -> Self {
        Self { identity, port: mesh::PORT }
    }
}

/// The pod network while it is kept.
pub struct PodNetwork {
    task: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

/// Reaches the pods of other nodes from now on, where the configuration says so.
pub fn start(body: &Arc<Body>, bulk: Bulk) -> PodNetwork {
    let stop = CancellationToken::new();
    let task = body.config.mesh.clone().map(|config| {
        let kept = keep(body.clone(), config, bulk, stop.clone());
        // packets are moved where all bytes are
        body.config.data.spawn(kept)
    });
    PodNetwork { task, stop }
}

impl PodNetwork {
    /// Takes back what was set up. For when no pod needs it any more.
    pub async fn close(self) {
        self.stop.cancel();
        if let Some(task) = self.task
            && let Err(panic) = task.await
        {
            tracing::error!(%panic, "the pod network");
        }
    }
}

async fn keep(body: Arc<Body>, config: MeshConfig, bulk: Bulk, stop: CancellationToken) {
    let device = match body.ground.stack() {
        None => Device::Kernel(crate::docker::device(&body.config)),
        Some(stack) => Device::User(stack.clone()),
    };
    let rules = body.docker.clone().map(|docker| {
        let (bridge, pods) = crate::docker::bridge(&body.config, body.pod_cidr);
        let forwarding = Forwarding { device: crate::docker::device(&body.config), bridge, pods };
        tokio::spawn(keep_rules(docker, forwarding, stop.clone()))
    });
    if let Device::User(_) = device {
        company(&body, &stop).await;
    }
    while !stop.is_cancelled() {
        match open(&body, &config, device.clone(), bulk.clone()).await {
            Ok(wire) => {
                tracing::info!(?device, port = wire.port, "the pods of other nodes are reached");
                steer(&body, &wire, &stop).await;
                wire.close().await;
            }
            Err(error) => {
                let message = format!("pods of other nodes are not reached: {error:#}");
                tracing::error!("{message}");
                if let Some(node) = body.replica.load().get(&Key::of::<Node>("", &body.config.node_name)) {
                    body.recorder.warning(node, "PodNetworkNotReady", &message);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    if let Some(rules) = rules {
        // a task of ours that ends with the same token
        let _ = rules.await;
    }
}

/// Waits for another node: a cluster that lives in 127.0.0.0/8 has none usually, and needs no socket for them.
async fn company(body: &Body, stop: &CancellationToken) {
    loop {
        let told = body.nodes_changed.notified();
        if body.replica.load().all::<Node>(None).any(|node| *node.key().name != body.config.node_name) {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = told => {}
        }
    }
}

/// Tells the mesh of others and others of it, until either is no more.
async fn steer(body: &Body, wire: &Wire, stop: &CancellationToken) {
    loop {
        let told = body.nodes_changed.notified();
        wire.mesh.set_neighbours(neighbours(&body.replica.load(), &body.config.node_name, wire.cluster));
        let addresses = [body.config.node_ip, source_towards(**body.api.load())];
        let here = Some(endpoints(addresses, wire.port));
        body.endpoints.send_if_modified(|known| std::mem::replace(known, here.clone()) != here);
        tokio::select! {
            () = stop.cancelled() => return,
            () = wire.gone.cancelled() => return,
            () = told => {}
            () = tokio::time::sleep(ADDRESS_PERIOD) => {}
        }
    }
}

async fn open(body: &Body, config: &MeshConfig, device: Device, bulk: Bulk) -> anyhow::Result<Wire> {
    let cluster = &body.cluster.cluster_cidr;
    let node_ca = CertificateDer::from_pem_slice(body.cluster.node_ca_pem.as_bytes());
    Wire::open(WireConfig {
        node: body.config.node_name.clone(),
        device,
        port: config.port,
        cluster: cluster.parse().with_context(|| format!("the cluster's pod network {cluster}"))?,
        own: body.pod_cidr,
        identity: config.identity.clone(),
        node_ca: node_ca.context("the authority of nodes' certificates")?,
        bulk,
    })
    .await
}

/// Where other nodes may reach this one: those of its addresses that are of use to them.
fn endpoints(addresses: [IpAddr; 2], port: u16) -> Vec<SocketAddr> {
    let mut endpoints: Vec<SocketAddr> = Vec::new();
    for address in addresses.into_iter().filter(|address| !address.is_loopback() && !address.is_unspecified()) {
        let endpoint = (address, port).into();
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// This host's address on the way to the master: it may have changed since the node's was given. Nothing is sent.
fn source_towards(master: SocketAddr) -> IpAddr {
    let any: IpAddr = if master.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(master)?;
        socket.local_addr()
    });
    asked.map_or(any, |address| address.ip())
}

/// The other nodes of a world.
fn neighbours(world: &World, own: &str, cluster: Cidr) -> Vec<Neighbour> {
    world.all::<Node>(None).filter(|node| &*node.key().name != own).map(|node| neighbour(node, cluster)).collect()
}

fn neighbour(node: &Arc<Object>, cluster: Cidr) -> Neighbour {
    let told = node.meta().annotations.get(ENDPOINTS).map(String::as_str).unwrap_or_default();
    // what is in the pod network itself would go round in circles
    let is_useful = |endpoint: &SocketAddr| {
        let ip = endpoint.ip();
        !cluster.contains(ip) && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && endpoint.port() > 0
    };
    let endpoints = told.split(',').filter_map(|text| text.trim().parse().ok()).filter(is_useful).collect();
    Neighbour { name: node.key().name.to_string(), networks: mesh::networks(node), endpoints }
}

/// Keeps the firewall's rules for the bridge while Docker is up, and takes them away in the end.
async fn keep_rules(docker: Docker, forwarding: Forwarding, stop: CancellationToken) {
    let mut health = docker.health();
    let work = async {
        while health.wait_for(|health| matches!(health, Health::Ready { .. })).await.is_ok() {
            if let Err(error) = forwarding.ensure().await {
                let error = anyhow::Error::from(error);
                tracing::warn!("Docker's pods may not reach those of other nodes: {error:#}");
            }
            let down = health.wait_for(|health| !matches!(health, Health::Ready { .. }));
            // time is up or Docker is down: the rules are looked at when it is up
            let _ = tokio::time::timeout(RULES_PERIOD, down).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
    match tokio::time::timeout(RULES_PATIENCE, forwarding.remove()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the firewall's rules stay"),
        Err(_) => tracing::warn!("the firewall's rules stay: its tool took too long"),
    }
}

/// A part of the pod network, as the mesh spells it.
fn network(cidr: Cidr) -> anyhow::Result<Network> {
    cidr.to_string().parse().context("the pod network")
}
