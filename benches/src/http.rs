//! Requests a second and p99 of an HTTP component, through its Service and through the Ingress, beside others.
//!
//! Everything is up during the whole run and is asked in turn, round after round, so that a noisy machine is noisy for
//! all. The load comes from this process and shares the cores with what it measures, which flatters slow servers: their
//! part of a request's whole cost is not all of it. So the processor time of the server alone is shown as well.

use crate::cluster::Cluster;
use crate::load::{self, Rate};
use crate::peers::{self, Peer};
use crate::{line, milliseconds, process, workload};
use anyhow::{Result, bail};
use std::net::SocketAddr;
use std::time::Duration;

/// Rounds of each server.
pub const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(1);
/// Replicas behind each Service, as in `examples/hello`.
const REPLICAS: u32 = 3;
const REUSE: u32 = 128;

/// A server that is asked, round after round.
pub struct Target {
    name: String,
    address: SocketAddr,
    host: String,
    pid: u32,
    rounds: Vec<Round>,
}

struct Round {
    rate: Rate,
    /// Processor time of the server for one request, in microseconds.
    cpu: f64,
}

impl Target {
    /// A server process at an address, asked for `/` of `host`.
    pub fn new(name: &str, address: SocketAddr, host: &str, pid: u32) -> Self {
        Self { name: name.to_owned(), address, host: host.to_owned(), pid, rounds: Vec::new() }
    }

    /// One round of load, after a short one to warm up.
    pub async fn round(&mut self) -> Result<()> {
        load::run(self.address, &self.host, WARM_UP).await?;
        let before = process::cpu_time_with_children(self.pid)?;
        let rate = load::run(self.address, &self.host, ROUND).await?;
        let used = process::cpu_time_with_children(self.pid)?.saturating_sub(before);
        let cpu = used.as_secs_f64() * 1e6 / (rate.requests * ROUND.as_secs_f64());
        self.rounds.push(Round { rate, cpu });
        Ok(())
    }

    /// The round with the middle rate.
    fn median(&mut self) -> Option<&Round> {
        self.rounds.sort_by(|a, b| a.rate.requests.total_cmp(&b.rate.requests));
        self.rounds.get(self.rounds.len() / 2)
    }
}

/// Medians of the rounds, and their ratio to the plain hyper server.
pub async fn measure() -> Result<()> {
    let (cluster, mut client) = Cluster::start().await?;
    let pid = cluster.pid()?;
    let mut ours = Vec::new();
    for (name, what, reuse) in [("fresh", "fresh instances", None), ("reused", "reused instances", Some(REUSE))] {
        let deployment = workload::deployment(name, REPLICAS, reuse)?;
        let address = workload::create(&mut client, &deployment, name).await?;
        client.create(workload::INGRESSES, &workload::ingress(name)).await?;
        cluster.available(&mut client, name).await?;
        ours.push(Target::new(&format!("{what}, Service"), address, name, pid));
        ours.push(Target::new(&format!("{what}, Ingress"), cluster.ingress(), &workload::host(name), pid));
    }
    for target in &ours {
        answered(target).await?;
    }
    let body = answered(&ours[0]).await?;
    let mut peers = vec![peers::hyper(&body)?];
    optional(&mut peers, peers::nginx(&body).await?, "nginx");
    optional(&mut peers, peers::wasmtime().await?, "wasmtime serve");
    let mut targets: Vec<Target> =
        peers.iter().map(|peer| Target::new(peer.name, peer.address, "localhost", peer.pid())).collect();
    targets.extend(ours);
    line("load", format!("{} connections, {ROUNDS} rounds of {ROUND:?} each, in turn", load::CONNECTIONS));
    for _ in 0..ROUNDS {
        for target in &mut targets {
            target.round().await?;
        }
    }
    report(&mut targets, "plain hyper");
    Ok(())
}

/// Each server's middle round, and its ratio to the first one, whose name is `base`.
pub fn report(targets: &mut [Target], base: &str) {
    let plain = targets.first_mut().and_then(Target::median);
    let (plain_rate, plain_cpu) = plain.map_or((f64::NAN, f64::NAN), |round| (round.rate.requests, round.cpu));
    let of = format!("of {base}");
    line("", format!("requests/s  {of:>14}     p99 ms  server µs/request  {of:>14}   rounds"));
    for target in targets {
        let Some(&Round { rate: Rate { requests, p99 }, cpu }) = target.median() else { continue };
        let rounds: Vec<_> = target.rounds.iter().map(|round| format!("{:.0}", round.rate.requests)).collect();
        let (by_rate, by_cpu) = (requests / plain_rate, plain_cpu / cpu);
        let (p99, rounds) = (milliseconds(p99), rounds.join(" "));
        let figures = format!("{requests:>10.0}  {by_rate:>14.2}  {p99:>9.2}  {cpu:>17.1}  {by_cpu:>14.2}   {rounds}");
        line(&target.name, figures);
    }
}

fn optional(peers: &mut Vec<Peer>, peer: Option<Peer>, name: &str) {
    match peer {
        Some(peer) => peers.push(peer),
        None => line(name, "not installed, skipped"),
    }
}

/// Waits until the way to the pods is open; what they say.
/// Asks once; the body.
pub async fn answered(target: &Target) -> Result<String> {
    let mut said = String::new();
    for _ in 0..1000 {
        match load::get_once(target.address, &target.host).await {
            Ok(answer) if answer.status == 200 => {
                // without the size line and the last chunk, if it came in chunks
                let body = answer.body.lines().find(|line| line.starts_with("Hello")).unwrap_or_default();
                return Ok(format!("{body}\n"));
            }
            Ok(answer) => said = format!("{} {}", answer.status, answer.body),
            Err(error) => said = format!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("{} at {}: {said}", target.name, target.address);
}
