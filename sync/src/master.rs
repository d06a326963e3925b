//! The accepting side: nodes' connections, as sessions.

use crate::{Bulk, Hello, Limits, MasterEnd};
use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The TLS configuration for a new connection ([`crate::tls::server`]); asked each time, since certificates renew.
pub type TlsSource = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;
/// Whether a node may link: its name, and the certificate (DER) that proved it. The error is told to the node.
pub type Admit = Arc<dyn Fn(&str, &[u8]) -> Result<(), String> + Send + Sync>;

/// Where and whom a master accepts.
pub struct Config {
    /// The socket of QUIC, bound.
    pub udp: std::net::UdpSocket,
    /// What it shows.
    pub tls: TlsSource,
    /// Who signs nodes' certificates; those of streams from TCP are checked against it again.
    pub node_ca: CertificateDer<'static>,
    /// A secret that stays the same over restarts: with it nodes learn at once that a connection died with the process.
    pub reset_key: [u8; 32],
    /// Asked for each connection after its certificate was found good.
    pub admit: Admit,
    /// Bounds.
    pub limits: Limits,
}

/// A node's session, open: its Hello has come, and a [`crate::Down::Welcome`] must be the first message down.
pub struct Session {
    /// The node's name, from its certificate.
    pub node: String,
    /// Where it came from.
    pub remote: SocketAddr,
    /// What it said first.
    pub hello: Hello,
    /// Messages, writes, calls.
    pub end: MasterEnd,
    /// Packets; its `recv` ends with the session.
    pub bulk: Bulk,
    /// Cancelled when the session has ended; cancelling it ends the session. A new session of the same node ends the one
    /// before.
    pub closed: CancellationToken,
}
