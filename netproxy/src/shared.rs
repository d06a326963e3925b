//! What every connection and request may look at: the current table, the endpoints, the way out, the bounds.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwap;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, ProxyConfig};
use crate::connections::Connections;
use crate::dns::forward::Forwarder;
use crate::network::Stack;
use crate::pods::Endpoints;
use crate::policy::Table as Policies;
use crate::problems::Problems;
use crate::routes::Protocol;
use crate::table::Table;
use crate::web::upstream::Upstreams;

pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) cluster_domain: String,
    pub(crate) data: tokio::runtime::Handle,
    /// Where the cluster's addresses are on this machine, if not where they say.
    pub(crate) stack: Option<Stack>,
    pub(crate) table: ArcSwap<Table>,
    /// Who may talk to whom.
    pub(crate) policies: Arc<ArcSwap<Policies>>,
    pub(crate) endpoints: Endpoints,
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) problems: Problems,
    /// Other names than the cluster's.
    pub(crate) forwarder: Forwarder,
    /// One permit per open client connection of the whole proxy.
    pub(crate) permits: Arc<Semaphore>,
    /// Connections to Services: they outlive the listener that accepted them.
    pub(crate) service_connections: Arc<Connections>,
    /// Connections that were upgraded and are only carried now.
    pub(crate) tunnels: Arc<Connections>,
    /// Which of several addresses is next.
    pub(crate) turn: AtomicUsize,
    /// No new connections, anywhere.
    pub(crate) stop: CancellationToken,
}

impl Shared {
    pub(crate) fn new(config: &ProxyConfig) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(config.limits.connections_max));
        let connections_max = config.limits.connections_max;
        Arc::new(Self {
            limits: config.limits.clone(),
            cluster_domain: config.cluster_domain.trim_matches('.').to_ascii_lowercase(),
            data: config.data.clone(),
            stack: config.stack.clone(),
            table: ArcSwap::default(),
            policies: config.stack.as_ref().map(Stack::policies).unwrap_or_default(),
            endpoints: Endpoints::default(),
            upstreams: Upstreams::new(&config.limits, config.data.clone(), config.stack.clone()),
            problems: Problems::default(),
            forwarder: Forwarder::new(config),
            service_connections: Connections::new(connections_max, permits.clone()),
            tunnels: Connections::new(connections_max, permits.clone()),
            permits,
            turn: AtomicUsize::new(0),
            stop: CancellationToken::new(),
        })
    }

    /// Whether policies let `from` reach `to`. `None` is this node itself.
    pub(crate) fn permits(&self, from: Option<IpAddr>, to: SocketAddr, protocol: Protocol) -> bool {
        let permitted = from.is_none_or(|from| self.policies.load().permits(from, to, protocol));
        if !permitted {
            tracing::debug!(?from, %to, ?protocol, "refused by network policy");
        }
        permitted
    }

    /// Where on this machine an address is: where it says, unless it is the cluster's and the node has no privilege.
    pub(crate) fn local(&self, address: SocketAddr) -> SocketAddr {
        self.stack.as_ref().map_or(address, |stack| stack.local(address))
    }

    /// Whose address it is: the reverse of [`Shared::local`].
    pub(crate) fn shown(&self, address: SocketAddr, protocol: Protocol) -> SocketAddr {
        self.stack.as_ref().map_or(address, |stack| stack.shown(address, protocol))
    }

    /// A datagram socket that is connected to an address.
    pub(crate) async fn connect_udp(&self, to: SocketAddr) -> std::io::Result<UdpSocket> {
        let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let (from, to) = match &self.stack {
            Some(stack) if stack.is_cluster(to.ip()) => (stack.node(), stack.reach(to, Protocol::Udp)),
            _ => (any, to),
        };
        let socket = UdpSocket::bind(from).await?;
        socket.connect(to).await?;
        Ok(socket)
    }
}

/// A connection of this process to an address, of a pod elsewhere perhaps.
pub(crate) async fn connect(stack: Option<&Stack>, to: SocketAddr) -> std::io::Result<TcpStream> {
    match stack {
        Some(stack) => stack.connect(to).await,
        None => TcpStream::connect(to).await,
    }
}
