//! HTTP as a client of registries: TLS, time and size limits, redirects.
//!
//! It stands on hyper and rustls. The registry client crates at hand read manifests and answers of token servers whole,
//! however long they are, and stop the process on some malformed answers; a node must not depend on a registry's good
//! will. Deliberately absent: proxies, client certificates, HTTP/2.

use std::collections::HashMap;
use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::time::timeout;
use url::Url;

use super::error::PullError;

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// From the request to the end of the answer's head.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// Without a byte of the body.
const IDLE_MAX: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 5;
/// What is read of an answer that is an error.
const ERROR_BYTES_MAX: u64 = 64 << 10;
const ERROR_CHARS_MAX: usize = 256;
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How registries are reached, beside what is the same everywhere.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Where `HOST[:PORT]/*.crt` are found, further authorities for one registry: `/etc/docker/certs.d`.
    pub certs_dir: PathBuf,
    /// Certificates (DER) of further authorities for all registries.
    pub extra_roots: Vec<Vec<u8>>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        RegistryConfig { certs_dir: "/etc/docker/certs.d".into(), extra_roots: Vec::new() }
    }
}

/// What is sent with a request; it can be sent again.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    Empty,
    Bytes(Bytes),
    File { path: PathBuf, bytes: u64 },
}

type HttpClient = Client<HttpsConnector<HttpConnector>, BoxBody<Bytes, io::Error>>;

/// What all connections of a node share.
#[derive(Debug)]
pub(super) struct Transport {
    config: RegistryConfig,
    roots: OnceLock<RootCertStore>,
}

impl Transport {
    pub(super) fn new(config: RegistryConfig) -> Transport {
        Transport { config, roots: OnceLock::new() }
    }

    /// The public authorities, those of the machine, and those given.
    fn roots(&self) -> &RootCertStore {
        self.roots.get_or_init(|| {
            let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            add_file(&mut roots, Path::new(SYSTEM_ROOTS));
            roots.add_parsable_certificates(self.config.extra_roots.iter().map(|der| CertificateDer::from(&der[..])));
            roots
        })
    }

    /// Blocks: it reads certificates.
    fn client(&self, authority: &str) -> Result<HttpClient, String> {
        let mut roots = self.roots().clone();
        // A host and a port cannot leave the directory: see `reference` and `Url`.
        if let Ok(entries) = std::fs::read_dir(self.config.certs_dir.join(authority)) {
            let paths = entries.flatten().map(|entry| entry.path());
            for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "crt")) {
                add_file(&mut roots, &path);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_MAX));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(2).build(connector))
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) {
    let certificates = match CertificateDer::pem_file_iter(path) {
        Ok(certificates) => certificates,
        // A machine need not have the file.
        Err(_) if !path.exists() => return,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "authorities are ignored");
            return;
        }
    };
    roots.add_parsable_certificates(certificates.flatten());
}

/// Why a request got no answer.
pub(super) struct Failure {
    /// Whatever answers there speaks no TLS.
    pub not_tls: bool,
    pub error: PullError,
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Failure { not_tls: false, error }
    }
}

/// The connections of one task, closed when it is done.
pub(super) struct Connections<'a> {
    transport: &'a Arc<Transport>,
    clients: HashMap<String, HttpClient>,
}

impl<'a> Connections<'a> {
    pub(super) fn new(transport: &'a Arc<Transport>) -> Self {
        Connections { transport, clients: HashMap::new() }
    }

    async fn client(&mut self, url: &Url) -> Result<HttpClient, String> {
        let authority = authority(url);
        if let Some(client) = self.clients.get(&authority) {
            return Ok(client.clone());
        }
        let (transport, name) = (self.transport.clone(), authority.clone());
        let made = tokio::task::spawn_blocking(move || transport.client(&name)).await;
        let client = made.map_err(|error| error.to_string())??;
        self.clients.insert(authority, client.clone());
        Ok(client)
    }

    /// One request and the head of its answer, whatever its status.
    pub(super) async fn request(
        &mut self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        payload: Payload,
    ) -> Result<Response<Incoming>, Failure> {
        let failed = |detail: String| transport_error(method, url, detail);
        let client = self.client(url).await.map_err(failed)?;
        let (body, time_max) = match payload {
            Payload::Empty => (Empty::new().map_err(|never| match never {}).boxed(), HEAD_MAX),
            Payload::Bytes(bytes) => (Full::new(bytes).map_err(|never| match never {}).boxed(), HEAD_MAX),
            Payload::File { path, bytes } => {
                let file = tokio::fs::File::open(&path).await.map_err(|error| failed(error.to_string()))?;
                let pieces = tokio_util::io::ReaderStream::with_capacity(file, 64 << 10).map_ok(Frame::data);
                // At least 100 kB a second.
                let time_max = HEAD_MAX + Duration::from_secs(bytes / 100_000);
                (StreamBody::new(pieces).boxed(), time_max)
            }
        };
        let mut request = Request::builder().method(method).uri(url.as_str()).body(body).map_err(|error| {
            // An address that `Url` takes and `Uri` does not.
            failed(error.to_string())
        })?;
        *request.headers_mut() = headers.clone();
        let agent = HeaderValue::from_static(concat!("coracle/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        match timeout(time_max, client.request(request)).await {
            Err(_) => Err(failed("net/http: timeout awaiting response headers".into()).into()),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure { not_tls: is_not_tls(&error), error: failed(reason(&error)) }),
        }
    }

