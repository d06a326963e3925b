//! UDP Services: a session per client, pinned to one endpoint by a connected socket of its own, ended when idle or when its
//! endpoint is gone. Sessions are bounded; the one idle longest makes room.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::balance::{Among, Way};
use crate::pods::Endpoint;
use crate::routes::Protocol;
use crate::shared::Shared;

/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65535;

struct Session {
    upstream: Arc<UdpSocket>,
    endpoint: SocketAddr,
    /// Milliseconds since `Sessions::start` of the last packet, either way.
    used: Arc<AtomicU64>,
    stop: CancellationToken,
}

struct Sessions {
    open: Mutex<HashMap<SocketAddr, Session>>,
    start: Instant,
}

/// Binds; must run inside the runtime that shall serve it.
pub(crate) fn bind(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(addr)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Carries datagrams until `stop`, each the way that there is then.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    socket: UdpSocket,
    way: impl Fn() -> Option<Way>,
    stop: CancellationToken,
) {
    let socket = Arc::new(socket);
    let sessions = Arc::new(Sessions { open: Mutex::default(), start: Instant::now() });
    let work = async {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
            let Some(way) = way() else { continue };
            if let Some(upstream) = session(&shared, &socket, &way, &sessions, client, &stop).await {
                // A datagram may be lost; an error here is the endpoint's port unreachable.
                let _ = upstream.send(&buffer[..length]).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// The client's session, a new one if it has none whose endpoint is still ready.
async fn session(
    shared: &Arc<Shared>,
    socket: &Arc<UdpSocket>,
    way: &Way,
    sessions: &Arc<Sessions>,
    client: SocketAddr,
    stop: &CancellationToken,
) -> Option<Arc<UdpSocket>> {
    let from = shared.shown(client, Protocol::Udp).ip();
    if let Some(upstream) = sessions.existing(client, from, way) {
        return Some(upstream);
    }
    if !way.admits(from) {
        return None;
    }
    let is_self = socket.local_addr().is_ok_and(|local| local.ip() == client.ip());
    let endpoint = choose(shared, way, from, (!is_self).then_some(from))?;
    let upstream = Arc::new(shared.connect_udp(endpoint.addr).await.ok()?);
    let session = Session {
        upstream: upstream.clone(),
        endpoint: endpoint.addr,
        used: Arc::new(AtomicU64::new(sessions.now())),
        stop: stop.child_token(),
    };
    let back = Back {
        socket: socket.clone(),
        upstream: upstream.clone(),
        client,
        used: session.used.clone(),
        sessions: sessions.clone(),
        idle: Duration::from_secs(shared.limits.udp_idle_seconds),
    };
    let stop = session.stop.clone();
    sessions.add(client, session, shared.limits.udp_sessions_max);
    tokio::spawn(async move {
        let _open = endpoint.open();
        tokio::select! {
            () = stop.cancelled() => {}
            () = back.run() => {}
        }
    });
    Some(upstream)
}

/// An endpoint that policies let the asker reach. A client that has the Service's own address is a socket of this node that named none,
/// and no asker: whose it is cannot be told here, and was judged before if it is a pod's.
fn choose(shared: &Shared, way: &Way, client: IpAddr, asker: Option<IpAddr>) -> Option<Arc<Endpoint>> {
    let mut refused = Vec::new();
    loop {
        let endpoint = way.choose(Among::All, &refused, Some(client))?;
        if shared.permits(asker, endpoint.addr, Protocol::Udp) {
            return Some(endpoint);
        }
        refused.push(endpoint.addr);
    }
}

/// The way back of one session.
struct Back {
    socket: Arc<UdpSocket>,
    upstream: Arc<UdpSocket>,
    client: SocketAddr,
    used: Arc<AtomicU64>,
    sessions: Arc<Sessions>,
    idle: Duration,
}

impl Back {
    async fn run(self) {
        loop {
            let idle_ms = self.sessions.now().saturating_sub(self.used.load(Ordering::Relaxed));
            let left = self.idle.saturating_sub(Duration::from_millis(idle_ms));
            if left.is_zero() {
                break;
            }
            let Ok(ready) = tokio::time::timeout(left, self.upstream.readable()).await else { continue };
            if ready.is_err() || self.pass_on().await.is_err() {
                break;
            }
        }
        self.sessions.remove(self.client, &self.upstream);
    }

    /// Passes on what has come. The buffer lives only that long: an idle session has none.
    async fn pass_on(&self) -> std::io::Result<()> {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match self.upstream.try_recv(&mut buffer) {
                Ok(length) => {
                    self.used.store(self.sessions.now(), Ordering::Relaxed);
                    let _ = self.socket.send_to(&buffer[..length], self.client).await;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Sessions {
    /// The session of a client, whose address is `from` to the cluster.
    fn existing(&self, client: SocketAddr, from: IpAddr, way: &Way) -> Option<Arc<UdpSocket>> {
        let mut open = self.lock();
        let session = open.get(&client)?;
        if !way.has(session.endpoint) || !way.admits(from) {
            session.stop.cancel();
            open.remove(&client);
            return None;
        }
        session.used.store(self.now(), Ordering::Relaxed);
        Some(session.upstream.clone())
    }

    fn add(&self, client: SocketAddr, session: Session, sessions_max: usize) {
        let mut open = self.lock();
        if open.len() >= sessions_max {
            let oldest = open.iter().min_by_key(|(_, session)| session.used.load(Ordering::Relaxed)).map(|(at, _)| *at);
            if let Some(session) = oldest.and_then(|at| open.remove(&at)) {
                session.stop.cancel();
            }
        }
        open.insert(client, session);
    }

    fn remove(&self, client: SocketAddr, upstream: &Arc<UdpSocket>) {
        let mut open = self.lock();
        if open.get(&client).is_some_and(|session| Arc::ptr_eq(&session.upstream, upstream)) {
            open.remove(&client);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
