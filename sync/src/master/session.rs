//! One session of a master: drives the state machine over a connection, until that breaks or the server ends it.

use super::Session;
use super::accept::goodbye;
use super::registry::{Open, Shared};
use crate::link::{Caller, IncomingWrites, Renewal, Up};
use crate::node::Transport;
use crate::quic::{self, IDLE_TIME_MAX, KEEP_ALIVE};
use crate::session::{EventCache, MasterAction, MasterSession, SessionError};
use crate::transport::{Frames, Receiver, Sender, StreamError};
use crate::wire::{self, kind};
use crate::{CallError, Down, Hello, IncomingCall, MasterEnd, Rejected};
use bytes::BytesMut;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use state::Event;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

/// How long a node may take to say hello.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a call waits for a stream to the node.
const STREAM_TIME_MAX: Duration = Duration::from_secs(10);
/// Messages that are encoded before they are sent together.
const BURST_MAX: usize = 64;
/// Bytes that are sent together.
const BURST_BYTES: usize = 256 << 10;

/// A buffer that has grown beyond this is given back when it is empty, bytes: a node's slice comes once.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// Who is at the other end.
pub(super) struct Who {
    pub(super) node: String,
    pub(super) remote: SocketAddr,
    pub(super) over: Transport,
    pub(super) connection: Option<quinn::Connection>,
}

/// What became of a batch or a heartbeat.
enum Outcome {
    Batch(u64, Result<Vec<Event>, Rejected>),
    Renewal(u64, Result<(), Rejected>),
}

type Pending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

struct Driver<'a> {
    machine: Mutex<MasterSession>,
    events: &'a EventCache,
    over: Transport,
}

impl Driver<'_> {
    fn machine(&self) -> MutexGuard<'_, MasterSession> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a session to its end.
pub(super) async fn run(shared: &Arc<Shared>, who: Who, (mut sender, frames): (Sender, Frames)) {
    let (remote, node) = (who.remote, who.node.clone());
    let ended = serve(shared, &who, &mut sender, frames).await;
    let reason = ended.chain();
    tracing::debug!(%remote, node, reason, "a node's session has ended");
    match &who.connection {
        Some(connection) => {
            let code = if matches!(ended, StreamError::Session(_)) { quic::BROKEN } else { quic::CLOSED };
            connection.close(code, reason.as_bytes());
        }
        None => goodbye(&mut sender, &reason).await,
    }
}

async fn serve(shared: &Arc<Shared>, who: &Who, sender: &mut Sender, mut frames: Frames) -> StreamError {
    let limits = shared.limits;
    let name = random_name();
    let mut machine = MasterSession::new(who.node.clone(), name.clone(), limits);
    let hello = match timeout(HELLO_TIME_MAX, hello(&mut machine, &mut frames)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => return error,
        Err(_) => return StreamError::Slow("the node's hello"),
    };
    let closed = shared.shutdown.child_token();
    let (asks, asked) = mpsc::channel(limits.calls_max);
    let open = Arc::new(Open::new(name, who, closed.clone(), asks, limits.asks_max));
    if let Err(reason) = shared.open(open.clone()) {
        return SessionError::Goodbye { reason: reason.into(), refused: false, dismissed: false }.into();
    }
    let _registered = Registered { shared, open: &open };
    let (down, messages) = mpsc::channel(limits.down_messages_max);
    let (up, ups) = mpsc::channel(limits.up_batches_max);
    let (caller, calls) = mpsc::channel(limits.calls_max);
    let session = Session {
        node: who.node.clone(),
        remote: who.remote,
        hello,
        end: MasterEnd { down, up: ups, caller: Caller(caller), asks: asked },
        bulk: open.bulk.clone(),
        closed: closed.clone(),
    };
    let Some(sessions) = shared.sessions() else { return ended("the master goes down") };
    let passed = tokio::select! {
        passed = sessions.send(session) => passed.is_ok(),
        () = closed.cancelled() => false,
    };
    drop(sessions);
    if !passed {
        return ended("the master goes down");
    }
    let driver = Driver { machine: Mutex::new(machine), events: &shared.events, over: who.over };
    // as many as may be unanswered: the state machine counts them
    let (pending, answers) = mpsc::unbounded_channel();
    let (dial, dials) = mpsc::channel(limits.calls_max);
    tokio::select! {
        biased;
        () = closed.cancelled() => ended(if shared.shutdown.is_cancelled() { "the master goes down" } else { "the master has ended the session" }),
        error = read(&driver, &mut frames, up, pending) => error,
        error = write(&driver, sender, messages, answers, dials) => error,
        () = call(shared, &open, calls, dial) => ended("the master has ended the session"),
    }
}

/// Takes the session out of the books, whatever way it ends.
struct Registered<'a> {
    shared: &'a Shared,
    open: &'a Open,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.open.closed.cancel();
        self.open.bulk.close();
        self.shared.close(&self.open.name);
    }
}

fn ended(reason: &str) -> StreamError {
    SessionError::Goodbye { reason: reason.into(), refused: false, dismissed: false }.into()
}

/// Names a session; only the certificate gives a right to it.
fn random_name() -> String {
    let mut random = [0; 8];
    // a name that is not random is still checked against the node's own name
    let _ = getrandom::fill(&mut random);
    format!("{:016x}", u64::from_be_bytes(random))
}

async fn hello(machine: &mut MasterSession, frames: &mut Frames) -> Result<Hello, StreamError> {
    loop {
        let frame = frames.next(machine.bounds()).await?;
        if let Some(MasterAction::Hello(hello)) = machine.receive(frame)? {
            return Ok(hello);
        }
    }
}

