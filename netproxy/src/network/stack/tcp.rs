//! One TCP connection: its packets on one side, a kernel socket on the other. Each is a task with a TCP of its own, so that none
//! waits for another and what comes is found by its ends.

use super::{Flow, Held, Inner};
use crate::listener::reset;
use bytes::{Bytes, BytesMut};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as Span, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Bytes on the way, each way: what a path of 300 ms carries 400 KiB/s with.
const BUFFER_BYTES: usize = 128 * 1024;
/// A connection is there by then, or not.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// A connection on which nothing happens is asked for.
const KEEP_ALIVE: Span = Span::from_secs(60);
/// The other end has answered by then, or is gone: as long as Linux takes.
const SILENCE_MAX: Span = Span::from_secs(15 * 60);

/// A TCP connection with a pod elsewhere.
pub(super) struct Connection {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: Wire,
    inbox: mpsc::Receiver<Bytes>,
    held: Held,
}

/// Which directions are done.
#[derive(Default)]
struct Ended {
    /// The kernel's socket says nothing more.
    outward: bool,
    /// It has been told that nothing more comes.
    inward: bool,
}

impl Ended {
    fn both(&self) -> bool {
        self.outward && self.inward
    }
}

/// Says that there is no such connection.
pub(super) fn refuse(stack: &Arc<Inner>, flow: Flow, packet: Bytes) {
    let mut wire = Wire { stack: stack.clone(), coming: VecDeque::from([packet]), is_cut: false };
    let mut interface = interface(&mut wire, flow);
    interface.poll(Instant::now(), &mut wire, &mut SocketSet::new(Vec::new()));
}

fn interface(wire: &mut Wire, flow: Flow) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    // sequence numbers must not be guessed
    config.random_seed = RandomState::new().hash_one(flow);
    let mut interface = Interface::new(config, wire, Instant::now());
    let here = *flow.here.ip();
    // there is room for one of each
    interface.update_ip_addrs(|addresses| {
        let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(here), 32));
    });
    let _ = interface.routes_mut().add_default_ipv4_route(here);
    interface
}

