//! TCP, TLS and HTTP/1.1 or HTTP/2, all of it bounded: nothing a client does or leaves undone holds anything for ever.
//!
//! Bounds: connections, the handshake's time, the time and size of a request's head, streams of a connection, and how
//! long a client may take no byte ([`Stalling`]). Nothing here knows what a request means.

use crate::authn::{self, User};
use crate::body::{self, Answer};
use crate::config::Limits;
use crate::front::{self, Api};
use crate::status::Status;
use futures::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes of a request's head; Go's default, which Kubernetes has.
const HEAD_BYTES_MAX: usize = 1024 * 1024;
/// HTTP/2: how often a silent connection is asked whether it lives, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIME_MAX: Duration = Duration::from_secs(20);
/// Wait after a failed accept (too many open files), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The TLS configuration was not possible.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate authority of clients.
    #[error("use client certificate authority")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
    /// One of its certificates.
    #[error("add client certificate authority")]
    Root(#[source] rustls::Error),
    /// The certificate the server shows.
    #[error("use serving certificate")]
    Certificate(#[source] rustls::Error),
}

/// The certificate that a server shows, which can be replaced while it serves: the next handshake shows the new one.
#[derive(Debug)]
pub struct ServingCertificate(RwLock<Arc<CertifiedKey>>);

impl ServingCertificate {
    /// The first one.
    ///
    /// # Errors
    /// When the key is none, or not this certificate's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(certified_key(chain, key)?)))
    }

    /// Shows another one from now on.
    ///
    /// # Errors
    /// As [`ServingCertificate::new`]; the old one stays.
    pub fn replace(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), TlsError> {
        let next = certified_key(chain, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(Arc::new).map_err(TlsError::Certificate)
}

/// The TLS configuration of the API: shows `certificate`, and asks clients for a certificate of one of `client_cas`
/// without insisting on one. Beside HTTP it offers `more` protocols, which are preferred.
///
/// # Errors
/// When an authority is none.
pub fn tls_config(
    certificate: Arc<ServingCertificate>,
    client_cas: &[CertificateDer<'static>],
    more: &[Vec<u8>],
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?;
    let builder = if client_cas.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for ca in client_cas {
            roots.add(ca.clone()).map_err(TlsError::Root)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
            .allow_unauthenticated()
            .build()
            .map_err(TlsError::ClientCa)?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = more.iter().cloned().chain([b"h2".to_vec(), b"http/1.1".to_vec()]).collect();
    Ok(Arc::new(config))
}

/// Serves the API on `listener` until `shutdown`; then ends watches, lets open requests finish, and returns.
pub async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, api: Arc<Api>, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(api.limits().connections_max));
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    // ends watches and log streams before their connections are asked to end
    let stop = shutdown.clone();
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok(slot) = slot else { break };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, api, shutdown) = (acceptor.clone(), api.clone(), shutdown.clone());
        connections.spawn(async move {
            connection(stream, remote, acceptor, api, shutdown).await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    api.tracker.close();
    let ending = async {
        connections.wait().await;
        api.tracker.wait().await;
    };
    if timeout(api.limits().drain_time_max, ending).await.is_err() {
        tracing::warn!(open = connections.len() + api.tracker.len(), "connections left open at shutdown");
    }
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    api: Arc<Api>,
    shutdown: CancellationToken,
) {
    // answers are small and latency counts; a socket that refuses only answers slower
    let _ = stream.set_nodelay(true);
    let limits = api.limits().clone();
    let stream = match timeout(limits.handshake_time_max, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    if let (Some(links), Some(protocol)) = (&api.config.links, stream.get_ref().1.alpn_protocol())
        && links.protocols.iter().any(|own| own == protocol)
    {
        return (links.take)(stream, remote);
    }
    let user = certified(&stream).map(Arc::new);
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let patience = Patience::new(limits.stall_time_max);
    let io = TokioIo::new(Stalling::new(stream, patience.clone()));
    let ended = shutdown.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(patience.clone());
        let (api, user, ended) = (api.clone(), user.clone(), ended.clone());
        async move { Ok::<_, Infallible>(guarded(request, api, user, ended).await) }
    });
    let served = if is_http2 {
        http2(io, service, &limits, &shutdown).await
    } else {
        http1(io, service, &limits, &shutdown).await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection");
    }
}

type Io = TokioIo<Stalling<TlsStream<TcpStream>>>;

async fn http1<S>(io: Io, service: S, limits: &Limits, shutdown: &CancellationToken) -> hyper::Result<()>
where
    S: hyper::service::Service<Request<Incoming>, Response = Answer, Error = Infallible>,
    S::Future: Send + 'static,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.receive_time_max).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
    tokio::select! {
        served = connection.as_mut() => return served,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

async fn http2<S>(io: Io, service: S, limits: &Limits, shutdown: &CancellationToken) -> hyper::Result<()>
where
    S: hyper::service::Service<Request<Incoming>, Response = Answer, Error = Infallible>,
    S::Future: Send + 'static,
{
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME_MAX);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    tokio::select! {
        served = connection.as_mut() => return served,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Whom the client's certificate names; the handshake has verified its chain.
fn certified(stream: &TlsStream<TcpStream>) -> Option<User> {
    authn::certified(stream.get_ref().1.peer_certificates()?.first()?)
}

/// Answers a request; a panic in a handler is a 500 to this client and nothing to anybody else.
async fn guarded(
    request: Request<Incoming>,
    api: Arc<Api>,
    certified: Option<Arc<User>>,
    ended: CancellationToken,
) -> Answer {
    let began = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let answered = AssertUnwindSafe(front::handle(&api, request, certified, ended)).catch_unwind().await;
    let answer = answered.unwrap_or_else(|_| {
        tracing::error!(%method, path = uri.path(), "a request's handler panicked");
        body::refusal(&Status::internal(format!("a handler of {method} {} failed", uri.path())))
    });
    tracing::debug!(%method, %uri, code = answer.status().as_u16(), took = ?began.elapsed(), "request");
    answer
}

/// How long a connection's other side may take no byte. Clones are of the same connection.
#[derive(Clone)]
pub(crate) struct Patience(Arc<AtomicU64>);

impl Patience {
    fn new(time_max: Duration) -> Self {
        let patience = Self(Arc::default());
        patience.extend(time_max);
        patience
    }

    /// Waits so long from the next time on.
    pub fn extend(&self, time_max: Duration) {
        self.0.store(u64::try_from(time_max.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn time_max(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A connection that fails when the other side takes no byte for too long while there is something to send.
struct Stalling<S> {
    inner: S,
    patience: Patience,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    fn new(inner: S, patience: Patience) -> Self {
        Self { inner, patience, stalled: None }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let patience = &self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience.time_max())));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.judge(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.judge(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.judge(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.judge(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
