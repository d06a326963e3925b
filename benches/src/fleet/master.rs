//! What hundreds of nodes and thousands of pods cost the master. The nodes are simulated, all in this process; the master is the
//! real one. `CORACLE_BENCH_NODES` and `CORACLE_BENCH_PODS` make it smaller.

use super::link::changes;
use super::simulated::{Machine, Running, Seen, What};
use super::site::{self, PATIENCE, Site, Traffic};
use crate::{line, process, quantile, spread, workload};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const NODES: usize = 500;
const PODS: u32 = 15_000;
/// Pods of one Deployment.
const REPLICAS: u32 = 300;
/// Nodes that join at once.
const JOINS: usize = 16;
/// What is left to do is done.
const SETTLE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);
const CHANGES: usize = 20;

/// The nodes join, the pods are made, and in between nothing happens.
pub async fn measure() -> Result<()> {
    if !site::is_inside("master")? {
        return Ok(());
    }
    let nodes = usize::try_from(wanted("CORACLE_BENCH_NODES", NODES as u32)?)?;
    let pods = wanted("CORACLE_BENCH_PODS", PODS)?.max(1);
    let site = Site::start().await?;
    let (begun, cpu) = (Instant::now(), process::cpu_time(site.pid())?);
    let (sender, mut seen) = mpsc::unbounded_channel();
    let _running = join(&site, nodes, &sender, &mut seen).await?;
    took(&site, &format!("{nodes} nodes have joined"), begun, cpu)?;
    idle(&site, &format!("{nodes} idle nodes")).await?;
    update(&site, &mut seen, nodes).await?;

    let (begun, cpu, before) = (Instant::now(), process::cpu_time(site.pid())?, Traffic::of_loopback()?);
    let wire = deploy(&site, pods).await.map(|()| Traffic::of_loopback())??.since(before);
    took(&site, &format!("{pods} pods run, behind {} Services", pods.div_ceil(REPLICAS)), begun, cpu)?;
    line("all of it on the wire", format!("{:.0} bytes a pod, of all nodes", wire.bytes as f64 / f64::from(pods)));
    idle(&site, &format!("{nodes} idle nodes, {pods} idle pods")).await?;
    while seen.try_recv().is_ok() {}
    update(&site, &mut seen, nodes).await
}

fn wanted(variable: &str, usual: u32) -> Result<u32> {
    std::env::var(variable).map_or(Ok(usual), |text| text.parse().context(variable.to_owned()))
}

async fn join(
    site: &Site,
    nodes: usize,
    sender: &mpsc::UnboundedSender<Seen>,
    seen: &mut mpsc::UnboundedReceiver<Seen>,
) -> Result<Vec<Running>> {
    let running: Vec<Running> = futures::stream::iter(0..nodes)
        .map(async |number| anyhow::Ok(Machine::join(site, number).await?.run(None, sender.clone())))
        .buffer_unordered(JOINS)
        .try_collect()
        .await?;
    let mut linked = 0;
    while linked < nodes {
        let next = tokio::time::timeout(PATIENCE, seen.recv()).await?.context("no more news")?;
        linked += usize::from(matches!(next.what, What::Slice(_)));
    }
    Ok(running)
}

async fn deploy(site: &Site, pods: u32) -> Result<()> {
    let mut client = site.client().await?;
    let count = pods.div_ceil(REPLICAS);
    for number in 0..count {
        let name = format!("app-{number:03}");
        let mut deployment = workload::deployment(&name, REPLICAS.min(pods - number * REPLICAS), None)?;
        deployment["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
        workload::create(&mut client, &deployment, &name).await?;
    }
    let begun = Instant::now();
    loop {
        let list = client.get(workload::DEPLOYMENTS).await?;
        let all = list["items"].as_array().context("no list")?;
        let ready: u64 = all.iter().filter_map(|one| one["status"]["availableReplicas"].as_u64()).sum();
        if ready == u64::from(pods) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "{ready} of {pods} pods run\n{}", site.log());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Changes of what all nodes get.
async fn update(site: &Site, seen: &mut mpsc::UnboundedReceiver<Seen>, nodes: usize) -> Result<()> {
    let [answered, arrived] = changes(site, seen, nodes, CHANGES).await?;
    line("change of a Service: request to answer", spread(&answered));
    line("change of a Service: to each node's World", spread(&arrived));
    let last: Vec<Duration> = arrived.chunks(nodes).filter_map(|all| all.iter().max().copied()).collect();
    line(
        "change of a Service: to the last of them",
        format!("p50 {:.2} ms", crate::milliseconds(quantile(&last, 0.5))),
    );
    Ok(())
}

fn took(site: &Site, what: &str, begun: Instant, cpu: Duration) -> Result<()> {
    let (time, cpu) = (begun.elapsed().as_secs_f64(), process::cpu_time(site.pid())? - cpu);
    line(what, format!("{time:.1} s, of which the master works {:.1} s", cpu.as_secs_f64()));
    Ok(())
}

async fn idle(site: &Site, what: &str) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let (cpu, before) = (process::cpu_time(site.pid())?, Traffic::of_loopback()?);
    tokio::time::sleep(IDLE).await;
    let (cpu, wire) = (process::cpu_time(site.pid())? - cpu, Traffic::of_loopback()?.since(before));
    let second = IDLE.as_secs_f64();
    line(&format!("{what}: master's processor"), format!("{:.1} % of a core", 100.0 * cpu.as_secs_f64() / second));
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let (pss, anonymous) = (process::pss_bytes(site.pid())?, process::anonymous_bytes(site.pid())?);
    line(
        &format!("{what}: master's memory"),
        format!("{:.0} MiB PSS, of which {:.0} MiB anonymous", mib(pss), mib(anonymous)),
    );
    let (bytes, packets) = (wire.bytes as f64 / second / 1e3, wire.packets as f64 / second);
    line(&format!("{what}: on the wire"), format!("{bytes:.0} KB and {packets:.0} packets a second, of all"));
    Ok(())
}
