//! The dialling side: a node's link to its master, through reconnects.

use crate::{Bulk, Identity, Limits, NodeEnd, Position};
use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// What carries a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Two QUIC connections.
    Quic,
    /// TLS on TCP, because QUIC gets no answer.
    Tcp,
}

/// How to reach the master, and as whom.
pub struct Config {
    /// Host name or address of the master.
    pub server: String,
    /// Its port: UDP and TCP.
    pub port: u16,
    /// This node's name, as in its certificate.
    pub node: String,
    /// Who signs the master's certificate.
    pub server_ca: CertificateDer<'static>,
    /// This node's certificate; the newest is used for each new connection.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// What the node knows already.
    pub from: Option<Position>,
    /// Bounds.
    pub limits: Limits,
    /// Local address of the connections; the port is used for the control connection. Any, when there is none.
    pub bind: Option<SocketAddr>,
}

/// A link that reconnects for ever.
pub struct Link {
    /// The node's end; it outlives connections. Writes that have no answer when a connection breaks end with
    /// [`crate::Rejected::Disconnected`], and those made while there is none at once.
    pub end: NodeEnd,
    /// How the connection is now.
    pub state: watch::Receiver<LinkState>,
    /// Packets.
    pub bulk: Bulk,
}

/// How a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// There is no connection, and why the last attempt failed.
    Connecting {
        /// `None` at the first attempt.
        error: Option<String>,
    },
    /// There is a session.
    Up {
        /// What carries it.
        over: Transport,
        /// The master's address.
        remote: SocketAddr,
    },
    /// One of the ends does not trust the other, and why. Tried again, slowly.
    Refused(String),
}
