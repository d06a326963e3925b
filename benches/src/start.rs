//! How long `coracle server` takes until its API answers and its node is ready.

use crate::cluster::Cluster;
use crate::{line, summary};
use anyhow::Result;

const RUNS: usize = 5;

/// Fresh directories (certificates are made, the store is created), then one that has been used.
pub async fn measure() -> Result<()> {
    let (mut api, mut node) = (Vec::new(), Vec::new());
    let mut used = None;
    for _ in 0..RUNS {
        let mut cluster = Cluster::prepare()?;
        let started = cluster.run().await?;
        api.push(started.api);
        node.push(started.node);
        cluster.stop().await?;
        used = Some(cluster);
    }
    line("fresh directory: API answers", summary(api));
    line("fresh directory: node Ready", summary(node));
    let Some(mut cluster) = used else { return Ok(()) };
    let (mut api, mut node) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let started = cluster.run().await?;
        api.push(started.api);
        // the node may still count as ready from the run before: this is when the API says so, not the kubelet
        node.push(started.node);
        cluster.stop().await?;
    }
    line("used directory: API answers", summary(api));
    line("used directory: node Ready", summary(node));
    Ok(())
}
