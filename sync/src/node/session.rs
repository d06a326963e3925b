//! One session of a node: drives the state machine over a connection, until that breaks.

use super::dial::{Carried, Dialler, tls_failure};
use super::{LinkState, Transport, bulk, turn_away};
use crate::link::{IncomingWrites, Renewal, Up};
use crate::quic::{self, Failure, IDLE_TIME_MAX, KEEP_ALIVE};
use crate::session::{NodeAction, NodeSession, Opened, SessionError};
use crate::transport::{Frames, Sender, StreamError};
use crate::wire::{self, kind};
use crate::{AskError, Bulk, Down, Hello, IncomingAsk, IncomingCall, Limits, Progress, Rejected, VERSION};
use state::{Event, Revision};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long the master may take to say its welcome: it may have to read a long history first.
const WELCOME_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a farewell may take.
const FAREWELL_TIME_MAX: Duration = Duration::from_millis(500);

/// The driver's side of a node's end; outlives sessions.
pub(super) struct Hands {
    pub(super) progress: Progress,
    pub(super) down: mpsc::Sender<Down>,
    pub(super) up: mpsc::Receiver<Up>,
    pub(super) asks: mpsc::Receiver<IncomingAsk>,
    pub(super) calls: mpsc::Sender<IncomingCall>,
    pub(super) bulk: Bulk,
    pub(super) state: watch::Sender<LinkState>,
    pub(super) shutdown: CancellationToken,
}

impl Hands {
    /// Nothing of what the node has is the cluster's any more.
    pub(super) async fn empty(&mut self) {
        self.progress = Progress::default();
        // a node that has dropped its end needs no telling
        let _ = self.down.send(Down::Reset { revision: Revision(0), objects: Vec::new() }).await;
    }

    /// Turns writers and asks away for as long as there is no link; returns when the node has dropped its end.
    pub(super) async fn idle(&mut self) {
        loop {
            tokio::select! {
                () = self.down.closed() => return,
                Some(up) = self.up.recv() => turn_away(up),
                Some(ask) = self.asks.recv() => ask.answer(Err(AskError::Disconnected)),
            }
        }
    }
}

/// How a session ended.
pub(super) enum End {
    /// The node is done with the link.
    Done,
    /// A better connection is there.
    Better(Carried),
    /// The connection broke.
    Failed(Failure),
}

/// Who waits for an answer.
enum Token {
    Batch(oneshot::Sender<Result<Vec<Event>, Rejected>>),
    Renewal(oneshot::Sender<Result<(), Rejected>>),
}

impl Token {
    fn answer(self, outcome: Result<Vec<Event>, Rejected>) {
        match self {
            Self::Batch(reply) => drop(reply.send(outcome)),
            Self::Renewal(reply) => drop(reply.send(outcome.map(|_| ()))),
        }
    }
}

struct Session {
    machine: Mutex<NodeSession<Token>>,
    limits: Limits,
    over: Transport,
    /// What the master has said of the session, once it has.
    opened: watch::Sender<Option<Opened>>,
    /// An answer has made room for another batch.
    room: Notify,
}

impl Session {
    fn machine(&self) -> std::sync::MutexGuard<'_, NodeSession<Token>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a session to its end.
pub(super) async fn run(dialler: &Dialler, carried: Carried, hands: &mut Hands) -> End {
    let limits = dialler.config.limits;
    let hello = Hello {
        node: dialler.config.node.clone(),
        from: hands.progress.position(),
        version: VERSION,
        agent: env!("CARGO_PKG_VERSION").into(),
    };
    let (machine, hello) = NodeSession::begin(&hello, limits);
    let Carried { over, remote, stream: (mut sender, receiver), connection } = carried;
    let session =
        Session { machine: Mutex::new(machine), limits, over, opened: watch::Sender::new(None), room: Notify::new() };
    let (dials, asked) = mpsc::channel(limits.calls_running_max as usize);
    let up_state = LinkState::Up { over, remote };
    let end = {
        let Hands { progress, down, up, asks, calls, bulk, state, shutdown } = &mut *hands;
        let demands = bulk::Demands { dials: asked, asks };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => End::Done,
            () = down.closed() => End::Done,
            end = read(&session, Frames::new(receiver), progress, down, &dials) => end,
            error = write(&session, &mut sender, &hello, up) => End::Failed(tls_failure(&error)),
            () = opened(&session, up_state, state) => End::Done,
            () = bulk::keep(dialler, &session.opened, over, demands, calls, bulk) => End::Done,
            better = better(dialler, over, &limits) => End::Better(better),
        }
    };
    session.machine().end().into_iter().for_each(|token| token.answer(Err(Rejected::Disconnected)));
    // asked before it is closed from here: the connection knows better why the stream broke
    let reason = connection.as_ref().and_then(quinn::Connection::close_reason);
    leave(&mut sender, connection.as_ref(), &end).await;
    match (end, reason) {
        (End::Failed(Failure::Broken(_)), Some(reason)) => End::Failed(quic::failure(&reason)),
        (end, _) => end,
    }
}

