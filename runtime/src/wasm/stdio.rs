//! Standard output and error of guests, as WASI wants them: into a [`LogSink`] with whoever is attached, or to the one
//! client of an execution, which the guest waits for.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio_util::sync::PollSender;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::attached::Attached;
use super::terminal;
use crate::spec::LogSink;
use crate::streams::Output;

/// Bytes a guest may write in one call: the largest piece a client gets, but for line ends a terminal adds.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Which of a guest's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(super) fn piece(self, bytes: Bytes) -> Output {
        match self {
            Stream::Stdout => Output::Stdout(bytes),
            Stream::Stderr => Output::Stderr(bytes),
        }
    }
}

/// One of a guest's outputs.
#[derive(Clone)]
pub(super) struct Outlet {
    way: Way,
    stream: Stream,
    terminal: bool,
}

#[derive(Clone)]
enum Way {
    Log(Arc<Logged>),
    Client(mpsc::Sender<Output>),
}

struct Logged {
    log: Arc<dyn LogSink>,
    attached: Arc<Attached>,
}

/// A guest's two outputs.
#[derive(Clone)]
pub(super) struct Outlets {
    pub(super) stdout: Outlet,
    pub(super) stderr: Outlet,
}

impl Outlets {
    /// The container's own.
    pub(super) fn logged(
        stdout: &Arc<dyn LogSink>,
        stderr: &Arc<dyn LogSink>,
        attached: &Arc<Attached>,
        terminal: bool,
    ) -> Outlets {
        let way = |log: &Arc<dyn LogSink>| Way::Log(Arc::new(Logged { log: log.clone(), attached: attached.clone() }));
        let out = way(stdout);
        let err = if terminal { out.clone() } else { way(stderr) };
        Outlets::new(out, err, terminal)
    }

    /// One client's.
    pub(super) fn client(sender: &mpsc::Sender<Output>, terminal: bool) -> Outlets {
        Outlets::new(Way::Client(sender.clone()), Way::Client(sender.clone()), terminal)
    }

    /// On a terminal everything is standard output.
    fn new(out: Way, err: Way, terminal: bool) -> Outlets {
        let stream = if terminal { Stream::Stdout } else { Stream::Stderr };
        Outlets {
            stdout: Outlet { way: out, stream: Stream::Stdout, terminal },
            stderr: Outlet { way: err, stream, terminal },
        }
    }
}

impl Outlet {
    /// Writes text of the host, such as a backtrace.
    pub(super) async fn say(&self, text: &[u8]) {
        let shown = self.shown(text);
        self.show(&shown).await;
    }

    /// Writes bytes as they are: what a terminal echoes. One piece at most.
    pub(super) async fn show(&self, bytes: &[u8]) {
        match &self.way {
            Way::Log(logged) => logged.write(self.stream, bytes),
            // A client that is gone wants no more.
            Way::Client(sender) => {
                let _ = sender.send(self.stream.piece(Bytes::copy_from_slice(bytes))).await;
            }
        }
    }

    fn shown<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        match self.terminal {
            true => Cow::Owned(terminal::printed(bytes)),
            false => Cow::Borrowed(bytes),
        }
    }

    fn piece(&self, bytes: Bytes) -> Output {
        match self.terminal {
            true => self.stream.piece(terminal::printed(&bytes).into()),
            false => self.stream.piece(bytes),
        }
    }
}

impl Logged {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        self.log.write(bytes);
        self.attached.show(stream, bytes);
    }
}

impl IsTerminal for Outlet {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for Outlet {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        match &self.way {
            Way::Log(logged) => Box::new(LogWriter { outlet: self.clone(), logged: logged.clone() }),
            Way::Client(sender) => {
                Box::new(AsyncClientWriter { outlet: self.clone(), sender: PollSender::new(sender.clone()) })
            }
        }
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        match &self.way {
            Way::Log(logged) => Box::new(LogWriter { outlet: self.clone(), logged: logged.clone() }),
            Way::Client(sender) => Box::new(ClientWriter {
                outlet: self.clone(),
                sender: sender.clone(),
                permit: None,
                allowed_bytes: 0,
                held: BytesMut::new(),
            }),
        }
    }
}

/// Into the log: taken at once, so nothing queues up here.
struct LogWriter {
    outlet: Outlet,
    logged: Arc<Logged>,
}

impl LogWriter {
    fn put(&self, bytes: &[u8]) {
        self.logged.write(self.outlet.stream, &self.outlet.shown(bytes));
    }
}

impl AsyncWrite for LogWriter {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
        self.put(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl Pollable for LogWriter {
    async fn ready(&mut self) {}
}

#[async_trait]
impl OutputStream for LogWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.put(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

/// To one client, for preview 3.
struct AsyncClientWriter {
    outlet: Outlet,
    sender: PollSender<Output>,
}

impl AsyncWrite for AsyncClientWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.sender.poll_reserve(cx)).map_err(gone)?;
        let piece = self.outlet.piece(Bytes::copy_from_slice(bytes));
        self.sender.send_item(piece).map_err(gone)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// To one client, for previews 1 and 2. A guest asks how much it may write and then writes that in any number of
/// pieces: the first goes out, the rest is held until the client has room.
struct ClientWriter {
    outlet: Outlet,
    sender: mpsc::Sender<Output>,
    permit: Option<OwnedPermit<Output>>,
    allowed_bytes: usize,
    held: BytesMut,
}

impl ClientWriter {
    /// Sends what is held, if there is a permit.
    fn release(&mut self) {
        if !self.held.is_empty()
            && let Some(permit) = self.permit.take()
        {
            permit.send(self.outlet.piece(self.held.split().freeze()));
        }
    }

    fn reserve(&mut self) -> StreamResult<()> {
        if self.permit.is_none() {
            match self.sender.clone().try_reserve_owned() {
                Ok(permit) => self.permit = Some(permit),
                Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Closed(_)) => return Err(StreamError::Closed),
            }
        }
        Ok(())
    }
}

impl Drop for ClientWriter {
    fn drop(&mut self) {
        if !self.held.is_empty() {
            let _ = self.reserve();
            self.release();
        }
    }
}

#[async_trait]
impl Pollable for ClientWriter {
    async fn ready(&mut self) {
        while self.permit.is_none() {
            // A client that is gone: the next check says so.
            let Ok(permit) = self.sender.clone().reserve_owned().await else { return };
            self.permit = Some(permit);
            self.release();
        }
    }
}

#[async_trait]
impl OutputStream for ClientWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > self.allowed_bytes {
            return Err(StreamError::trap("wrote more than check-write allowed"));
        }
        self.allowed_bytes -= bytes.len();
        self.held.extend_from_slice(&bytes);
        self.release();
        Ok(())
    }

    /// The next check waits for what is held.
    fn flush(&mut self) -> StreamResult<()> {
        self.reserve()?;
        self.release();
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.reserve()?;
        if !self.held.is_empty() {
            self.release();
            self.reserve()?;
        }
        self.allowed_bytes = if self.permit.is_some() { WRITE_BYTES_MAX } else { 0 };
        Ok(self.allowed_bytes)
    }
}
