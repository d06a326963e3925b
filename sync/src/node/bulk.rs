//! The node's bulk connection, for as long as its session lives: packets, the calls that come over it, the asks that leave.

use super::Transport;
use super::dial::Dialler;
use crate::bulk::{Bulk, Carrier};
use crate::quic::{self, Role};
use crate::session::{Opened, SessionError};
use crate::tls::{ALPN_BULK, ALPN_STREAM};
use crate::transport::{self, Frames, Receiver, Sender, StreamError};
use crate::wire::call::BOUNDS;
use crate::wire::{self, kind};
use crate::{AskError, IncomingAsk, IncomingCall, asks, calls, packets};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Pauses between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long the master may take to let a connection join its session.
const JOIN_TIME_MAX: Duration = Duration::from_secs(10);
/// How long an ask waits for a stream to the master.
const STREAM_TIME_MAX: Duration = Duration::from_secs(10);
/// Asks that wait for their turn or their answer's beginning.
const ASKS_WAITING_MAX: usize = 256;

/// What streams are needed for.
pub(super) struct Demands<'a> {
    /// Calls of the master's that wait to be dialled for, over TCP.
    pub(super) dials: mpsc::Receiver<u64>,
    /// What the node asks.
    pub(super) asks: &'a mut mpsc::Receiver<IncomingAsk>,
}

/// Keeps the bulk connection of a session up; never returns.
pub(super) async fn keep(
    dialler: &Dialler,
    opened: &watch::Sender<Option<Opened>>,
    over: Transport,
    Demands { dials, asks }: Demands<'_>,
    calls: &mpsc::Sender<IncomingCall>,
    bulk: &Bulk,
) {
    let mut told = opened.subscribe();
    // the sender lives in the session
    let opened = told.wait_for(Option::is_some).await.ok().and_then(|opened| opened.clone());
    let Some(Opened { name: session, asks: asks_max }) = opened else { return std::future::pending().await };
    match over {
        Transport::Quic => {
            let connection = watch::Sender::new(None);
            tokio::join!(
                again(|| over_quic(dialler, &session, calls, bulk, &connection)),
                ask(asks_max, asks, || ask_over_quic(&connection))
            );
        }
        Transport::Tcp => {
            tokio::join!(
                again(|| packets_over_tcp(dialler, &session, bulk)),
                answer_dials(dialler, &session, dials, calls),
                ask(asks_max, asks, || ask_over_tcp(dialler, &session))
            );
        }
    }
}

/// Does it again and again, with pauses that grow while it fails at once.
async fn again<F: Future<Output = Result<(), String>>>(work: impl Fn() -> F) {
    let mut pause = PAUSES.0;
    loop {
        match work().await {
            Ok(()) => pause = PAUSES.0,
            Err(error) => {
                tracing::debug!(error, "no bulk connection");
                pause = (pause * 2).min(PAUSES.1);
            }
        }
        sleep(pause).await;
    }
}

async fn over_quic(
    dialler: &Dialler,
    session: &str,
    calls: &mpsc::Sender<IncomingCall>,
    bulk: &Bulk,
    up: &watch::Sender<Option<quinn::Connection>>,
) -> Result<(), String> {
    let connection = dialler.quic(Role::Bulk).await.map_err(|failure| failure.text().to_owned())?;
    let connection = Closing(connection);
    let (sender, receiver) = connection.0.open_bi().await.map_err(|error| quic::failure(&error).text().to_owned())?;
    let mut stream = (Sender::Quic(sender), Frames::new(Receiver::Quic(receiver)));
    join(&mut stream, session).await?;
    let _carried = bulk.carry_while(Carrier::Quic(connection.0.clone()));
    up.send_replace(Some(connection.0.clone()));
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.0.accept_bi() => {
                let Ok((sender, receiver)) = accepted else {
                    up.send_replace(None);
                    return Ok(());
                };
                let stream = (Sender::Quic(sender), Receiver::Quic(receiver));
                running.spawn(calls::serve(stream, calls.clone()));
            }
            Some(_) = running.join_next() => {}
        }
    }
}

/// A connection that is closed when nobody needs it.
struct Closing(quinn::Connection);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close(quic::CLOSED, b"");
    }
}

