//! One stream of a connection: two halves that end apart from each other.

use super::connection::{Control, Outgoing, Shared};
use super::frame::{Frame, PIECE_BYTES_MAX};
use super::headers::Headers;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// The status of a stream that is not wanted any more.
const CANCELLED: u32 = 5;
/// A window is opened again when so much of it has been read.
const WINDOW_STEP_BYTES: u32 = 32 * 1024;

/// The stream or its connection is broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was broken off")]
pub struct Gone;

/// Data that waits to be read, with the room it takes.
pub(super) struct Piece {
    pub bytes: Bytes,
    pub _room: [OwnedSemaphorePermit; 2],
}

/// What the halves and the driver share.
pub(super) struct State {
    pub id: u32,
    /// The other side sends nothing more.
    pub remote_done: AtomicBool,
    /// We send nothing more.
    pub local_done: AtomicBool,
    /// Broken off, by whichever side.
    pub reset: CancellationToken,
    /// Room for data that waits to be read.
    pub room: Arc<Semaphore>,
    /// Read, and not yet told the other side.
    pub window: AtomicU32,
}

impl State {
    pub fn new(id: u32, room_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            id,
            remote_done: AtomicBool::new(false),
            local_done: AtomicBool::new(false),
            reset: CancellationToken::new(),
            room: Arc::new(Semaphore::new(room_bytes)),
            window: AtomicU32::new(0),
        })
    }

    /// Counts bytes that were read; whether it is time to tell the other side.
    pub fn read(&self, bytes: usize) -> bool {
        let bytes = u32::try_from(bytes).unwrap_or(0);
        let before = self.window.fetch_add(bytes, Ordering::Relaxed);
        before < WINDOW_STEP_BYTES && before.saturating_add(bytes) >= WINDOW_STEP_BYTES
    }
}

/// A stream. Dropped before both sides have ended it, it is broken off.
pub struct Stream {
    headers: Headers,
    reading: ReadHalf,
    writing: WriteHalf,
}

impl Stream {
    pub(super) fn new(
        headers: Headers,
        state: Arc<State>,
        shared: Arc<Shared>,
        pieces: mpsc::UnboundedReceiver<Piece>,
    ) -> Self {
        let end = Arc::new(End { state, shared });
        Self { headers, reading: ReadHalf { pieces, end: end.clone() }, writing: WriteHalf { end } }
    }

    /// The headers it was opened with.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.reading.end.state.id
    }

    /// Takes a stream that the other side has opened; before that nothing may be written to it.
    pub fn accept(&self) {
        let reply = Frame::SynReply { id: self.id(), fin: false, headers: Headers::default() };
        self.reading.end.shared.control(Control::Frame(reply));
    }

    /// The two halves.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        (self.reading, self.writing)
    }
}

/// Both halves hold it; the last to go breaks off what has not ended.
struct End {
    state: Arc<State>,
    shared: Arc<Shared>,
}

impl Drop for End {
    fn drop(&mut self) {
        let is_done = |done: &AtomicBool| done.load(Ordering::Acquire);
        match (is_done(&self.state.local_done), is_done(&self.state.remote_done)) {
            (true, true) => {}
            _ if self.state.reset.is_cancelled() => {}
            // what was written and ended arrives before
            (true, false) => self.shared.reset_in_turn(&self.state, CANCELLED),
            (false, _) => self.shared.reset(&self.state, CANCELLED),
        }
    }
}

/// What the other side sends.
pub struct ReadHalf {
    pieces: mpsc::UnboundedReceiver<Piece>,
    end: Arc<End>,
}

impl ReadHalf {
    /// The next bytes; `None` when the other side has ended its half.
    ///
    /// # Errors
    /// [`Gone`] when the stream or connection was broken off.
    pub async fn read(&mut self) -> Option<Result<Bytes, Gone>> {
        match self.pieces.recv().await {
            Some(piece) => {
                self.end.shared.read(&self.end.state, piece.bytes.len());
                Some(Ok(piece.bytes))
            }
            None if self.end.state.remote_done.load(Ordering::Acquire) => None,
            None => Some(Err(Gone)),
        }
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        // what still comes is thrown away instead of waiting for room
        self.end.state.room.close();
    }
}

/// What we send.
pub struct WriteHalf {
    end: Arc<End>,
}

impl WriteHalf {
    /// Sends bytes; waits while the connection is busy.
    ///
    /// # Errors
    /// [`Gone`] when the stream or connection was broken off, or this half has ended.
    pub async fn write(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
            self.send(piece, false).await?;
        }
        Ok(())
    }

    /// Ends our half; what was written arrives before the end.
    ///
    /// # Errors
    /// [`Gone`] when the stream or connection was broken off before.
    pub async fn finish(&self) -> Result<(), Gone> {
        if self.end.state.local_done.load(Ordering::Acquire) {
            return Ok(());
        }
        self.send(Bytes::new(), true).await?;
        self.end.state.local_done.store(true, Ordering::Release);
        self.end.shared.ended(&self.end.state);
        Ok(())
    }

    /// Resolves when the stream or connection was broken off.
    pub async fn gone(&self) {
        self.end.state.reset.cancelled().await;
    }

    async fn send(&self, bytes: Bytes, fin: bool) -> Result<(), Gone> {
        let state = &self.end.state;
        if state.reset.is_cancelled() || state.local_done.load(Ordering::Acquire) {
            return Err(Gone);
        }
        let frame = Frame::Data { id: state.id, fin, bytes };
        tokio::select! {
            () = state.reset.cancelled() => Err(Gone),
            sent = self.end.shared.data.send(Outgoing::Frame(frame)) => sent.map_err(|_| Gone),
        }
    }
}