    /// A request that may be sent on to other addresses, which do not get to see who asks.
    pub(super) async fn follow(
        &mut self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<(Url, Response<Incoming>), Failure> {
        let (mut at, mut headers) = (url.clone(), headers.clone());
        for _ in 0..=REDIRECTS_MAX {
            let response = self.request(method, &at, &headers, Payload::Empty).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((at, response));
            }
            let next = location(&at, response.headers()).map_err(|detail| transport_error(method, &at, detail))?;
            if next.origin() != at.origin() {
                headers.remove(AUTHORIZATION);
            }
            at = next;
        }
        Err(transport_error(method, &at, format!("stopped after {REDIRECTS_MAX} redirects")).into())
    }
}

/// `host[:port]`
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Where an answer sends to; never from TLS to plain text.
pub(super) fn location(at: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or("an answer without Location")?;
    let next = at.join(location).map_err(|error| format!("Location {location:?}: {error}"))?;
    match next.scheme() {
        "https" => Ok(next),
        "http" if at.scheme() == "http" => Ok(next),
        _ => Err(format!("it sends on to {:?}, which is not https", next.as_str())),
    }
}

pub(super) fn transport_error(method: &Method, url: &Url, detail: String) -> PullError {
    PullError::Transport { method: method.to_string(), url: url.to_string(), detail }
}

/// The innermost cause is what helps.
fn reason(error: &hyper_util::client::legacy::Error) -> String {
    let mut texts = Vec::new();
    let mut cause = error.source();
    while let Some(found) = cause {
        if let Some(io) = found.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::ConnectionRefused
        {
            return "connect: connection refused".into();
        }
        texts.push(found.to_string());
        cause = found.source();
    }
    texts.dedup();
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}

fn is_not_tls(error: &hyper_util::client::legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(found) = cause {
        if let Some(io) = found.downcast_ref::<io::Error>() {
            return is_not_tls_io(io);
        }
        cause = found.source();
    }
    false
}

/// The connector wraps the error of the handshake, which wraps rustls's.
fn is_not_tls_io(error: &io::Error) -> bool {
    match error.get_ref() {
        None => matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset),
        Some(inner) => match (inner.downcast_ref::<io::Error>(), inner.downcast_ref::<rustls::Error>()) {
            (Some(inner), _) => is_not_tls_io(inner),
            (None, Some(tls)) => matches!(tls, rustls::Error::InvalidMessage(_)),
            (None, None) => error.kind() == io::ErrorKind::UnexpectedEof,
        },
    }
}

/// The next bytes of a body; none at its end.
pub(super) async fn next(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    loop {
        match timeout(IDLE_MAX, body.frame()).await {
            Err(_) => return Err(format!("no data for {} s", IDLE_MAX.as_secs())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(error.source().map_or(error.to_string(), ToString::to_string)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A small body, whole.
pub(super) async fn read_all(what: &str, mut response: Response<Incoming>, bytes_max: u64) -> Result<Bytes, PullError> {
    let too_big = || PullError::TooBig { what: what.to_owned(), bytes_max };
    if response.body().size_hint().lower() > bytes_max {
        return Err(too_big());
    }
    let mut whole = Vec::new();
    while let Some(piece) = next(response.body_mut()).await.map_err(|detail| PullError::malformed(what, detail))? {
        if (whole.len() + piece.len()) as u64 > bytes_max {
            return Err(too_big());
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

/// The error that an answer stands for.
pub(super) async fn refusal(method: &Method, url: &Url, response: Response<Incoming>) -> PullError {
    let status = response.status();
    let words = match read_all("answer", response, ERROR_BYTES_MAX).await {
        Ok(body) => registry_words(&body),
        Err(_) => None,
    };
    let words = words.map(|words| format!(": {words}")).unwrap_or_default();
    let status_text = format!("{} {}{words}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let error = PullError::Status { method: method.to_string(), url: url.to_string(), status: status_text };
    match status.as_u16() {
        401 | 403 => PullError::Denied { detail: error.to_string() },
        404 => PullError::NotFound { what: url.to_string() },
        _ => error,
    }
}

/// `{"errors": [{"code": ..., "message": ...}]}`
fn registry_words(body: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = document.get("errors")?.get(0)?;
    let text = |name: &str| error.get(name).and_then(|value| value.as_str()).unwrap_or_default();
    let words: String = format!("{}: {}", text("code").to_lowercase(), text("message"));
    Some(words.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect())
}

pub(super) fn header(headers: &mut HeaderMap, name: HeaderName, value: &str) -> Result<(), PullError> {
    let value = HeaderValue::from_str(value).map_err(|error| PullError::malformed(name.as_str(), error))?;
    headers.append(name, value);
    Ok(())
}

/// Announced bytes of a body.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