async fn packets_over_tcp(dialler: &Dialler, session: &str, bulk: &Bulk) -> Result<(), String> {
    let (stream, _) = dialler.tls(ALPN_BULK).await.map_err(|failure| failure.text().to_owned())?;
    let (sender, receiver) = transport::tls(stream);
    let mut stream = (sender, Frames::new(receiver));
    join(&mut stream, session).await?;
    packets::pump(bulk, stream.0, stream.1).await;
    Ok(())
}

/// Makes a connection one of a session.
async fn join((sender, frames): &mut (Sender, Frames), session: &str) -> Result<(), String> {
    let joining = async {
        sender.send(&request(session, None)).await.map_err(StreamError::Broken)?;
        match frames.next(BOUNDS).await? {
            frame if frame.kind == kind::JOINED => Ok(()),
            frame if frame.kind == kind::GOODBYE => {
                let wire::Goodbye { reason, refused, dismissed } = wire::json("goodbye", &frame.body)?;
                Err(SessionError::Goodbye { reason, refused, dismissed }.into())
            }
            frame => Err(wire::WireError::Kind(frame.kind).into()),
        }
    };
    let joined = timeout(JOIN_TIME_MAX, joining).await.unwrap_or(Err(StreamError::Slow("to join the session")));
    joined.map_err(|error: StreamError| error.chain())
}

fn request(session: &str, stream: Option<u64>) -> bytes::Bytes {
    wire::encode(kind::JOIN, &wire::to_json(&wire::Join { session: session.into(), stream }))
}

/// Dials a connection for each call that the master has for the node.
async fn answer_dials(
    dialler: &Dialler,
    session: &str,
    mut asked: mpsc::Receiver<u64>,
    calls: &mpsc::Sender<IncomingCall>,
) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(number) = asked.recv(), if running.len() < dialler.config.limits.calls_running_max as usize => {
                running.push(serve_one(dialler, session, number, calls));
            }
            Some(()) = running.next() => {}
            else => std::future::pending().await,
        }
    }
}

async fn serve_one(dialler: &Dialler, session: &str, number: u64, calls: &mpsc::Sender<IncomingCall>) {
    let stream = match dialler.tls(ALPN_STREAM).await {
        Ok((stream, _)) => stream,
        // the master notices that nobody came
        Err(failure) => return tracing::debug!(error = failure.text(), "dial for a call"),
    };
    let (mut sender, receiver) = transport::tls(stream);
    if sender.send(&request(session, Some(number))).await.is_ok() {
        calls::serve((sender, receiver), calls.clone()).await;
    }
}

/// Asks what the node wants to know, so much at once, each over a stream of its own; never returns.
async fn ask<F>(asks_max: usize, asked: &mut mpsc::Receiver<IncomingAsk>, open: impl Fn() -> F)
where
    F: Future<Output = Option<(Sender, Frames)>>,
{
    let room = Arc::new(Semaphore::new(asks_max));
    let mut opening = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(incoming) = asked.recv(), if opening.len() < ASKS_WAITING_MAX => {
                if asks_max == 0 {
                    incoming.answer(Err(AskError::Unsupported));
                    continue;
                }
                let (room, stream) = (room.clone(), open());
                opening.push(async move {
                    // never closed
                    let Ok(permit) = room.acquire_owned().await else { return };
                    match timeout(STREAM_TIME_MAX, stream).await {
                        Ok(Some(stream)) => asks::ask(incoming, stream, permit).await,
                        Ok(None) | Err(_) => incoming.answer(Err(AskError::Disconnected)),
                    }
                });
            }
            Some(()) = opening.next() => {}
            else => std::future::pending().await,
        }
    }
}

/// A stream to the master, when there is a connection.
async fn ask_over_quic(connection: &watch::Sender<Option<quinn::Connection>>) -> Option<(Sender, Frames)> {
    let mut connections = connection.subscribe();
    loop {
        let connection = connections.wait_for(Option::is_some).await.ok()?.clone()?;
        // where it has just broken, the next one is waited for
        match connection.open_bi().await {
            Ok((sender, receiver)) => return Some((Sender::Quic(sender), Frames::new(Receiver::Quic(receiver)))),
            Err(_) => drop(connections.changed().await),
        }
    }
}

async fn ask_over_tcp(dialler: &Dialler, session: &str) -> Option<(Sender, Frames)> {
    let (stream, _) = dialler.tls(ALPN_STREAM).await.ok()?;
    let (mut sender, receiver) = transport::tls(stream);
    sender.send(&request(session, None)).await.ok()?;
    Some((sender, Frames::new(receiver)))
}
