//! The pod network in user space, for a node that may not configure the kernel's: packets from other nodes end here, and
//! connections to other nodes' pods begin here.
//!
//! Pods have kernel sockets in this machine's 127.0.0.0/8 ([`Loopback`]). A connection from elsewhere is accepted here and copied to
//! the pod's socket, from a socket that is bound to the place of whoever connects, so that the pod sees who that is. What a pod
//! connects to elsewhere is, on this machine, a listener at that pod's place, made when it is asked for.
//!
//! ```text
//! packet    packets taken apart and made           pure
//! tcp       one connection: smoltcp on one side, a socket on the other, a task for each
//! listen    the places of pods elsewhere, for TCP
//! udp       the same for datagrams, both ways
//! ```
//! Everything is bounded; what is too much is dropped or refused. Policies are asked when a connection or an exchange of datagrams begins,
//! by the cluster's addresses. Deliberately absent: how packets travel.

mod listen;
mod packet;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use super::{Cidr, Loopback};
use crate::policy::Table as Policies;
use crate::routes::Protocol;
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::{Bytes, BytesMut};
use packet::{Fragments, Packet};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

/// Connections at once, both ways together; each may have 256 KiB on the way.
const CONNECTIONS_MAX: usize = 1024;
/// Packets of a connection that its task has not looked at yet.
const INBOX_PACKETS_MAX: usize = 256;
/// Ports for connections whose own is taken, from here on.
const FIRST_PORT: u16 = 32_768;
/// A pod's socket takes a connection by then, or not.
const POD_PATIENCE: Duration = Duration::from_secs(3);
/// Free ports that are looked for.
const PORT_TRIES_MAX: usize = 64;

/// How to make a [`Stack`].
pub struct StackConfig {
    /// The network of all pods.
    pub cluster: Cidr,
    /// This node's part. Its first address is the node's own.
    pub own: Cidr,
    /// Where they are on this machine.
    pub loopback: Loopback,
    /// Largest packet, bytes.
    pub mtu: u16,
    /// Bytes of room in front of each packet that goes out.
    pub headroom: usize,
    /// Runtime where bytes are carried.
    pub data: tokio::runtime::Handle,
}

/// Takes packets for other nodes, each behind its room, and says whether its node is within reach. Must not wait.
pub type Outlet = Box<dyn Fn(BytesMut) -> bool + Send + Sync>;

/// A node's pod network in user space. Clones share it.
#[derive(Clone)]
pub struct Stack(Arc<Inner>);

struct Inner {
    config: StackConfig,
    node: Ipv4Addr,
    outlet: ArcSwapOption<Outlet>,
    /// Who may talk to whom: the node's table, which the proxy is given too.
    policies: Arc<ArcSwap<Policies>>,
    flows: Mutex<HashMap<Flow, mpsc::Sender<Bytes>>>,
    listening: listen::Table,
    relays: udp::Table,
    /// Pods elsewhere by the places that are not theirs, since somebody has those.
    aliases: Mutex<HashMap<(Protocol, SocketAddr), SocketAddrV4>>,
    fragments: Mutex<Fragments>,
    /// Pods by the ports of those of their datagram sockets that are bound to no address.
    senders: Mutex<HashMap<u16, Ipv4Addr>>,
    next_id: AtomicU16,
    next_port: AtomicU16,
}

/// The two ends of a TCP connection, as the cluster sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    here: SocketAddrV4,
    there: SocketAddrV4,
}

/// A flow's place in the table; given back when dropped.
struct Held {
    stack: Arc<Inner>,
    flow: Flow,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.stack.flows).remove(&self.flow);
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("own", &self.0.config.own).finish_non_exhaustive()
    }
}