impl Connection {
    /// One that is neither opened nor accepted.
    pub(super) fn new((held, inbox): (Held, mpsc::Receiver<Bytes>)) -> io::Result<Self> {
        let mut wire = Wire { stack: held.stack.clone(), coming: VecDeque::new(), is_cut: false };
        let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(SILENCE_MAX));
        let interface = interface(&mut wire, held.flow);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self { interface, sockets, handle, wire, inbox, held })
    }

    /// Asks the other end.
    ///
    /// # Errors
    /// `ConnectionRefused`, `HostUnreachable`, `TimedOut`.
    pub(super) async fn open(&mut self) -> io::Result<()> {
        let Flow { here, there } = self.held.flow;
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        socket.connect(self.interface.context(), there, here).map_err(io::Error::other)?;
        self.establish().await
    }

    /// Answers the other end, which asked with this packet.
    ///
    /// # Errors
    /// When it has changed its mind.
    pub(super) async fn accept(&mut self, first: Bytes) -> io::Result<()> {
        let here = self.held.flow.here;
        self.socket().listen(here).map_err(io::Error::other)?;
        self.wire.coming.push_back(first);
        self.establish().await
    }

    async fn establish(&mut self) -> io::Result<()> {
        let opening = async {
            loop {
                self.poll();
                match self.socket().state() {
                    State::Closed | State::Listen => return Err(io::ErrorKind::ConnectionRefused.into()),
                    // as the kernel takes that answer: what is open already waits for better times
                    State::SynSent if self.wire.is_cut => return Err(io::ErrorKind::HostUnreachable.into()),
                    State::SynSent | State::SynReceived => self.news().await?,
                    _ => return Ok(()),
                }
            }
        };
        let opened = tokio::time::timeout(OPEN_MAX, opening).await;
        opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Carries bytes both ways until both are done; that one side breaks off breaks the other.
    pub(super) async fn carry(mut self, mut stream: TcpStream) {
        let mut ended = Ended::default();
        let carried = self.carry_on(&mut stream, &mut ended).await;
        if carried.is_err() || !ended.both() {
            self.socket().abort();
            reset(stream);
        }
        self.poll();
    }

    async fn carry_on(&mut self, stream: &mut TcpStream, ended: &mut Ended) -> io::Result<()> {
        loop {
            // its time would end before a slow pod has read all
            if self.socket().state() != State::TimeWait {
                self.poll();
            }
            let outward = self.outward(stream, ended)?;
            let inward = self.inward(stream)?;
            let socket = self.socket();
            let is_over =
                matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
            if is_over && !socket.can_recv() && !ended.inward {
                ended.inward = true;
                stream.shutdown().await?;
                continue;
            }
            match self.socket().state() {
                // nothing more is to be said, and all is given away
                State::TimeWait if !self.socket().can_recv() => return Ok(()),
                State::Closed => return Ok(()),
                _ if outward || inward => {}
                _ => self.wait(stream, ended).await?,
            }
        }
    }

    /// Until something can be done.
    async fn wait(&mut self, stream: &TcpStream, ended: &Ended) -> io::Result<()> {
        let socket = self.socket();
        let reads = (!ended.outward && socket.can_send()).then_some(Interest::READABLE);
        let writes = socket.can_recv().then_some(Interest::WRITABLE);
        let interest = match (reads, writes) {
            (Some(one), Some(other)) => Some(one | other),
            (one, other) => one.or(other),
        };
        let ready = async {
            match interest {
                Some(interest) => stream.ready(interest).await.map(drop),
                None => std::future::pending().await,
            }
        };
        if socket.state() == State::TimeWait {
            return ready.await;
        }
        tokio::select! {
            news = self.news() => news,
            ready = ready => ready,
        }
    }

    /// Waits for a packet, or for the time at which TCP has something to do.
    async fn news(&mut self) -> io::Result<()> {
        let delay = self.interface.poll_delay(Instant::now(), &self.sockets);
        let due = async {
            match delay {
                Some(delay) => tokio::time::sleep(delay.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            packet = self.inbox.recv() => {
                self.wire.coming.push_back(packet.ok_or(io::ErrorKind::ConnectionAborted)?);
            }
            () = due => {}
        }
        Ok(())
    }

    fn poll(&mut self) {
        while let Ok(packet) = self.inbox.try_recv() {
            self.wire.coming.push_back(packet);
        }
        self.interface.poll(Instant::now(), &mut self.wire, &mut self.sockets);
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut::<Socket>(self.handle)
    }

    /// From the kernel's socket to the other end; whether anything went.
    fn outward(&mut self, stream: &TcpStream, ended: &mut Ended) -> io::Result<bool> {
        let socket = self.socket();
        let mut has_moved = false;
        while !ended.outward && socket.can_send() {
            let read = socket.send(|room| match stream.try_read(room) {
                Ok(bytes) => (bytes, Ok(bytes)),
                Err(error) => (0, Err(error)),
            });
            match read.map_err(io::Error::other)? {
                Ok(0) => {
                    ended.outward = true;
                    socket.close();
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            has_moved = true;
        }
        Ok(has_moved)
    }

    /// From the other end to the kernel's socket; whether anything went.
    fn inward(&mut self, stream: &TcpStream) -> io::Result<bool> {
        let socket = self.socket();
        let mut has_moved = false;
        while socket.can_recv() {
            let written = socket.recv(|bytes| match stream.try_write(bytes) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match written.map_err(io::Error::other)? {
                Ok(()) => has_moved = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(has_moved)
    }
}

/// What a connection's TCP takes for its network device.
struct Wire {
    stack: Arc<Inner>,
    coming: VecDeque<Bytes>,
    /// The last packet was for a node out of reach.
    is_cut: bool,
}

struct Coming(Bytes);

struct Going<'a> {
    stack: &'a Inner,
    is_cut: &'a mut bool,
}

impl Device for Wire {
    type RxToken<'a> = Coming;
    type TxToken<'a> = Going<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Coming, Going<'_>)> {
        let packet = self.coming.pop_front()?;
        Some((Coming(packet), Going { stack: &self.stack, is_cut: &mut self.is_cut }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Going<'_>> {
        Some(Going { stack: &self.stack, is_cut: &mut self.is_cut })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.stack.config.mtu.into();
        capabilities
    }
}

impl RxToken for Coming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Going<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, write: F) -> R {
        let headroom = self.stack.config.headroom;
        let mut packet = BytesMut::zeroed(headroom + bytes);
        let written = write(&mut packet[headroom..]);
        *self.is_cut = !self.stack.emit(packet);
        written
    }
}
