//! How a machine becomes a node of a cluster elsewhere, and stays one.
//!
//! The join token pins the authority that the master must be signed by; then the token's secret pays for a certificate of the
//! node's own, which from then on is its identity. The private key is made here once and never leaves the machine. The
//! certificate is renewed with itself, long before it ends. Deliberately absent: the link ([`sync::node`]), and who gets a
//! certificate (the master's).

mod files;
mod http;
mod renewal;
mod request;
#[cfg(test)]
mod tests;
mod token;

pub use renewal::keep;

use crate::container::chain;
use files::Files;
use http::Client;
use rustls::pki_types::CertificateDer;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use sync::Identity;
use token::Token;
use tokio_util::sync::CancellationToken;
use url::Url;

/// Port of a master whose address does not say.
const PORT: u16 = 6443;
/// First delay between attempts to reach a master that does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// Longest delay between attempts.
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Whom to join, and as whom.
#[derive(Clone)]
pub struct JoinConfig {
    /// `https://HOST:6443`
    pub server: String,
    /// The join token. A node that has a certificate does without.
    pub token: Option<String>,
    /// Name of the node.
    pub node_name: String,
    /// The agent's data directory; key and certificates are kept in `identity` below it.
    pub data_dir: PathBuf,
}

/// What a node needs to be let in.
#[derive(Clone)]
pub struct Credentials {
    /// Host of the master, as given.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who signs the master's certificate.
    pub server_ca: CertificateDer<'static>,
    /// The node's certificate and key.
    pub identity: Arc<Identity>,
}

/// Why a machine did not become a node, in words that say what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The address of the master is none.
    #[error("--server {0}: an address like https://HOST:6443 is needed")]
    Server(String),
    /// There is no certificate yet, and no token to get one with.
    #[error(
        "this machine is not a node yet: give --token or --token-file (on the master: coracle token create, or the file \
         server/token of its data directory)"
    )]
    NoToken,
    /// The token is none.
    #[error("the join token cannot be used: {0}")]
    Token(&'static str),
    /// Somebody else answered, or the token is of another cluster.
    #[error(
        "the server at {server} is not the one that the token is for: its CA has the SHA-256 {found}, the token says {pinned}; \
         look at the address, or make a new token on that server"
    )]
    Pin {
        /// As given.
        server: String,
        /// What was found.
        found: String,
        /// What the token says.
        pinned: String,
    },
    /// The master did not answer.
    #[error("cannot reach {server}: {why}")]
    Unreachable {
        /// As given.
        server: String,
        /// The cause.
        why: String,
    },
    /// The master does not take the token.
    #[error(
        "the server does not accept the token ({0}): it may have expired or been deleted; make a new one with coracle token \
         create"
    )]
    Unauthorized(String),
    /// The master answered that it will not.
    #[error("{0}")]
    Denied(String),
    /// The master answered something that makes no sense.
    #[error("the server's answer to {what} cannot be used: {why}")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody approved the request in time.
    #[error("nobody has approved the request {0} yet: kubectl certificate approve {0}")]
    Unapproved(String),
    /// The key or the certificate cannot be kept.
    #[error("{act} {path}: {source}")]
    Files {
        /// What was tried.
        act: &'static str,
        /// With which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A key or a certificate request cannot be made.
    #[error("make the node's key and certificate request: {0}")]
    Key(String),
    /// This process is to end.
    #[error("stopped before the node had joined")]
    Stopped,
}

impl JoinError {
    /// Whether another attempt may end otherwise, though nobody does anything here.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Answer { .. } | Self::Unapproved(_))
    }
}

/// The node's credentials: those on its disk if they are of this cluster and name, which needs no link; else it joins, and
/// tries for as long as the master cannot be reached. A certificate that has ended is returned too, so that the node can work
/// without its master: [`keep`] replaces it.
///
/// # Errors
/// [`JoinError`], when trying again would not help.
pub async fn credentials(config: &JoinConfig, shutdown: &CancellationToken) -> Result<Credentials, JoinError> {
    let (host, port) = address(&config.server)?;
    let token = config.token.as_deref().map(Token::parse).transpose()?;
    let files = Files::new(&config.data_dir);
    if let Some(found) = files.load(&config.node_name)? {
        match &token {
            Some(token) if token.ca_digest != request::digest(&found.server_ca) => {
                tracing::warn!("the token is of another cluster than this node's certificate: joining that one");
            }
            _ => return Ok(Credentials { host, port, server_ca: found.server_ca, identity: found.identity }),
        }
    }
    let token = token.ok_or(JoinError::NoToken)?;
    let mut delay = RETRY;
    loop {
        let attempt = join(config, &host, port, &token);
        let outcome = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Err(JoinError::Stopped),
            outcome = attempt => outcome,
        };
        match outcome {
            Err(error) if error.is_passing() => tracing::warn!("joining: {}; trying again", chain(&error)),
            outcome => return outcome,
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Err(JoinError::Stopped),
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(RETRY_MAX),
        }
    }
}

/// Exchanges the token for a certificate, once.
async fn join(config: &JoinConfig, host: &str, port: u16, token: &Token) -> Result<Credentials, JoinError> {
    let server = config.server.clone();
    let server_ca = http::fetch_ca(&server, host, port, &token.ca_digest).await?;
    let client = Client::with_token(server, host, port, &server_ca, &token.bearer)?;
    let files = Files::new(&config.data_dir);
    let key = files.key()?;
    let chain = request::certificate(&client, &config.node_name, &key).await?;
    files.store(&chain, Some(&server_ca))?;
    let identity = files.identity(&chain, &key)?;
    tracing::info!(node = config.node_name, server = config.server, "joined");
    Ok(Credentials { host: host.into(), port, server_ca, identity: Arc::new(identity) })
}

/// Gets a new certificate with the one the node has.
async fn renew(config: &JoinConfig, credentials: &Credentials) -> Result<Arc<Identity>, JoinError> {
    let Credentials { host, port, server_ca, identity } = credentials;
    let client = Client::with_identity(config.server.clone(), host, *port, server_ca, identity)?;
    let files = Files::new(&config.data_dir);
    let key = files.key()?;
    let chain = request::certificate(&client, &config.node_name, &key).await?;
    files.store(&chain, None)?;
    Ok(Arc::new(files.identity(&chain, &key)?))
}

/// Host and port of `https://HOST:PORT`.
fn address(server: &str) -> Result<(String, u16), JoinError> {
    let wrong = || JoinError::Server(server.to_owned());
    let url = Url::parse(server).map_err(|_| wrong())?;
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.username().is_empty();
    if url.scheme() != "https" || !is_bare {
        return Err(wrong());
    }
    // an IPv6 address is in brackets in a URL only
    let host = url.host_str().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
    // the scheme's own port is not shown by the parser, and is not ours
    let names_443 = server.trim_end_matches('/').ends_with(":443");
    Ok((host, url.port().unwrap_or(if names_443 { 443 } else { PORT })))
}

fn disk<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> JoinError + 'a {
    move |source| JoinError::Files { act, path: path.display().to_string(), source }
}
