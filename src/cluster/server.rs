//! `coracle server`: a master that stays, with a node inside unless told otherwise.

use super::flags::ServerFlags;
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
    let choices = (!flags.disable_agent).then(|| choices(&flags));
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
    let node_name = flags.node_name.clone().map_or_else(host_name, Ok)?;
    let problems = manifests::names::dns_subdomain(&node_name);
    ensure!(problems.is_empty(), "--node-name {node_name}: {}", problems.join("; "));
    Ok(ServerConfig {
        data_dir,
        bind_address: flags.bind_address,
        https_port: flags.https_listen_port,
        node_name,
        node_ip: flags.node_ip.unwrap_or_else(|| if networks.loopback { loopback } else { own_address() }),
        tls_sans: flags.tls_san.clone(),
        service_cidr,
        cluster_dns: flags.cluster_dns.unwrap_or_else(|| tenth(service_cidr.0)),
        cluster_domain: flags.cluster_domain.clone(),
        token: flags.token.clone(),
        token_auth_file: flags.token_auth_file.clone(),
        client_ca_file: flags.client_ca_file.clone(),
    })
}

fn choices(flags: &ServerFlags) -> NodeChoices {
    let privileged = agent::may_bind(80);
    NodeChoices {
        labels: flags.node_label.clone(),
        taints: flags.node_taint.clone(),
        ingress_http_port: flags.ingress_http_port.unwrap_or(if privileged { 80 } else { 8080 }),
        ingress_https_port: flags.ingress_https_port.unwrap_or(if privileged { 443 } else { 8443 }),
        wasi_p3: flags.wasi_p3,
    }
}

/// The address of the cluster's DNS, by convention.
pub fn tenth(network: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.to_bits() + 10)
}

/// The host's name, as a node's name has to be.
pub fn host_name() -> Result<String> {
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
