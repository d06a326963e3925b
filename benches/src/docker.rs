//! A pod of one Docker container beside `docker run` of the same image, in turn: until it runs, until its first 200.
//!
//! The pod has a sandbox beside its container, and gets volumes, an address, a hosts file; `docker run` has the start of
//! Docker's client in its figure, about 20 ms.

use crate::client::Client;
use crate::cluster::{Cluster, LOOK, PODS};
use crate::engine::{Image, docker, image, median_ratio};
use crate::{line, load, summary};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const RUNS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(60);
/// A bridge of ours for `docker run`, with an address that is known before, as a pod's.
const SUBNET: &str = "10.62.32.0/24";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 62, 32, 7);
const PORT: u16 = 8080;

/// Until it runs, and until it has answered.
struct Times {
    running: Duration,
    served: Duration,
}

/// Pairs, the first of which is not counted.
pub async fn measure() -> Result<()> {
    let Some(image) = image()? else { return Ok(()) };
    let (_cluster, mut client) = Cluster::start_privileged().await?;
    let network = format!("coracle-bench-{}", std::process::id());
    docker(&["network", "create", "--subnet", SUBNET, &network])?;
    let mut pairs = Vec::new();
    let measured = async {
        for run in 0..=RUNS {
            let pair = (pod(&mut client, &image, run).await?, plain(&image, &network).await?);
            if run > 0 {
                pairs.push(pair);
            }
        }
        Ok(())
    };
    let measured: Result<()> = measured.await;
    docker(&["network", "rm", &network])?;
    measured?;
    for (what, of) in
        [("running", (|times: &Times| times.running) as fn(&Times) -> Duration), ("first 200", |times| times.served)]
    {
        let times: Vec<_> = pairs.iter().map(|(pod, plain)| (of(pod), of(plain))).collect();
        line(&format!("pod: apply to {what}"), summary(times.iter().map(|pair| pair.0).collect()));
        line(&format!("docker run to {what}"), summary(times.iter().map(|pair| pair.1).collect()));
        line(&format!("pod of docker run, {what}"), format!("{:.2} (median of {RUNS} pairs)", median_ratio(&times)));
    }
    Ok(())
}

async fn pod(client: &mut Client, image: &Image, run: usize) -> Result<Times> {
    let path = format!("{PODS}/web-{run}");
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("web-{run}")},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "web", "image": image.name, "command": ["httpd", "-f", "-p", "8080", "-h", "/www"]}],
        },
    });
    let begun = Instant::now();
    client.create(PODS, &object).await?;
    let mut asked = None;
    let running = loop {
        let pod = client.get(&path).await?;
        if asked.is_none()
            && let Some(address) = pod["status"]["podIP"].as_str()
        {
            let address = SocketAddr::new(address.parse()?, PORT);
            asked = Some(tokio::spawn(serves(address, begun)));
        }
        if pod["status"]["containerStatuses"][0]["state"]["running"].is_object() {
            break begun.elapsed();
        }
        if begun.elapsed() > PATIENCE {
            bail!("the pod does not run: {}", pod["status"]);
        }
        tokio::time::sleep(LOOK).await;
    };
    let served = asked.context("it runs and has no address")?.await??;
    client.delete(&path).await?;
    while client.get(&path).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Times { running, served })
}

/// How long after `begun` it answered 200. An attempt is given up soon: what is sent to an address that is not there yet is
/// sent again by the kernel after a second only.
async fn serves(address: SocketAddr, begun: Instant) -> Result<Duration> {
    loop {
        let answer = tokio::time::timeout(Duration::from_millis(20), load::get_once(address, "localhost")).await;
        if let Ok(Ok(answer)) = answer
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

async fn plain(image: &Image, network: &str) -> Result<Times> {
    let address = ADDRESS.to_string();
    let begun = Instant::now();
    let run = [
        "run",
        "--detach",
        "--network",
        network,
        "--ip",
        &address,
        &image.name,
        "httpd",
        "-f",
        "-p",
        "8080",
        "-h",
        "/www",
    ];
    let run: Vec<String> = run.map(str::to_owned).to_vec();
    let (id, running) = tokio::task::spawn_blocking(move || -> Result<_> {
        let run: Vec<&str> = run.iter().map(String::as_str).collect();
        Ok((docker(&run)?, begun.elapsed()))
    })
    .await??;
    // not before: who asks for an address that is not there yet waits a second for the next ARP request
    let served = serves(SocketAddr::new(IpAddr::V4(ADDRESS), PORT), begun).await;
    docker(&["rm", "--force", &id])?;
    Ok(Times { running, served: served? })
}
