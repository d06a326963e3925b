//! Memory of an idle Wasm pod, with as many as a node takes.

use crate::cluster::Cluster;
use crate::{line, process, workload};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

const SETTLE: Duration = Duration::from_secs(10);

/// One pod pays for the component; the others are what is counted.
pub async fn measure() -> Result<()> {
    let (cluster, mut client) = Cluster::start().await?;
    let node = client.get("/api/v1/nodes/node").await?;
    let fits: u32 = node["status"]["allocatable"]["pods"].as_str().context("no allocatable pods")?.parse()?;
    let added = fits.min(1_001) - 1;
    let pid = cluster.pid()?;
    client.create(workload::DEPLOYMENTS, &workload::deployment("first", 1, None)?).await?;
    cluster.available(&mut client, "first").await?;
    tokio::time::sleep(SETTLE).await;
    let before = process::pss_bytes(pid)?;
    let begun = Instant::now();
    client.create(workload::DEPLOYMENTS, &workload::deployment("more", added, None)?).await?;
    cluster.available(&mut client, "more").await?;
    line(&format!("{added} pods available after"), format!("{:.1} s", begun.elapsed().as_secs_f64()));
    tokio::time::sleep(SETTLE).await;
    let after = process::pss_bytes(pid)?;
    let each = after.saturating_sub(before) / u64::from(added);
    let mib = |bytes: u64| bytes >> 20;
    line("server with one pod, then with all", format!("{} MiB, {} MiB PSS", mib(before), mib(after)));
    line("memory of an idle pod", format!("{:.1} KB PSS", each as f64 / 1e3));
    Ok(())
}
