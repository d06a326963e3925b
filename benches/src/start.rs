//! How long `coracle server` takes until its API answers, its node is ready, and the pods it had serve again.

use crate::cluster::{Cluster, LOOK};
use crate::{line, load, summary, workload};
use anyhow::{Result, bail};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const RUNS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// Fresh directories (certificates are made, the store is created), then one that has been used.
pub async fn measure() -> Result<()> {
    let (mut api, mut node) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut cluster = Cluster::prepare()?;
        let started = cluster.run().await?;
        api.push(started.api);
        node.push(started.node);
    }
    line("fresh directory: API answers", summary(api));
    line("fresh directory: node Ready", summary(node));

    // The node object of a used directory is Ready from the run before, so a pod that serves again is what counts.
    let (mut cluster, mut client) = Cluster::start().await?;
    let address = workload::create(&mut client, &workload::deployment("kept", 1, None)?, "kept").await?;
    cluster.available(&mut client, "kept").await?;
    let (mut api, mut pod) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        cluster.stop().await?;
        let begun = Instant::now();
        api.push(cluster.run().await?.api);
        pod.push(serves(address, begun).await?);
    }
    line("used directory: API answers", summary(api));
    line("used directory: first 200 of a pod it had", summary(pod));
    Ok(())
}

/// How long after `begun` the Service answered 200.
pub async fn serves(address: SocketAddr, begun: Instant) -> Result<Duration> {
    loop {
        if let Ok(answer) = load::get_once(address, "localhost").await
            && answer.status == 200
        {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            bail!("no answer from {address}");
        }
        tokio::time::sleep(LOOK).await;
    }
}
