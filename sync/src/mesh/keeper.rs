//! Drives the peers: their dials, their connections, their clocks. One task; connections have one each.

use super::endpoint;
use super::peer::{Act, LinkId, Path, Peer, Sample, Why};
use super::table::Table;
use super::{Direct, Inner, Lane, MeshError, Neighbour};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quinn::{Connection, VarInt};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

/// How often connections in use are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often the others are.
const GLANCE: Duration = Duration::from_secs(15);
/// Handshakes under way that others began.
const HANDSHAKES_MAX: usize = 64;
/// A handshake is done by then.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Of a node's endpoints, those tried.
const ENDPOINTS_MAX: usize = 8;
/// The next endpoint is tried beside one that has not answered by then.
const STAGGER: Duration = Duration::from_millis(250);

/// What happens, to the keeper.
pub(super) enum News {
    /// A packet goes to this node, for the first time in a while.
    Wanted(Arc<str>),
    /// A dial has ended.
    Dialled(Arc<str>, Result<Connection, MeshError>),
    /// A node has dialled.
    Accepted(String, Connection),
    /// A connection has ended.
    Closed(Arc<str>, LinkId),
}

/// Why connections are closed, on the wire.
fn code(why: Why) -> VarInt {
    VarInt::from_u32(match why {
        Why::Duplicate => 1,
        Why::Idle => 2,
    })
}
const NOT_A_NEIGHBOUR: VarInt = VarInt::from_u32(3);
const SHUTDOWN: VarInt = VarInt::from_u32(0);

struct Known {
    peer: Peer,
    lane: Arc<Lane>,
    endpoints: Vec<SocketAddr>,
    links: HashMap<LinkId, Link>,
}

struct Link {
    connection: Connection,
    reader: AbortHandle,
}

struct Keeper {
    inner: Arc<Inner>,
    known: HashMap<Arc<str>, Known>,
    next_link: LinkId,
    looked_at: Instant,
}

/// Starts the tasks of a mesh.
pub(super) fn start(inner: &Arc<Inner>, coming: mpsc::Receiver<News>) {
    let keeper = Keeper { inner: inner.clone(), known: HashMap::new(), next_link: 0, looked_at: Instant::now() };
    tokio::spawn(keeper.run(coming));
    tokio::spawn(accept(inner.clone()));
    tokio::spawn(renew(inner.clone()));
}

/// Shows renewed certificates from their coming on.
async fn renew(inner: Arc<Inner>) {
    let mut identity = inner.config.identity.clone();
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            changed = identity.changed() => if changed.is_err() { return },
        }
        let renewed = identity.borrow_and_update().clone();
        match endpoint::server_config(&renewed, &inner.config.node_ca) {
            Ok(config) => inner.endpoint.set_server_config(Some(config)),
            Err(error) => tracing::warn!(%error, "the pod network keeps its old certificate"),
        }
    }
}

/// Answers those who dial. Who has not shown that packets reach it is asked to, so nobody is made to answer for another.
async fn accept(inner: Arc<Inner>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = inner.endpoint.accept().await {
        if !incoming.remote_address_validated() && incoming.may_retry() {
            // it may, so this cannot fail
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = room.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let inner = inner.clone();
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            let Ok(connecting) = incoming.accept() else { return };
            match tokio::time::timeout(HANDSHAKE_MAX, connecting).await {
                Ok(Ok(connection)) => {
                    let Some(name) = endpoint::peer_name(&connection) else {
                        return connection.close(NOT_A_NEIGHBOUR, b"not a node");
                    };
                    // the keeper is gone at shutdown only
                    let _ = inner.news.send(News::Accepted(name, connection)).await;
                }
                Ok(Err(error)) => tracing::debug!(%remote, %error, "a node's connection refused"),
                Err(_) => tracing::debug!(%remote, "a node's handshake took too long"),
            }
            drop(permit);
        });
    }
}