async fn leave(sender: &mut Sender, connection: Option<&quinn::Connection>, end: &End) {
    let (code, reason) = match end {
        End::Done => (quic::CLOSED, "the node goes"),
        End::Better(_) => (quic::CLOSED, "the node has a better connection"),
        End::Failed(_) => (quic::BROKEN, "the session failed"),
    };
    match connection {
        Some(connection) => connection.close(code, reason.as_bytes()),
        None => {
            let goodbye = wire::Goodbye { reason: reason.into(), refused: false, dismissed: false };
            let frame = wire::encode(kind::GOODBYE, &wire::to_json(&goodbye));
            let farewell = async {
                if sender.send(&frame).await.is_ok() {
                    sender.finish().await;
                }
            };
            // where the connection is dead, nobody hears it
            let _ = timeout(FAREWELL_TIME_MAX, farewell).await;
        }
    }
}

/// Says that the link is up when the master has welcomed the node; never returns.
async fn opened(session: &Session, up: LinkState, state: &watch::Sender<LinkState>) {
    let mut opened = session.opened.subscribe();
    // the sender lives in the session
    let _ = opened.wait_for(Option::is_some).await;
    state.send_replace(up);
    std::future::pending().await
}

async fn read(
    session: &Session,
    mut frames: Frames,
    progress: &mut Progress,
    down: &mpsc::Sender<Down>,
    dials: &mpsc::Sender<u64>,
) -> End {
    let bounds = NodeSession::<Token>::bounds(&session.limits);
    loop {
        let is_open = session.opened.borrow().is_some();
        let patience = match (is_open, session.over) {
            (false, _) => Some((WELCOME_TIME_MAX, "the master's welcome")),
            // QUIC has its own
            (true, Transport::Quic) => None,
            (true, Transport::Tcp) => Some((IDLE_TIME_MAX, "a sign of life from the master")),
        };
        let frame = match patience {
            None => frames.next(bounds).await,
            Some((time, what)) => timeout(time, frames.next(bounds)).await.unwrap_or(Err(StreamError::Slow(what))),
        };
        let actions = frame.and_then(|frame| session.machine().receive(frame).map_err(StreamError::from));
        let actions = match actions {
            Ok(actions) => actions,
            Err(error) => return End::Failed(failure(&error)),
        };
        for action in actions {
            match action {
                NodeAction::Opened(opened) => drop(session.opened.send_replace(Some(opened))),
                NodeAction::Answer(token, outcome) => {
                    token.answer(outcome);
                    session.room.notify_one();
                }
                NodeAction::Deliver(message) => {
                    // the position may move only when the message is sure to arrive
                    let Ok(place) = down.reserve().await else { return End::Done };
                    progress.see(&message);
                    place.send(message);
                }
                // one too many is the master's to notice: its call is not dialled in time
                NodeAction::Dial(stream) => drop(dials.try_send(stream)),
            }
        }
    }
}

fn failure(error: &StreamError) -> Failure {
    match error {
        StreamError::Broken(error) => tls_failure(error),
        StreamError::Session(SessionError::Goodbye { reason, dismissed: true, .. }) => {
            Failure::Dismissed(reason.clone())
        }
        StreamError::Session(SessionError::Goodbye { reason, refused: true, .. }) => Failure::Refused(reason.clone()),
        other => Failure::Broken(other.chain()),
    }
}

async fn write(session: &Session, sender: &mut Sender, hello: &[u8], up: &mut mpsc::Receiver<Up>) -> std::io::Error {
    if let Err(error) = sender.send(hello).await {
        return error;
    }
    let mut opened = session.opened.subscribe();
    let mut alive = interval(KEEP_ALIVE);
    let ping = wire::encode(kind::PING, &[]);
    loop {
        let is_open = opened.borrow_and_update().is_some();
        let may_write = !is_open || session.machine().has_room();
        let frame = tokio::select! {
            // the node drops its receiving end too, which ends the session
            Some(up) = up.recv(), if may_write => {
                // asked again: the welcome may have come meanwhile
                if session.opened.borrow().is_none() {
                    turn_away(up);
                    continue;
                }
                match encode(session, up) {
                    Some(frame) => frame,
                    None => continue,
                }
            }
            () = session.room.notified() => continue,
            // the sender lives in the session
            _ = opened.changed() => continue,
            _ = alive.tick(), if session.over == Transport::Tcp => ping.clone(),
        };
        if let Err(error) = sender.send(&frame).await {
            return error;
        }
    }
}

fn encode(session: &Session, up: Up) -> Option<bytes::Bytes> {
    match up {
        Up::Renew(Renewal { reply }) => Some(session.machine().renew(Token::Renewal(reply))),
        Up::Writes(IncomingWrites { writes, reply }) => {
            let encoded = session.machine().write(writes, Token::Batch(reply));
            match encoded {
                Ok(frame) => Some(frame),
                Err((token, rejected)) => {
                    token.answer(Err(rejected));
                    None
                }
            }
        }
    }
}

/// While the session is on TCP: waits until QUIC works.
async fn better(dialler: &Dialler, over: Transport, limits: &Limits) -> Carried {
    if over == Transport::Quic {
        return std::future::pending().await;
    }
    loop {
        sleep(limits.quic_again).await;
        if let Ok(carried) = dialler.control_over_quic().await {
            return carried;
        }
    }
}
