//! One process that is a whole cluster: the master and an agent, on threads that cannot starve each other. And what every
//! process with a node has.
//!
//! Three runtimes: control (API, controllers, agent), data (services, ingress, HTTP guests inline), commands (guests that
//! run on their own). A guest that spins takes time from its kind only; the kernel shares the cores among the three.

use super::flags::NodeFlags;
use super::memory;
use super::network::Networks;
use agent::{AgentConfig, MeshConfig, Taint};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::{LocalNode, Server, ServerConfig};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Labels that a node may not give itself.
const RESERVED_LABELS: [&str; 2] = ["node-restriction.kubernetes.io/", "node-role.kubernetes.io/"];

/// The threads of the process.
pub struct Threads {
    /// API, controllers, agent.
    pub control: Runtime,
    /// Bytes and HTTP guests.
    pub data: Runtime,
    /// Guests that are commands.
    pub commands: Runtime,
}

impl Threads {
    /// Starts them: as many workers as cores for each kind that computes.
    pub fn start() -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let make = |name: &str, workers: usize| {
            Builder::new_multi_thread().worker_threads(workers).thread_name(name).enable_all().build()
        };
        let control = make("control", 2)?;
        control.spawn(memory::keep());
        Ok(Self { control, data: make("data", cores)?, commands: make("commands", cores)? })
    }
}

/// What of the agent's configuration the user decides.
pub struct NodeChoices {
    /// `key=value`
    pub labels: Vec<String>,
    /// `key=value:effect`
    pub taints: Vec<String>,
    /// Plain-text ingress.
    pub ingress_http_port: u16,
    /// TLS ingress.
    pub ingress_https_port: u16,
    /// Where the resolvers of other names are named.
    pub resolv_conf: PathBuf,
    /// Preview 3 components.
    pub wasi_p3: bool,
}

impl NodeChoices {
    /// What the flags say.
    pub fn of(flags: &NodeFlags) -> Self {
        let privileged = agent::may_bind(80);
        Self {
            labels: flags.node_label.clone(),
            taints: flags.node_taint.clone(),
            ingress_http_port: flags.ingress_http_port.unwrap_or(if privileged { 80 } else { 8080 }),
            ingress_https_port: flags.ingress_https_port.unwrap_or(if privileged { 443 } else { 8443 }),
            resolv_conf: flags.resolv_conf.clone(),
            wasi_p3: flags.wasi_p3,
        }
    }
}

/// A running cluster.
pub struct Cluster {
    /// The master.
    pub server: Server,
    agent: Option<JoinHandle<Result<()>>>,
    stop_agent: CancellationToken,
    _networks: Networks,
}

impl Cluster {
    /// Starts the master and, unless there is to be none, the agent. Call it on the control runtime.
    pub async fn start(
        config: ServerConfig,
        networks: Networks,
        choices: Option<NodeChoices>,
        threads: &Threads,
    ) -> Result<Self> {
        raise_file_limit();
        let stop_agent = CancellationToken::new();
        let server = server::start(config.clone()).await?;
        let agent = match choices {
            None => None,
            Some(choices) => {
                let dir = config.data_dir.join("agent");
                let mut agent = agent_config(config.node_name.clone(), config.node_ip, dir, &choices, threads)?;
                agent.control_plane = true;
                agent.keeps_replica = false;
                let LocalNode { link, bulk, identity } = server.attach_local(&config.node_name).await?;
                agent.mesh = Some(MeshConfig::new(identity));
                Some(tokio::spawn(agent::run(agent, link, bulk, None, stop_agent.clone())))
            }
        };
        Ok(Self { server, agent, stop_agent, _networks: networks })
    }

    /// Waits for the agent to fail; for ever while it does not.
    pub async fn agent_failed(&mut self) -> anyhow::Error {
        match &mut self.agent {
            None => std::future::pending().await,
            Some(agent) => {
                let ended = agent.await;
                self.agent = None;
                match ended {
                    Ok(Ok(())) => anyhow::anyhow!("the agent ended"),
                    Ok(Err(error)) => error.context("the agent ended"),
                    Err(panic) => anyhow::Error::new(panic).context("the agent ended"),
                }
            }
        }
    }

    /// Stops the pods, then the master.
    pub async fn stop(self) {
        self.stop_agent.cancel();
        if let Some(agent) = self.agent {
            match agent.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "the agent ended"),
                Err(panic) => tracing::warn!(%panic, "the agent ended"),
            }
        }
        self.server.stop().await;
    }
}

/// What an agent is told, of a node that is not the master's own.
pub fn agent_config(
    node_name: String,
    node_ip: IpAddr,
    data_dir: PathBuf,
    choices: &NodeChoices,
    threads: &Threads,
) -> Result<AgentConfig> {
    Ok(AgentConfig {
        node_name,
        node_ip,
        data_dir,
        keeps_replica: true,
        ingress_http_port: Some(choices.ingress_http_port),
        ingress_https_port: Some(choices.ingress_https_port),
        resolv_conf: choices.resolv_conf.clone(),
        master: None,
        control_plane: false,
        mesh: None,
        labels: labels(&choices.labels)?,
        taints: choices.taints.iter().map(|text| taint(text)).collect::<Result<_>>()?,
        pods_max: agent::PODS_MAX,
        wasm: agent::WasmLimits { p3: choices.wasi_p3, ..agent::WasmLimits::default() },
        logs: agent::LogLimits::default(),
        commands: threads.commands.handle().clone(),
        data: threads.data.handle().clone(),
    })
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    texts
        .iter()
        .map(|text| {
            let (key, value) = text.split_once('=').with_context(|| format!("--node-label {text}: key=value"))?;
            let is_reserved = RESERVED_LABELS.iter().any(|reserved| key.starts_with(reserved));
            ensure!(!is_reserved, "--node-label {text}: such labels are not a node's own to set: use coracle label");
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

fn taint(text: &str) -> Result<Taint> {
    let (name, effect) = text.rsplit_once(':').with_context(|| format!("--node-taint {text}: key=value:effect"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        bail!("--node-taint {text}: the effect is NoSchedule, PreferNoSchedule or NoExecute");
    }
    let (key, value) = name.split_once('=').unwrap_or((name, ""));
    Ok(Taint { key: key.into(), value: value.into(), effect: effect.into() })
}

/// Thousands of pods are thousands of sockets: takes what the kernel lets this user have.
pub fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
