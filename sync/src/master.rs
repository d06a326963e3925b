//! The accepting side: nodes' connections, as sessions.

mod accept;
mod registry;
mod session;

use crate::{Bulk, Hello, Limits, MasterEnd, quic, tls};
use registry::Shared;
use rustls_pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Sessions that have begun and that the server has not looked at.
const SESSIONS_WAITING_MAX: usize = 64;

/// The TLS configuration for a new connection ([`crate::tls::server`]); asked each time, since certificates renew.
pub type TlsSource = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;
/// Whether a node may link: its name, and the certificate (DER) that proved it. The error is told to the node.
pub type Admit = Arc<dyn Fn(&str, &[u8]) -> Result<(), Refusal> + Send + Sync>;

/// Why a node may not link, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not known. What it runs may still be wanted.
    Refused(String),
    /// It was a node of this cluster and is none any more: what it runs is nobody's.
    Dismissed(String),
}

impl Refusal {
    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Refused(reason) | Self::Dismissed(reason) => reason,
        }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        Self::Refused(reason.into())
    }
}

/// Where and whom a master accepts.
pub struct Config {
    /// The socket of QUIC, bound.
    pub udp: std::net::UdpSocket,
    /// What it shows.
    pub tls: TlsSource,
    /// Who signs nodes' certificates; those of streams from [`Door::accept_tls`] are checked against it again.
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

/// Where a TLS stream goes that the API's listener accepted with one of the link's ALPNs ([`crate::tls::is_link`]).
#[derive(Clone)]
pub struct Door(Arc<Shared>);

impl Door {
    /// Takes the stream over. Never waits; what is refused is closed. Call it within a tokio runtime.
    pub fn accept_tls(&self, stream: TlsStream<TcpStream>, remote: SocketAddr) {
        let shared = self.0.clone();
        self.0.tasks.spawn(accept::tls(shared, stream, remote));
    }

    /// Waits until, after the shutdown, all sessions have ended and the nodes were told.
    pub async fn closed(&self) {
        self.0.tasks.wait().await;
    }
}

/// Accepts nodes on UDP until `shutdown`, which ends all sessions, and the receiver.
///
/// # Errors
/// When the socket cannot be used.
pub fn listen(config: Config, shutdown: CancellationToken) -> io::Result<(Door, mpsc::Receiver<Session>)> {
    let Config { udp, tls, node_ca, reset_key, admit, limits } = config;
    let (sessions, opened) = mpsc::channel(SESSIONS_WAITING_MAX);
    let verifier = tls::node_verifier(&node_ca).map_err(io::Error::other)?;
    udp.set_nonblocking(true)?;
    let endpoint = quic::acceptor(udp, &reset_key, quic::server(tls(), &limits)?, &limits)?;
    let shared = Arc::new(Shared::new(admit, verifier, limits, sessions, shutdown));
    shared.tasks.spawn(accept::quic(shared.clone(), endpoint, tls));
    Ok((Door(shared), opened))
}
