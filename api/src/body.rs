//! Bodies: reading a request's within bounds, and making an answer's.

use crate::config::Limits;
use crate::status::Status;
use bytes::Bytes;
use futures::Stream;
use futures::stream::{self, StreamExt};
use http::Response;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use serde_json::Value;
use state::Object;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Any error on its way to a log line.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// An answer's body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// An answer.
pub type Answer = Response<Body>;

/// Lists longer than this are sent in pieces of about this size as they are read.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces of a live stream that wait for a slow client before the stream's writer waits too.
const PIECES_WAITING_MAX: usize = 16;

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// An answer of a given content type.
pub fn answer(code: u16, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    // every code here is one of ours; 500 is for the one that is not
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// A JSON answer of bytes that are JSON already.
pub fn json_bytes(code: u16, bytes: impl Into<Bytes>) -> Answer {
    answer(code, "application/json", full(bytes))
}

/// A JSON answer.
pub fn json(code: u16, value: &Value) -> Answer {
    json_bytes(code, value.to_string())
}

/// Plain text.
pub fn text(code: u16, text: impl Into<Bytes>) -> Answer {
    answer(code, "text/plain; charset=utf-8", full(text))
}

/// A `Status` as an answer.
pub fn refusal(status: &Status) -> Answer {
    let mut answer = json(status.code, &status.to_value());
    if let Some(seconds) = status.retry_after_seconds() {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// A list: `head`, the stored bytes of each object with commas between, `tail`. Not re-encoded, and never whole in
/// memory when it is long.
pub fn list(head: String, objects: Vec<Arc<Object>>, tail: &'static str) -> Body {
    let mut objects = objects.into_iter();
    let mut piece = head.into_bytes();
    let mut first = true;
    let mut next = move || -> Option<Bytes> {
        for object in objects.by_ref() {
            if !std::mem::take(&mut first) {
                piece.push(b',');
            }
            piece.extend_from_slice(object.json());
            if piece.len() >= PIECE_BYTES {
                return Some(std::mem::take(&mut piece).into());
            }
        }
        if objects.len() == 0 && !piece.is_empty() {
            return Some(std::mem::take(&mut piece).into());
        }
        None
    };
    let mut pieces = Vec::new();
    match next() {
        Some(piece) if piece.len() < PIECE_BYTES => {
            let mut whole = piece.to_vec();
            whole.extend_from_slice(tail.as_bytes());
            return full(whole);
        }
        Some(piece) => pieces.push(piece),
        None => {}
    }
    let rest = std::iter::from_fn(next).chain(std::iter::once(Bytes::from_static(tail.as_bytes())));
    stream_body(stream::iter(pieces.into_iter().chain(rest).map(Ok)))
}

/// A body of pieces as they come.
pub fn stream_body(pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// Writes a live stream whose reader may be slow: when it takes nothing for too long, it is given up.
pub struct Feed {
    pieces: mpsc::Sender<Vec<Bytes>>,
    stall_time_max: Duration,
}

/// The reader is gone, or takes nothing.
pub struct Gone;

impl Feed {
    /// A feed and the body that it feeds.
    pub fn new(limits: &Limits) -> (Self, Body) {
        let (pieces, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let received = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<_>| {
            let parts: Vec<Bytes> = receiver.recv().await?;
            Some((parts, receiver))
        });
        let body = stream_body(received.flat_map(|parts| stream::iter(parts.into_iter().map(Ok))));
        (Self { pieces, stall_time_max: limits.stall_time_max }, body)
    }

    /// Sends one piece, in parts: a part that others hold too is not copied.
    pub async fn send(&self, piece: Vec<Bytes>) -> Result<(), Gone> {
        self.pieces.send_timeout(piece, self.stall_time_max).await.map_err(|_| Gone)
    }

    /// Resolves when the reader is gone.
    pub async fn closed(&self) {
        self.pieces.closed().await;
    }
}

/// Reads a request's body whole.
///
/// # Errors
/// 413 when it is too long (said before reading when its length is declared), 408 when it is too slow.
pub async fn read(
    body: impl http_body::Body<Data = Bytes, Error = hyper::Error>,
    headers: &http::HeaderMap,
    limits: &Limits,
) -> Result<Bytes, Status> {
    let max = limits.body_bytes_max;
    let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let hinted = declared.unwrap_or(0).max(body.size_hint().lower());
    if hinted > max as u64 {
        return Err(Status::too_large(max));
    }
    let reading = Limited::new(body, max).collect();
    match tokio::time::timeout(limits.receive_time_max, reading).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Status::too_large(max)),
        Ok(Err(error)) => Err(Status::bad_request(format!("read the request's body: {error}"))),
        Err(_) => Err(Status::new(408, "Timeout", "Timeout: the request's body took too long to arrive")),
    }
}
