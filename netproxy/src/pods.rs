//! The endpoints this node knows, and which of them are pods living in this process. One [`Endpoint`] per address, shared by
//! every Service that has it, so that a pod coming or going is one pointer swap that all of them see at once.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::connections::{Connection, Connections};
use crate::handler::{Body, Handler, HandlerError};
use crate::listener;
use crate::problems::About;
use crate::routes::Protocol;
use crate::shared::Shared;
use crate::web::serve::{self, Target};

/// A place bytes can go to.
pub(crate) struct Endpoint {
    pub(crate) addr: SocketAddr,
    /// The pod, while it lives in this process.
    pod: ArcSwapOption<Pod>,
    /// Connections and requests on their way to it through a socket.
    open: AtomicUsize,
}

/// A pod's HTTP side in this process.
pub(crate) struct Pod {
    handler: Arc<dyn Handler>,
    requests: AtomicUsize,
    stopping: AtomicBool,
    drained: Notify,
}

/// One request in a pod; ends with the response's body.
pub(crate) struct InFlight(Arc<Pod>);

/// One connection or request to an endpoint's socket.
pub(crate) struct Open(Arc<Endpoint>);

impl Endpoint {
    /// The pod, if it is here and takes requests; counts one request.
    pub(crate) fn enter(&self) -> Option<InFlight> {
        self.pod.load_full()?.enter()
    }

    /// The pod, if it is here.
    fn here(&self) -> Option<Arc<Pod>> {
        self.pod.load_full()
    }

    pub(crate) fn is_local(&self) -> bool {
        self.pod.load().is_some()
    }

    /// How busy it is.
    pub(crate) fn load(&self) -> usize {
        self.open.load(Ordering::Relaxed)
            + self.pod.load().as_ref().map_or(0, |pod| pod.requests.load(Ordering::Relaxed))
    }

    pub(crate) fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl InFlight {
    pub(crate) fn call(
        &self,
        request: http::Request<Body>,
    ) -> futures::future::BoxFuture<'static, Result<http::Response<Body>, HandlerError>> {
        self.0.handler.call(request)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.requests.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.stopping.load(Ordering::SeqCst) {
            self.0.drained.notify_waiters();
        }
    }
}

impl Pod {
    pub(crate) fn new(handler: Arc<dyn Handler>) -> Arc<Self> {
        Arc::new(Self {
            handler,
            requests: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            drained: Notify::new(),
        })
    }

    /// Counts one request; None: it takes no more.
    pub(crate) fn enter(self: Arc<Self>) -> Option<InFlight> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let in_flight = InFlight(self);
        // Counted first, looked second: whoever stops it either sees our count or we see its flag.
        (!in_flight.0.stopping.load(Ordering::SeqCst)).then_some(in_flight)
    }

    /// Takes nothing new from now on.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Resolves when stopped and without requests.
    pub(crate) async fn drained(&self) {
        loop {
            let mut drained = pin!(self.drained.notified());
            drained.as_mut().enable();
            if self.stopping.load(Ordering::SeqCst) && self.requests.load(Ordering::SeqCst) == 0 {
                return;
            }
            drained.await;
        }
    }
}

/// Keeps a pod's HTTP side reachable; dropping it deregisters, stops accepting and lets requests in flight finish.
pub struct PodGuard {
    addr: SocketAddr,
    pod: Arc<Pod>,
    shared: Arc<Shared>,
    /// Connections from outside this process, and their listener.
    outside: Option<Outside>,
}

struct Outside {
    stop: CancellationToken,
    connections: Arc<Connections>,
}

/// Registers `handler` at `addr` and listens there if the kernel lets us. Must run inside the data runtime.
pub(crate) fn serve(shared: &Arc<Shared>, addr: SocketAddr, handler: Arc<dyn Handler>) -> PodGuard {
    let listening = listener::bind(shared.local(addr));
    let listening = listening.and_then(|listener| Ok((shared.shown(listener.local_addr()?, Protocol::Tcp), listener)));
    let (addr, listener) = match listening {
        Ok((addr, listener)) => (addr, Some(listener)),
        Err(error) => {
            shared.problems.add(About::Pod(addr), listener::explain("pod address", addr, &error));
            (addr, None)
        }
    };
    serve_on(shared, listener, addr, handler)
}

/// Registers `handler` at `addr` and serves what `listener` brings. Must run inside the data runtime.
pub(crate) fn serve_on(
    shared: &Arc<Shared>,
    listener: Option<TcpListener>,
    addr: SocketAddr,
    handler: Arc<dyn Handler>,
) -> PodGuard {
    let pod = Pod::new(handler);
    shared.endpoints.register(addr, pod.clone());
    let outside = listener.map(|listener| {
        shared.problems.clear(&About::Pod(addr));
        let stop = shared.stop.child_token();
        let connections = Connections::new(shared.limits.listener_connections_max, shared.permits.clone());
        let (owner, served) = (shared.clone(), pod.clone());
        let accepting = listener::accept(
            listener,
            connections.clone(),
            stop.clone(),
            move |stream, peer, connection: Connection| {
                let (shared, target) = (owner.clone(), Target::Pod { addr, pod: served.clone() });
                async move {
                    let asker = shared.shown(peer, Protocol::Tcp).ip();
                    match shared.permits(Some(asker), addr, Protocol::Tcp) {
                        true => serve::connection(&shared, target, stream, &connection).await,
                        false => listener::reset(stream),
                    }
                }
            },
        );
        shared.data.spawn(accepting);
        Outside { stop, connections }
    });
    PodGuard { addr, pod, shared: shared.clone(), outside }
}

