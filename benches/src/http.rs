//! Requests a second and p99 of an HTTP component, through its Service and through the Ingress, beside others.
//!
//! Everything is up during the whole run and is asked in turn, round after round, so that a noisy machine is noisy for
//! all; the load comes from this process and shares the cores with what it measures.

use crate::cluster::Cluster;
use crate::load::{self, Rate};
use crate::peers::{self, Peer};
use crate::{line, milliseconds, workload};
use anyhow::{Result, bail};
use std::net::SocketAddr;
use std::time::Duration;

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(1);
/// Replicas behind each Service, as in `examples/hello`.
const REPLICAS: u32 = 3;
const REUSE: u32 = 128;

struct Target {
    name: String,
    address: SocketAddr,
    host: String,
    rates: Vec<Rate>,
}

impl Target {
    fn new(name: &str, address: SocketAddr, host: &str) -> Self {
        Self { name: name.to_owned(), address, host: host.to_owned(), rates: Vec::new() }
    }

    /// The round with the middle rate.
    fn median(&mut self) -> Option<&Rate> {
        self.rates.sort_by(|a, b| a.requests.total_cmp(&b.requests));
        self.rates.get(self.rates.len() / 2)
    }
}

/// Medians of the rounds, and their ratio to the plain hyper server.
pub async fn measure() -> Result<()> {
    let (cluster, mut client) = Cluster::start().await?;
    let mut ours = Vec::new();
    for (name, what, reuse) in [("fresh", "fresh instances", None), ("reused", "reused instances", Some(REUSE))] {
        let deployment = workload::deployment(name, REPLICAS, reuse)?;
        let address = workload::create(&mut client, &deployment, name).await?;
        client.create(workload::INGRESSES, &workload::ingress(name)).await?;
        cluster.available(&mut client, name).await?;
        ours.push(Target::new(&format!("{what}, Service"), address, name));
        ours.push(Target::new(&format!("{what}, Ingress"), cluster.ingress(), &workload::host(name)));
    }
    for target in &ours {
        answered(target).await?;
    }
    let body = answered(&ours[0]).await?;
    let mut peers = vec![peers::hyper(&body)?];
    optional(&mut peers, peers::nginx(&body).await?, "nginx");
    optional(&mut peers, peers::wasmtime().await?, "wasmtime serve");
    let mut targets: Vec<Target> = peers.iter().map(|peer| Target::new(peer.name, peer.address, "localhost")).collect();
    targets.extend(ours);
    line("load", format!("{} connections, {ROUNDS} rounds of {ROUND:?} each, in turn", load::CONNECTIONS));
    for _ in 0..ROUNDS {
        for target in &mut targets {
            load::run(target.address, &target.host, WARM_UP).await?;
            target.rates.push(load::run(target.address, &target.host, ROUND).await?);
        }
    }
    report(&mut targets);
    Ok(())
}

fn report(targets: &mut [Target]) {
    let plain = targets.first_mut().and_then(Target::median).map_or(f64::NAN, |rate| rate.requests);
    for target in targets {
        let name = target.name.clone();
        let Some((requests, p99)) = target.median().map(|rate| (rate.requests, milliseconds(rate.p99))) else {
            continue;
        };
        let rounds: Vec<_> = target.rates.iter().map(|rate| format!("{:.0}", rate.requests)).collect();
        let ratio = requests / plain;
        line(
            &name,
            format!("{requests:>7.0} requests/s  p99 {p99:>6.2} ms  {ratio:.3} of plain hyper  ({})", rounds.join(" ")),
        );
    }
}

fn optional(peers: &mut Vec<Peer>, peer: Option<Peer>, name: &str) {
    match peer {
        Some(peer) => peers.push(peer),
        None => line(name, "not installed, skipped"),
    }
}

/// Waits until the way to the pods is open; what they say.
async fn answered(target: &Target) -> Result<String> {
    for _ in 0..1000 {
        if let Ok(answer) = load::get_once(target.address, &target.host).await
            && answer.status == 200
        {
            // without the size line and the last chunk, if it came in chunks
            let body = answer.body.lines().find(|line| line.starts_with("Hello")).unwrap_or_default();
            return Ok(format!("{body}\n"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("{}: no answer from {}", target.name, target.address);
}
