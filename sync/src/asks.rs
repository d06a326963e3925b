//! One ask over one stream: the node's end asks, the master's end serves.
//!
//! The node's half stays open for as long as it waits: that it breaks off means that nobody waits any more. The master sends
//! only as fast as it is read from.

use crate::session::chain;
use crate::transport::{Frames, Sender, StreamError};
use crate::wire::ask::{self, FromMaster};
use crate::wire::call::BOUNDS;
use crate::{AskError, IncomingAsk, Pieces};
use bytes::BytesMut;
use futures::{FutureExt, StreamExt, stream};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;

/// How long the master waits to be told what is asked.
const ASK_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes that are sent together.
const BURST_BYTES: usize = 128 << 10;

/// Asks the master over a stream, and answers with what it says. `permit` is kept for as long as the answer is read.
pub(crate) async fn ask(incoming: IncomingAsk, (sender, frames): (Sender, Frames), permit: OwnedSemaphorePermit) {
    let IncomingAsk { ask, mut reply } = incoming;
    let mut answer = Answer { sender, frames, _permit: permit };
    let opening = async {
        answer.sender.send(&ask::ask(&ask)).await.map_err(|_| AskError::Disconnected)?;
        answer.next().await
    };
    let first = tokio::select! {
        first = opening => first,
        () = reply.closed() => return,
    };
    drop(reply.send(first.and_then(|first| match first {
        FromMaster::Refused(error) => Err(error),
        first => Ok(answer.into_stream(first)),
    })));
}

/// What is left to read of an answer; dropping it ends the ask.
struct Answer {
    sender: Sender,
    frames: Frames,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.sender.cancel();
    }
}

impl Answer {
    async fn next(&mut self) -> Result<FromMaster, AskError> {
        loop {
            let frame = self.frames.next(BOUNDS).await.map_err(|error| match error {
                StreamError::Session(error) => AskError::Failed(error.chain()),
                _ => AskError::Disconnected,
            })?;
            if let Some(piece) = ask::read_answer(frame).map_err(|error| AskError::Failed(chain(&error)))? {
                return Ok(piece);
            }
        }
    }

    fn into_stream(self, first: FromMaster) -> Pieces {
        let pieces = stream::unfold((Some(self), Some(first)), |(answer, first)| async move {
            let mut answer = answer?;
            let piece = match first {
                Some(first) => Ok(first),
                None => answer.next().await,
            };
            match piece {
                Ok(FromMaster::Piece(piece)) => Some((Ok(piece), (Some(answer), None))),
                Ok(FromMaster::Whole) => None,
                Ok(FromMaster::Refused(error)) | Err(error) => Some((Err(error), (None, None))),
            }
        });
        pieces.boxed()
    }
}

/// Serves one ask of the node's, until it is answered or nobody waits any more.
pub(crate) async fn serve((mut sender, mut frames): (Sender, Frames), asks: mpsc::Sender<IncomingAsk>) {
    let asked = match timeout(ASK_TIME_MAX, frames.next(BOUNDS)).await {
        Ok(Ok(frame)) => ask::read_ask(&frame),
        Ok(Err(_)) | Err(_) => return sender.cancel(),
    };
    let answer = async {
        // a question of a later version is one that this master does not know
        let ask = asked.map_err(|_| AskError::Unsupported)?;
        let (reply, answer) = oneshot::channel();
        asks.send(IncomingAsk { ask, reply }).await.map_err(|_| AskError::Disconnected)?;
        answer.await.map_err(|_| AskError::Disconnected)?
    };
    let is_done = tokio::select! {
        is_done = give(&mut sender, answer) => is_done,
        // nothing more comes: it is the end of whoever waited
        _ = frames.next(BOUNDS) => false,
    };
    if is_done { sender.finish().await } else { sender.cancel() }
}

/// Refuses whatever is asked.
pub(crate) async fn refuse(sender: &mut Sender, error: AskError) {
    let mut out = BytesMut::new();
    ask::put_answer(&mut out, &FromMaster::Refused(error));
    if sender.send(&out).await.is_ok() {
        sender.finish().await;
    }
}

/// Sends the answer; whether it was sent to its end.
async fn give(sender: &mut Sender, answer: impl Future<Output = Result<Pieces, AskError>>) -> bool {
    let mut out = BytesMut::new();
    let mut pieces = match answer.await {
        Ok(pieces) => pieces.fuse(),
        Err(error) => {
            ask::put_answer(&mut out, &FromMaster::Refused(error));
            return sender.send(&out).await.is_ok();
        }
    };
    loop {
        let mut piece = Some(pieces.next().await);
        // what is there already goes along
        while let Some(next) = piece.take() {
            let (said, is_last) = match next {
                Some(Ok(piece)) => (FromMaster::Piece(piece), false),
                Some(Err(error)) => (FromMaster::Refused(error), true),
                None => (FromMaster::Whole, true),
            };
            ask::put_answer(&mut out, &said);
            if is_last {
                return sender.send(&out).await.is_ok();
            }
            if out.len() < BURST_BYTES {
                piece = pieces.next().now_or_never();
            }
        }
        if sender.send(&out).await.is_err() {
            return false;
        }
        out.clear();
    }
}
