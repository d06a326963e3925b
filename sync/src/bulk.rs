//! The bulk connection as seen by the pod network: packets both ways, through reconnects.
//!
//! Packets are datagrams: they may be lost, reordered or dropped when there is no room, and nobody waits for them. What is
//! in them is not looked at here. Calls share the connection and are not seen here either.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Packets waiting in one direction where no QUIC connection keeps them.
pub(crate) const PACKETS_MAX: usize = 1024;
/// Largest packet where no QUIC connection bounds it, bytes: what its length in a stream can say.
pub(crate) const PACKET_BYTES_MAX: usize = u16::MAX as usize;

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection now.
    #[error("the bulk connection is down")]
    Down,
    /// More than [`Bulk::max_packet`].
    #[error("the packet is too large for the connection")]
    TooLarge,
    /// What came before has not left yet.
    #[error("too many packets wait for the connection")]
    Full,
}

/// One end of a bulk connection. Clones share it.
#[derive(Clone)]
pub struct Bulk(Arc<Shared>);

struct Shared {
    /// What carries the packets now, and the number it was given.
    carrier: watch::Sender<Option<(u64, Carrier)>>,
    lanes: AtomicU64,
    is_up: watch::Sender<bool>,
    closed: CancellationToken,
}

/// What carries the packets now.
#[derive(Clone)]
pub(crate) enum Carrier {
    /// Datagrams of a connection.
    Quic(quinn::Connection),
    /// Two queues: to a task that writes a stream, or to the other end in memory.
    Queues {
        /// Packets that leave.
        out: mpsc::Sender<Bytes>,
        /// Packets that came.
        come: Arc<Mutex<mpsc::Receiver<Bytes>>>,
    },
}

/// That a connection carries a [`Bulk`]; dropped, it does not any more, unless another one does by then.
pub(crate) struct Carried {
    bulk: Bulk,
    lane: u64,
}

impl Drop for Carried {
    fn drop(&mut self) {
        let is_ours = self.bulk.0.carrier.borrow().as_ref().is_some_and(|(lane, _)| *lane == self.lane);
        if is_ours {
            self.bulk.carry(None);
        }
    }
}

impl Bulk {
    /// An end without a connection.
    pub(crate) fn new() -> Self {
        let shared = Shared {
            carrier: watch::Sender::new(None),
            lanes: AtomicU64::new(0),
            is_up: watch::Sender::new(false),
            closed: CancellationToken::new(),
        };
        Self(Arc::new(shared))
    }

    /// Puts a connection in place of the one before, or none.
    fn carry(&self, carrier: Option<(u64, Carrier)>) {
        // one that was closed stays so
        let carrier = carrier.filter(|_| !self.0.closed.is_cancelled());
        let is_up = carrier.is_some();
        self.0.carrier.send_replace(carrier);
        self.0.is_up.send_if_modified(|up| std::mem::replace(up, is_up) != is_up);
    }

    /// Carries packets by this connection until the guard is dropped.
    pub(crate) fn carry_while(&self, carrier: Carrier) -> Carried {
        let lane = self.0.lanes.fetch_add(1, Ordering::Relaxed) + 1;
        self.carry(Some((lane, carrier)));
        Carried { bulk: self.clone(), lane }
    }

    /// Ends it for good: whoever receives is told.
    pub(crate) fn close(&self) {
        self.carry(None);
        self.0.closed.cancel();
        // what came in between must not stay
        self.carry(None);
    }

    /// The largest packet that can be sent now, bytes; 0 while there is no connection. It changes as the path is measured.
    pub fn max_packet(&self) -> usize {
        match &*self.0.carrier.borrow() {
            Some((_, Carrier::Quic(connection))) => connection.max_datagram_size().unwrap_or(0),
            Some((_, Carrier::Queues { .. })) => PACKET_BYTES_MAX,
            None => 0,
        }
    }

