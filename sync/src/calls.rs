//! One call over one stream: the master's end asks, the node's end serves.
//!
//! The master's half stays open for as long as the call lives: that it breaks off means that nobody waits any more. The end
//! of the input, and that a client went away without it, are frames. Each end reads only as fast as it is read from.

use crate::session::chain;
use crate::transport::{Frames, Receiver, Sender, StreamError};
use crate::wire::call::{self, BOUNDS, FromNode, PIECE_BYTES_MAX, ToNode};
use crate::{CallError, IncomingCall, Input, OutputStream};
use bytes::BytesMut;
use futures::{FutureExt, StreamExt, stream};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Pieces of input between the stream and the node's part that reads them.
const INPUTS_MAX: usize = 4;
/// How long the node waits to be told what is asked.
const ASK_TIME_MAX: Duration = Duration::from_secs(10);

/// Asks a node over a stream, and answers the call with what it says. `permit` is kept for as long as the call lives, which
/// `closed` ends.
pub(crate) async fn ask(
    incoming: IncomingCall,
    (mut sender, mut frames): (Sender, Frames),
    closed: CancellationToken,
    permit: OwnedSemaphorePermit,
) {
    let IncomingCall { call, input, mut reply } = incoming;
    let opening = async {
        sender.send(&call::call(&call)).await.map_err(|_| CallError::Disconnected)?;
        loop {
            match next(&mut frames).await? {
                FromNode::Accepted => return Ok(()),
                FromNode::Failed(error) => return Err(error),
                FromNode::InputClosed => {}
                FromNode::Output(_) | FromNode::Done => {
                    return Err(CallError::Failed("the node's answer has no beginning".into()));
                }
            }
        }
    };
    let opened = tokio::select! {
        opened = opening => opened,
        () = reply.closed() => return sender.cancel(),
    };
    if let Err(error) = opened {
        sender.cancel();
        return drop(reply.send(Err(error)));
    }
    let ended = closed.child_token();
    let input_closed = CancellationToken::new();
    tokio::spawn(pump_input(sender, input, ended.clone(), input_closed.clone()));
    let answer = Answer { frames, closed, input_closed, _alive: ended.drop_guard(), _permit: permit };
    // a caller that has left drops the answer, and so ends the call
    drop(reply.send(Ok(answer.into_stream())));
}

/// What is left to read of a call; dropping it ends the call.
struct Answer {
    frames: Frames,
    closed: CancellationToken,
    input_closed: CancellationToken,
    _alive: DropGuard,
    _permit: OwnedSemaphorePermit,
}

impl Answer {
    fn into_stream(self) -> OutputStream {
        let outputs = stream::unfold(Some(self), |answer| async move {
            let mut answer = answer?;
            loop {
                let output = tokio::select! {
                    output = next(&mut answer.frames) => output,
                    () = answer.closed.cancelled() => Err(CallError::Disconnected),
                };
                return match output {
                    Ok(FromNode::Output(output)) => Some((Ok(output), Some(answer))),
                    Ok(FromNode::Done) => None,
                    Ok(FromNode::InputClosed) => {
                        answer.input_closed.cancel();
                        continue;
                    }
                    Ok(FromNode::Accepted) => Some((Err(CallError::Failed("the node answered twice".into())), None)),
                    Ok(FromNode::Failed(error)) | Err(error) => Some((Err(error), None)),
                };
            }
        });
        outputs.boxed()
    }
}

async fn next(frames: &mut Frames) -> Result<FromNode, CallError> {
    loop {
        let frame = frames.next(BOUNDS).await.map_err(|error| match error {
            StreamError::Session(error) => CallError::Failed(error.chain()),
            _ => CallError::Disconnected,
        })?;
        if let Some(output) = call::read_output(frame).map_err(|error| CallError::Failed(error.to_string()))? {
            return Ok(output);
        }
    }
}

