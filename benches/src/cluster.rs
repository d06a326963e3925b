//! A `coracle server` of one measurement: its own directory, ports and networks, gone when dropped.

use crate::client::{Access, Client};
use crate::engine;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a measurement gives up.
const PATIENCE: Duration = Duration::from_secs(180);

/// The pods of the namespace that all measurements use.
pub const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pause between two looks; it bounds how late an event is seen.
pub const LOOK: Duration = Duration::from_millis(1);

/// A server, running or between two runs.
pub struct Cluster {
    dir: TempDir,
    api_port: u16,
    ingress_port: u16,
    ingress_tls_port: u16,
    networks: Networks,
    server: Option<Child>,
}

/// Where the pods and Services of a cluster live.
#[derive(Clone, Copy)]
struct Networks {
    pods: &'static str,
    services: &'static str,
    /// The half of the pods' network that Docker has, where the server is privileged.
    bridge: Option<&'static str>,
}

const LOOPBACK: Networks = Networks { pods: "127.124.0.0/16", services: "127.125.0.0/16", bridge: None };
/// Of root, and with Docker.
const PRIVILEGED: Networks = Networks { pods: "10.62.0.0/20", services: "10.62.16.0/20", bridge: Some("10.62.8.0/21") };

/// How long after the start of the process each came.
pub struct Started {
    /// `/readyz` answered 200, over TLS.
    pub api: Duration,
    /// The node's condition `Ready` was `True`.
    pub node: Duration,
}

impl Cluster {
    /// An empty directory and free ports; nothing runs yet.
    pub fn prepare() -> Result<Self> {
        Self::within(LOOPBACK)
    }

    fn within(networks: Networks) -> Result<Self> {
        Ok(Self {
            dir: tempfile::tempdir()?,
            api_port: free_port()?,
            ingress_port: free_port()?,
            ingress_tls_port: free_port()?,
            networks,
            server: None,
        })
    }

    /// A fresh cluster whose node is ready, and a connection to it.
    pub async fn start() -> Result<(Self, Client)> {
        let mut cluster = Self::prepare()?;
        cluster.run().await?;
        let client = cluster.access()?.connect().await?;
        Ok((cluster, client))
    }

    /// The same of a server that has Docker; needs root.
    pub async fn start_privileged() -> Result<(Self, Client)> {
        let mut cluster = Self::within(PRIVILEGED)?;
        cluster.run().await?;
        let client = cluster.access()?.connect().await?;
        Ok((cluster, client))
    }

    /// Starts the server on what its directory holds, and waits for the node.
    pub async fn run(&mut self) -> Result<Started> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("server.log"))?;
        let begun = Instant::now();
        let server = Command::new(coracle()?)
            .arg("server")
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .arg("--write-kubeconfig")
            .arg(self.kubeconfig())
            .args(["--bind-address", "127.0.0.1", "--node-name", "node"])
            .args(["--https-listen-port", &self.api_port.to_string()])
            .args(["--ingress-http-port", &self.ingress_port.to_string()])
            .args(["--ingress-https-port", &self.ingress_tls_port.to_string()])
            .args(["--cluster-cidr", self.networks.pods, "--service-cidr", self.networks.services])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.server = Some(server);
        let (mut client, api) = loop {
            if let Ok(client) = self.readyz().await {
                break (client, begun.elapsed());
            }
            self.still_running(begun)?;
            tokio::time::sleep(LOOK).await;
        };
        loop {
            if let Ok(node) = client.get("/api/v1/nodes/node").await
                && is_true(&node, "Ready")
            {
                return Ok(Started { api, node: begun.elapsed() });
            }
            self.still_running(begun)?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        Command::new("kill").arg(server.id().to_string()).status()?;
        let begun = Instant::now();
        while server.try_wait()?.is_none() {
            if begun.elapsed() > PATIENCE {
                server.kill()?;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// How to reach the API; fails while the kubeconfig is not written.
    pub fn access(&self) -> Result<Access> {
        Access::read(&self.kubeconfig(), self.api_port)
    }

    /// Where plain-text ingress traffic goes.
    pub fn ingress(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ingress_port).into()
    }

    /// The server's process.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.server.as_ref().context("the server does not run")?.id())
    }

    /// Waits until as many of a Deployment's replicas are available as it wants.
    pub async fn available(&self, client: &mut Client, name: &str) -> Result<()> {
        let begun = Instant::now();
        let path = format!("/apis/apps/v1/namespaces/default/deployments/{name}");
        loop {
            let object = client.get(&path).await?;
            if object["status"]["availableReplicas"] == object["spec"]["replicas"] {
                return Ok(());
            }
            self.still_running(begun).with_context(|| format!("{name}: {}", object["status"]))?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until all pods of the namespace are ready, or none is there.
    pub async fn pods(&self, client: &mut Client, ready: bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let pods = client.get(PODS).await?;
            let pods = pods["items"].as_array().context("no list")?;
            if if ready { pods.iter().all(|pod| is_true(pod, "Ready")) } else { pods.is_empty() } {
                return Ok(());
            }
            self.still_running(begun)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    async fn readyz(&self) -> Result<Client> {
        let mut client = self.access()?.connect().await?;
        client.get("/readyz").await?;
        Ok(client)
    }

    fn still_running(&self, since: Instant) -> Result<()> {
        if since.elapsed() > PATIENCE {
            let log = std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default();
            bail!("still not so; the server said\n{log}");
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // it may have ended by itself
            let _ = server.kill();
            let _ = server.wait();
        }
        if let Some(bridge) = self.networks.bridge {
            engine::remove_node(bridge);
            // of the pods' network it claims the half that is not Docker's
            for network in [&self.networks.pods.replace("/20", "/21"), self.networks.services] {
                let arguments = ["route", "del", "local", network, "dev", "lo", "table", "local"];
                // one that was stopped has taken them away itself
                let _ = Command::new("ip").args(arguments).output();
            }
        }
    }
}

/// The checkout, where the examples are.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A port that nobody uses now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// `$CORACLE`, or the binary that cargo put beside this one.
pub fn coracle() -> Result<PathBuf> {
    let path = match std::env::var_os("CORACLE") {
        Some(path) => path.into(),
        None => std::env::current_exe()?.with_file_name("coracle"),
    };
    if !path.exists() {
        bail!("{} is missing: `cargo build --release` first, or name the binary in CORACLE", path.display());
    }
    Ok(path)
}

/// Whether an object's condition is so.
pub fn is_true(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == condition && one["status"] == "True"))
}
