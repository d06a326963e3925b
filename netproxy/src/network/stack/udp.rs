//! Datagrams: each pod and port elsewhere that somebody here talks with has a socket at its place, which is where the pods here send
//! to and what they hear from. Closed when idle. That a node is out of reach is told to nobody: datagrams are lost.

use super::{Inner, lock, packet};
use crate::routes::Protocol;
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// Sockets at once; the one idle longest makes room.
const SOCKETS_MAX: usize = 1024;
/// A socket over which nothing has gone for so long is closed: as long as Linux remembers a stream of datagrams.
const IDLE: Duration = Duration::from_secs(180);
/// Sockets here that one socket elsewhere talks with, as far as policies may be asked; the one idle longest makes room.
const PARTNERS_MAX: usize = 256;
/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// The sockets there are.
pub(super) type Table = Mutex<HashMap<SocketAddrV4, Relay>>;

pub(super) struct Relay {
    place: SocketAddr,
    socket: Arc<UdpSocket>,
    used: Instant,
    /// Who here has talked with it, and when last: answers are nobody's question.
    partners: HashMap<SocketAddrV4, Instant>,
    task: AbortHandle,
}

impl Relay {
    fn knows(&self, here: SocketAddrV4) -> bool {
        self.partners.get(&here).is_some_and(|last| last.elapsed() < IDLE)
    }

    fn note(&mut self, here: SocketAddrV4) {
        self.used = Instant::now();
        if self.partners.len() >= PARTNERS_MAX && !self.partners.contains_key(&here) {
            let oldest = self.partners.iter().min_by_key(|(_, last)| **last).map(|(partner, _)| *partner);
            if let Some(oldest) = oldest {
                self.partners.remove(&oldest);
            }
        }
        self.partners.insert(here, self.used);
    }
}

/// The place of `there`, and the socket that is there.
pub(super) fn ensure(stack: &Arc<Inner>, there: SocketAddrV4) -> io::Result<(SocketAddr, Arc<UdpSocket>)> {
    let mut table = lock(&stack.relays);
    if let Some(relay) = table.get_mut(&there) {
        relay.used = Instant::now();
        return Ok((relay.place, relay.socket.clone()));
    }
    if table.len() >= SOCKETS_MAX {
        let oldest = table.iter().min_by_key(|(_, relay)| relay.used).map(|(there, _)| *there);
        if let Some(relay) = oldest.and_then(|there| table.remove(&there)) {
            stack.unbind(relay.place, Protocol::Udp);
            relay.task.abort();
        }
    }
    let bind = |place| crate::service::udp::bind(place).and_then(|socket| Ok((socket.local_addr()?, socket)));
    let (place, socket) = stack.bind(there, Protocol::Udp, bind)?;
    let socket = Arc::new(socket);
    let task = stack.config.data.spawn(send(Arc::downgrade(stack), socket.clone(), there)).abort_handle();
    table.insert(there, Relay { place, socket: socket.clone(), used: Instant::now(), partners: HashMap::new(), task });
    Ok((place, socket))
}

/// Hands a datagram from elsewhere to the pod here.
pub(super) async fn take(stack: &Arc<Inner>, from: SocketAddrV4, to: SocketAddrV4, payload: &Bytes) {
    if !is_known(stack, to, from) && !stack.permits(from, to, Protocol::Udp) {
        return;
    }
    let sent = match ensure(stack, from) {
        Ok((_, socket)) => {
            note(stack, to, from);
            socket.send_to(payload, stack.hears(to.into())).await.map(drop)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        tracing::debug!(%from, %to, %error, "a datagram is lost");
    }
}

/// Whether these two talk already.
fn is_known(stack: &Inner, here: SocketAddrV4, there: SocketAddrV4) -> bool {
    lock(&stack.relays).get(&there).is_some_and(|relay| relay.knows(here))
}

/// These two talk.
fn note(stack: &Inner, here: SocketAddrV4, there: SocketAddrV4) {
    if let Some(relay) = lock(&stack.relays).get_mut(&there) {
        relay.note(here);
    }
}

/// Sends on what pods here say to `there`, until that is idle.
async fn send(stack: Weak<Inner>, socket: Arc<UdpSocket>, there: SocketAddrV4) {
    loop {
        let ready = tokio::time::timeout(IDLE, socket.readable()).await;
        let Some(stack) = stack.upgrade() else { return };
        if ready.is_err() {
            let mut table = lock(&stack.relays);
            if table.get(&there).is_none_or(|relay| relay.used.elapsed() >= IDLE) {
                if let Some(relay) = table.remove(&there) {
                    stack.unbind(relay.place, Protocol::Udp);
                }
                return;
            }
            continue;
        }
        // the buffer lives only that long: an idle socket has none
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match socket.try_recv_from(&mut buffer) {
                Ok((bytes, peer)) => pass_on(&stack, peer, there, &buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // a datagram that nobody took
                Err(_) => {}
            }
        }
    }
}

fn pass_on(stack: &Arc<Inner>, peer: SocketAddr, there: SocketAddrV4, payload: &[u8]) {
    let here = stack.sender(super::Stack(stack.clone()).shown(peer, Protocol::Udp));
    if !is_known(stack, here, there) && !stack.permits(here, there, Protocol::Udp) {
        return;
    }
    note(stack, here, there);
    let id = stack.next_id.fetch_add(1, Ordering::Relaxed);
    for packet in packet::datagram(here, there, payload, id, stack.config.mtu.into(), stack.config.headroom) {
        stack.emit(packet);
    }
}
