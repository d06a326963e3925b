//! The master's body: assembles store, controllers, scheduler, API and links, and keeps them going. No policy.
//!
//! Layer 4. [`start`] reads like the table of contents: certificates, log, first objects, links, API, controllers, ready.

mod bootstrap;
mod calls;
mod certificates;
mod config;
mod credentials;
mod csr;
mod entropy;
mod executor;
mod identities;
mod images;
mod lineages;
mod links;
mod node_access;
mod notify;
mod pki;
mod placing;
mod ports;
mod signer;

pub use config::ServerConfig;
pub use images::{ImageBytes, ImageSource};
pub use notify::ready as notify_ready;

use anyhow::{Context, Result, ensure};
use api::{Api, ApiConfig, NodeLinks, TokenTable, User};
use bootstrap::Birth;
use certificates::Certificates;
use entropy::{Entropy, now};
use executor::Executor;
use identities::Identities;
use lineages::Lineages;
use links::{Links, PodNetworks, Sources};
use node_access::NodeAccess;
use pki::{Authority, Pki};
use placing::Placing;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use signer::Signer;
use state::Revision;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use store::Store;
use sync::master::Door;
use sync::{Bulk, ClusterFacts, Identity, NodeEnd, tls};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The Kubernetes version whose wire this is.
const GIT_VERSION: &str = concat!("v1.36.0+coracle.", env!("CARGO_PKG_VERSION"));
/// How often the store is asked to give back memory.
const REST_INTERVAL: Duration = Duration::from_secs(10);
/// kube-apiserver's name for who holds the admin certificate.
const ADMIN: (&str, &str) = ("system:admin", "system:masters");
/// Who holds the cluster's own join token.
const JOINING: (&str, &str) = ("system:bootstrap:server", "system:bootstrappers");

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
    certificates: Arc<Certificates>,
    identities: Identities,
    tasks: TaskTracker,
    writer: JoinHandle<()>,
    stop_minds: CancellationToken,
}

/// What the agent of this process works with.
pub struct LocalNode {
    /// Its link.
    pub link: NodeEnd,
    /// Packets of its pods.
    pub bulk: Bulk,
    /// Its certificate, through renewals: what other nodes know it by.
    pub identity: watch::Receiver<Arc<Identity>>,
}

