//! The pod network between nodes: packets of pods, from the node they are sent on to the node of their destination.
//!
//! A node ([`Mesh`]) sends a packet to the node that its destination belongs to: over a connection between the two, which the first
//! packet has dialled; until that is up, and where it cannot be, over the master ([`Relay`]). Everything is a QUIC datagram on a
//! connection with both ends' node certificates: nothing waits for a lost packet, nothing is in the clear, and what does not
//! fit is dropped and counted. docs/protocol.md is the protocol.
//!
//! ```text
//! table      address -> node                          pure
//! frame      packet <-> datagrams                     pure
//! peer       when to dial, which connection to use    pure
//! endpoint   the UDP socket and its certificates
//! keeper     drives the peers
//! relay      the master's part
//! ```
//! Deliberately absent: the device that packets come from (the agent's), and who may talk to whom (NetworkPolicy).

mod counters;
mod endpoint;
mod frame;
mod keeper;
mod peer;
mod relay;
mod table;
#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use endpoint::ALPN;
pub use frame::{HEAD_BYTES, PACKET_BYTES_MAX};
pub use relay::{Attached, Relay, networks};
pub use table::{Network, NetworkError};

use crate::tls::TlsError;
use crate::{Bulk, Identity, SendError};
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::{Bytes, BytesMut};
use counters::Counting;
use frame::{Assembled, Assembly, Ends};
use futures::FutureExt;
use futures::future::BoxFuture;
use quinn::SendDatagramError;
use rustls_pki_types::CertificateDer;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Instant;
use table::Table;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Where a node's socket is unless it is told otherwise: the same after a restart, so that nodes find each other without a master.
pub const PORT: u16 = 6444;
/// Largest packet that a device should send, bytes: on a usual path it fits one datagram.
pub const DEVICE_MTU: u16 = 1380;
/// Packets delivered at once.
const BATCH_MAX: usize = 64;
/// What the keeper has not looked at yet.
const NEWS_MAX: usize = 256;

/// What a node's mesh is made of.
pub struct Config {
    /// The node's name, as in its certificate.
    pub node: String,
    /// The node's part of the pod network.
    pub networks: Vec<Network>,
    /// UDP port of the socket; 0 takes a free one. When another process has it, a free one is taken.
    pub port: u16,
    /// The node's certificate, as it is renewed.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The authority that signs nodes' certificates.
    pub node_ca: CertificateDer<'static>,
    /// The way over the master.
    pub bulk: Bulk,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its name, as in its certificate.
    pub name: String,
    /// Its part of the pod network.
    pub networks: Vec<Network>,
    /// Where its socket may be reached; none: only over the master.
    pub endpoints: Vec<SocketAddr>,
}

