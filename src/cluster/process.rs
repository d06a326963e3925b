//! One process that is a whole cluster: the master and an agent, on threads that cannot starve each other.
//!
//! Three runtimes: control (API, controllers, agent), data (services, ingress, HTTP guests inline), commands (guests that
//! run on their own). A guest that spins takes time from its kind only; the kernel shares the cores among the three.

use super::network::Networks;
use agent::{AgentConfig, Taint};
use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::{Server, ServerConfig};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

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
        Ok(Self { control: make("control", 2)?, data: make("data", cores)?, commands: make("commands", cores)? })
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
    /// Preview 3 components.
    pub wasi_p3: bool,
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
                let agent = agent_config(&config, &networks, choices, threads, server.address)?;
                let link = server.attach_local(&config.node_name);
                Some(tokio::spawn(agent::run(agent, link, stop_agent.clone())))
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

fn agent_config(
    config: &ServerConfig,
    networks: &Networks,
    choices: NodeChoices,
    threads: &Threads,
    api: SocketAddr,
) -> Result<AgentConfig> {
    Ok(AgentConfig {
        node_name: config.node_name.clone(),
        node_ip: config.node_ip,
        data_dir: config.data_dir.join("agent"),
        pod_cidr: networks.pods,
        service_cidr: networks.services,
        cluster_dns: Some(config.cluster_dns.into()),
        cluster_domain: config.cluster_domain.clone(),
        api_address: SocketAddr::new(config.node_ip, api.port()),
        ingress_http_port: Some(choices.ingress_http_port),
        ingress_https_port: Some(choices.ingress_https_port),
        loopback: networks.loopback,
        control_plane: true,
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
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
