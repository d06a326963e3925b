//! Where a fleet lives while it is measured: a network namespace in which the master runs, with a bridge that further machines
//! (namespaces too) are plugged into. All of it goes with the processes.

use crate::client::{Access, Client};
use crate::cluster::{LOOK, coracle, free_port};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Set in the process that runs inside of the namespace.
const INSIDE: &str = "CORACLE_BENCH_SITE";
/// How long anything may take before a measurement gives up.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// The master's address.
const MASTER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Host number of the first machine.
const FIRST: u8 = 10;
/// Room for a /24 of each of 1,024 agents.
const POD_NETWORK: &str = "10.104.0.0/13";
const SERVICE_NETWORK: &str = "10.112.0.0/16";

/// Whether this process is one that [`is_inside`] has started.
pub fn is_inner() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Whether this process is in a namespace where it may do what it likes; if not, runs itself there to the end.
pub fn is_inside(figure: &str) -> Result<bool> {
    if is_inner() {
        return Ok(true);
    }
    let status = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe()?)
        .arg(figure)
        .env(INSIDE, "1")
        .status()
        .context("unshare")?;
    ensure!(status.success(), "{figure}: {status}; it needs root");
    Ok(false)
}

/// A master without a node of its own, and a switch for machines.
pub struct Site {
    dir: TempDir,
    api_port: u16,
    server: Child,
    machines: u8,
}

