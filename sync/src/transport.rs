//! Streams of bytes, whatever carries them: QUIC's or a TLS connection of its own. Frames are read off them here.

use crate::session::{SessionError, chain};
use crate::wire::{Bounds, Frame, WireError};
use bytes::BytesMut;
use quinn::VarInt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Bytes that are made room for at once while much comes.
const READ_BYTES: usize = 32 << 10;
/// Bytes that are made room for else, since most streams are idle; less room is not worth a read.
const READ_BYTES_MIN: usize = 4 << 10;

/// The sending half of a stream. Dropped without [`Sender::finish`], it tells the other end that the stream broke off.
pub(crate) enum Sender {
    /// A stream of a QUIC connection.
    Quic(quinn::SendStream),
    /// A TLS connection.
    Tls(Box<dyn AsyncWrite + Send + Sync + Unpin>),
}

/// The receiving half of a stream. Dropping it tells a QUIC peer that nobody reads.
pub(crate) enum Receiver {
    /// A stream of a QUIC connection.
    Quic(quinn::RecvStream),
    /// A TLS connection.
    Tls(Box<dyn AsyncRead + Send + Sync + Unpin>),
}

/// Both halves.
pub(crate) type Stream = (Sender, Receiver);

impl Sender {
    /// Sends all of it. Not cancel-safe: the stream is broken when this is dropped halfway.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Quic(stream) => stream.write_all(bytes).await.map_err(io::Error::from),
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Ends the stream in good order.
    pub(crate) async fn finish(&mut self) {
        match self {
            // a stream that was reset or finished before needs no end
            Self::Quic(stream) => drop(stream.finish()),
            Self::Tls(stream) => drop(stream.shutdown().await),
        }
    }

    /// Waits until the other end does not want any more. Over TCP only sending finds that out.
    pub(crate) async fn stopped(&mut self) {
        match self {
            Self::Quic(stream) => drop(stream.stopped().await),
            Self::Tls(_) => std::future::pending().await,
        }
    }

    /// Lets the connection's other streams go first.
    pub(crate) fn yield_to_others(&self) {
        if let Self::Quic(stream) = self {
            // not when it is finished already
            drop(stream.set_priority(-1));
        }
    }

    /// Breaks the stream off.
    pub(crate) fn cancel(&mut self) {
        if let Self::Quic(stream) = self {
            // not when it is finished already
            drop(stream.reset(VarInt::from_u32(0)));
        }
    }
}

impl AsyncRead for Receiver {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => AsyncRead::poll_read(Pin::new(stream), cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

/// A TLS connection's halves.
pub(crate) fn tls<S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static>(stream: S) -> Stream {
    let (read, write) = tokio::io::split(stream);
    (Sender::Tls(Box::new(write)), Receiver::Tls(Box::new(read)))
}

/// Why a stream gives no more frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The connection or the stream broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// It ended in good order.
    #[error("the other end has closed the connection")]
    Closed,
    /// What came is no protocol.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Something took too long.
    #[error("{0} took too long")]
    Slow(&'static str),
}

impl From<WireError> for StreamError {
    fn from(error: WireError) -> Self {
        Self::Session(error.into())
    }
}

impl StreamError {
    /// The error and its causes in one line.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }
}

/// Frames off a stream.
pub(crate) struct Frames {
    stream: Receiver,
    buffer: BytesMut,
    /// The last read filled all its room.
    is_fast: bool,
}

impl Frames {
    pub(crate) fn new(stream: Receiver) -> Self {
        Self { stream, buffer: BytesMut::new(), is_fast: false }
    }

    /// What has come and was not taken, and where more comes from.
    pub(crate) fn into_parts(self) -> (BytesMut, Receiver) {
        (self.buffer, self.stream)
    }

    /// The next frame. Cancel-safe.
    pub(crate) async fn next(&mut self, bounds: Bounds) -> Result<Frame, StreamError> {
        loop {
            if let Some(frame) = bounds.take(&mut self.buffer)? {
                return Ok(frame);
            }
            // what was read stays in the buffer; it grows only by what has come, never by what was announced
            let mut room = self.buffer.capacity() - self.buffer.len();
            if room < READ_BYTES_MIN {
                self.buffer.reserve(if self.is_fast { READ_BYTES } else { READ_BYTES_MIN });
                room = self.buffer.capacity() - self.buffer.len();
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(StreamError::Closed),
                Ok(read) => self.is_fast = read == room,
                Err(error) => return Err(StreamError::Broken(error)),
            }
        }
    }
}
