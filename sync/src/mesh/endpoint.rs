//! The node's own UDP socket: dials other nodes and is dialled by them, both sides with their node certificates.

use super::{Config, MeshError};
use crate::tls::{self, TlsError};
use crate::{Identity, tls::node_name};
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme, version};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// ALPN of connections between nodes.
pub const ALPN: &[u8] = b"coracle-mesh/1";
/// The name dialled: certificates of nodes have none that TLS would look at.
const DIALLED_NAME: &str = "node";
/// Buffers of the socket, bytes: a burst must not be lost while the process does something else.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// A connection without a sign of life ends.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// One that is not used shows signs of life.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Packets waiting to leave on one connection, bytes; then the oldest are dropped.
const SEND_BUFFER_BYTES_MAX: usize = 1024 * 1024;
/// Packets that came and are not taken yet, bytes; then the oldest are dropped.
const RECEIVE_BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Handshakes that wait to be looked at.
const INCOMING_MAX: usize = 64;
/// Bytes of one of them.
const INCOMING_BYTES_MAX: u64 = 16 * 1024;

/// Opens the socket on `port`, or on a free one when another process has it.
pub(super) fn open(config: &Config, identity: &Identity) -> Result<quinn::Endpoint, MeshError> {
    let socket = match bind(config.port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && config.port != 0 => {
            tracing::warn!(
                port = config.port,
                "another process has the UDP port of the pod network; taking a free one"
            );
            bind(0)
        }
        bound => bound,
    };
    let socket = socket.map_err(MeshError::Socket)?;
    let server = server_config(identity, &config.node_ca)?;
    quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(TokioRuntime))
        .map_err(MeshError::Socket)
}

/// A socket for both families, or for IPv4 where there is no other.
fn bind(port: u16) -> io::Result<UdpSocket> {
    let both = || -> io::Result<UdpSocket> {
        let socket = rustix::net::socket_with(
            AddressFamily::INET6,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(ipproto::UDP),
        )?;
        sockopt::set_ipv6_v6only(&socket, false)?;
        rustix::net::bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        Ok(socket.into())
    };
    let socket = match both() {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?,
        socket => socket?,
    };
    // beyond the system's limit where we may, up to it where not
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    }
    Ok(socket)
}

/// How connections between nodes behave.
fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IdleTimeout::try_from(SILENCE_MAX).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER_BYTES_MAX))
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    Arc::new(transport)
}

/// What this node shows and demands when it is dialled.
pub(super) fn server_config(
    identity: &Identity,
    node_ca: &CertificateDer<'static>,
) -> Result<quinn::ServerConfig, MeshError> {
    let mut config = tls::server(identity, node_ca)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    let config = QuicServerConfig::try_from(config).map_err(|_| MeshError::Suite)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(config));
    config
        .transport_config(transport())
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX * INCOMING_MAX as u64);
    Ok(config)
}

/// What this node shows and demands when it dials the node called `name`.
fn client_config(
    identity: &Identity,
    node_ca: &CertificateDer<'static>,
    name: &str,
) -> Result<quinn::ClientConfig, MeshError> {
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NodeVerifier::new(node_ca, name)?))
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Setup)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let config = QuicClientConfig::try_from(config).map_err(|_| MeshError::Suite)?;
    let mut config = quinn::ClientConfig::new(Arc::new(config));
    config.transport_config(transport());
    Ok(config)
}

/// Dials one address of the node called `name`.
pub(super) async fn dial(
    endpoint: &quinn::Endpoint,
    identity: &Identity,
    node_ca: &CertificateDer<'static>,
    name: &str,
    address: SocketAddr,
) -> Result<Connection, MeshError> {
    let config = client_config(identity, node_ca, name)?;
    let connecting = endpoint.connect_with(config, address, DIALLED_NAME).map_err(MeshError::Connect)?;
    connecting.await.map_err(MeshError::Connection)
}

/// The node at the other end of a connection.
pub(super) fn peer_name(connection: &Connection) -> Option<String> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    node_name(chain.first()?).ok()
}

/// Takes the certificate of one node where TLS would look for a server's: it must be signed by the nodes' authority, in its
/// time, for `clientAuth`, and name the node that was dialled.
#[derive(Debug)]
struct NodeVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    name: String,
}

impl NodeVerifier {
    fn new(node_ca: &CertificateDer<'static>, name: &str) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(node_ca.clone()).map_err(TlsError::Setup)?;
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
            .build()
            .map_err(TlsError::Authority)?;
        Ok(Self { chain, name: name.to_owned() })
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.chain.verify_client_cert(end_entity, intermediates, now)?;
        match node_name(end_entity) {
            Ok(name) if name == self.name => Ok(ServerCertVerified::assertion()),
            _ => Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
