//! Pods that come and go by the hundred, of each kind: what the server and the host hold after every hundred of them.

use crate::client::Client;
use crate::cluster::{Cluster, PODS, root};
use crate::{engine, process};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const CYCLES: usize = 500;
const ROW_EVERY: usize = 100;
/// The bridge of a privileged cluster's Docker pods.
const BRIDGE: &str = "10.62.8.0/21";
const SETTLE: Duration = Duration::from_secs(3);

/// Wasm pods without privilege; then, where that is possible, Docker pods, and pods of both.
pub async fn measure() -> Result<()> {
    let probe = root().join("tests/it/guests/probe.wasm").canonicalize()?;
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let wasm = json!({
        "name": "wasm", "image": format!("file://{}", probe.display()), "args": ["http", "8000"], "volumeMounts": mounts,
    });
    let (cluster, client) = Cluster::start().await?;
    cycle("Wasm pods", cluster, client, &json!([wasm]), 20).await?;
    let Some(image) = engine::image()? else { return Ok(()) };
    let docker = json!({
        "name": "busybox", "image": image.name, "command": ["httpd", "-f", "-p", "8080", "-h", "/www"], "volumeMounts": mounts,
    });
    for (what, containers) in [("Docker pods", json!([docker])), ("mixed pods", json!([docker, wasm]))] {
        let (cluster, client) = Cluster::start_privileged().await?;
        cycle(what, cluster, client, &containers, 10).await?;
    }
    Ok(())
}

async fn cycle(what: &str, cluster: Cluster, mut client: Client, containers: &Value, at_once: usize) -> Result<()> {
    println!("  {what}, {at_once} at once");
    println!(
        "  {:>8} {:>10} {:>10} {:>6} {:>10} {:>10} {:>7} {:>8}",
        "cycles", "PSS MiB", "anon MiB", "fds", "disk KiB", "containers", "mounts", "seconds"
    );
    // the first pods load what stays
    batch(&cluster, &mut client, containers, at_once).await?;
    row(&cluster, 0, Duration::ZERO).await?;
    let mut begun = Instant::now();
    for done in (at_once..=CYCLES).step_by(at_once) {
        batch(&cluster, &mut client, containers, at_once).await?;
        if done % ROW_EVERY == 0 {
            row(&cluster, done, begun.elapsed()).await?;
            begun = Instant::now();
        }
    }
    Ok(())
}

async fn batch(cluster: &Cluster, client: &mut Client, containers: &Value, at_once: usize) -> Result<()> {
    for n in 0..at_once {
        let spec = json!({
            "terminationGracePeriodSeconds": 0,
            "containers": containers,
            "volumes": [{"name": "data", "emptyDir": {}}],
        });
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{n}")}, "spec": spec});
        client.create(PODS, &pod).await?;
    }
    cluster.pods(client, true).await?;
    for n in 0..at_once {
        client.delete(&format!("{PODS}/p{n}")).await?;
    }
    cluster.pods(client, false).await
}

async fn row(cluster: &Cluster, cycles: usize, spent: Duration) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let pid = cluster.pid()?;
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let data = cluster.data_dir();
    println!(
        "  {cycles:>8} {:>10.1} {:>10.1} {:>6} {:>10} {:>10} {:>7} {:>8.1}",
        mib(process::pss_bytes(pid)?),
        mib(process::anonymous_bytes(pid)?),
        process::open_files(pid)?,
        disk_bytes(&data)? / 1024,
        engine::count_of_node(BRIDGE),
        mounts(&data)?,
        spent.as_secs_f64(),
    );
    Ok(())
}

/// What the files of a directory take on the disk.
fn disk_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // a file may go between being listed and being looked at
        let Ok(meta) = entry.metadata() else { continue };
        sum += meta.blocks() * 512;
        if meta.is_dir() {
            sum += disk_bytes(&entry.path())?;
        }
    }
    Ok(sum)
}

fn mounts(dir: &Path) -> Result<usize> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| Path::new(point).starts_with(dir)).count())
}