/// Why there is no mesh.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The socket.
    #[error("open the UDP socket of the pod network")]
    Socket(#[source] io::Error),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The crypto has not what QUIC needs.
    #[error("QUIC needs TLS 1.3 with AES-128-GCM")]
    Suite,
    /// Not an address to dial.
    #[error("dial a node")]
    Connect(#[source] quinn::ConnectError),
    /// The connection failed.
    #[error("connect to a node")]
    Connection(#[source] quinn::ConnectionError),
}

/// Takes packets that have arrived for pods of this node.
pub trait Deliver: Send + Sync + 'static {
    /// Each is one IPv4 packet, from an address of the node that sent it to one of this node. Until the answer, the connection they
    /// came from is not read.
    fn deliver<'a>(&'a self, packets: &'a [Bytes]) -> BoxFuture<'a, ()>;
}

/// A node's end of the pod network. Clones share it.
#[derive(Clone)]
pub struct Mesh(Arc<Inner>);

struct Inner {
    config: Config,
    endpoint: quinn::Endpoint,
    deliver: Box<dyn Deliver>,
    table: ArcSwap<Table<Arc<Lane>>>,
    neighbours: watch::Sender<Vec<Neighbour>>,
    news: mpsc::Sender<keeper::News>,
    next_id: AtomicU16,
    counting: Counting,
    shutdown: CancellationToken,
    /// The others have been told of the shutdown.
    done: CancellationToken,
}

/// The way to one node.
struct Lane {
    name: Arc<str>,
    networks: Vec<Network>,
    /// The connection there is; none: the relay only.
    direct: ArcSwapOption<Direct>,
    /// Whether the next packet is to be told to the keeper.
    is_armed: AtomicBool,
    /// Whether it could not be dialled lately.
    is_out_of_reach: AtomicBool,
}

/// A connection to a node.
struct Direct {
    connection: quinn::Connection,
    /// It does not answer: the relay is better, if there is one.
    is_suspect: bool,
}

impl Mesh {
    /// Opens the socket and keeps connections, until `shutdown`. Must be called on the tokio runtime where packets are moved.
    ///
    /// # Errors
    /// When there is no socket, or the certificate cannot be used.
    pub fn start(config: Config, deliver: impl Deliver, shutdown: CancellationToken) -> Result<Self, MeshError> {
        let identity = config.identity.borrow().clone();
        let endpoint = endpoint::open(&config, &identity)?;
        let (news, coming) = mpsc::channel(NEWS_MAX);
        let mesh = Self(Arc::new(Inner {
            config,
            endpoint,
            deliver: Box::new(deliver),
            table: ArcSwap::default(),
            neighbours: watch::Sender::new(Vec::new()),
            news,
            next_id: AtomicU16::new(0),
            counting: Counting::default(),
            shutdown,
            done: CancellationToken::new(),
        }));
        keeper::start(&mesh.0, coming);
        let inner = mesh.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = inner.shutdown.cancelled() => {}
                () = inner.receive_relayed() => {}
            }
        });
        Ok(mesh)
    }

    /// The other nodes, in place of those before. Connections to nodes that are not among them end, and from them are refused.
    pub fn set_neighbours(&self, neighbours: Vec<Neighbour>) {
        self.0.neighbours.send_if_modified(|known| {
            let is_new = *known != neighbours;
            *known = neighbours;
            is_new
        });
    }

    /// The UDP port of the socket.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn port(&self) -> io::Result<u16> {
        self.0.endpoint.local_addr().map(|address| address.port())
    }

    /// Sends a packet that has [`HEAD_BYTES`] of room in front. Never waits: what cannot leave is dropped and counted. Where that is
    /// because neither the node it is for nor the master can be had, the packet is returned.
    pub fn send(&self, room_and_packet: BytesMut) -> Option<Bytes> {
        self.0.send(room_and_packet)
    }

    /// The nodes to which there is a connection that is used now.
    pub fn connected(&self) -> Vec<String> {
        let table = self.0.table.load();
        let lanes = table.values().filter(|lane| lane.direct.load().as_ref().is_some_and(|direct| !direct.is_suspect));
        let mut names: Vec<String> = lanes.map(|lane| lane.name.to_string()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Waits, after the shutdown, until the others have been told of it, but not for long.
    pub async fn closed(&self) {
        self.0.done.cancelled().await;
    }

    /// What went where and what was dropped.
    pub fn counters(&self) -> Counters {
        self.0.counting.read()
    }
}

impl Inner {
    fn send(&self, room_and_packet: BytesMut) -> Option<Bytes> {
        let packet = room_and_packet.get(HEAD_BYTES..).and_then(frame::whole_ends);
        let Some(Ends { source, destination }) = packet else {
            self.counting.dropped_malformed.add();
            return None;
        };
        if !self.is_ours(source) {
            self.counting.dropped_source.add();
            return None;
        }
        let table = self.table.load();
        let Some(lane) = table.find(destination) else {
            self.counting.dropped_destination.add();
            return None;
        };
        let frame = frame::whole(room_and_packet, self.next_id.fetch_add(1, Ordering::Relaxed));
        if lane.is_armed.load(Ordering::Relaxed) && lane.is_armed.swap(false, Ordering::Relaxed) {
            // the keeper is asked again when it has had no room
            let told = self.news.try_send(keeper::News::Wanted(lane.name.clone()));
            lane.is_armed.fetch_or(told.is_err(), Ordering::Relaxed);
        }
        let direct = lane.direct.load();
        let send_direct =
            |frame: &Bytes| direct.as_ref().is_some_and(|direct| send_direct(&direct.connection, frame.clone()));
        if direct.as_ref().is_some_and(|direct| !direct.is_suspect) && send_direct(&frame) {
            self.counting.sent_direct.add();
            return None;
        }
        match relay::send(&self.config.bulk, frame.clone()) {
            Ok(()) => self.counting.sent_relayed.add(),
            Err(SendError::Down) if send_direct(&frame) => self.counting.sent_direct.add(),
            Err(error) => {
                self.counting.dropped_link.add();
                let is_hopeless = matches!(error, SendError::Down) && lane.is_out_of_reach.load(Ordering::Relaxed);
                return is_hopeless.then(|| frame.slice(HEAD_BYTES..));
            }
        }
        None
    }

    fn is_ours(&self, address: Ipv4Addr) -> bool {
        self.config.networks.iter().any(|network| network.contains(address))
    }

    /// Delivers what comes over a connection, until it ends.
    async fn receive(&self, connection: &quinn::Connection, lane: &Lane) {
        let mut assembly = Assembly::default();
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while let Ok(first) = connection.read_datagram().await {
            let mut next = Some(first);
            while let Some(frame) = next.take() {
                let is_theirs = |source| lane.networks.iter().any(|network| network.contains(source));
                if let Some(packet) = self.check(&mut assembly, &frame, is_theirs) {
                    self.counting.received_direct.add();
                    batch.push(packet);
                }
                if batch.len() < BATCH_MAX {
                    next = connection.read_datagram().now_or_never().and_then(Result::ok);
                }
            }
            self.deliver.deliver(&batch).await;
            batch.clear();
        }
    }

    /// Delivers what comes over the master, which has checked whose it is.
    async fn receive_relayed(&self) {
        let mut assembly = Assembly::default();
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while let Some(first) = self.config.bulk.recv().await {
            let mut next = Some(first);
            while let Some(frame) = next.take() {
                if let Some(packet) = self.check(&mut assembly, &frame, |source| !self.is_ours(source)) {
                    self.counting.received_relayed.add();
                    batch.push(packet);
                }
                if batch.len() < BATCH_MAX {
                    next = self.config.bulk.recv().now_or_never().flatten();
                }
            }
            self.deliver.deliver(&batch).await;
            batch.clear();
        }
    }

    fn check(&self, assembly: &mut Assembly, frame: &Bytes, is_theirs: impl Fn(Ipv4Addr) -> bool) -> Option<Bytes> {
        let (ends, packet) = match assembly.take(frame, Instant::now()) {
            Assembled::Packet(ends, packet) => (ends, packet),
            Assembled::Awaited => return None,
            Assembled::Malformed => {
                self.counting.dropped_malformed.add();
                return None;
            }
        };
        if !is_theirs(ends.source) {
            self.counting.dropped_source.add();
        } else if !self.is_ours(ends.destination) {
            self.counting.dropped_destination.add();
        } else {
            return Some(packet);
        }
        None
    }
}

/// Sends a frame, in two where it is too large for the path; `false` when the connection does not take it.
fn send_direct(connection: &quinn::Connection, frame: Bytes) -> bool {
    match connection.send_datagram(frame.clone()) {
        Ok(()) => true,
        Err(SendDatagramError::TooLarge) => frame::cut(&frame)
            .is_some_and(|[one, two]| connection.send_datagram(one).is_ok() && connection.send_datagram(two).is_ok()),
        Err(_) => false,
    }
}
