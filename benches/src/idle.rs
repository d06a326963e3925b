//! What a server with ten Wasm pods costs while nothing happens.

use crate::cluster::Cluster;
use crate::{line, process, workload};
use anyhow::Result;
use std::time::Duration;

const PODS: u32 = 10;
const SETTLE: Duration = Duration::from_secs(15);
const WATCHED: Duration = Duration::from_secs(60);

/// Once as the server is after it has compiled the component, once after a restart on the same directory.
pub async fn measure() -> Result<()> {
    let (mut cluster, mut client) = Cluster::start().await?;
    client.create(workload::DEPLOYMENTS, &workload::deployment("idle", PODS, None)?).await?;
    cluster.available(&mut client, "idle").await?;
    drop(client);
    watch(&cluster, "after the compile").await?;
    cluster.stop().await?;
    cluster.run().await?;
    let mut client = cluster.access()?.connect().await?;
    cluster.available(&mut client, "idle").await?;
    drop(client);
    watch(&cluster, "after a restart").await
}

async fn watch(cluster: &Cluster, when: &str) -> Result<()> {
    let pid = cluster.pid()?;
    tokio::time::sleep(SETTLE).await;
    let (cpu, written) = (process::cpu_time(pid)?, process::written_bytes(pid)?);
    tokio::time::sleep(WATCHED).await;
    let cpu = process::cpu_time(pid)? - cpu;
    let written = process::written_bytes(pid)? - written;
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let (pss, anonymous) = (mib(process::pss_bytes(pid)?), mib(process::anonymous_bytes(pid)?));
    line(&format!("{when}: memory"), format!("{pss:.1} MiB PSS, of which {anonymous:.1} MiB anonymous"));
    let share = 100.0 * cpu.as_secs_f64() / WATCHED.as_secs_f64();
    line(&format!("{when}: processor"), format!("{share:.2} % of a core, over {WATCHED:?}"));
    line(&format!("{when}: disk writes"), format!("{written} bytes in {WATCHED:?}"));
    Ok(())
}
