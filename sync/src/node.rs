//! The dialling side: a node's link to its master, through reconnects.

mod bulk;
mod dial;
mod session;

use crate::link::{IncomingWrites, Renewal, Up};
use crate::quic::Failure;
use crate::{Bulk, Identity, Limits, NodeEnd, Position, Progress, Rejected};
use dial::{Carried, Dialler};
use rustls_pki_types::CertificateDer;
use session::{End, Hands};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Shortest pause before a new attempt.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause before a new attempt.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Pause after a refusal or a dismissal: somebody has to do something first.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// A session that held so long was a good one: the next attempt is not delayed by those before it.
const GOOD_TIME: Duration = Duration::from_secs(10);
/// What is left of the patience with QUIC when the session before went over TCP.
const PATIENCE_AFTER_TCP: Duration = Duration::from_millis(500);

/// What carries a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Two QUIC connections.
    Quic,
    /// TLS on TCP, because QUIC gets no answer.
    Tcp,
}

/// How to reach the master, and as whom.
pub struct Config {
    /// Host name or address of the master.
    pub server: String,
    /// Its port: UDP and TCP.
    pub port: u16,
    /// This node's name, as in its certificate.
    pub node: String,
    /// Who signs the master's certificate.
    pub server_ca: CertificateDer<'static>,
    /// This node's certificate; the newest is used for each new connection.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// What the node knows already.
    pub from: Option<Position>,
    /// Bounds.
    pub limits: Limits,
    /// Local address of the connections; the port is used for the control connection. Any, when there is none.
    pub bind: Option<SocketAddr>,
}

/// A link that reconnects for ever.
pub struct Link {
    /// The node's end; it outlives connections. Writes that have no answer when a connection breaks end with
    /// [`crate::Rejected::Disconnected`], and those made while there is none at once.
    pub end: NodeEnd,
    /// How the connection is now.
    pub state: watch::Receiver<LinkState>,
    /// Packets.
    pub bulk: Bulk,
}

/// How a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// There is no connection, and why the last attempt failed.
    Connecting {
        /// `None` at the first attempt.
        error: Option<String>,
    },
    /// There is a session.
    Up {
        /// What carries it.
        over: Transport,
        /// The master's address.
        remote: SocketAddr,
    },
    /// One of the ends does not trust the other, and why. Tried again, slowly.
    Refused(String),
    /// The master has taken this node out of the cluster, and why: the node has been told that nothing is its own any more.
    /// Tried again, slowly.
    Dismissed(String),
}

/// Links a node to its master until `shutdown`; reconnects for ever. It ends by itself when [`Link::end`] is dropped.
pub fn dial(config: Config, shutdown: CancellationToken) -> Link {
    let limits = config.limits;
    let (down, messages) = mpsc::channel(limits.down_messages_max);
    let (up, ups) = mpsc::channel(limits.up_batches_max);
    let (calls, incoming) = mpsc::channel(limits.calls_max);
    let (asks, asked) = mpsc::channel(limits.calls_max);
    let (state, states) = watch::channel(LinkState::Connecting { error: None });
    let bulk = Bulk::new();
    let hands = Hands {
        progress: Progress::new(config.from.clone()),
        down,
        up: ups,
        asks: asked,
        calls,
        bulk: bulk.clone(),
        state,
        shutdown: shutdown.clone(),
    };
    tokio::spawn(async move {
        let bulk = hands.bulk.clone();
        keep(Arc::new(Dialler::new(config)), hands).await;
        bulk.close();
    });
    Link { end: NodeEnd { down: messages, up, asks, calls: incoming }, state: states, bulk }
}

/// Connects and reconnects until the node is done.
async fn keep(dialler: Arc<Dialler>, mut hands: Hands) {
    let mut pause = PAUSE_MIN;
    let mut patience = dialler.config.limits.quic_patience;
    let mut ready: Option<Carried> = None;
    let mut identity = dialler.config.identity.clone();
    loop {
        let shutdown = hands.shutdown.clone();
        identity.mark_unchanged();
        let connected = match ready.take() {
            Some(carried) => Ok(carried),
            None => tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = hands.idle() => return,
                connected = dialler.connect(patience) => connected,
            },
        };
        let failure = match connected {
            Err(failure) => failure,
            Ok(carried) => {
                let (began, over) = (Instant::now(), carried.over);
                let end = session::run(&dialler, carried, &mut hands).await;
                patience = match over {
                    Transport::Quic => dialler.config.limits.quic_patience,
                    Transport::Tcp => PATIENCE_AFTER_TCP.min(dialler.config.limits.quic_patience),
                };
                if began.elapsed() > GOOD_TIME {
                    pause = PAUSE_MIN;
                }
                match end {
                    End::Done => return,
                    End::Better(carried) => {
                        ready = Some(carried);
                        continue;
                    }
                    End::Failed(failure) => failure,
                }
            }
        };
        tracing::debug!(error = failure.text(), "no link to the master");
        let wait = match &failure {
            Failure::Refused(why) => {
                hands.state.send_replace(LinkState::Refused(why.clone()));
                PAUSE_REFUSED
            }
            Failure::Dismissed(why) => {
                let is_news = !matches!(*hands.state.borrow(), LinkState::Dismissed(_));
                hands.state.send_replace(LinkState::Dismissed(why.clone()));
                if is_news {
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        () = hands.empty() => {}
                    }
                }
                PAUSE_REFUSED
            }
            Failure::Broken(why) => {
                hands.state.send_replace(LinkState::Connecting { error: Some(why.clone()) });
                pause
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = hands.idle() => return,
            () = tokio::time::sleep(jittered(wait)) => {}
            // a new certificate may be what was missing
            Ok(()) = identity.changed() => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A pause of half to the whole of `pause`, so that nodes that lost their master together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0];
    // no randomness, no jitter
    let _ = getrandom::fill(&mut random);
    pause / 2 + pause.mul_f64(f64::from(random[0]) / 512.0)
}

/// Tells a writer that there is no link.
fn turn_away(up: Up) {
    match up {
        Up::Writes(IncomingWrites { reply, .. }) => drop(reply.send(Err(Rejected::Disconnected))),
        Up::Renew(Renewal { reply }) => drop(reply.send(Err(Rejected::Disconnected))),
    }
}
