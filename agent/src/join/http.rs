//! The few HTTPS requests that joining takes, each on a connection of its own.
//!
//! Who answers is known by the authority alone: a master's certificate always names [`sync::tls::SERVER_NAME`], whatever
//! address it is reached by, so none of its addresses has to be known to it.

use super::files::certificates;
use super::{JoinError, request};
use crate::anyone;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, Error, RootCertStore};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use sync::Identity;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// One request takes at most so long.
const REQUEST_MAX: Duration = Duration::from_secs(15);

/// A way to ask a master that is trusted.
pub struct Client {
    server: String,
    host: String,
    port: u16,
    tls: Arc<ClientConfig>,
    bearer: Option<String>,
}

impl Client {
    /// One that shows a token.
    ///
    /// # Errors
    /// When the authority's certificate cannot be used.
    pub fn with_token(
        server: String,
        host: &str,
        port: u16,
        ca: &CertificateDer<'static>,
        bearer: &str,
    ) -> Result<Self, JoinError> {
        let tls = builder()?.with_root_certificates(roots(ca)?).with_no_client_auth();
        Ok(Self { server, host: host.into(), port, tls: Arc::new(tls), bearer: Some(bearer.into()) })
    }

    /// One that shows the node's certificate.
    ///
    /// # Errors
    /// When the authority's or the node's certificate cannot be used.
    pub fn with_identity(
        server: String,
        host: &str,
        port: u16,
        ca: &CertificateDer<'static>,
        identity: &Identity,
    ) -> Result<Self, JoinError> {
        let tls = builder()?
            .with_root_certificates(roots(ca)?)
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(tls_failed)?;
        Ok(Self { server, host: host.into(), port, tls: Arc::new(tls), bearer: None })
    }

    /// Reads an object.
    ///
    /// # Errors
    /// [`JoinError`]
    pub async fn get(&self, path: &str) -> Result<Value, JoinError> {
        self.ask(Method::GET, path, None).await
    }

    /// Creates an object.
    ///
    /// # Errors
    /// [`JoinError`]
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, JoinError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, JoinError> {
        let what = "the certificate request";
        let mut request =
            Request::builder().method(method).uri(path).header(header::HOST, authority(&self.host, self.port));
        if let Some(bearer) = &self.bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body));
        let request = request.map_err(|error| JoinError::Answer { what, why: error.to_string() })?;
        let (status, bytes) = exchange(&self.server, &self.host, self.port, self.tls.clone(), request).await?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let message = || {
            let said = value["message"].as_str().map(ToOwned::to_owned);
            said.unwrap_or_else(|| status.to_string())
        };
        match status {
            status if status.is_success() && value.is_object() => Ok(value),
            StatusCode::UNAUTHORIZED => Err(JoinError::Unauthorized(message())),
            StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(JoinError::Denied(format!("the server refuses the certificate request: {}", message())))
            }
            _ => Err(JoinError::Answer { what, why: message() }),
        }
    }
}

/// The server's authority, which is what the digest says or an error: nothing is told to whoever answers.
///
/// # Errors
/// [`JoinError::Pin`] when it is another one.
pub async fn fetch_ca(server: &str, host: &str, port: u16, pinned: &str) -> Result<CertificateDer<'static>, JoinError> {
    let what = "/cacerts";
    // only for what is public, and is checked against the token below
    let tls = anyone::config().map_err(tls_failed)?;
    let request = Request::get("/cacerts").header(header::HOST, authority(host, port)).body(Full::default());
    let request = request.map_err(|error| JoinError::Answer { what, why: error.to_string() })?;
    let (status, bytes) = exchange(server, host, port, Arc::new(tls), request).await?;
    if status != StatusCode::OK {
        return Err(JoinError::Answer { what, why: format!("{status}; is this a coracle server?") });
    }
    let found = certificates(&String::from_utf8_lossy(&bytes)).and_then(|found| found.into_iter().next());
    let ca = found.ok_or_else(|| JoinError::Answer { what, why: "there is no certificate in it".into() })?;
    let found = request::digest(&ca);
    if found != pinned {
        return Err(JoinError::Pin { server: server.into(), found, pinned: pinned.into() });
    }
    Ok(ca)
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn exchange(
    server: &str,
    host: &str,
    port: u16,
    tls: Arc<ClientConfig>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), JoinError> {
    let unreachable = |why: String| JoinError::Unreachable { server: server.to_owned(), why };
    let asking = async {
        let stream = TcpStream::connect((host, port)).await.map_err(|error| unreachable(error.to_string()))?;
        let name = ServerName::try_from(sync::tls::SERVER_NAME).map_err(|error| unreachable(error.to_string()))?;
        let stream = TlsConnector::from(tls).connect(name, stream).await;
        let stream = stream.map_err(|error| unreachable(format!("TLS: {error}")))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(crate::container::chain(&error)))?;
        let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
        let answer =
            sender.send_request(request).await.map_err(|error| unreachable(crate::container::chain(&error)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        drop(connection);
        Ok((status, body.map_err(|error| unreachable(error.to_string()))?.to_bytes()))
    };
    match tokio::time::timeout(REQUEST_MAX, asking).await {
        Ok(outcome) => outcome,
        Err(_) => Err(unreachable(format!("no answer within {} s", REQUEST_MAX.as_secs()))),
    }
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, JoinError> {
    let provider = Arc::new(ring::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(tls_failed)
}

fn roots(ca: &CertificateDer<'static>) -> Result<RootCertStore, JoinError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(tls_failed)?;
    Ok(roots)
}

fn tls_failed(error: Error) -> JoinError {
    JoinError::Key(error.to_string())
}
