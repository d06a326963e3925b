//! From creating a Deployment and a Service to the first HTTP 200 through that Service.
//!
//! The objects are created over an open connection, so the client's own start is not counted; a new connection to the
//! Service is tried every millisecond.

use crate::client::Client;
use crate::cluster::Cluster;
use crate::{line, start, summary, workload};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

const RUNS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// Cold (never compiled), compiled by the same server before, and compiled by a server before this one.
pub async fn measure() -> Result<()> {
    let (mut cold, mut warm, mut restarted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (mut cluster, mut client) = Cluster::start().await?;
        cold.push(first(&mut client, "cold").await?);
        warm.push(first(&mut client, "warm").await?);
        // nothing of the image may be in use when the server starts again
        for name in ["cold", "warm"] {
            client.delete(&format!("{}/{name}", workload::DEPLOYMENTS)).await?;
        }
        gone(&mut client).await?;
        cluster.stop().await?;
        cluster.run().await?;
        let mut client = cluster.access()?.connect().await?;
        restarted.push(first(&mut client, "restarted").await?);
    }
    line("apply to first 200: cold compile", summary(cold));
    line("apply to first 200: cached, same server", summary(warm));
    line("apply to first 200: cached, restarted server", summary(restarted));
    Ok(())
}

async fn first(client: &mut Client, name: &str) -> Result<Duration> {
    let deployment = workload::deployment(name, 1, None)?;
    let begun = Instant::now();
    let address = workload::create(client, &deployment, name).await?;
    start::serves(address, begun).await
}

async fn gone(client: &mut Client) -> Result<()> {
    let begun = Instant::now();
    loop {
        let pods = client.get("/api/v1/namespaces/default/pods").await?;
        if pods["items"].as_array().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("the pods do not go away");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
