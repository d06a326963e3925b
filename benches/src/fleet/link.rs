//! What the link between a master and a node costs: time from a change to the node's World, bytes while nothing happens and for
//! each change of a pod, and what coming back costs.

use super::simulated::{Machine, Seen, What};
use super::site::{self, PATIENCE, Site, Traffic};
use crate::client::Client;
use crate::cluster::PODS;
use crate::{line, milliseconds, process, spread, workload};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use state::Revision;
use std::time::{Duration, Instant};
use sync::Position;
use tokio::sync::mpsc;

const CHANGES: usize = 200;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(20);
/// Until a node has nothing more to say.
const SETTLE: Duration = Duration::from_secs(8);
/// How long an idle node is listened to; a whole number of heartbeats and keep-alives.
const IDLE: Duration = Duration::from_secs(60);
/// Pods whose changes are counted.
const COUNTED: u32 = 50;

/// First a simulated node on the master's machine, then a real agent on one of its own.
pub async fn measure() -> Result<()> {
    if !site::is_inside("link")? {
        return Ok(());
    }
    let mut site = Site::start().await?;
    latency(&site).await?;
    real(&mut site).await
}

/// Changes a Service so many times, and looks when each change was answered and when nodes had it.
pub async fn changes(
    site: &Site,
    seen: &mut mpsc::UnboundedReceiver<Seen>,
    nodes: usize,
    count: usize,
) -> Result<[Vec<Duration>; 2]> {
    let (mut client, name) = (site.client().await?, format!("watched-{nodes}"));
    let mut object = client.create(workload::SERVICES, &workload::service(&name)).await?;
    let path = format!("{}/{name}", workload::SERVICES);
    let (mut answered, mut arrived) = (Vec::new(), Vec::new());
    for number in 0..count {
        tokio::time::sleep(PAUSE).await;
        while seen.try_recv().is_ok() {}
        object["metadata"]["annotations"] = json!({"number": number.to_string()});
        let begun = Instant::now();
        object = client.replace(&path, &object).await?;
        answered.push(begun.elapsed());
        let revision = revision(&object)?;
        for _ in 0..nodes {
            let at = arrival(seen, |what| matches!(what, What::Change(_, seen) if *seen == revision)).await?;
            arrived.push(at.saturating_duration_since(begun));
        }
    }
    client.delete(&path).await?;
    Ok([answered, arrived])
}

/// When what is waited for has come.
async fn arrival(seen: &mut mpsc::UnboundedReceiver<Seen>, is_it: impl Fn(&What) -> bool) -> Result<Instant> {
    loop {
        match tokio::time::timeout(PATIENCE, seen.recv()).await {
            Ok(Some(seen)) if is_it(&seen.what) => return Ok(seen.at),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => bail!("a node was not told"),
        }
    }
}

fn revision(object: &Value) -> Result<Revision> {
    Ok(Revision(object["metadata"]["resourceVersion"].as_str().context("no revision")?.parse()?))
}

async fn latency(site: &Site) -> Result<()> {
    let machine = Machine::join(site, 0).await?;
    let (sender, mut seen) = mpsc::unbounded_channel();
    let running = machine.run(None, sender.clone());
    arrival(&mut seen, |what| matches!(what, What::Slice(_))).await?;
    tokio::time::sleep(SETTLE).await;
    let [answered, arrived] = changes(site, &mut seen, 1, CHANGES).await?;
    line("change of a Service: request to answer", spread(&answered));
    line("change of a Service: request to node's World", spread(&arrived));

    // the server hangs up on who says nothing for a while
    let mut client = site.client().await?;
    let pods: Vec<Value> = (0..COUNTED).map(|number| pod(&format!("kept-{number}"), machine.name())).collect();
    for pod in &pods {
        client.create(PODS, pod).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let position = running.stop().await?;
    resume(&machine, position.clone(), "nothing has changed", &mut seen, &sender, None).await?;
    let (mut client, mut last) = (site.client().await?, Revision(0));
    for pod in &pods {
        let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap_or_default());
        let mut object = client.get(&path).await?;
        object["metadata"]["labels"] = json!({"changed": "true"});
        last = revision(&client.replace(&path, &object).await?)?;
    }
    resume(&machine, position, &format!("{COUNTED} pods have changed"), &mut seen, &sender, Some(last)).await?;
    resume(&machine, None, &format!("all of it, with {COUNTED} pods"), &mut seen, &sender, None).await?;
    let mut client = site.client().await?;
    for pod in &pods {
        let path = format!("{PODS}/{}?gracePeriodSeconds=0", pod["metadata"]["name"].as_str().unwrap_or_default());
        client.delete(&path).await?;
    }
    client.delete(&format!("/api/v1/nodes/{}", machine.name())).await?;
    Ok(())
}

