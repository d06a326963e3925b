//! The driver of a connection: one task reads, one writes, and streams meet them over bounded queues.

use super::frame::{Decoder, Encoder, Frame, FrameError};
use super::headers::Headers;
use super::stream::{Gone, Piece, State, Stream};
use bytes::BytesMut;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Data frames that wait for the socket.
const OUTGOING_MAX: usize = 16;
/// Bytes handed to the socket at once.
const WRITE_BYTES: usize = 64 * 1024;
/// Bytes asked of the socket at once.
const READ_BYTES: usize = 32 * 1024;
/// Answers that may wait for a client that reads nothing, before it is taken for hostile.
const CONTROLS_MAX: usize = 8192;
/// A waiting piece of data takes at least so much room: many small ones cost too.
const PIECE_COST_MIN: usize = 256;
/// How long the other side may take to hang up after a goodbye.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the other side may take to answer a new stream.
const REPLY_TIME_MAX: Duration = Duration::from_secs(30);
/// Statuses of a refused stream.
const PROTOCOL_ERROR: u32 = 1;
const REFUSED: u32 = 3;

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams with odd numbers.
    Client,
    /// Opens streams with even numbers.
    Server,
}

/// A connection's bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams at once.
    pub streams_max: usize,
    /// Bytes of a stream that wait to be read; at least 64 KiB.
    pub stream_bytes_max: usize,
    /// Bytes of all streams that wait to be read; at least 64 KiB.
    pub connection_bytes_max: usize,
    /// How often the other side is asked whether it lives.
    pub ping_interval: Duration,
    /// A connection that carries no data for so long is ended.
    pub idle_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_max: 1000,
            stream_bytes_max: 256 * 1024,
            connection_bytes_max: 4 * 1024 * 1024,
            ping_interval: Duration::from_secs(30),
            // the kubelet's
            idle_time_max: Duration::from_secs(4 * 60 * 60),
        }
    }
}

/// What goes out before data.
pub(super) enum Control {
    Frame(Frame),
    /// A stream's window is to be opened by what was read.
    Window(Arc<State>),
}

/// What goes out in its turn.
pub(super) enum Outgoing {
    Frame(Frame),
    /// The goodbye.
    Close,
}

struct Entry {
    state: Arc<State>,
    pieces: Option<mpsc::UnboundedSender<Piece>>,
    replied: Option<oneshot::Sender<()>>,
}

pub(super) struct Shared {
    streams: Mutex<Streams>,
    control: mpsc::UnboundedSender<Control>,
    controls_waiting: AtomicUsize,
    pub data: mpsc::Sender<Outgoing>,
    /// The connection's own window and room, as stream 0.
    whole: Arc<State>,
    closed: CancellationToken,
    limits: Limits,
    began: Instant,
    /// Seconds after `began` at which data last went either way.
    active: AtomicU64,
    side: Side,
}

struct Streams {
    open: HashMap<u32, Entry>,
    /// The next number of ours.
    next: u32,
    /// The last number of theirs.
    last: u32,
    /// The other side takes no further streams.
    is_leaving: AtomicBool,
}