/// Sends the client's input until the call has ended.
async fn pump_input(
    mut sender: Sender,
    mut input: mpsc::Receiver<Input>,
    ended: CancellationToken,
    input_closed: CancellationToken,
) {
    let sending = async {
        let (mut out, mut has_ended) = (BytesMut::new(), false);
        loop {
            let piece = tokio::select! {
                biased;
                () = input_closed.cancelled() => break,
                piece = input.recv() => piece,
            };
            let piece = match piece {
                Some(piece) => ToNode::Input(piece),
                None if has_ended => break,
                None => ToNode::Gone,
            };
            has_ended |= piece == ToNode::Input(Input::End);
            out.clear();
            call::put_input(&mut out, &piece);
            if sender.send(&out).await.is_err() || piece == ToNode::Gone {
                break;
            }
        }
        drop(input);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = sending => {}
        () = ended.cancelled() => {}
    }
    sender.cancel();
}

/// Serves one call of the master's, until it is answered or nobody waits any more.
pub(crate) async fn serve((mut sender, receiver): (Sender, Receiver), calls: mpsc::Sender<IncomingCall>) {
    let mut frames = Frames::new(receiver);
    let asked = match timeout(ASK_TIME_MAX, frames.next(BOUNDS)).await {
        Ok(Ok(frame)) => call::read_call(&frame),
        Ok(Err(_)) | Err(_) => return sender.cancel(),
    };
    let (input_sender, input) = mpsc::channel(INPUTS_MAX);
    let (reply, answer) = oneshot::channel();
    let input_closed = CancellationToken::new();
    let answer = async {
        let call =
            asked.map_err(|error| CallError::BadRequest(format!("the call cannot be read: {}", chain(&error))))?;
        calls.send(IncomingCall { call, input, reply }).await.map_err(|_| CallError::Disconnected)?;
        answer.await.map_err(|_| CallError::Disconnected)?
    };
    let is_done = tokio::select! {
        is_done = give_output(&mut sender, answer, &input_closed) => is_done,
        () = take_input(frames, input_sender, &input_closed) => false,
    };
    if is_done { sender.finish().await } else { sender.cancel() }
}

/// Sends the answer; whether it was sent to its end.
async fn give_output(
    sender: &mut Sender,
    answer: impl Future<Output = Result<OutputStream, CallError>>,
    input_closed: &CancellationToken,
) -> bool {
    let answer = tokio::select! {
        answer = answer => answer,
        () = sender.stopped() => return false,
    };
    let (mut out, mut is_told) = (BytesMut::new(), false);
    let mut outputs = match answer {
        Ok(outputs) => {
            call::put_output(&mut out, &FromNode::Accepted);
            outputs.fuse()
        }
        Err(error) => {
            call::put_output(&mut out, &FromNode::Failed(error));
            return sender.send(&out).await.is_ok();
        }
    };
    loop {
        if sender.send(&out).await.is_err() {
            return false;
        }
        out.clear();
        let mut output = tokio::select! {
            biased;
            () = sender.stopped() => return false,
            () = input_closed.cancelled(), if !is_told => {
                is_told = true;
                call::put_output(&mut out, &FromNode::InputClosed);
                continue;
            }
            output = outputs.next() => Some(output),
        };
        // what is there already goes along
        while let Some(piece) = output.take() {
            match piece {
                Some(Ok(piece)) => call::put_output(&mut out, &FromNode::Output(piece)),
                Some(Err(error)) => {
                    call::put_output(&mut out, &FromNode::Failed(error));
                    return sender.send(&out).await.is_ok();
                }
                None => {
                    call::put_output(&mut out, &FromNode::Done);
                    return sender.send(&out).await.is_ok();
                }
            }
            if out.len() < PIECE_BYTES_MAX {
                output = outputs.next().now_or_never();
            }
        }
    }
}

/// Hands the client's input on; returns when the master has broken the call off.
async fn take_input(mut frames: Frames, input: mpsc::Sender<Input>, input_closed: &CancellationToken) {
    let mut input = Some(input);
    loop {
        let closed = async {
            match &input {
                Some(input) => input.closed().await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            frame = frames.next(BOUNDS) => frame,
            () = closed => {
                input_closed.cancel();
                input = None;
                continue;
            }
        };
        let Ok(frame) = frame else { return };
        match call::read_input(frame) {
            Err(_) => return,
            Ok(Some(ToNode::Gone)) => input = None,
            Ok(Some(ToNode::Input(piece))) => {
                if let Some(input) = &input {
                    // who does not read any more is noticed above
                    drop(input.send(piece).await);
                }
            }
            Ok(None) => {}
        }
    }
}
