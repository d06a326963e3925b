//! The node's body: keeps the pods of one node as the cluster wants them.
//!
//! Layer 4. Folds its slice of the cluster's events into a [`state::World`] of its own, plans each pod against what runs,
//! lets `runtime` and `netproxy` carry the steps out, and writes back what became of them. It lives on when the link to
//! the master is dead. Deliberately absent: REST, placement, every object that is not this node's business.

mod addresses;
mod body;
mod config;
mod container;
mod events;
mod fields;
mod frontage;
mod identity;
mod inbox;
mod logs;
mod node;
mod pod;
mod probes;
mod routes;
mod uplink;
mod volumes;

pub use config::{AgentConfig, LogLimits, PODS_MAX, Taint, WasmLimits};
pub use netproxy::network::Cidr;

use addresses::Pool;
use anyhow::Context;
use arc_swap::ArcSwap;
use body::{Body, Shared};
use events::Recorder;
use std::sync::Arc;
use uplink::Uplink;

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
        pool: Shared::new(Pool::new(config.pod_cidr)),
        logs: Shared::new(std::collections::HashMap::new()),
        images: Shared::new(std::collections::HashSet::new()),
        machine: node::Machine::look(&config.data_dir),
        routes_stale: tokio::sync::Notify::new(),
        routed: tokio::sync::watch::Sender::default(),
        config,
    })
}

/// Port of the cluster's DNS.
const DNS_PORT: u16 = 53;