/// A connection to the pod at `addr` which no listener has to accept. None: nobody in this process has that address.
pub(crate) async fn connect(shared: &Arc<Shared>, addr: SocketAddr) -> std::io::Result<Option<TcpStream>> {
    let Some(pod) = shared.endpoints.get(addr).and_then(|endpoint| endpoint.here()) else { return Ok(None) };
    let busy = || std::io::Error::new(std::io::ErrorKind::ResourceBusy, "too many connections");
    let connections = shared.service_connections.clone();
    let permit = connections.try_permit().ok_or_else(busy)?;
    let (ours, theirs) = pair().await?;
    let shared = shared.clone();
    shared.data.clone().spawn(async move {
        let connection = connections.enter(permit);
        serve::connection(&shared, Target::Pod { addr, pod }, theirs, &connection).await;
    });
    Ok(Some(ours))
}

/// Two ends of one TCP connection of this process with itself.
pub(crate) async fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let ours = TcpStream::connect(listener.local_addr()?).await?;
    let own = ours.local_addr()?;
    loop {
        let (theirs, peer) = listener.accept().await?;
        // Anybody on this host might have been quicker.
        if peer == own {
            ours.set_nodelay(true)?;
            theirs.set_nodelay(true)?;
            return Ok((ours, theirs));
        }
    }
}

impl PodGuard {
    /// Where it is registered (the actual port if 0 was asked for).
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether connections from outside this process reach it.
    pub fn listening(&self) -> bool {
        self.outside.is_some()
    }

    /// Drops the guard; resolves when no request is in flight any more. Not bounded by itself: wait as long as the pod's grace
    /// period allows, then let go of the future.
    pub fn drain(self) -> impl Future<Output = ()> + Send + 'static {
        let pod = self.pod.clone();
        drop(self);
        async move { pod.drained().await }
    }
}

impl Drop for PodGuard {
    fn drop(&mut self) {
        // First out of sight, then closed: a request that finds it closing looks for another endpoint.
        self.shared.endpoints.deregister(self.addr, &self.pod);
        self.shared.problems.clear(&About::Pod(self.addr));
        self.pod.stop();
        let Some(Outside { stop, connections }) = self.outside.take() else { return };
        stop.cancel();
        connections.finish();
        let timeout = self.shared.limits.drain_timeout;
        self.shared.data.spawn(async move {
            if tokio::time::timeout(timeout, connections.empty()).await.is_err() {
                connections.abort();
            }
        });
    }
}

/// All endpoints by address. Used when routes or pods change and for requests to a pod's address, not per Service request.
#[derive(Default)]
pub(crate) struct Endpoints(Mutex<HashMap<SocketAddr, Arc<Endpoint>>>);

impl Endpoints {
    /// The one endpoint of this address.
    pub(crate) fn at(&self, addr: SocketAddr) -> Arc<Endpoint> {
        let new = || Arc::new(Endpoint { addr, pod: ArcSwapOption::empty(), open: AtomicUsize::new(0) });
        self.lock().entry(addr).or_insert_with(new).clone()
    }

    /// The endpoint, if anyone named it before.
    pub(crate) fn get(&self, addr: SocketAddr) -> Option<Arc<Endpoint>> {
        self.lock().get(&addr).cloned()
    }

    /// Puts `pod` at `addr`; a former one there is only hidden, its guard still ends it.
    pub(crate) fn register(&self, addr: SocketAddr, pod: Arc<Pod>) {
        self.at(addr).pod.store(Some(pod));
    }

    /// Takes `pod` away, unless another has its place already.
    pub(crate) fn deregister(&self, addr: SocketAddr, pod: &Arc<Pod>) {
        let mut all = self.lock();
        let Some(endpoint) = all.get(&addr) else { return };
        if endpoint.pod.load().as_ref().is_some_and(|there| Arc::ptr_eq(there, pod)) {
            endpoint.pod.store(None);
        }
        // Nobody routes to it: forget it.
        if Arc::strong_count(endpoint) == 1 && !endpoint.is_local() {
            all.remove(&addr);
        }
    }

    /// Forgets addresses nobody routes to and nothing is open to.
    pub(crate) fn sweep(&self) {
        self.lock().retain(|_, endpoint| Arc::strong_count(endpoint) > 1 || endpoint.is_local());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Arc<Endpoint>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