impl Site {
    /// Starts the master.
    pub async fn start() -> Result<Self> {
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "br0", "type", "bridge"])?;
        ip(&["address", "add", &format!("{MASTER}/24"), "dev", "br0"])?;
        ip(&["link", "set", "br0", "up"])?;
        let (dir, api_port) = (tempfile::tempdir()?, free_port()?);
        let log = File::create(dir.path().join("server.log"))?;
        let server = Command::new(coracle()?)
            .args(["server", "--disable-agent", "--bind-address", "0.0.0.0", "--data-dir"])
            .arg(dir.path().join("data"))
            .arg("--write-kubeconfig")
            .arg(dir.path().join("kubeconfig"))
            .args(["--node-ip", &MASTER.to_string(), "--https-listen-port", &api_port.to_string()])
            .args(["--cluster-cidr", POD_NETWORK, "--service-cidr", SERVICE_NETWORK])
            .env("DOCKER_HOST", "unix:///nowhere/docker.sock")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut site = Self { dir, api_port, server, machines: 0 };
        let begun = Instant::now();
        while site.ready().await.is_err() {
            let has_ended = site.server.try_wait()?.is_some();
            ensure!(!has_ended && begun.elapsed() < PATIENCE, "the master does not start\n{}", site.log());
            tokio::time::sleep(LOOK).await;
        }
        Ok(site)
    }

    async fn ready(&self) -> Result<()> {
        self.client().await?.get("/readyz").await?;
        Ok(())
    }

    /// A connection to the API.
    pub async fn client(&self) -> Result<Client> {
        Access::read(&self.dir.path().join("kubeconfig"), self.api_port)?.connect().await
    }

    /// The master's process.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// What agents are told as `--server`.
    pub fn url(&self) -> String {
        format!("https://{MASTER}:{}", self.api_port)
    }

    /// What agents join with.
    pub fn token(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join("data/server/token"))?.trim().to_owned())
    }

    /// For whatever a measurement keeps.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Another machine on the switch.
    pub fn machine(&mut self) -> Result<Machine> {
        let host = FIRST + self.machines;
        self.machines += 1;
        Machine::plug_in(host)
    }

    /// Starts an agent on a machine.
    pub fn agent(&self, machine: &Machine, name: &str) -> Result<Agent> {
        let log_file = self.dir.path().join(format!("{name}.log"));
        let log = File::create(&log_file)?;
        let process = machine
            .command(coracle()?)
            .args(["agent", "--server", &self.url(), "--token", &self.token()?, "--node-name", name])
            .args(["--node-ip", &machine.address.to_string(), "--data-dir"])
            .arg(self.dir.path().join(name))
            .env("DOCKER_HOST", "unix:///nowhere/docker.sock")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Agent { process, log_file })
    }

    /// Waits until a node is ready, and returns its part of the pod network.
    pub async fn joined(&self, agent: &Agent, name: &str) -> Result<String> {
        let (begun, mut client) = (Instant::now(), self.client().await?);
        loop {
            if let Ok(node) = client.get(&format!("/api/v1/nodes/{name}")).await
                && crate::cluster::is_true(&node, "Ready")
                && let Some(cidr) = node["spec"]["podCIDR"].as_str()
            {
                return Ok(cidr.to_owned());
            }
            if begun.elapsed() > PATIENCE {
                bail!("{name} does not join\n{}", std::fs::read_to_string(&agent.log_file).unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All that the master said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        end(&mut self.server);
    }
}

/// An agent that runs on a machine.
pub struct Agent {
    process: Child,
    log_file: PathBuf,
}

impl Agent {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// A network namespace with a plug on the switch.
pub struct Machine {
    /// Its address.
    pub address: Ipv4Addr,
    /// Keeps the namespace.
    holder: Child,
    plug: String,
}

impl Machine {
    fn plug_in(host: u8) -> Result<Self> {
        let [a, b, c, _] = MASTER.octets();
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let holder = Command::new("unshare").args(["--net", "--", "sleep", "infinity"]).stdin(Stdio::null()).spawn()?;
        let machine = Self { address: Ipv4Addr::new(a, b, c, host), holder, plug: format!("plug{host}") };
        let holder = machine.holder.id().to_string();
        let begun = Instant::now();
        while std::fs::read_link(format!("/proc/{holder}/ns/net"))? == own {
            ensure!(begun.elapsed() < PATIENCE, "no network namespace");
            std::thread::sleep(LOOK);
        }
        ip(&["link", "add", &machine.plug, "type", "veth", "peer", "name", "eth0", "netns", &holder])?;
        ip(&["link", "set", &machine.plug, "master", "br0", "up"])?;
        machine.ip(&["link", "set", "lo", "up"])?;
        machine.ip(&["address", "add", &format!("{}/24", machine.address), "dev", "eth0"])?;
        machine.ip(&["link", "set", "eth0", "up"])?;
        machine.ip(&["route", "add", "default", "via", &MASTER.to_string()])?;
        Ok(machine)
    }

    /// A program that runs there.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.holder.id().to_string(), "--"]).arg(program);
        command
    }

    /// `ip` there.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        succeed(self.command("ip").args(arguments))
    }

    /// What has passed its plug so far, in both directions.
    pub fn traffic(&self) -> Result<Traffic> {
        Traffic::of(&self.plug)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.holder);
    }
}

/// Frames on an interface, with their Ethernet headers.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Frames.
    pub packets: u64,
}

impl Traffic {
    /// Of an interface of this namespace, both directions.
    pub fn of(interface: &str) -> Result<Self> {
        let table = std::fs::read_to_string("/proc/self/net/dev")?;
        let row = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
        let columns: Vec<u64> =
            row.context("no such interface")?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(columns.len() >= 10, "a short line");
        Ok(Self { bytes: columns[0] + columns[8], packets: columns[1] + columns[9] })
    }

    /// Of this namespace's own traffic with itself, each frame once.
    pub fn of_loopback() -> Result<Self> {
        let Self { bytes, packets } = Self::of("lo")?;
        Ok(Self { bytes: bytes / 2, packets: packets / 2 })
    }

    /// What came since.
    pub fn since(self, before: Self) -> Self {
        Self { bytes: self.bytes - before.bytes, packets: self.packets - before.packets }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    succeed(Command::new("ip").args(arguments))
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn end(process: &mut Child) {
    // it may have ended by itself
    let _ = process.kill();
    let _ = process.wait();
}