    /// Sends a packet, or drops it. Never waits. Where a QUIC connection is congested, older packets make room for newer.
    ///
    /// # Errors
    /// [`SendError`]: the packet was dropped.
    pub fn send(&self, packet: Bytes) -> Result<(), SendError> {
        match &*self.0.carrier.borrow() {
            None => Err(SendError::Down),
            Some((_, Carrier::Quic(connection))) => connection.send_datagram(packet).map_err(|error| match error {
                quinn::SendDatagramError::TooLarge => SendError::TooLarge,
                _ => SendError::Down,
            }),
            Some((_, Carrier::Queues { .. })) if packet.len() > PACKET_BYTES_MAX => Err(SendError::TooLarge),
            Some((_, Carrier::Queues { out, .. })) => out.try_send(packet).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => SendError::Full,
                mpsc::error::TrySendError::Closed(_) => SendError::Down,
            }),
        }
    }

    /// The next packet, over whatever connection there will be; `None` when there will be none any more.
    pub async fn recv(&self) -> Option<Bytes> {
        let mut changes = self.0.carrier.subscribe();
        loop {
            let carrier = changes.borrow_and_update().clone().map(|(_, carrier)| carrier);
            tokio::select! {
                biased;
                () = self.0.closed.cancelled() => return None,
                packet = next(carrier) => return Some(packet),
                // the sender lives in `self`
                _ = changes.changed() => {}
            }
        }
    }

    /// Whether there is a connection now.
    pub fn is_up(&self) -> watch::Receiver<bool> {
        self.0.is_up.subscribe()
    }
}

/// The next packet of a connection; waits for ever when it has ended, until it is replaced.
async fn next(carrier: Option<Carrier>) -> Bytes {
    match carrier {
        None => std::future::pending().await,
        Some(Carrier::Quic(connection)) => match connection.read_datagram().await {
            Ok(packet) => packet,
            Err(_) => std::future::pending().await,
        },
        Some(Carrier::Queues { come, .. }) => match come.lock().await.recv().await {
            Some(packet) => packet,
            None => std::future::pending().await,
        },
    }
}

/// A bulk connection in memory: for the node in the master's own process. Dropping all clones of one end only makes the
/// other one's packets vanish.
pub fn bulk_pair() -> (Bulk, Bulk) {
    let (to_second, from_first) = mpsc::channel(PACKETS_MAX);
    let (to_first, from_second) = mpsc::channel(PACKETS_MAX);
    let (first, second) = (Bulk::new(), Bulk::new());
    first.carry(Some((0, Carrier::Queues { out: to_second, come: Arc::new(Mutex::new(from_second)) })));
    second.carry(Some((0, Carrier::Queues { out: to_first, come: Arc::new(Mutex::new(from_first)) })));
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_cross_in_memory_and_nobody_waits() {
        let (a, b) = bulk_pair();
        assert!(*a.is_up().borrow());
        a.send(Bytes::from_static(b"one")).unwrap();
        b.send(Bytes::from_static(b"two")).unwrap();
        assert_eq!(b.recv().await.unwrap(), "one");
        assert_eq!(a.recv().await.unwrap(), "two");
        assert_eq!(a.send(Bytes::from(vec![0; PACKET_BYTES_MAX + 1])), Err(SendError::TooLarge));
        for _ in 0..PACKETS_MAX {
            a.send(Bytes::from_static(b"x")).unwrap();
        }
        assert_eq!(a.send(Bytes::from_static(b"x")), Err(SendError::Full));
    }

    #[tokio::test]
    async fn a_closed_end_receives_no_more_and_one_without_a_connection_drops() {
        let bulk = Bulk::new();
        assert_eq!((bulk.max_packet(), bulk.send(Bytes::new())), (0, Err(SendError::Down)));
        let waiting = tokio::spawn({
            let bulk = bulk.clone();
            async move { bulk.recv().await }
        });
        bulk.close();
        assert_eq!(waiting.await.unwrap(), None);
    }
}