impl Stack {
    /// One without a way to other nodes: [`Stack::attach`] gives it that.
    pub fn new(config: StackConfig) -> Self {
        let node = match config.own.address {
            IpAddr::V4(first) => first,
            // no packet is for such a node
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let port = FIRST_PORT | (RandomState::new().hash_one(node) as u16);
        Self(Arc::new(Inner {
            config,
            node,
            outlet: ArcSwapOption::empty(),
            policies: Arc::default(),
            flows: Mutex::default(),
            listening: listen::Table::default(),
            relays: udp::Table::default(),
            aliases: Mutex::default(),
            fragments: Mutex::default(),
            senders: Mutex::default(),
            next_id: AtomicU16::new(0),
            next_port: AtomicU16::new(port),
        }))
    }

    /// Where packets go from now on; without, they are dropped, and what is open waits.
    pub fn attach(&self, outlet: Option<Outlet>) {
        self.0.outlet.store(outlet.map(Arc::new));
    }

    /// Who may talk to whom, to be kept as it is: nobody is kept from anything at first.
    pub(crate) fn policies(&self) -> Arc<ArcSwap<Policies>> {
        self.0.policies.clone()
    }

    /// Takes a packet that has come for this node.
    pub async fn deliver(&self, packet: &Bytes) {
        let read = packet::read(packet, &mut lock(&self.0.fragments), self.0.config.headroom, Instant::now());
        match read {
            Some(Packet::Tcp { from, to, opens, resets }) => {
                let flow = Flow { here: to, there: from };
                if let Some(inbox) = lock(&self.0.flows).get(&flow) {
                    // TCP mends what is lost
                    let _ = inbox.try_send(packet.clone());
                } else if opens {
                    self.accept(flow, packet.clone());
                } else if !resets {
                    tcp::refuse(&self.0, flow, packet.clone());
                }
            }
            Some(Packet::Udp { from, to, payload }) => udp::take(&self.0, from, to, &payload).await,
            Some(Packet::Echo(reply)) => {
                self.0.emit(reply);
            }
            None => {}
        }
    }

    /// Where on this machine an address of the cluster is; others stay as they are.
    pub fn local(&self, address: SocketAddr) -> SocketAddr {
        self.0.config.loopback.local(address)
    }

    /// The reverse of [`Stack::local`]; for datagrams also who it is that sends from a socket which [`Stack::sends_from`] told of.
    pub fn shown(&self, address: SocketAddr, protocol: Protocol) -> SocketAddr {
        if protocol == Protocol::Udp
            && address.ip() == Ipv4Addr::LOCALHOST
            && let Some(pod) = lock(&self.0.senders).get(&address.port())
        {
            return (*pod, address.port()).into();
        }
        match lock(&self.0.aliases).get(&(protocol, address)) {
            Some(there) => (*there).into(),
            None => self.0.config.loopback.shown(address),
        }
    }

    /// Whether an address is of the cluster's networks, so that it is somewhere in 127.0.0.0/8 here.
    pub fn is_cluster(&self, address: IpAddr) -> bool {
        self.0.config.loopback.has(address)
    }

    /// Where on this machine `to` is reached: for a pod elsewhere, a listener or socket is there from now on, for as long as it is
    /// used.
    pub fn reach(&self, to: SocketAddr, protocol: Protocol) -> SocketAddr {
        if let Some(there) = self.0.elsewhere(to) {
            let made = match protocol {
                Protocol::Tcp => listen::ensure(&self.0, there),
                Protocol::Udp => udp::ensure(&self.0, there).map(|(place, _)| place),
            };
            match made {
                Ok(place) => return place,
                Err(error) => tracing::warn!(%to, %error, "a pod of another node is not reached"),
            }
        }
        match protocol {
            Protocol::Tcp => self.local(to),
            Protocol::Udp => self.0.hears(to),
        }
    }

    /// A pod's datagram socket is bound to this port of every address, so that the kernel takes localhost for its own.
    pub fn sends_from(&self, pod: IpAddr, port: u16) {
        if let IpAddr::V4(pod) = pod {
            lock(&self.0.senders).insert(port, pod);
        }
    }

    /// A datagram socket is bound to the address and this port: an earlier one of every address is no more.
    pub fn is_bound(&self, port: u16) {
        lock(&self.0.senders).remove(&port);
    }

    /// The node's own address, as a place to send from.
    pub fn node(&self) -> SocketAddr {
        self.local((self.0.node, 0).into())
    }

    /// A connection from the node itself to any address. Policies do not ask about a node: who speaks for a pod has asked them before.
    ///
    /// # Errors
    /// As connecting a socket; `HostUnreachable` at once where the other node is out of reach.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let Some(there) = self.0.elsewhere(to) else {
            return match self.is_cluster(to.ip()) {
                true => dial(self.node(), self.local(to)).await,
                false => TcpStream::connect(to).await,
            };
        };
        let mut connection = tcp::Connection::new(self.0.hold(SocketAddrV4::new(self.0.node, 0), there)?)?;
        connection.open().await?;
        let (ours, theirs) = crate::pods::pair().await?;
        self.0.config.data.spawn(connection.carry(theirs));
        Ok(ours)
    }

    /// A connection from elsewhere: first to the pod's socket, which may refuse.
    fn accept(&self, flow: Flow, packet: Bytes) {
        if !self.0.permits(flow.there, flow.here, Protocol::Tcp) {
            return tcp::refuse(&self.0, flow, packet);
        }
        let Ok(held) = Inner::hold_flow(&self.0, flow) else { return };
        let stack = self.clone();
        self.0.config.data.spawn(async move {
            let [pod, peer] = [flow.here, flow.there].map(|end| stack.local(end.into()));
            let dialled = tokio::time::timeout(POD_PATIENCE, dial(peer, pod)).await;
            match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    if let Ok(mut connection) = tcp::Connection::new(held)
                        && connection.accept(packet).await.is_ok()
                    {
                        connection.carry(stream).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(?flow, %error, "no such socket");
                    drop(held);
                    tcp::refuse(&stack.0, flow, packet);
                }
            }
        });
    }
}

