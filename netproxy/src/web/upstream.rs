//! HTTP towards sockets: connections to origins, kept while idle, one request at a time on HTTP/1.1, shared on HTTP/2. A request that
//! could not be sent comes back whole, so that the caller may try elsewhere.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::Limits;
use crate::handler::{Body, BoxError, empty};
use crate::network::Stack;
use crate::pods::Open;
use crate::shared::connect;
use crate::view::Via;
use crate::web::headers;

/// Locks of the pool, so that origins do not wait for each other.
const SHARDS: usize = 16;
/// A kept connection that is still busy with its last exchange gets this long.
const SETTLE: Duration = Duration::from_millis(50);

/// Where a connection goes and what is spoken on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) addr: SocketAddr,
    pub(crate) security: Security,
    /// The network namespace it is in, if not this one.
    pub(crate) via: Option<Via>,
}

impl Origin {
    /// Somebody in this process's own network.
    pub(crate) fn new(addr: SocketAddr, security: Security) -> Self {
        Self { addr, security, via: None }
    }

    async fn connect(&self, stack: Option<&Stack>) -> std::io::Result<TcpStream> {
        let stream = match &self.via {
            Some(Via(dial)) => dial.connect(self.addr).await?,
            None => connect(stack, self.addr).await?,
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// What is spoken on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Security {
    /// HTTP/1.1
    None,
    /// HTTP/2 without TLS
    H2c,
    /// HTTP/1.1 in TLS; the server's name
    Tls(ServerName<'static>),
}

/// Why there is no response.
pub(crate) enum SendError {
    /// Nobody took the request; here it is.
    NotSent(Box<Request<Body>>, BoxError),
    /// It was sent, at least in part.
    Broken(BoxError),
}

type Http1 = http1::SendRequest<Body>;
type Http2 = http2::SendRequest<Body>;

/// The pool.
pub(crate) struct Upstreams {
    shards: [Mutex<HashMap<Origin, Kept>>; SHARDS],
    hasher: RandomState,
    reaping: AtomicBool,
    tls: OnceLock<Result<TlsConnector, String>>,
    data: tokio::runtime::Handle,
    stack: Option<Stack>,
    idle_max: usize,
    idle_timeout: Duration,
    connect_timeout: Duration,
}

/// Connections of one origin.
#[derive(Default)]
struct Kept {
    http1: Vec<(Http1, Instant)>,
    http2: Option<(Http2, Instant)>,
}

impl Upstreams {
    pub(crate) fn new(limits: &Limits, data: tokio::runtime::Handle, stack: Option<Stack>) -> Arc<Self> {
        Arc::new(Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            reaping: AtomicBool::new(false),
            tls: OnceLock::new(),
            data,
            stack,
            idle_max: limits.upstream_idle_max,
            idle_timeout: limits.upstream_idle_timeout,
            connect_timeout: limits.connect_timeout,
        })
    }

    /// Sends `request` to `origin`. `open` is kept until the response's body ends.
    pub(crate) async fn send(
        self: &Arc<Self>,
        origin: &Origin,
        mut request: Request<Body>,
        open: Option<Open>,
    ) -> Result<Response<UpstreamBody>, SendError> {
        if origin.security == Security::H2c {
            headers::as_http2(&mut request);
            return self.send_http2(origin, request, open).await;
        }
        headers::as_http1(&mut request);
        while let Some(mut sender) = self.take(origin).await {
            // A kept connection may have been closed by the other side a moment ago: what may be repeated, we repeat.
            let spare = repeatable(&request);
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.keep_after(origin, sender, response, open)),
                Err(error) => request = returned(error, spare)?,
            }
        }
        let mut sender = match self.dial_http1(origin).await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::NotSent(Box::new(request), error)),
        };
        match sender.try_send_request(request).await {
            Ok(response) => Ok(self.keep_after(origin, sender, response, open)),
            Err(error) => Err(lost(error)),
        }
    }

    async fn send_http2(
        self: &Arc<Self>,
        origin: &Origin,
        mut request: Request<Body>,
        open: Option<Open>,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let kept =
            self.shard(origin).get(origin).and_then(|kept| kept.http2.as_ref()).map(|(sender, _)| sender.clone());
        if let Some(mut sender) = kept
            && !sender.is_closed()
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| UpstreamBody { body, lease: None, _open: open })),
                Err(error) => request = returned(error, None)?,
            }
        }
        let mut sender = match self.dial_http2(origin).await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::NotSent(Box::new(request), error)),
        };
        self.shard(origin).entry(origin.clone()).or_default().http2 = Some((sender.clone(), Instant::now()));
        self.reap_later();
        match sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| UpstreamBody { body, lease: None, _open: open })),
            Err(error) => Err(lost(error)),
        }
    }

    fn keep_after(
        self: &Arc<Self>,
        origin: &Origin,
        sender: Http1,
        response: Response<Incoming>,
        open: Option<Open>,
    ) -> Response<UpstreamBody> {
        let lease = Box::new(Lease { sender, origin: origin.clone(), pool: self.clone() });
        response.map(|body| {
            let mut body = UpstreamBody { body, lease: Some(lease), _open: open };
            body.give_back_at_end();
            body
        })
    }

    /// A kept connection that takes a request now.
    async fn take(&self, origin: &Origin) -> Option<Http1> {
        loop {
            let (mut sender, _) = self.shard(origin).get_mut(origin)?.http1.pop()?;
            if sender.is_closed() {
                continue;
            }
            if sender.is_ready() || matches!(tokio::time::timeout(SETTLE, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    fn put(self: &Arc<Self>, origin: Origin, sender: Http1) {
        if sender.is_closed() {
            return;
        }
        let mut shard = self.shard(&origin);
        let kept = shard.entry(origin).or_default();
        if kept.http1.len() < self.idle_max {
            kept.http1.push((sender, Instant::now()));
            drop(shard);
            self.reap_later();
        }
    }

    async fn dial_http1(&self, origin: &Origin) -> Result<Http1, BoxError> {
        match &origin.security {
            Security::Tls(name) => {
                let connector = self.connector()?;
                let (origin, name, timeout) = (origin.clone(), name.clone(), self.connect_timeout);
                let stack = self.stack.clone();
                self.on_data(timeout, async move {
                    let tls = connector.connect(name, origin.connect(stack.as_ref()).await?).await?;
                    http1_on(TokioIo::new(tls)).await
                })
                .await
            }
            _ => {
                let (origin, stack) = (origin.clone(), self.stack.clone());
                let dialing = async move { http1_on(TokioIo::new(origin.connect(stack.as_ref()).await?)).await };
                self.on_data(self.connect_timeout, dialing).await
            }
        }
    }

    async fn dial_http2(&self, origin: &Origin) -> Result<Http2, BoxError> {
        let (origin, stack) = (origin.clone(), self.stack.clone());
        self.on_data(self.connect_timeout, async move {
            let io = TokioIo::new(origin.connect(stack.as_ref()).await?);
            let (sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake(io).await?;
            tokio::spawn(connection);
            Ok(sender)
        })
        .await
    }

    /// Runs `work` where the bytes are carried, whoever asks: a guest's request may come from another runtime.
    async fn on_data<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, BoxError>> + Send + 'static,
    ) -> Result<T, BoxError> {
        self.data.spawn(async move { tokio::time::timeout(timeout, work).await? }).await?
    }

    fn connector(&self) -> Result<TlsConnector, BoxError> {
        let made = self.tls.get_or_init(|| {
            let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let config =
                versions.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
            Ok(TlsConnector::from(Arc::new(config)))
        });
        made.clone().map_err(BoxError::from)
    }

    fn shard(&self, origin: &Origin) -> MutexGuard<'_, HashMap<Origin, Kept>> {
        let shard = (self.hasher.hash_one(origin) % SHARDS as u64) as usize;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what stays idle. There is a task for that only while something is kept.
    fn reap_later(self: &Arc<Self>) {
        if self.reaping.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = Arc::downgrade(self);
        let timeout = self.idle_timeout;
        self.data.spawn(async move {
            loop {
                tokio::time::sleep(timeout).await;
                let Some(pool) = pool.upgrade() else { return };
                if pool.reap() {
                    continue;
                }
                pool.reaping.store(false, Ordering::Release);
                // Something may have been put between the look and the store.
                if !pool.reap() || pool.reaping.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }

    /// Whether anything is left.
    fn reap(&self) -> bool {
        let now = Instant::now();
        let fresh = |since: Instant| now.duration_since(since) < self.idle_timeout;
        let mut left = false;
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, kept| {
                kept.http1.retain(|(sender, since)| !sender.is_closed() && fresh(*since));
                // A shared connection is renewed now and then; its open streams end on the old one.
                kept.http2.take_if(|(sender, since)| sender.is_closed() || !fresh(*since));
                !kept.http1.is_empty() || kept.http2.is_some()
            });
            left |= !shard.is_empty();
        }
        left
    }

    /// Closes everything that is idle.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

async fn http1_on<IO>(io: IO) -> Result<Http1, BoxError>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(io).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// A copy of a request that may be sent twice: it changes nothing and has no body.
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    if !(request.method().is_safe() && request.body().is_end_stream()) {
        return None;
    }
    let mut copy = Request::new(empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// The request for another try on another connection of the same origin.
fn returned(mut error: TrySendError<Request<Body>>, spare: Option<Request<Body>>) -> Result<Request<Body>, SendError> {
    match error.take_message() {
        Some(request) => Ok(request),
        None => {
            let error = error.into_error();
            let closed = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
            spare.filter(|_| closed).ok_or_else(|| SendError::Broken(error.into()))
        }
    }
}

/// A fresh connection failed.
fn lost(mut error: TrySendError<Request<Body>>) -> SendError {
    match error.take_message() {
        Some(request) => SendError::NotSent(Box::new(request), error.into_error().into()),
        None => SendError::Broken(error.into_error().into()),
    }
}

/// A connection out of the pool.
struct Lease {
    sender: Http1,
    origin: Origin,
    pool: Arc<Upstreams>,
}

impl Lease {
    fn give_back(self) {
        self.pool.put(self.origin, self.sender);
    }
}

/// A response's body; at its end the connection goes back to the pool, broken off it is closed.
pub(crate) struct UpstreamBody {
    body: Incoming,
    /// Boxed: bodies without one are as many, and all are moved about.
    lease: Option<Box<Lease>>,
    _open: Option<Open>,
}

impl UpstreamBody {
    fn give_back_at_end(&mut self) {
        if self.body.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => {
                if let Some(lease) = this.lease.take() {
                    lease.give_back();
                }
            }
            Poll::Ready(Some(Ok(_))) => this.give_back_at_end(),
            Poll::Ready(Some(Err(_))) => this.lease = None,
            Poll::Pending => {}
        }
        polled.map_err(BoxError::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
