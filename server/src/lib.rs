//! The master's body: assembles store, controllers, scheduler, API and links, and keeps them going. No policy.
//!
//! Layer 4. [`start`] reads like the table of contents: certificates, log, first objects, controllers, API, ready.

mod bootstrap;
mod config;
mod credentials;
mod entropy;
mod executor;
mod nodes;
mod notify;
mod pki;
mod placing;

pub use config::ServerConfig;
pub use notify::ready as notify_ready;

use anyhow::{Context, Result, ensure};
use api::{Api, ApiConfig, TokenTable};
use bootstrap::Birth;
use entropy::{Entropy, now};
use executor::Executor;
use nodes::Links;
use pki::Pki;
use placing::Placing;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use store::Store;
use sync::NodeEnd;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The Kubernetes version whose wire this is.
const GIT_VERSION: &str = concat!("v1.36.0+coracle.", env!("CARGO_PKG_VERSION"));
/// kube-apiserver's name for who holds the admin certificate.
const ADMIN: (&str, &str) = ("system:admin", "system:masters");

/// A running master.
pub struct Server {
    /// Kubeconfig of the administrator, YAML.
    pub kubeconfig: String,
    /// What a node needs to join.
    pub join_token: String,
    /// Where the API listens.
    pub address: SocketAddr,
    store: Store,
    links: Links,
    tasks: TaskTracker,
    writer: JoinHandle<()>,
    stop_minds: CancellationToken,
}

/// Starts a master. When this returns, the API answers and `/readyz` says so.
///
/// # Errors
/// When the data directory, the log, a certificate, a given file or the port cannot be had.
pub async fn start(config: ServerConfig) -> Result<Server> {
    let home = config.data_dir.join("server");
    pki::make_private_dir(&home)?;
    let listener = TcpListener::bind((config.bind_address, config.https_port))
        .await
        .with_context(|| format!("listen on {}:{}", config.bind_address, config.https_port))?;
    let address = listener.local_addr()?;
    let pki = Pki::open(&home.join("tls"), now())?;
    let tls = tls(&config, &pki)?;
    let tokens = tokens(config.token_auth_file.as_deref())?;

    pki::make_private_dir(&home.join("db"))?;
    let (store, writer) = Store::open(&home.join("db/state.redb"), store::Limits::default())?;
    let writer = std::thread::Builder::new().name("store".into()).spawn(move || writer.run())?;
    let birth = Birth { api_virtual_ip: first_address(&config), api_address: config.node_ip, api_port: address.port() };
    bootstrap::ensure(&store, &birth).await?;

    let stop_minds = CancellationToken::new();
    let links = Links::new(store.clone(), stop_minds.clone());
    let tasks = TaskTracker::new();
    let ready = Arc::new(AtomicBool::new(false));
    let api = Api::new(ApiConfig {
        store: store.clone(),
        nodes: Arc::new(links.clone()),
        clock: Arc::new(now),
        identities: std::sync::Mutex::new(Box::new(Entropy)),
        tokens,
        service_cidr: config.service_cidr,
        service_addresses_reserved: vec![config.cluster_dns],
        git_version: GIT_VERSION.into(),
        ready: {
            let ready = ready.clone();
            Arc::new(move || ready.load(Ordering::Acquire))
        },
        limits: api::Limits::default(),
    });
    tasks.spawn(api::serve(listener, tls, api, stop_minds.clone()));
    let mut minds = controllers::all(controllers::Settings::new(now(), pki.server_ca.certificate.clone()));
    minds.push(Box::new(Placing::default()));
    tasks.spawn(Executor::new(store.clone(), minds).run(stop_minds.clone()));
    ready.store(true, Ordering::Release);

    let admin = pki.client("client-admin", ADMIN.0, &[ADMIN.1])?;
    let host = if config.bind_address.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { config.bind_address };
    let url = format!("https://{}", SocketAddr::new(host, address.port()));
    Ok(Server {
        kubeconfig: credentials::kubeconfig(&url, &pki.server_ca.certificate, &admin),
        join_token: credentials::join_token(&home, &pki, config.token.as_deref())?,
        address,
        store,
        links,
        tasks,
        writer,
        stop_minds,
    })
}

impl Server {
    /// The link of the agent in this process.
    pub fn attach_local(&self, node: &str) -> NodeEnd {
        self.links.attach_local(node)
    }

    /// Ends the API and the controllers, then closes the log. Call it after the local agent has ended: its last
    /// writes still count.
    pub async fn stop(self) {
        self.stop_minds.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.store.close().await;
        let writer = self.writer;
        // the writer ends by itself now; a panic in it has been reported on its thread
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
    }
}

fn tls(config: &ServerConfig, pki: &Pki) -> Result<Arc<rustls::ServerConfig>> {
    let domain = &config.cluster_domain;
    let mut names: Vec<String> =
        ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .into();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.push(config.node_name.clone());
    names.push(config.node_ip.to_string());
    names.push(first_address(config).to_string());
    if !config.bind_address.is_unspecified() {
        names.push(config.bind_address.to_string());
    }
    names.extend(config.tls_sans.iter().cloned());
    names.sort();
    names.dedup();
    let (chain, key) = pki.serving(&names)?.der()?;
    let mut authorities = vec![CertificateDer::from_pem_slice(pki.client_ca.certificate.as_bytes())?];
    if let Some(file) = &config.client_ca_file {
        let pem = std::fs::read(file).with_context(|| format!("--client-ca-file: read {}", file.display()))?;
        let given = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("--client-ca-file: read certificates of {}", file.display()))?;
        ensure!(!given.is_empty(), "--client-ca-file: {} holds no certificate", file.display());
        authorities.extend(given);
    }
    Ok(api::tls_config(chain, key, &authorities)?)
}

fn tokens(file: Option<&Path>) -> Result<TokenTable> {
    let Some(file) = file else { return Ok(TokenTable::default()) };
    let csv = std::fs::read_to_string(file).with_context(|| format!("--token-auth-file: read {}", file.display()))?;
    TokenTable::parse(&csv).with_context(|| format!("--token-auth-file: {}", file.display()))
}

/// The address of the `kubernetes` Service: the first of the range, as in Kubernetes.
fn first_address(config: &ServerConfig) -> IpAddr {
    let (network, _) = config.service_cidr;
    Ipv4Addr::from_bits(network.to_bits() + 1).into()
}
