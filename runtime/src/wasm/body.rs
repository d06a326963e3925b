//! The bodies of guests' responses: already complete ([`settled`]), or still being written by a guest that runs while
//! the body is read ([`GuestBody`]).

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use wasmtime_wasi_http::{Error, WasiBody};

use super::http::Guest;
use crate::spec::{Body, BoxError};

/// A body whose guest has ended: what it wrote is there already. A single piece gets a known length, so that it needs
/// no chunked encoding. `failed`: the guest did not come to its own end, so neither did the body.
pub(super) fn settled(mut body: WasiBody, failed: bool) -> Body {
    let mut cx = Context::from_waker(Waker::noop());
    let mut frames = VecDeque::new();
    while frames.len() < FRAMES_AHEAD_MAX && !failed {
        match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(Some(frame)) => frames.push_back(frame),
            Poll::Ready(None) => match single(&mut frames) {
                Some(data) => return Full::new(data).map_err(|never| match never {}).boxed_unsync(),
                None => break,
            },
            Poll::Pending => break,
        }
    }
    Settled { frames, body, failed }.boxed_unsync()
}

/// Frames looked at to find out whether there is but one.
const FRAMES_AHEAD_MAX: usize = 2;

/// The data if all there is is one piece, or nothing.
fn single(frames: &mut VecDeque<Result<Frame<Bytes>, Error>>) -> Option<Bytes> {
    match frames.len() {
        0 => Some(Bytes::new()),
        1 if matches!(&frames[0], Ok(frame) if frame.is_data()) => frames.pop_front()?.ok()?.into_data().ok(),
        _ => None,
    }
}

/// The general case of [`settled`]: some frames taken already, the rest where it was.
struct Settled {
    frames: VecDeque<Result<Frame<Bytes>, Error>>,
    body: WasiBody,
    failed: bool,
}

impl HttpBody for Settled {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(frame.map_err(BoxError::from)));
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None if std::mem::take(&mut self.failed) => Poll::Ready(Some(Err(Error::HttpResponseIncomplete.into()))),
            frame => Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from))),
        }
    }
}

/// A response's body together with the guest that is writing it.
pub(super) struct GuestBody {
    body: WasiBody,
    rest: Rest,
    complete: bool,
    failed: bool,
    /// What a `content-length` says is still to come; the reader stops there.
    remaining_bytes: Option<u64>,
}

/// The guest after its response's head.
pub(super) struct Rest {
    guest: Option<Guest>,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    commands: Handle,
    patience: Duration,
}

impl GuestBody {
    pub(super) fn rest(guest: Guest, killed: &CancellationToken, commands: Handle, patience: Duration) -> Rest {
        Rest { guest: Some(guest), killed: Box::pin(killed.clone().cancelled_owned()), commands, patience }
    }

    /// The response a guest at work has begun. `is_head`: nobody will read the body.
    pub(super) fn response(response: Response<WasiBody>, rest: Rest, is_head: bool) -> Response<Body> {
        let length = response.headers().get(header::CONTENT_LENGTH);
        let remaining_bytes = length.and_then(|length| length.to_str().ok()?.parse().ok());
        response.map(|body| GuestBody { body, rest, complete: is_head, failed: false, remaining_bytes }.boxed_unsync())
    }
}

impl HttpBody for GuestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.rest.killed.as_mut().poll(cx).is_ready() {
            this.rest.guest = None;
            return Poll::Ready(Some(Err(Error::ConnectionTerminated.into())));
        }
        if let Some(guest) = &mut this.rest.guest
            && let Poll::Ready(done) = Pin::new(guest).poll(cx)
        {
            // Why is in its log.
            this.failed = done.is_err_and(|failure| failure.broke_off());
            this.rest.guest = None;
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        match &frame {
            Poll::Ready(None) if std::mem::take(&mut this.failed) => {
                return Poll::Ready(Some(Err(Error::HttpResponseIncomplete.into())));
            }
            Poll::Ready(None) => this.complete = true,
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                this.remaining_bytes = this.remaining_bytes.map(|left| left.saturating_sub(bytes));
                this.complete |= frame.is_trailers() || this.remaining_bytes == Some(0);
            }
            _ => {}
        }
        frame.map_err(BoxError::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for GuestBody {
    /// A reader that has everything lets the guest finish what it does after its response; one that went away does not.
    fn drop(&mut self) {
        let Some(guest) = self.rest.guest.take() else { return };
        if self.complete {
            let killed = std::mem::replace(&mut self.rest.killed, Box::pin(CancellationToken::new().cancelled_owned()));
            let patience = self.rest.patience;
            self.rest.commands.spawn(async move {
                tokio::select! {
                    _ = tokio::time::timeout(patience, guest) => {}
                    () = killed => {}
                }
            });
        }
    }
}