impl Keeper {
    async fn run(mut self, mut coming: mpsc::Receiver<News>) {
        let mut neighbours = self.inner.neighbours.subscribe();
        // some may have been told before
        neighbours.mark_changed();
        let shutdown = self.inner.shutdown.clone();
        loop {
            let wake = self.wake_at(Instant::now()).map(tokio::time::Instant::from_std);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                changed = neighbours.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let neighbours = neighbours.borrow_and_update().clone();
                    self.set_neighbours(neighbours);
                }
                news = coming.recv() => match news {
                    Some(news) => self.hear(news),
                    None => break,
                },
                () = sleep_until(wake) => self.look(),
            }
        }
        let _done = self.inner.done.clone().drop_guard();
        self.inner.endpoint.close(SHUTDOWN, b"shutdown");
        // so that the others hear of it, but not for long
        let _ = tokio::time::timeout(Duration::from_secs(1), self.inner.endpoint.wait_idle()).await;
    }

    /// When something is to be done by time alone.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let of = |known: &Known| {
            let look = match known.links.is_empty() {
                true => None,
                false => Some(self.looked_at + if known.peer.is_busy(now) { LOOK } else { GLANCE }),
            };
            look.into_iter().chain(known.peer.dialable_at()).min()
        };
        self.known.values().filter_map(of).min()
    }

    fn set_neighbours(&mut self, neighbours: Vec<Neighbour>) {
        let mut before = std::mem::take(&mut self.known);
        for Neighbour { name, networks, mut endpoints } in neighbours {
            if name == self.inner.config.node {
                continue;
            }
            endpoints.truncate(ENDPOINTS_MAX);
            let name: Arc<str> = name.into();
            let mut known = before.remove(&name).unwrap_or_else(|| Known {
                peer: Peer::new(&self.inner.config.node, &name),
                lane: Arc::new(Lane::new(name.clone(), Vec::new())),
                endpoints: Vec::new(),
                links: HashMap::new(),
            });
            if known.lane.networks != networks {
                known.lane = Arc::new(Lane::new(name.clone(), networks));
                // their readers check against the old ones
                self.close_all(&mut known);
            }
            known.endpoints.clone_from(&endpoints);
            known.peer.set_endpoints(endpoints);
            self.known.insert(name, known);
        }
        for (name, mut gone) in before {
            tracing::debug!(node = %name, "no neighbour any more");
            self.close_all(&mut gone);
        }
        let rows = self
            .known
            .values()
            .flat_map(|known| known.lane.networks.iter().map(|network| (*network, known.lane.clone())));
        let (table, refused) = Table::new(rows);
        for network in refused {
            tracing::warn!(%network, "a pod network overlaps with another node's; nothing is sent there");
        }
        self.inner.table.store(Arc::new(table));
        let names: Vec<_> = self.known.keys().cloned().collect();
        for name in names {
            self.settle(&name);
        }
    }

    fn close_all(&self, known: &mut Known) {
        let now = Instant::now();
        for (id, link) in known.links.drain() {
            link.connection.close(NOT_A_NEIGHBOUR, b"not a neighbour");
            link.reader.abort();
            known.peer.closed(now, id);
        }
        known.lane.direct.store(None);
    }

    fn hear(&mut self, news: News) {
        let now = Instant::now();
        let name = match news {
            News::Wanted(name) => {
                if let Some(Act::Dial(endpoints)) = self.known.get_mut(&name).and_then(|known| known.peer.wanted(now)) {
                    self.dial(name.clone(), endpoints);
                }
                // a connection that was not used may have died
                self.look();
                name
            }
            News::Dialled(name, Ok(connection)) => {
                self.connected(&name, connection, true);
                name
            }
            News::Dialled(name, Err(error)) => {
                tracing::debug!(node = %name, error = &error as &dyn std::error::Error, "not reached directly");
                if let Some(known) = self.known.get_mut(&name) {
                    known.peer.dial_failed(now);
                }
                name
            }
            News::Accepted(name, connection) => {
                let name = name.into();
                self.connected(&name, connection, false);
                name
            }
            News::Closed(name, id) => {
                if let Some(known) = self.known.get_mut(&name) {
                    known.links.remove(&id);
                    known.peer.closed(now, id);
                }
                name
            }
        };
        self.settle(&name);
    }

    fn connected(&mut self, name: &Arc<str>, connection: Connection, by_us: bool) {
        let Some(known) = self.known.get_mut(name) else {
            tracing::debug!(node = %name, "a connection of a node that is not known here refused");
            return connection.close(NOT_A_NEIGHBOUR, b"not a neighbour");
        };
        self.next_link += 1;
        let id = self.next_link;
        tracing::debug!(node = %name, remote = %connection.remote_address(), by_us, "connected directly");
        let reader = tokio::spawn(read(self.inner.clone(), connection.clone(), known.lane.clone(), id)).abort_handle();
        known.links.insert(id, Link { connection, reader });
        let act = known.peer.connected(Instant::now(), id, by_us);
        known.act(act);
    }

    /// Looks at the counts of all connections, and at whose wait is over.
    fn look(&mut self) {
        let now = Instant::now();
        self.looked_at = now;
        for known in self.known.values_mut() {
            known.peer.waited(now);
            let samples: Vec<_> = known.links.iter().map(|(id, link)| (*id, sample(&link.connection))).collect();
            for (id, sample) in samples {
                let act = known.peer.sample(now, id, sample);
                known.act(act);
            }
            known.show(now);
        }
    }

    fn settle(&mut self, name: &Arc<str>) {
        if let Some(known) = self.known.get(name) {
            known.show(Instant::now());
        }
    }

    fn dial(&self, name: Arc<str>, endpoints: Vec<SocketAddr>) {
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let dialled = tokio::select! {
                () = inner.shutdown.cancelled() => return,
                dialled = tokio::time::timeout(HANDSHAKE_MAX, dial_any(&inner, &name, &endpoints)) => dialled,
            };
            let dialled = dialled.unwrap_or(Err(MeshError::Connection(quinn::ConnectionError::TimedOut)));
            // the keeper is gone at shutdown only
            let _ = inner.news.send(News::Dialled(name, dialled)).await;
        });
    }
}

