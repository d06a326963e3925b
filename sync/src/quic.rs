//! quinn, set up for links: endpoints, transport parameters, and what its errors mean to a node.

use crate::Limits;
use crate::session::chain;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, TransportConfig, VarInt};
use ring::hmac;
use rustls_pki_types::CertificateDer;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

/// A connection on which nothing came for so long is dead.
pub(crate) const IDLE_TIME_MAX: Duration = Duration::from_secs(30);
/// How often the control connection shows that it lives.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The same of the bulk connection: often enough to keep a NAT's mapping.
const KEEP_ALIVE_BULK: Duration = Duration::from_secs(10);
/// Bytes of the first packets: what every path carries.
const FIRST_MTU: u16 = 1200;
/// Bytes of one stream that have come and are not read.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same of all streams of a connection.
const WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of streams that are sent and not confirmed.
const SEND_WINDOW_BYTES: u64 = 4 << 20;
/// Bytes of datagrams that have come and are not read.
const DATAGRAMS_IN_BYTES: usize = 2 << 20;
/// Bytes of datagrams that wait to leave; older ones make room.
const DATAGRAMS_OUT_BYTES: usize = 1 << 20;
/// Streams that a node may open on a connection beside those of its asks: it needs one.
const NODE_STREAMS_MAX: u32 = 2;
/// Connections whose handshake the endpoint keeps waiting.
const INCOMING_MAX: usize = 1024;
/// Bytes of a connection id.
const ID_BYTES: usize = 8;
/// First error code of TLS' alerts.
const ALERTS: u64 = 0x100;

/// Close code: all is said.
pub(crate) const CLOSED: VarInt = VarInt::from_u32(0);
/// Close code: the other end broke the protocol.
pub(crate) const BROKEN: VarInt = VarInt::from_u32(1);
/// Close code: the node is not let in.
pub(crate) const REFUSED: VarInt = VarInt::from_u32(2);
/// Close code: the node has been taken out of the cluster.
pub(crate) const DISMISSED: VarInt = VarInt::from_u32(3);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// One of the ends does not trust the other, or does not speak its language.
    Refused(String),
    /// The master has taken the node out of the cluster.
    Dismissed(String),
    /// Anything else: it may work the next time.
    Broken(String),
}

impl Failure {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Refused(text) | Self::Dismissed(text) | Self::Broken(text) => text,
        }
    }
}

/// Which of a node's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The session.
    Control,
    /// Calls and packets.
    Bulk,
}

/// An endpoint that dials.
pub(crate) fn dialler(socket: UdpSocket, limits: &Limits) -> io::Result<Endpoint> {
    widen(&socket, limits);
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))
}

/// An endpoint that accepts. Its answers to packets of connections that it does not know prove, by `reset_key`, that they
/// come from it or its predecessor: so nodes notice a restart at once.
pub(crate) fn acceptor(
    socket: UdpSocket,
    reset_key: &[u8; 32],
    config: quinn::ServerConfig,
    limits: &Limits,
) -> io::Result<Endpoint> {
    widen(&socket, limits);
    let key = hmac::Key::new(hmac::HMAC_SHA256, reset_key);
    let mut endpoint = EndpointConfig::new(Arc::new(key));
    // ids that any endpoint could have made: those of the predecessor must be taken for real
    endpoint.cid_generator(|| Box::new(RandomIds));
    Endpoint::new(endpoint, Some(config), socket, Arc::new(quinn::TokioRuntime))
}

/// What a node dials with.
pub(crate) fn client(tls: rustls::ClientConfig, role: Role, limits: &Limits) -> Result<quinn::ClientConfig, Failure> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| Failure::Broken(error.to_string()))?;
    let mut transport = transport(limits);
    let streams = if role == Role::Bulk { limits.calls_running_max } else { 0 };
    transport.max_concurrent_bidi_streams(streams.into());
    transport.keep_alive_interval(Some(if role == Role::Bulk { KEEP_ALIVE_BULK } else { KEEP_ALIVE }));
    if role == Role::Control {
        transport.datagram_receive_buffer_size(None);
    }
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// What a master accepts with.
pub(crate) fn server(tls: Arc<rustls::ServerConfig>, limits: &Limits) -> io::Result<quinn::ServerConfig> {
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut transport = transport(limits);
    transport.max_concurrent_bidi_streams((NODE_STREAMS_MAX + limits.asks_max).into());
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport)).migration(true).max_incoming(INCOMING_MAX);
    Ok(config)
}

fn transport(limits: &Limits) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIME_MAX.as_millis() as u32).into()))
        .initial_mtu(FIRST_MTU)
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAMS_IN_BYTES))
        .datagram_send_buffer_size(DATAGRAMS_OUT_BYTES)
        .enable_segmentation_offload(limits.segmentation_offload);
    config
}

/// Asks for large buffers: the usual ones lose packets in bursts. What the system does not give is done without.
fn widen(socket: &UdpSocket, limits: &Limits) {
    use rustix::net::sockopt;
    let bytes = limits.udp_buffer_bytes;
    if sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, bytes);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, bytes).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(socket, bytes);
    }
}

/// The certificate that the other end showed.
pub(crate) fn certificate(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain: Box<Vec<CertificateDer<'static>>> = connection.peer_identity()?.downcast().ok()?;
    chain.into_iter().next()
}

/// The protocol that was agreed on.
pub(crate) fn alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

/// What the end of a connection means to a node.
pub(crate) fn failure(error: &ConnectionError) -> Failure {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            match close.error_code {
                REFUSED => Failure::Refused(reason),
                DISMISSED => Failure::Dismissed(reason),
                _ => Failure::Broken(reason),
            }
        }
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code).checked_sub(ALERTS) {
            Some(alert) if alert <= u64::from(u8::MAX) => alerted(alert as u8),
            _ => Failure::Broken(format!("the master has closed the connection: {error}")),
        },
        ConnectionError::TransportError(own) if u64::from(own.code) >= ALERTS => {
            Failure::Refused(format!("the master's certificate is not trusted: {}", own.reason))
        }
        ConnectionError::TimedOut => Failure::Broken("no answer".into()),
        ConnectionError::Reset => Failure::Broken("the master has restarted".into()),
        other => Failure::Broken(chain(other)),
    }
}

/// What a TLS alert of the master's means.
pub(crate) fn alerted(alert: u8) -> Failure {
    let what = match alert {
        44 => "the master refused this node's certificate: it is revoked",
        45 => "the master refused this node's certificate: it has expired, or one of the clocks is wrong",
        48 => "the master refused this node's certificate: another authority has signed it",
        42 | 43 | 46 | 49 | 51 | 116 => "the master refused this node's certificate",
        120 => "the master does not speak this version of the protocol",
        70 | 71 | 109 | 110 => "the master does not speak this version of TLS",
        _ => return Failure::Broken(format!("the master ended TLS with alert {alert}")),
    };
    Failure::Refused(what.into())
}

/// Connection ids without a mark of the process that made them.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        // without the system's randomness there is no TLS either; an id that is not random only collides
        let _ = getrandom::fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
