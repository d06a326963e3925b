//! What the API needs from its surroundings, and its bounds.

use crate::authn::TokenTable;
use crate::authz::Authorizer;
use crate::nodes::Nodes;
use jiff::Timestamp;
use state::Identities;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::Store;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What the API needs. Clock and randomness are arguments; see [`crate::Api::new`].
pub struct ApiConfig {
    /// Where objects live.
    pub store: Store,
    /// The way to the nodes.
    pub nodes: Arc<dyn Nodes>,
    /// Now.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Where uids and generated names come from.
    pub identities: Mutex<Box<dyn Identities + Send>>,
    /// Bearer tokens. Client certificates are verified by the TLS configuration ([`crate::tls_config`]).
    pub tokens: TokenTable,
    /// Decides about the users that are nodes.
    pub authorizer: Arc<dyn Authorizer>,
    /// PEM of the authority that signs the certificate this API shows: what `/cacerts` answers.
    pub server_ca_pem: String,
    /// Who takes the connections of nodes that come to this port, where there is somebody.
    pub links: Option<NodeLinks>,
    /// First address and prefix length of the range that Services get their addresses from: `10.43.0.0`, 16.
    pub service_cidr: (Ipv4Addr, u8),
    /// Addresses of that range that are never handed out unasked (the cluster DNS address).
    pub service_addresses_reserved: Vec<Ipv4Addr>,
    /// `v1.36.0+coracle.0.1.0`
    pub git_version: String,
    /// Whether `/readyz` says so: the server's start is over.
    pub ready: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Bounds.
    pub limits: Limits,
}

/// Connections that come to the API's port and are not HTTP's: links of nodes, where UDP is blocked.
#[derive(Clone)]
pub struct NodeLinks {
    /// The protocols (ALPN) by which they are known; [`crate::tls_config`] must offer them.
    pub protocols: Vec<Vec<u8>>,
    /// Takes one over, its handshake done.
    pub take: Arc<dyn Fn(TlsStream<TcpStream>, SocketAddr) + Send + Sync>,
}

/// The API's bounds. `Default` is what Kubernetes has, where it has one.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open TCP connections; further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// Streams that one HTTP/2 connection may have open.
    pub streams_max: u32,
    /// Bytes of a request body; Kubernetes' limit is 3 MiB.
    pub body_bytes_max: usize,
    /// Objects that one DELETE of a collection works on at a time.
    pub batch_objects_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_time_max: Duration,
    /// How long a request's head, and then its body, may take to arrive.
    pub receive_time_max: Duration,
    /// How long a client may take no byte of an answer before it is cut off.
    pub stall_time_max: Duration,
    /// How long a watch lasts when the client does not say (a random part is added).
    pub watch_time_default: Duration,
    /// Time between bookmarks.
    pub bookmark_interval: Duration,
    /// How long a list or watch waits for a revision that is not there yet.
    pub fresh_time_max: Duration,
    /// How often a patch is tried against objects that keep changing.
    pub patch_tries_max: u32,
    /// How long open requests may take to end at shutdown.
    pub drain_time_max: Duration,
    /// Open exec, attach and portforward sessions.
    pub sessions_max: usize,
    /// How long nodes may take to say what they use.
    pub usage_time_max: Duration,
    /// Worlds kept for `continue` tokens.
    pub snapshots_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            streams_max: 250,
            body_bytes_max: 3 * 1024 * 1024,
            batch_objects_max: 500,
            handshake_time_max: Duration::from_secs(10),
            receive_time_max: Duration::from_secs(32),
            stall_time_max: Duration::from_secs(60),
            watch_time_default: Duration::from_secs(1800),
            bookmark_interval: Duration::from_secs(60),
            fresh_time_max: Duration::from_secs(3),
            patch_tries_max: 5,
            drain_time_max: Duration::from_secs(5),
            sessions_max: 256,
            usage_time_max: Duration::from_secs(5),
            snapshots_max: 64,
        }
    }
}
