//! Clients that look on at a container's output, beside its log.
//!
//! A guest is never held up by one of them: each has a buffer of its own, and one that reads too slowly misses what
//! does not fit and is told how much that was. The log has all of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::stdio::Stream;
use crate::streams::Output;

/// Bytes that wait for one client.
const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// Clients of one container at once.
const CLIENTS_MAX: usize = 16;

/// The clients of one container.
#[derive(Default)]
pub(super) struct Attached {
    /// How many there are, so that a container without any pays no more than this.
    count: AtomicUsize,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    list: Vec<Arc<Client>>,
    closed: bool,
}

impl Attached {
    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new client, from now on; `None` if there are as many as may be.
    pub(super) fn join(self: &Arc<Self>) -> Option<Seat> {
        let mut clients = self.lock();
        if clients.list.len() >= CLIENTS_MAX {
            return None;
        }
        let client = Arc::new(Client::default());
        client.lock().closed = clients.closed;
        clients.list.push(client.clone());
        self.count.store(clients.list.len(), SeqCst);
        Some(Seat { attached: self.clone(), client })
    }

    /// Shows bytes to all clients.
    pub(super) fn show(&self, stream: Stream, bytes: &[u8]) {
        if self.count.load(SeqCst) == 0 {
            return;
        }
        let bytes = Bytes::copy_from_slice(bytes);
        for client in &self.lock().list {
            client.put(stream, bytes.clone());
        }
    }

    /// The container has ended: clients get what waits for them, and nothing more.
    pub(super) fn close(&self) {
        let mut clients = self.lock();
        clients.closed = true;
        for client in &clients.list {
            client.lock().closed = true;
            client.changed.notify_one();
        }
    }
}

/// One client's buffer.
#[derive(Default)]
struct Client {
    backlog: Mutex<Backlog>,
    changed: Notify,
}

#[derive(Default)]
struct Backlog {
    pieces: VecDeque<Output>,
    bytes: usize,
    missed_bytes: u64,
    closed: bool,
}

impl Client {
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, stream: Stream, bytes: Bytes) {
        let mut backlog = self.lock();
        // Once something was missed the gap stays one gap until the client has caught up.
        if backlog.missed_bytes > 0 || backlog.bytes + bytes.len() > BACKLOG_BYTES_MAX {
            backlog.missed_bytes += bytes.len() as u64;
        } else {
            backlog.bytes += bytes.len();
            backlog.pieces.push_back(stream.piece(bytes));
        }
        drop(backlog);
        self.changed.notify_one();
    }
}

/// A client's place; leaving it gives it up.
pub(super) struct Seat {
    attached: Arc<Attached>,
    client: Arc<Client>,
}

impl Seat {
    /// The next piece, or `None` once the container has ended.
    pub(super) async fn next(&self) -> Option<Output> {
        loop {
            {
                let mut backlog = self.client.lock();
                if let Some(piece) = backlog.pieces.pop_front() {
                    backlog.bytes -= length(&piece);
                    return Some(piece);
                }
                let missed_bytes = std::mem::take(&mut backlog.missed_bytes);
                if missed_bytes > 0 {
                    let note = format!("\r\n[{missed_bytes} bytes left out: read too slowly]\r\n");
                    return Some(Output::Stderr(note.into()));
                }
                if backlog.closed {
                    return None;
                }
            }
            self.client.changed.notified().await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut clients = self.attached.lock();
        clients.list.retain(|client| !Arc::ptr_eq(client, &self.client));
        self.attached.count.store(clients.list.len(), SeqCst);
    }
}

fn length(piece: &Output) -> usize {
    match piece {
        Output::Stdout(bytes) | Output::Stderr(bytes) => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_client_misses_what_does_not_fit_and_is_told() {
        let attached = Arc::new(Attached::default());
        attached.show(Stream::Stdout, b"before");
        let seat = attached.join().unwrap();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            attached.show(Stream::Stdout, &piece);
        }
        attached.close();
        let mut kept = 0;
        let mut note = None;
        while let Some(piece) = seat.next().await {
            match piece {
                Output::Stdout(bytes) => kept += bytes.len(),
                Output::Stderr(bytes) => note = Some(bytes),
            }
        }
        assert_eq!(kept, BACKLOG_BYTES_MAX);
        assert!(String::from_utf8_lossy(&note.unwrap()).contains("6291456 bytes left out"));
        drop(seat);
        assert_eq!(attached.lock().list.len(), 0);
    }
}