/// Connects from one place to another; from another port where that is taken.
async fn dial(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let bound = |from: SocketAddr| {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        Ok::<_, io::Error>(socket)
    };
    let first = match bound(from) {
        Ok(socket) => socket.connect(to).await,
        Err(error) => Err(error),
    };
    let stream = match first {
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
            bound(SocketAddr::new(from.ip(), 0))?.connect(to).await?
        }
        done => done?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Inner {
    /// A pod's or node's address that is not here.
    fn elsewhere(&self, to: SocketAddr) -> Option<SocketAddrV4> {
        let IpAddr::V4(address) = to.ip().to_canonical() else { return None };
        let StackConfig { cluster, own, loopback, .. } = &self.config;
        let ip = IpAddr::V4(address);
        let is_elsewhere = cluster.contains(ip) && !own.contains(ip) && !loopback.is_service(ip);
        is_elsewhere.then(|| SocketAddrV4::new(address, to.port()))
    }

    /// Who it is that comes from a place of this machine: a pod, or else the node.
    fn sender(&self, shown: SocketAddr) -> SocketAddrV4 {
        match shown {
            SocketAddr::V4(pod) if self.config.own.contains(shown.ip()) => pod,
            other => SocketAddrV4::new(self.node, other.port()),
        }
    }

    /// Binds the place of a pod elsewhere, or another port there if somebody has that, as a socket of every address does.
    fn bind<T>(
        &self,
        there: SocketAddrV4,
        protocol: Protocol,
        bind: impl Fn(SocketAddr) -> io::Result<(SocketAddr, T)>,
    ) -> io::Result<(SocketAddr, T)> {
        let _runtime = self.config.data.enter();
        let place = self.config.loopback.local(there.into());
        match bind(place) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let (place, made) = bind((place.ip(), 0).into())?;
                lock(&self.aliases).insert((protocol, place), there);
                Ok((place, made))
            }
            bound => bound,
        }
    }

    /// A place of a pod elsewhere is given up.
    fn unbind(&self, place: SocketAddr, protocol: Protocol) {
        lock(&self.aliases).remove(&(protocol, place));
    }

    /// Where on this machine a datagram for an address goes.
    fn hears(&self, to: SocketAddr) -> SocketAddr {
        if lock(&self.senders).get(&to.port()).is_some_and(|pod| to.ip() == *pod) {
            return (Ipv4Addr::LOCALHOST, to.port()).into();
        }
        self.config.loopback.local(to)
    }

    /// Whether policies let `from` begin to talk to `to`; the node itself goes everywhere.
    fn permits(&self, from: SocketAddrV4, to: SocketAddrV4, protocol: Protocol) -> bool {
        let permitted =
            *from.ip() == self.node || self.policies.load().permits((*from.ip()).into(), to.into(), protocol);
        if !permitted {
            tracing::debug!(%from, %to, ?protocol, "refused by network policy");
        }
        permitted
    }

    /// Sends a packet to another node; whether that is within reach. While there is no way to any, packets are only lost.
    fn emit(&self, packet: BytesMut) -> bool {
        self.outlet.load().as_ref().is_none_or(|outlet| outlet(packet))
    }

    /// Takes a flow from `here` to `there`, from another port if that is taken.
    fn hold(self: &Arc<Self>, here: SocketAddrV4, there: SocketAddrV4) -> io::Result<(Held, mpsc::Receiver<Bytes>)> {
        let others = (0..PORT_TRIES_MAX).map(|_| FIRST_PORT | self.next_port.fetch_add(1, Ordering::Relaxed));
        for port in std::iter::once(here.port()).filter(|port| *port > 0).chain(others) {
            let flow = Flow { here: SocketAddrV4::new(*here.ip(), port), there };
            match Self::hold_flow(self, flow) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                done => return done,
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    fn hold_flow(this: &Arc<Self>, flow: Flow) -> io::Result<(Held, mpsc::Receiver<Bytes>)> {
        let mut flows = lock(&this.flows);
        if flows.contains_key(&flow) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        if flows.len() >= CONNECTIONS_MAX {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let (inbox, packets) = mpsc::channel(INBOX_PACKETS_MAX);
        flows.insert(flow, inbox);
        Ok((Held { stack: this.clone(), flow }, packets))
    }
}

/// Nothing panics while one of them is held; a poisoned one's value would be whole anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