async fn read(
    driver: &Driver<'_>,
    frames: &mut Frames,
    up: mpsc::Sender<Up>,
    pending: mpsc::UnboundedSender<Pending>,
) -> StreamError {
    let bounds = driver.machine().bounds();
    loop {
        let frame = match driver.over {
            Transport::Quic => frames.next(bounds).await,
            Transport::Tcp => timeout(IDLE_TIME_MAX, frames.next(bounds))
                .await
                .unwrap_or(Err(StreamError::Slow("a sign of life from the node"))),
        };
        let action = match frame.and_then(|frame| Ok(driver.machine().receive(frame)?)) {
            Ok(Some(action)) => action,
            Ok(None) => continue,
            Err(error) => return error,
        };
        let (asked, answer): (Up, Pending) = match action {
            MasterAction::Writes(id, writes) => {
                let (reply, answer) = oneshot::channel();
                let answer =
                    answer.map(move |answer| Outcome::Batch(id, answer.unwrap_or(Err(Rejected::Disconnected))));
                (Up::Writes(IncomingWrites { writes, reply }), Box::pin(answer))
            }
            MasterAction::Renew(id) => {
                let (reply, answer) = oneshot::channel();
                let answer =
                    answer.map(move |answer| Outcome::Renewal(id, answer.unwrap_or(Err(Rejected::Disconnected))));
                (Up::Renew(Renewal { reply }), Box::pin(answer))
            }
            // the state machine takes one only
            MasterAction::Hello(_) => continue,
        };
        if up.send(asked).await.is_err() || pending.send(answer).is_err() {
            return ended("the master has ended the session");
        }
    }
}

async fn write(
    driver: &Driver<'_>,
    sender: &mut Sender,
    mut messages: mpsc::Receiver<Down>,
    mut answers: mpsc::UnboundedReceiver<Pending>,
    mut dials: mpsc::Receiver<u64>,
) -> StreamError {
    let mut pending: FuturesUnordered<Pending> = FuturesUnordered::new();
    let mut alive = interval(KEEP_ALIVE);
    let (mut burst, mut out) = (Vec::new(), BytesMut::new());
    loop {
        tokio::select! {
            biased;
            Some(answer) = answers.recv() => {
                pending.push(answer);
                continue;
            }
            Some(outcome) = pending.next() => {
                let mut outcome = Some(outcome);
                while let Some(one) = outcome.take() {
                    out.extend_from_slice(&match one {
                        Outcome::Batch(id, answer) => driver.machine().answer(id, answer),
                        Outcome::Renewal(id, answer) => driver.machine().renewed(id, answer),
                    });
                    if out.len() < BURST_BYTES {
                        outcome = pending.next().now_or_never().flatten();
                    }
                }
            }
            Some(stream) = dials.recv() => {
                out.extend_from_slice(&wire::encode(kind::DIAL, &wire::to_json(&wire::Dial { stream })));
            }
            count = messages.recv_many(&mut burst, BURST_MAX) => {
                if count == 0 {
                    return ended("the master has ended the session");
                }
                for message in burst.drain(..) {
                    let frames = match driver.machine().send(&message, driver.events) {
                        Ok(frames) => frames,
                        Err(error) => return error.into(),
                    };
                    for frame in frames {
                        out.extend_from_slice(&frame);
                        if out.len() > BURST_BYTES {
                            if let Err(error) = sender.send(&out).await {
                                return StreamError::Broken(error);
                            }
                            out.clear();
                        }
                    }
                }
            }
            _ = alive.tick(), if driver.over == Transport::Tcp => {
                wire::put_plain(&mut out, kind::PING, &[]);
            }
        }
        if let Err(error) = sender.send(&out).await {
            return StreamError::Broken(error);
        }
        out.clear();
        if out.capacity() > KEPT_BYTES_MAX {
            out = BytesMut::new();
        }
    }
}

/// Opens a stream for each call of the server's; returns when there will be none any more.
async fn call(shared: &Shared, open: &Arc<Open>, mut calls: mpsc::Receiver<IncomingCall>, dial: mpsc::Sender<u64>) {
    let room = Arc::new(Semaphore::new(shared.limits.calls_running_max as usize));
    let mut opening = JoinSet::new();
    loop {
        tokio::select! {
            incoming = calls.recv() => {
                let Some(incoming) = incoming else { return };
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    incoming.answer(Err(CallError::Failed("too many calls to the node run at once".into())));
                    continue;
                };
                let (open, dial) = (open.clone(), dial.clone());
                opening.spawn(async move {
                    match timeout(STREAM_TIME_MAX, stream(&open, &dial)).await {
                        Ok(Some(stream)) => crate::calls::ask(incoming, stream, open.closed.clone(), permit).await,
                        Ok(None) | Err(_) => incoming.answer(Err(CallError::Disconnected)),
                    }
                });
            }
            Some(_) = opening.join_next() => {}
        }
    }
}

/// A stream to the node.
async fn stream(open: &Open, dial: &mpsc::Sender<u64>) -> Option<(Sender, Frames)> {
    if open.over == Transport::Tcp {
        let (number, arrival) = open.expect();
        dial.send(number).await.ok()?;
        return arrival.await.ok();
    }
    let mut connections = open.connection.subscribe();
    loop {
        let connection = connections.wait_for(Option::is_some).await.ok()?.clone()?;
        // where it has just broken, the next one is waited for
        match connection.open_bi().await {
            Ok((sender, receiver)) => return Some((Sender::Quic(sender), Frames::new(Receiver::Quic(receiver)))),
            Err(_) => drop(connections.changed().await),
        }
    }
}
