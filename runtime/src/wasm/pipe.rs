//! Standard input of guests: a bounded pipe with any number of readers, since a guest may open its input often.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// Bytes that wait in a pipe before a writer has to.
const PIPE_BYTES_MAX: usize = 64 << 10;
/// Wakers kept; a guest that leaves more behind has all of them woken.
const WAKERS_MAX: usize = 64;

/// Bytes on their way to a guest.
#[derive(Default)]
pub(super) struct Pipe(Mutex<State>);

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    readers: Vec<Waker>,
    writers: Vec<Waker>,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes once there is room; to a pipe that has ended nothing is added.
    pub(super) async fn push(&self, bytes: Bytes) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.ended || state.bytes < PIPE_BYTES_MAX {
                return Poll::Ready(());
            }
            register(&mut state.writers, cx);
            Poll::Pending
        })
        .await;
        self.add(bytes);
    }

    /// Adds bytes if there is room, as a terminal does.
    pub(super) fn try_push(&self, bytes: Bytes) {
        if self.lock().bytes < PIPE_BYTES_MAX {
            self.add(bytes);
        }
    }

    fn add(&self, bytes: Bytes) {
        let mut state = self.lock();
        if state.ended || bytes.is_empty() {
            return;
        }
        state.bytes += bytes.len();
        state.pieces.push_back(bytes);
        let readers = std::mem::take(&mut state.readers);
        drop(state);
        readers.into_iter().for_each(Waker::wake);
    }

    /// Nothing more comes; what is there can still be read. Idempotent.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let waiting: Vec<Waker> = std::mem::take(&mut state.readers);
        let writers = std::mem::take(&mut state.writers);
        drop(state);
        waiting.into_iter().chain(writers).for_each(Waker::wake);
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.ended || state.bytes > 0 {
            return Poll::Ready(());
        }
        register(&mut state.readers, cx);
        Poll::Pending
    }

    /// Up to `bytes_max` bytes, none if there are none now; `None` at the end.
    fn take(&self, bytes_max: usize) -> Option<Bytes> {
        let mut state = self.lock();
        let Some(mut piece) = state.pieces.pop_front() else {
            return if state.ended { None } else { Some(Bytes::new()) };
        };
        let taken = piece.split_to(bytes_max.min(piece.len()));
        if !piece.is_empty() {
            state.pieces.push_front(piece);
        }
        state.bytes -= taken.len();
        let writers = std::mem::take(&mut state.writers);
        drop(state);
        writers.into_iter().for_each(Waker::wake);
        Some(taken)
    }
}

fn register(wakers: &mut Vec<Waker>, cx: &Context<'_>) {
    if wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
        return;
    }
    if wakers.len() >= WAKERS_MAX {
        wakers.drain(..).for_each(Waker::wake);
    }
    wakers.push(cx.waker().clone());
}

/// A guest's standard input.
#[derive(Clone)]
pub(super) struct Stdin {
    pub(super) pipe: Arc<Pipe>,
    pub(super) terminal: bool,
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

impl AsyncRead for Stdin {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.pipe.poll_readable(cx));
            match self.pipe.take(into.remaining()) {
                // Another reader was faster.
                Some(bytes) if bytes.is_empty() && into.remaining() > 0 => {}
                Some(bytes) => {
                    into.put_slice(&bytes);
                    return Poll::Ready(Ok(()));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        poll_fn(|cx| self.pipe.poll_readable(cx)).await;
    }
}

impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.pipe.take(size).ok_or(StreamError::Closed)
    }
}