/// Links once more, waits until the node knows all, and says what that took.
async fn resume(
    machine: &Machine,
    from: Option<Position>,
    what: &str,
    seen: &mut mpsc::UnboundedReceiver<Seen>,
    sender: &mpsc::UnboundedSender<Seen>,
    last: Option<Revision>,
) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    while seen.try_recv().is_ok() {}
    let goes_on = from.is_some();
    let (begun, before) = (Instant::now(), Traffic::of_loopback()?);
    let running = machine.run(from, sender.clone());
    let arrived = match last {
        Some(last) => arrival(seen, |what| matches!(what, What::Change(_, seen) if *seen >= last)).await?,
        None if goes_on => arrival(seen, |what| *what == What::Welcome(true)).await?,
        None => arrival(seen, |what| matches!(what, What::Slice(_))).await?,
    };
    let Traffic { bytes, packets } = Traffic::of_loopback()?.since(before);
    let time = milliseconds(arrived.saturating_duration_since(begun));
    line(&format!("comes back: {what}"), format!("{time:.1} ms, {bytes} bytes in {packets} packets, both ways"));
    running.stop().await?;
    Ok(())
}

/// A pod that is bound already.
fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "file:///nowhere/a.wasm"}]},
    })
}

async fn real(site: &mut Site) -> Result<()> {
    let machine = site.machine()?;
    let agent = site.agent(&machine, "real")?;
    site.joined(&agent, "real").await?;
    tokio::time::sleep(SETTLE).await;
    let (before, cpu) = (machine.traffic()?, process::cpu_time(agent.pid())?);
    tokio::time::sleep(IDLE).await;
    let (idle, cpu) = (machine.traffic()?.since(before), process::cpu_time(agent.pid())? - cpu);
    let hours = 3_600.0 / IDLE.as_secs_f64();
    let (kilobytes, packets) = (idle.bytes as f64 * hours / 1e3, idle.packets as f64 * hours);
    line("idle node: on the wire", format!("{kilobytes:.0} KB and {packets:.0} packets an hour, both ways"));
    line("idle node: processor", format!("{:.2} % of a core", 100.0 * cpu.as_secs_f64() / IDLE.as_secs_f64()));
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let (pss, anonymous) = (process::pss_bytes(agent.pid())?, process::anonymous_bytes(agent.pid())?);
    line("idle agent: memory", format!("{:.1} MiB PSS, of which {:.1} MiB anonymous", mib(pss), mib(anonymous)));

    let mut client = site.client().await?;
    let before = machine.traffic()?;
    client.create(workload::DEPLOYMENTS, &workload::deployment("counted", COUNTED, None)?).await?;
    available(&mut client, "counted").await?;
    tokio::time::sleep(SETTLE).await;
    let started = machine.traffic()?.since(before);
    line(&format!("{COUNTED} pods start: on the wire"), per_pod(started));
    let pss = process::pss_bytes(agent.pid())?;
    line(&format!("agent with {COUNTED} pods: memory"), format!("{:.1} MiB PSS", mib(pss)));
    let mut client = site.client().await?;
    let pods = client.get(PODS).await?;
    let before = machine.traffic()?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let mut pod = pod.clone();
        pod["metadata"]["labels"]["changed"] = "true".into();
        let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap_or_default());
        client.replace(&path, &pod).await?;
        tokio::time::sleep(PAUSE).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    line(&format!("{COUNTED} pods get a label: on the wire"), per_pod(machine.traffic()?.since(before)));
    Ok(())
}

fn per_pod(traffic: Traffic) -> String {
    let each = |number: u64| number as f64 / f64::from(COUNTED);
    format!("{:.0} bytes in {:.1} packets for each, both ways", each(traffic.bytes), each(traffic.packets))
}

async fn available(client: &mut Client, name: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let object = client.get(&format!("{}/{name}", workload::DEPLOYMENTS)).await?;
        if object["status"]["availableReplicas"] == object["spec"]["replicas"] {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("{name}: {}", object["status"]);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
