//! `coracle agent`: a node of a cluster elsewhere. It joins, keeps its link and its certificate, and sails on without the
//! master when that is not to be reached.

use super::flags::AgentFlags;
use super::network::{address_towards, own_address};
use super::process::{NodeChoices, Threads, agent_config, raise_file_limit};
use super::server::{default_data_dir, node_name};
use agent::join::{self, JoinConfig};
use agent::replica;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use sync::node::LinkState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Bytes of a token's file: far more than a token has.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// Runs until SIGINT or SIGTERM.
pub fn agent(flags: AgentFlags) -> Result<ExitCode> {
    let threads = Threads::start()?;
    threads.control.block_on(run(flags, &threads))
}

async fn run(flags: AgentFlags, threads: &Threads) -> Result<ExitCode> {
    raise_file_limit();
    let Some(server) = &flags.server else { bail!("--server is required: https://HOST:6443") };
    let data_dir = flags.data_dir.clone().map_or_else(default_data_dir, Ok)?;
    fs::create_dir_all(&data_dir).with_context(|| format!("--data-dir: make {}", data_dir.display()))?;
    let data_dir = fs::canonicalize(&data_dir).with_context(|| format!("--data-dir {}", data_dir.display()))?;
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_by_signal(signal(SignalKind::terminate())?, shutdown.clone()));

    let config = JoinConfig {
        server: server.clone(),
        token: token(&flags)?,
        node_name: node_name(&flags.node)?,
        data_dir: data_dir.join("agent"),
    };
    let credentials = match join::credentials(&config, &shutdown).await {
        Err(_) if shutdown.is_cancelled() => return Ok(ExitCode::SUCCESS),
        joined => joined?,
    };
    let found = tokio::net::lookup_host((credentials.host.as_str(), credentials.port)).await;
    let master: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
    // where its name is not known now, the address of the default route
    let towards = || master.iter().copied().find_map(address_towards).unwrap_or_else(own_address);
    let node_ip = flags.node.node_ip.unwrap_or_else(towards);
    let choices = NodeChoices::of(&flags.node);
    let mut agent = agent_config(config.node_name.clone(), node_ip, config.data_dir.clone(), &choices, threads)?;
    let saved = replica::load(&config.data_dir);
    let (renewed, identity) = watch::channel(credentials.identity.clone());
    agent.master = master.first().map(SocketAddr::ip);
    agent.mesh = Some(agent::MeshConfig::new(identity.clone()));
    // the link outlives the agent: what it says last is still sent
    let stop_link = CancellationToken::new();
    let link = sync::node::dial(
        sync::node::Config {
            server: credentials.host.clone(),
            port: credentials.port,
            node: config.node_name.clone(),
            server_ca: credentials.server_ca.clone(),
            identity,
            from: saved.as_ref().and_then(|saved| saved.position()).cloned(),
            limits: sync::Limits::default(),
            bind: None,
        },
        stop_link.clone(),
    );
    tracing::info!(node = config.node_name, %node_ip, server, known = saved.is_some(), "coracle agent has joined");
    server::notify_ready();
    let keeping = tokio::spawn(join::keep(config, credentials, renewed, link.state.clone(), shutdown.clone()));
    tokio::spawn(tell(link.state));
    let ended = agent::run(agent, link.end, link.bulk, saved, shutdown.clone()).await;
    tracing::info!("coracle agent is stopping");
    shutdown.cancel();
    stop_link.cancel();
    if keeping.await.is_err() {
        tracing::warn!("keeping the node's certificate failed");
    }
    ended.map(|()| ExitCode::SUCCESS)
}

async fn stop_by_signal(mut terminate: tokio::signal::unix::Signal, shutdown: CancellationToken) {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    shutdown.cancel();
}

/// The token that is given, or in the file that is.
fn token(flags: &AgentFlags) -> Result<Option<String>> {
    match (&flags.token, &flags.token_file) {
        (Some(token), _) => Ok(Some(token.clone())),
        (None, Some(file)) => read_token(file).map(Some),
        (None, None) => Ok(None),
    }
}

fn read_token(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = fs::File::open(file).and_then(|open| open.take(TOKEN_BYTES_MAX).read_to_string(&mut text));
    read.with_context(|| format!("--token-file: read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

/// Tells how the link is, each time that changes.
async fn tell(mut state: watch::Receiver<LinkState>) {
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            LinkState::Connecting { error: None } => {}
            LinkState::Connecting { error: Some(error) } => tracing::warn!(error, "the master is not reached"),
            LinkState::Up { over, remote } => tracing::info!(%remote, ?over, "linked to the master"),
            LinkState::Refused(why) => tracing::error!(why, "the master refuses this node"),
            LinkState::Dismissed(why) => tracing::error!(why, "this node is none any more; its pods are stopped"),
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}
