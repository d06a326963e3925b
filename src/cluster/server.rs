//! `coracle server`: a master that stays, with a node inside unless told otherwise.

use super::flags::{NodeFlags, ServerFlags};
use super::network::{Networks, own_address};
use super::process::{Cluster, NodeChoices, Threads};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;
use server::ServerConfig;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Runs until SIGINT or SIGTERM.
pub fn server(flags: ServerFlags) -> Result<ExitCode> {
    let threads = Threads::start()?;
    threads.control.block_on(serve(flags, &threads))
}

async fn serve(flags: ServerFlags, threads: &Threads) -> Result<ExitCode> {
    if let Some(endpoint) = &flags.datastore_endpoint {
        bail!("--datastore-endpoint {endpoint}: etcd is not available in this version of coracle");
    }
    let data_dir = flags.data_dir.clone().map_or_else(default_data_dir, Ok)?;
    fs::create_dir_all(&data_dir).with_context(|| format!("--data-dir: make {}", data_dir.display()))?;
    let data_dir = fs::canonicalize(&data_dir).with_context(|| format!("--data-dir {}", data_dir.display()))?;
    let networks = Networks::choose(flags.cluster_cidr, flags.service_cidr, false, seed(&data_dir))?;
    let config = config(&flags, &networks, data_dir.clone())?;
    let node_name = config.node_name.clone();
    let choices = (!flags.disable_agent).then(|| NodeChoices::of(&flags.node));
    let mut cluster = Cluster::start(config, networks, choices, threads).await?;
    let kubeconfig = match &flags.write_kubeconfig {
        Some(file) => file.clone(),
        None if geteuid().is_root() => "/etc/coracle/coracle.yaml".into(),
        None => data_dir.join("coracle.yaml"),
    };
    write_kubeconfig(&kubeconfig, &cluster.server.kubeconfig)?;
    server::notify_ready();
    tracing::info!(api = %cluster.server.address, node = node_name, kubeconfig = %kubeconfig.display(), "coracle is ready");

    let mut terminate = signal(SignalKind::terminate())?;
    let failure = tokio::select! {
        _ = tokio::signal::ctrl_c() => None,
        _ = terminate.recv() => None,
        error = cluster.agent_failed() => Some(error),
    };
    tracing::info!("coracle is stopping");
    cluster.stop().await;
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => Err(error),
    }
}

fn config(flags: &ServerFlags, networks: &Networks, data_dir: PathBuf) -> Result<ServerConfig> {
    let service_cidr = networks.services_v4()?;
    let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
    let node_name = node_name(&flags.node)?;
    let images = super::images::open(&data_dir)?;
    Ok(ServerConfig {
        data_dir,
        bind_address: flags.bind_address,
        https_port: flags.https_listen_port,
        node_name,
        node_ip: flags.node.node_ip.unwrap_or_else(|| if networks.loopback { loopback } else { own_address() }),
        tls_sans: flags.tls_san.clone(),
        cluster_cidr: networks.pods_v4()?,
        node_cidr_mask: node_cidr_mask(flags, networks)?,
        loopback: networks.loopback,
        service_cidr,
        cluster_dns: flags.cluster_dns.unwrap_or_else(|| tenth(service_cidr.0)),
        cluster_domain: flags.cluster_domain.clone(),
        token: flags.token.clone(),
        token_auth_file: flags.token_auth_file.clone(),
        client_ca_file: flags.client_ca_file.clone(),
        images: Some(images),
    })
}

/// The address of the cluster's DNS, by convention.
pub fn tenth(network: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.to_bits() + 10)
}

/// The name that a node has: the one given, or the host's.
pub fn node_name(flags: &NodeFlags) -> Result<String> {
    let name = flags.node_name.clone().map_or_else(host_name, Ok)?;
    let problems = manifests::names::dns_subdomain(&name);
    ensure!(problems.is_empty(), "--node-name {name}: {}", problems.join("; "));
    Ok(name)
}

/// How much of the pods' network a node gets, if that is said: less than the half of it that is for agents, and enough for
/// some pods.
fn node_cidr_mask(flags: &ServerFlags, networks: &Networks) -> Result<Option<u8>> {
    let Some(bits) = flags.node_cidr_mask_size_ipv4 else { return Ok(None) };
    let shortest = networks.pods.prefix + 1;
    ensure!(
        (shortest..=28).contains(&bits),
        "--node-cidr-mask-size-ipv4 {bits}: a number from {shortest} to 28, since the network of pods is {}",
        networks.pods
    );
    Ok(Some(bits))
}

/// The host's name, as a node's name has to be.
fn host_name() -> Result<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    ensure!(!name.is_empty(), "this host has no name: give --node-name");
    Ok(name)
}

/// The same number for the same data directory.
fn seed(data_dir: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    data_dir.hash(&mut hasher);
    hasher.finish()
}

/// Where a server keeps its state unless told otherwise.
pub fn default_data_dir() -> Result<PathBuf> {
    if geteuid().is_root() {
        return Ok("/var/lib/coracle".into());
    }
    if let Some(home) = std::env::var_os("XDG_DATA_HOME").filter(|home| !home.is_empty()) {
        return Ok(Path::new(&home).join("coracle"));
    }
    let home = std::env::var_os("HOME").context("neither $XDG_DATA_HOME nor $HOME is set: give --data-dir")?;
    Ok(Path::new(&home).join(".local/share/coracle"))
}

/// Writes the administrator's kubeconfig, for this user's eyes only.
pub fn write_kubeconfig(file: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let write = || -> std::io::Result<()> {
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(file)?;
        out.write_all(text.as_bytes())
    };
    write().with_context(|| format!("--write-kubeconfig: write {}", file.display()))
}