/// Starts a master. When this returns, the API answers and `/readyz` says so.
///
/// # Errors
/// When the data directory, the log, a certificate, a given file or the port cannot be had.
pub async fn start(config: ServerConfig) -> Result<Server> {
    let home = config.data_dir.join("server");
    pki::make_private_dir(&home)?;
    let (listener, udp) = ports::bind(config.bind_address, config.https_port).await?;
    let address = listener.local_addr()?;
    let pki = Pki::open(&home.join("tls"), now())?;
    let server_ca_pem = pki.server_ca.certificate.clone();
    let client_ca = CertificateDer::from_pem_slice(pki.client_ca.certificate.as_bytes())?;
    let signer = Signer::new(Authority::new(&pki.client_ca)?);
    let facts = facts(&config, &pki, address.port());
    let reset_key = pki.secret("quic stateless reset");
    let admin = pki.client("client-admin", ADMIN.0, &[ADMIN.1], now())?;
    let join_token = credentials::join_token(&home, &pki, config.token.as_deref())?;
    let tokens = tokens(config.token_auth_file.as_deref(), &join_token)?;
    let certificates = Arc::new(Certificates::open(pki, serving_names(&config), &config.node_name)?);
    let protocols = [tls::ALPN_CONTROL, tls::ALPN_BULK, tls::ALPN_STREAM].map(<[u8]>::to_vec);
    let tls = api::tls_config(certificates.serving(), &authorities(&config, &client_ca)?, &protocols)?;

    pki::make_private_dir(&home.join("db"))?;
    let (store, writer) = Store::open(&home.join("db/state.redb"), store::Limits::default())?;
    let durable = last_durable(&store).await;
    let lineages = Lineages::begin(&home.join("lineages.json"), durable, lineage()?)?;
    let writer = std::thread::Builder::new().name("store".into()).spawn(move || writer.run())?;
    let birth = Birth { api_virtual_ip: first_address(&config), api_address: config.node_ip, api_port: address.port() };
    bootstrap::ensure(&store, &birth).await?;

    let stop_minds = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(rest(store.clone(), stop_minds.clone()));
    let identities = Identities::new(store.clone());
    let mask = config.node_cidr_mask.unwrap_or_else(|| controllers::ipam::default_mask(config.cluster_cidr.1));
    let networks = PodNetworks { cluster: config.cluster_cidr, mask };
    let images = images::Images::new(config.images.clone());
    let sources = Sources { store: store.clone(), lineages, facts, networks, identities: identities.clone(), images };
    let links = Links::new(sources, durable, stop_minds.clone());
    tasks.spawn(links.clone().keep());
    tasks.spawn(certificates.clone().keep(stop_minds.clone()));
    let (shown, known) = (certificates.clone(), identities.clone());
    let door = sync::master::Config {
        udp,
        tls: Arc::new(move || shown.link()),
        node_ca: client_ca,
        reset_key,
        admit: Arc::new(move |node, certificate| known.admit(node, certificate)),
        limits: sync::Limits::default(),
    };
    let door = accept(door, &links, &tasks, &stop_minds)?;

    let ready = Arc::new(AtomicBool::new(false));
    let api = Api::new(ApiConfig {
        store: store.clone(),
        nodes: Arc::new(links.clone()),
        clock: Arc::new(now),
        identities: std::sync::Mutex::new(Box::new(Entropy)),
        tokens,
        authorizer: Arc::new(NodeAccess),
        server_ca_pem: server_ca_pem.clone(),
        links: Some(NodeLinks {
            protocols: protocols.into(),
            take: Arc::new(move |stream, remote| door.accept_tls(stream, remote)),
        }),
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
    let mut minds = controllers::all(settings(&config, server_ca_pem.clone()));
    minds.push(Box::new(Placing::default()));
    minds.push(Box::new(signer));
    tasks.spawn(Executor::new(store.clone(), minds).run(stop_minds.clone()));
    ready.store(true, Ordering::Release);

    let host = if config.bind_address.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { config.bind_address };
    let url = format!("https://{}", SocketAddr::new(host, address.port()));
    let kubeconfig = credentials::kubeconfig(&url, &server_ca_pem, &admin);
    Ok(Server { kubeconfig, join_token, address, store, links, certificates, identities, tasks, writer, stop_minds })
}

impl Server {
    /// Links the agent of this process, whose name is then no other machine's.
    ///
    /// # Errors
    /// When a node of this name has joined from another machine.
    pub async fn attach_local(&self, node: &str) -> Result<LocalNode> {
        self.identities.reserve(node, &self.certificates.node_key_sha256()?).await?;
        let (link, bulk) = self.links.attach_local(node);
        Ok(LocalNode { link, bulk, identity: self.certificates.node_identity() })
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

/// Lets the store give back memory from time to time, until shutdown.
async fn rest(store: Store, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(REST_INTERVAL)).await.is_some() {
        store.rest();
    }
}

/// Accepts nodes' links: over UDP by itself, over TCP what the API's listener hands to the door.
fn accept(
    config: sync::master::Config,
    links: &Links,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Door> {
    let (door, mut sessions) = sync::master::listen(config, shutdown.clone()).context("listen for nodes on UDP")?;
    let links = links.clone();
    tasks.spawn(async move {
        while let Some(session) = sessions.recv().await {
            links.attach(session);
        }
    });
    Ok(door)
}

fn facts(config: &ServerConfig, pki: &Pki, port: u16) -> ClusterFacts {
    let cidr = |(address, prefix): (Ipv4Addr, u8)| format!("{address}/{prefix}");
    ClusterFacts {
        cluster_cidr: cidr(config.cluster_cidr),
        service_cidr: cidr(config.service_cidr),
        cluster_dns: Some(config.cluster_dns.into()),
        cluster_domain: config.cluster_domain.clone(),
        api: SocketAddr::new(config.node_ip, port),
        loopback: config.loopback,
        node_ca_pem: pki.client_ca.certificate.clone(),
        server_ca_pem: pki.server_ca.certificate.clone(),
    }
}

fn settings(config: &ServerConfig, server_ca_pem: String) -> controllers::Settings {
    let mut settings = controllers::Settings::new(now(), server_ca_pem);
    settings.cluster_cidr = Some(config.cluster_cidr);
    settings.node_cidr_mask = config.node_cidr_mask;
    settings.read_request = Some(csr::read);
    settings
}

/// The last change that the log holds, which may be older than the revision it goes on from.
async fn last_durable(store: &Store) -> Revision {
    let newest = store.world().iter().map(|object| object.revision()).max().unwrap_or_default();
    let Ok(mut rest) = store.watch(newest) else { return newest };
    let mut last = newest;
    while !rest.is_idle() {
        match rest.next().await {
            // what came after the newest object is deletions
            Ok(event) => last = event.revision,
            Err(_) => break,
        }
    }
    last
}

/// A name for the history that begins now.
fn lineage() -> Result<String> {
    Ok(entropy::secret().context("name a lineage")?.chars().take(16).collect())
}

/// What the serving certificate must name.
fn serving_names(config: &ServerConfig) -> Vec<String> {
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
    names
}

/// Whose certificates clients may show.
fn authorities(config: &ServerConfig, client_ca: &CertificateDer<'static>) -> Result<Vec<CertificateDer<'static>>> {
    let mut authorities = vec![client_ca.clone()];
    if let Some(file) = &config.client_ca_file {
        let pem = std::fs::read(file).with_context(|| format!("--client-ca-file: read {}", file.display()))?;
        let given = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("--client-ca-file: read certificates of {}", file.display()))?;
        ensure!(!given.is_empty(), "--client-ca-file: {} holds no certificate", file.display());
        authorities.extend(given);
    }
    Ok(authorities)
}

/// The bearer tokens: those of a file, and the cluster's own to join with.
fn tokens(file: Option<&Path>, join_token: &str) -> Result<TokenTable> {
    let mut table = match file {
        None => TokenTable::default(),
        Some(file) => {
            let csv =
                std::fs::read_to_string(file).with_context(|| format!("--token-auth-file: read {}", file.display()))?;
            TokenTable::parse(&csv).with_context(|| format!("--token-auth-file: {}", file.display()))?
        }
    };
    if let Some((_, token)) = join_token.split_once("::") {
        table.insert(token, User::new(JOINING.0, [JOINING.1.to_owned()]));
    }
    Ok(table)
}

/// The address of the `kubernetes` Service: the first of the range, as in Kubernetes.
fn first_address(config: &ServerConfig) -> IpAddr {
    let (network, _) = config.service_cidr;
    Ipv4Addr::from_bits(network.to_bits() + 1).into()
}