impl Known {
    fn act(&mut self, act: Option<Act>) {
        let Some(Act::Close(id, why)) = act else { return };
        // its reader tells when it has ended
        if let Some(link) = self.links.get(&id) {
            link.connection.close(code(why), b"");
        }
    }

    /// Shows senders where packets go now.
    fn show(&self, now: Instant) {
        let link = self.peer.link().and_then(|id| self.links.get(&id));
        let direct = link
            .map(|link| Direct { connection: link.connection.clone(), is_suspect: self.peer.path() == Path::Relay });
        let told = |direct: &Direct| (direct.connection.stable_id(), direct.is_suspect);
        if self.lane.direct.load().as_deref().map(told) != direct.as_ref().map(told) {
            let is_direct = self.peer.path() != Path::Relay;
            tracing::debug!(node = %self.lane.name, is_direct, "path changed");
            self.lane.direct.store(direct.map(Arc::new));
        }
        self.lane.is_armed.store(self.peer.is_curious(now), Ordering::Relaxed);
        self.lane.is_out_of_reach.store(self.peer.is_out_of_reach(), Ordering::Relaxed);
    }
}

impl Lane {
    fn new(name: Arc<str>, networks: Vec<super::Network>) -> Self {
        Self {
            name,
            networks,
            direct: None.into(),
            is_armed: AtomicBool::new(false),
            is_out_of_reach: AtomicBool::new(false),
        }
    }
}

fn sample(connection: &Connection) -> Sample {
    let stats = connection.stats();
    Sample {
        sent: stats.frame_tx.datagram + stats.frame_tx.ping,
        answers: stats.frame_rx.acks,
        packets: stats.frame_tx.datagram + stats.frame_rx.datagram,
        round_trip: stats.path.rtt,
    }
}

/// Reads a connection until it ends, and tells the keeper.
async fn read(inner: Arc<Inner>, connection: Connection, lane: Arc<Lane>, id: LinkId) {
    inner.receive(&connection, &lane).await;
    let reason = connection.close_reason();
    tracing::debug!(node = %lane.name, reason = reason.map(|reason| reason.to_string()), "a direct connection has ended");
    // the keeper is gone at shutdown only
    let _ = inner.news.send(News::Closed(lane.name.clone(), id)).await;
}

/// The first of the endpoints that answers as the node called `name`.
async fn dial_any(inner: &Inner, name: &str, endpoints: &[SocketAddr]) -> Result<Connection, MeshError> {
    let identity = inner.config.identity.borrow().clone();
    let (identity, mut dials) = (&identity, FuturesUnordered::new());
    for (place, address) in endpoints.iter().enumerate() {
        dials.push(async move {
            tokio::time::sleep(STAGGER * u32::try_from(place).unwrap_or(u32::MAX)).await;
            endpoint::dial(&inner.endpoint, identity, &inner.config.node_ca, name, *address).await
        });
    }
    let mut last = Err(MeshError::Connection(quinn::ConnectionError::TimedOut));
    while let Some(dialled) = dials.next().await {
        if dialled.is_ok() {
            return dialled;
        }
        last = dialled;
    }
    last
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
