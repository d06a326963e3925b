//! TLS of the link: both ends show a certificate; the node's is its identity and nothing else.
//!
//! TLS 1.3 only, `ring`, no tickets, no resumption, no 0-RTT: each connection checks the other's certificate anew.
//! Deliberately absent: making certificates, and whether a valid one is still wanted ([`crate::master::Config::admit`]).

use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// ALPN of a session's connection.
pub const ALPN_CONTROL: &[u8] = b"coracle-control/1";
/// ALPN of the connection of calls and packets; over TCP, of packets.
pub const ALPN_BULK: &[u8] = b"coracle-bulk/1";
/// ALPN of one call's connection, over TCP only.
pub const ALPN_STREAM: &[u8] = b"coracle-stream/1";
/// The name that every master's certificate has among its own, whatever address it is reached by.
pub const SERVER_NAME: &str = "kubernetes";
/// Organization of nodes' certificates.
const NODES: &str = "system:nodes";
/// What a node's certificate calls it, before its name.
const NODE_PREFIX: &str = "system:node:";
/// Characters of a node's name: a DNS subdomain.
const NODE_NAME_CHARS_MAX: usize = 253;

/// Why a certificate or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls does not take it.
    #[error("set up TLS")]
    Setup(#[source] rustls::Error),
    /// An authority's certificate is none.
    #[error("set up TLS: trust the authority")]
    Authority(#[source] rustls::server::VerifierBuilderError),
    /// It does not name a node.
    #[error("the certificate names no node: {0}")]
    NoNode(&'static str),
}

/// What an end proves itself with.
pub struct Identity {
    /// Its certificate, then those that lead to the authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// What a master shows and demands on UDP: `identity` is its serving certificate (which must name [`SERVER_NAME`]),
/// `node_ca` signs nodes' certificates.
///
/// # Errors
/// When the certificate, its key or the authority cannot be used.
pub fn server(identity: &Identity, node_ca: &CertificateDer<'static>) -> Result<rustls::ServerConfig, TlsError> {
    let verifier = node_verifier(node_ca)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Setup)?;
    config.alpn_protocols = vec![ALPN_CONTROL.to_vec(), ALPN_BULK.to_vec(), ALPN_STREAM.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a node shows and demands: `server_ca` signs the master's certificate.
///
/// # Errors
/// When the certificate, its key or the authority cannot be used.
pub fn client(
    server_ca: &CertificateDer<'static>,
    identity: &Identity,
    alpn: &[u8],
) -> Result<rustls::ClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(server_ca)?), provider())
        .build()
        .map_err(TlsError::Authority)?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Setup)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Setup)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// What checks nodes' certificates: signed by `node_ca`, in their time, for clients.
pub(crate) fn node_verifier(node_ca: &CertificateDer<'static>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(node_ca)?), provider())
        .build()
        .map_err(TlsError::Authority)
}

/// Whether a TLS connection that the API's listener accepted is one for [`crate::master::Door::accept_tls`].
pub fn is_link(alpn: Option<&[u8]>) -> bool {
    alpn.is_some_and(|alpn| [ALPN_CONTROL, ALPN_BULK, ALPN_STREAM].contains(&alpn))
}

/// The node that a certificate names: subject `CN=system:node:NAME`, `O=system:nodes`.
///
/// # Errors
/// When it names none. Whether it is signed and in its time is TLS' to check.
pub fn node_name(certificate: &CertificateDer<'_>) -> Result<String, TlsError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| TlsError::NoNode("it cannot be read"))?;
    let subject = parsed.subject();
    if !subject.iter_organization().any(|organization| organization.as_str() == Ok(NODES)) {
        return Err(TlsError::NoNode("its organization is not system:nodes"));
    }
    let mut names = subject.iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(TlsError::NoNode("it must have one common name"));
    };
    let name = name.as_str().ok().and_then(|name| name.strip_prefix(NODE_PREFIX));
    match name {
        Some(name) if !name.is_empty() && name.len() <= NODE_NAME_CHARS_MAX => Ok(name.to_owned()),
        _ => Err(TlsError::NoNode("its common name is not system:node:NAME")),
    }
}

/// The crypto of everything here.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(TlsError::Setup)?;
    Ok(roots)
}