impl Shared {
    fn streams(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn control(&self, control: Control) {
        self.controls_waiting.fetch_add(1, Ordering::Relaxed);
        // a writer that is gone needs nothing
        drop(self.control.send(control));
    }

    /// Bytes of a stream were read.
    pub fn read(&self, state: &Arc<State>, bytes: usize) {
        self.read_one(state, bytes);
        self.read_one(&self.whole, bytes);
    }

    fn read_one(&self, state: &Arc<State>, bytes: usize) {
        if state.read(bytes) {
            self.control(Control::Window(state.clone()));
        }
    }

    /// Forgets a stream that both sides have ended.
    pub fn ended(&self, state: &State) {
        if state.local_done.load(Ordering::Acquire) && state.remote_done.load(Ordering::Acquire) {
            self.streams().open.remove(&state.id);
        }
    }

    /// Breaks a stream off.
    pub fn reset(&self, state: &State, status: u32) {
        state.reset.cancel();
        self.streams().open.remove(&state.id);
        self.control(Control::Frame(Frame::Reset { id: state.id, status }));
    }

    /// Breaks a stream off after what was written to it before.
    pub fn reset_in_turn(self: &Arc<Self>, state: &State, status: u32) {
        state.reset.cancel();
        self.streams().open.remove(&state.id);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        self.controls_waiting.fetch_add(1, Ordering::Relaxed);
        let (shared, id) = (self.clone(), state.id);
        runtime.spawn(async move {
            tokio::select! {
                () = shared.closed.cancelled() => {}
                // a writer that is gone needs nothing
                _ = shared.data.send(Outgoing::Frame(Frame::Reset { id, status })) => {}
            }
            shared.controls_waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }

    fn touch(&self) {
        self.active.store(self.began.elapsed().as_secs(), Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        let idle = self.began.elapsed().as_secs().saturating_sub(self.active.load(Ordering::Relaxed));
        idle >= self.limits.idle_time_max.as_secs()
    }

    /// Breaks everything off.
    fn close(&self) {
        self.closed.cancel();
        for (_, entry) in self.streams().open.drain() {
            entry.state.reset.cancel();
        }
    }
}

/// An end of a connection. Dropped, everything on it is broken off.
pub struct Connection {
    shared: Arc<Shared>,
    accepted: mpsc::Receiver<Stream>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Opens streams. Clones share the connection.
#[derive(Clone)]
pub struct Opener(Arc<Shared>);

impl Connection {
    /// Drives a connection over `io`, from within a runtime.
    ///
    /// # Errors
    /// When there is no compressor for headers.
    pub fn start<I>(io: I, side: Side, limits: Limits) -> Result<Self, FrameError>
    where
        I: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (control, controls) = mpsc::unbounded_channel();
        let (data, outgoing) = mpsc::channel(OUTGOING_MAX);
        let (accept, accepted) = mpsc::channel(limits.streams_max.max(1));
        let next = if side == Side::Client { 1 } else { 2 };
        let streams = Streams { open: HashMap::new(), next, last: 0, is_leaving: AtomicBool::new(false) };
        let shared = Arc::new(Shared {
            streams: Mutex::new(streams),
            control,
            controls_waiting: AtomicUsize::new(0),
            data,
            whole: State::new(0, limits.connection_bytes_max),
            closed: CancellationToken::new(),
            limits,
            began: Instant::now(),
            active: AtomicU64::new(0),
            side,
        });
        let (reading, writing) = tokio::io::split(io);
        let encoder = Encoder::new()?;
        let reader = Reader { shared: shared.clone(), accept };
        tokio::spawn(async move {
            if let Err(error) = reader.run(reading).await {
                tracing::debug!(%error, "SPDY connection");
            }
            reader.shared.close();
        });
        let writer = Writer { shared: shared.clone(), encoder, controls, outgoing };
        tokio::spawn(async move {
            let shared = writer.shared.clone();
            match writer.run(writing).await {
                // the reader sees the other side hang up
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(%error, "SPDY connection");
                    shared.close();
                }
            }
        });
        Ok(Self { shared, accepted })
    }

    /// The next stream that the other side opens, to be taken ([`Stream::accept`]) or dropped; `None` when the connection
    /// has ended.
    pub async fn next(&mut self) -> Option<Stream> {
        tokio::select! {
            biased;
            stream = self.accepted.recv() => stream,
            () = self.shared.closed.cancelled() => None,
        }
    }

    /// Opens streams of this connection.
    pub fn opener(&self) -> Opener {
        Opener(self.shared.clone())
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Sends what waits, says goodbye, and waits a little for the other side to hang up.
    pub async fn close(self) {
        let leave = async {
            if self.shared.data.send(Outgoing::Close).await.is_ok() {
                self.shared.closed.cancelled().await;
            }
        };
        // a client that takes nothing any more is not waited for
        let _ = timeout(GOODBYE_TIME_MAX, leave).await;
    }
}

impl Opener {
    /// Opens a stream and waits until the other side has taken it. With `fin` we send nothing on it.
    ///
    /// # Errors
    /// [`Gone`] when it is refused, not answered in time, or the connection has ended.
    pub async fn open(&self, headers: Headers, fin: bool) -> Result<Stream, Gone> {
        let shared = &self.0;
        let (replied, reply) = oneshot::channel();
        let (pieces, waiting) = mpsc::unbounded_channel();
        let state = {
            let mut streams = shared.streams();
            let is_full = streams.open.len() >= shared.limits.streams_max || streams.next > u32::MAX / 2;
            if shared.closed.is_cancelled() || is_full || streams.is_leaving.load(Ordering::Relaxed) {
                return Err(Gone);
            }
            let id = streams.next;
            streams.next += 2;
            let state = State::new(id, shared.limits.stream_bytes_max);
            state.local_done.store(fin, Ordering::Release);
            let entry = Entry { state: state.clone(), pieces: Some(pieces), replied: Some(replied) };
            streams.open.insert(id, entry);
            // under the lock, so that numbers go out in order
            let begin = Frame::SynStream { id, fin, unidirectional: false, headers: headers.clone() };
            shared.control(Control::Frame(begin));
            state
        };
        let stream = Stream::new(headers, state, shared.clone(), waiting);
        match timeout(REPLY_TIME_MAX, reply).await {
            Ok(Ok(())) => Ok(stream),
            _ => Err(Gone),
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    accept: mpsc::Sender<Stream>,
}

impl Reader {
    async fn run<I: AsyncRead>(&self, mut reading: ReadHalf<I>) -> io::Result<()> {
        let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::new());
        loop {
            while let Some(frame) = decoder.decode(&mut buffer).map_err(io::Error::other)? {
                if self.shared.controls_waiting.load(Ordering::Relaxed) > CONTROLS_MAX {
                    return Err(io::Error::other("the other side asks much and reads nothing"));
                }
                self.take(frame).await;
                if self.shared.closed.is_cancelled() {
                    return Ok(());
                }
            }
            buffer.reserve(READ_BYTES);
            let read = tokio::select! {
                () = self.shared.closed.cancelled() => return Ok(()),
                read = reading.read_buf(&mut buffer) => read?,
            };
            if read == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&self, frame: Frame) {
        match frame {
            Frame::SynStream { id, fin, unidirectional, headers } => self.begin(id, fin, unidirectional, headers),
            Frame::SynReply { id, fin, .. } => {
                let replied = self.shared.streams().open.get_mut(&id).and_then(|entry| entry.replied.take());
                // who waited for it may have left
                let _ = replied.map(|replied| replied.send(()));
                if fin {
                    self.remote_done(id);
                }
            }
            Frame::Headers { id, fin } if fin => self.remote_done(id),
            Frame::Reset { id, .. } => {
                if let Some(entry) = self.shared.streams().open.remove(&id) {
                    entry.state.reset.cancel();
                }
            }
            Frame::Ping { id } => {
                let is_theirs = (id % 2 == 0) == (self.shared.side == Side::Client);
                if is_theirs {
                    self.shared.control(Control::Frame(Frame::Ping { id }));
                }
            }
            Frame::GoAway { .. } => self.shared.streams().is_leaving.store(true, Ordering::Relaxed),
            // windows are not heeded: see the room's head
            Frame::WindowUpdate { .. } | Frame::Headers { .. } => {}
            Frame::Data { id, fin, bytes } => {
                self.shared.touch();
                if !bytes.is_empty() {
                    self.data(id, bytes).await;
                }
                if fin {
                    self.remote_done(id);
                }
            }
        }
    }

    fn begin(&self, id: u32, fin: bool, unidirectional: bool, headers: Headers) {
        let refuse = |status| self.shared.control(Control::Frame(Frame::Reset { id, status }));
        let (pieces, waiting) = mpsc::unbounded_channel();
        let state = State::new(id, self.shared.limits.stream_bytes_max);
        state.remote_done.store(fin, Ordering::Release);
        state.local_done.store(unidirectional, Ordering::Release);
        {
            let mut streams = self.shared.streams();
            let is_theirs = (id % 2 == 1) == (self.shared.side == Side::Server);
            if id == 0 || !is_theirs || id <= streams.last {
                return refuse(PROTOCOL_ERROR);
            }
            streams.last = id;
            if streams.open.len() >= self.shared.limits.streams_max {
                return refuse(REFUSED);
            }
            let pieces = Some(pieces).filter(|_| !fin);
            streams.open.insert(id, Entry { state: state.clone(), pieces, replied: None });
        }
        let stream = Stream::new(headers, state, self.shared.clone(), waiting);
        // one that finds no room is dropped, and so refused
        drop(self.accept.try_send(stream));
    }

    fn remote_done(&self, id: u32) {
        let ended = {
            let mut streams = self.shared.streams();
            let Some(entry) = streams.open.get_mut(&id) else { return };
            entry.state.remote_done.store(true, Ordering::Release);
            entry.pieces = None;
            entry.state.clone()
        };
        self.shared.ended(&ended);
    }

    /// Gives data to its stream; waits while nobody reads there.
    async fn data(&self, id: u32, bytes: bytes::Bytes) {
        let found = {
            let streams = self.shared.streams();
            streams.open.get(&id).and_then(|entry| Some((entry.state.clone(), entry.pieces.clone()?)))
        };
        // of a stream that has gone: nobody misses it
        let Some((state, pieces)) = found else { return self.shared.read_one(&self.shared.whole, bytes.len()) };
        let cost = u32::try_from(bytes.len().max(PIECE_COST_MIN)).unwrap_or(u32::MAX);
        let waiting = async {
            let of_stream = state.room.clone().acquire_many_owned(cost).await.ok()?;
            let of_whole = self.shared.whole.room.clone().acquire_many_owned(cost).await.ok()?;
            Some([of_stream, of_whole])
        };
        let room: Option<[OwnedSemaphorePermit; 2]> = tokio::select! {
            () = self.shared.closed.cancelled() => return,
            () = state.reset.cancelled() => None,
            room = waiting => room,
        };
        let length = bytes.len();
        let is_taken = room.is_some_and(|room| pieces.send(Piece { bytes, _room: room }).is_ok());
        if !is_taken {
            self.shared.read(&state, length);
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    encoder: Encoder,
    controls: mpsc::UnboundedReceiver<Control>,
    outgoing: mpsc::Receiver<Outgoing>,
}

impl Writer {
    async fn run<I: AsyncWrite>(mut self, mut writing: WriteHalf<I>) -> io::Result<()> {
        let closed = self.shared.closed.clone();
        let mut ping = tokio::time::interval(self.shared.limits.ping_interval);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ping.tick().await;
        let mut ping_id = if self.shared.side == Side::Client { 1 } else { 2 };
        let mut buffer = BytesMut::new();
        let mut is_leaving = false;
        while !is_leaving {
            tokio::select! {
                biased;
                () = closed.cancelled() => return Ok(()),
                Some(control) = self.controls.recv() => self.put_control(control, &mut buffer)?,
                Some(outgoing) = self.outgoing.recv() => is_leaving = self.put(outgoing, &mut buffer)?,
                _ = ping.tick() => {
                    if self.shared.is_idle() {
                        return Err(io::Error::other("no data for too long"));
                    }
                    self.encode(&Frame::Ping { id: ping_id }, &mut buffer)?;
                    ping_id = (ping_id + 2) % 0x7fff_fffe;
                }
            }
            while buffer.len() < WRITE_BYTES && !is_leaving {
                if let Ok(control) = self.controls.try_recv() {
                    self.put_control(control, &mut buffer)?;
                } else if let Ok(outgoing) = self.outgoing.try_recv() {
                    is_leaving = self.put(outgoing, &mut buffer)?;
                } else {
                    break;
                }
            }
            tokio::select! {
                () = closed.cancelled() => return Ok(()),
                written = async {
                    writing.write_all(&buffer).await?;
                    writing.flush().await
                } => written?,
            }
            buffer.clear();
        }
        tokio::select! {
            () = closed.cancelled() => Ok(()),
            ended = writing.shutdown() => ended,
        }
    }

    fn put_control(&mut self, control: Control, buffer: &mut BytesMut) -> io::Result<()> {
        self.shared.controls_waiting.fetch_sub(1, Ordering::Relaxed);
        match control {
            Control::Frame(frame) => self.encode(&frame, buffer),
            Control::Window(state) => {
                let delta = state.window.swap(0, Ordering::Relaxed);
                self.encode(&Frame::WindowUpdate { id: state.id, delta }, buffer)
            }
        }
    }

    /// Whether it was the goodbye.
    fn put(&mut self, outgoing: Outgoing, buffer: &mut BytesMut) -> io::Result<bool> {
        match outgoing {
            Outgoing::Frame(frame) => {
                self.shared.touch();
                self.encode(&frame, buffer)?;
                Ok(false)
            }
            Outgoing::Close => {
                let last = self.shared.streams().last;
                self.encode(&Frame::GoAway { last }, buffer)?;
                Ok(true)
            }
        }
    }

    fn encode(&mut self, frame: &Frame, buffer: &mut BytesMut) -> io::Result<()> {
        self.encoder.encode(frame, buffer).map_err(io::Error::other)
    }
}
