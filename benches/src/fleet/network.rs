//! How fast pods of different nodes talk, directly and over the master, beside plain TCP between the same machines. What talks
//! are programs on pods' addresses, so that nothing of a container's is measured.

use super::peer;
use super::site::{self, Agent, Machine, Site};
use crate::{line, process, quantile};
use anyhow::{Context, Result};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// One after the other, so that a quiet moment does not favour one of them.
const ROUNDS: usize = 3;
const SECONDS: u64 = 4;
const ASKED: usize = 2_000;
const PORT: u16 = 5_000;
/// Host number of a pod's address that no pod gets here.
const POD: u32 = 100;
/// Until the nodes have found the way to each other.
const SETTLE: Duration = Duration::from_secs(4);

struct End {
    machine: Machine,
    agent: Agent,
    pod: Ipv4Addr,
}

/// One way between two machines.
struct Way {
    what: &'static str,
    from: usize,
    to: SocketAddr,
    /// Agents whose processor time it costs, and whether the master's.
    agents: [usize; 2],
    rates: Vec<f64>,
    asked: Vec<Duration>,
    cpu_per_kilobyte: Vec<f64>,
}

/// Three machines: the second is reached by the first directly, the third only over the master.
pub async fn measure() -> Result<()> {
    if !site::is_inside("network")? {
        return Ok(());
    }
    let mut site = Site::start().await?;
    let machines = [site.machine()?, site.machine()?, site.machine()?];
    for (one, other) in [(0, 2), (2, 0)] {
        machines[one].ip(&["route", "add", "blackhole", &format!("{}/32", machines[other].address)])?;
    }
    let ends = join(&site, machines).await?;
    let mut servers = Vec::new();
    for end in &ends {
        for address in [end.machine.address, end.pod] {
            servers.push(peer::start(&end.machine, (address, PORT).into())?);
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut ways = [
        Way::new("plain TCP between the machines", 0, ends[1].machine.address, [0, 1]),
        Way::new("pod to pod, directly", 0, ends[1].pod, [0, 1]),
        Way::new("pod to pod, over the master", 0, ends[2].pod, [0, 2]),
    ];
    for way in &ways {
        // wakes the way
        way.ask(&ends, 10).await.with_context(|| format!("{}: {}", way.what, site.log()))?;
    }
    tokio::time::sleep(SETTLE).await;
    println!(
        "  {:<44} {:>10} {:>14} {:>11} {:>11} {:>16}",
        "one connection", "Mbit/s", "of plain TCP", "p50 µs", "p99 µs", "node µs/KB"
    );
    for _ in 0..ROUNDS {
        for way in &mut ways {
            way.round(&site, &ends).await?;
        }
    }
    let plain = ways[0].rate();
    for way in &ways {
        let at = |part| quantile(&way.asked, part).as_micros();
        println!(
            "  {:<44} {:>10.0} {:>14.2} {:>11} {:>11} {:>16.2}   {}",
            way.what,
            way.rate(),
            way.rate() / plain,
            at(0.5),
            at(0.99),
            middle(&way.cpu_per_kilobyte),
            way.rates.iter().map(|rate| format!("{rate:.0}")).collect::<Vec<_>>().join(" ")
        );
    }
    line("node µs/KB", "processor time of both agents, and of the master where it passes on, for a kilobyte");
    Ok(())
}

async fn join(site: &Site, machines: [Machine; 3]) -> Result<Vec<End>> {
    let mut ends = Vec::new();
    for (number, machine) in machines.into_iter().enumerate() {
        let name = format!("agent-{number}");
        let agent = site.agent(&machine, &name)?;
        let cidr = site.joined(&agent, &name).await?;
        let (network, _) = cidr.split_once('/').context("no network")?;
        let pod = Ipv4Addr::from_bits(network.parse::<Ipv4Addr>()?.to_bits() + POD);
        // the node's own route may have it already
        drop(machine.ip(&["address", "add", &format!("{pod}/32"), "dev", "lo"]));
        ends.push(End { machine, agent, pod });
    }
    Ok(ends)
}

impl Way {
    fn new(what: &'static str, from: usize, to: Ipv4Addr, agents: [usize; 2]) -> Self {
        let to = (IpAddr::V4(to), PORT).into();
        Self { what, from, to, agents, rates: Vec::new(), asked: Vec::new(), cpu_per_kilobyte: Vec::new() }
    }

    fn rate(&self) -> f64 {
        middle(&self.rates)
    }

    async fn ask(&self, ends: &[End], count: usize) -> Result<Vec<Duration>> {
        let (to, count) = (self.to.to_string(), count.to_string());
        let times = peer::client(&ends[self.from].machine, &["ask", &to, &count]).await?;
        let times = times.as_array().context("no times")?;
        Ok(times.iter().filter_map(|time| time.as_u64().map(Duration::from_micros)).collect())
    }

    async fn round(&mut self, site: &Site, ends: &[End]) -> Result<()> {
        self.asked.extend(self.ask(ends, ASKED).await?);
        let cpu = || -> Result<Duration> {
            let [one, other] = self.agents.map(|agent| process::cpu_time(ends[agent].agent.pid()));
            Ok(one? + other? + process::cpu_time(site.pid())?)
        };
        let before = cpu()?;
        let (to, seconds) = (self.to.to_string(), SECONDS.to_string());
        let flow = peer::client(&ends[self.from].machine, &["flow", &to, "1", &seconds]).await?;
        let used = cpu()? - before;
        let bytes = flow["bytes"].as_f64().context("no bytes")?;
        self.rates.push(bytes * 8.0 / 1e6 / flow["seconds"].as_f64().context("no time")?);
        self.cpu_per_kilobyte.push(used.as_secs_f64() * 1e6 / (bytes / 1e3));
        Ok(())
    }
}

fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
