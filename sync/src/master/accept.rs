//! Who comes in: handshakes, certificates, and to which session a connection belongs.

use super::registry::{Arrival, Open, Shared};
use super::session;
use super::{Refusal, TlsSource};
use crate::bulk::Carrier;
use crate::node::Transport;
use crate::session::SessionError;
use crate::tls::{self, ALPN_BULK, ALPN_CONTROL, ALPN_STREAM};
use crate::transport::{self, Frames, Receiver, Sender, StreamError};
use crate::wire::call::BOUNDS;
use crate::wire::{self, Join, kind};
use crate::{AskError, asks, packets, quic};
use quinn::{Connection, Endpoint, Incoming};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

/// Handshakes that run at once.
const HANDSHAKES_MAX: usize = 256;
/// From so many on, who comes must first show that its address is its own.
const HANDSHAKES_TRUSTING_MAX: usize = 64;
/// How long a handshake may take, and then how long the first frame.
const GREETING_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the last packets may take at the shutdown.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

/// Accepts on UDP until the shutdown.
pub(super) async fn quic(shared: Arc<Shared>, endpoint: Endpoint, source: TlsSource) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut known: Option<(Arc<rustls::ServerConfig>, Arc<quinn::ServerConfig>)> = None;
    loop {
        let incoming = tokio::select! {
            () = shared.shutdown.cancelled() => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        let newest = source();
        if known.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, &newest)) {
            match quic::server(newest.clone(), &shared.limits) {
                Ok(config) => known = Some((newest, Arc::new(config))),
                Err(error) => tracing::error!(%error, "the master's certificate cannot be used for QUIC"),
            }
        }
        let Some((_, config)) = &known else {
            incoming.refuse();
            continue;
        };
        let busy = HANDSHAKES_MAX - handshakes.available_permits();
        if busy > HANDSHAKES_TRUSTING_MAX && !incoming.remote_address_validated() && incoming.may_retry() {
            // may_retry was asked
            let _ = incoming.retry();
            continue;
        }
        let (Ok(handshake), Ok(slot)) =
            (handshakes.clone().try_acquire_owned(), shared.slots.clone().try_acquire_owned())
        else {
            incoming.refuse();
            continue;
        };
        let (of, config) = (shared.clone(), config.clone());
        shared.tasks.spawn(async move {
            let accepted = timeout(GREETING_TIME_MAX, handshaken(incoming, config)).await;
            drop(handshake);
            if let Ok(Some(connection)) = accepted {
                tokio::select! {
                    () = connected(&of, &connection) => {}
                    () = of.shutdown.cancelled() => connection.close(quic::CLOSED, b"the master goes down"),
                }
            }
            drop(slot);
        });
    }
    shared.finish();
    shared.tasks.close();
    endpoint.close(quic::CLOSED, b"the master goes down");
    // who does not confirm the end notices it later
    let _ = timeout(DRAIN_TIME_MAX, endpoint.wait_idle()).await;
}

async fn handshaken(incoming: Incoming, config: Arc<quinn::ServerConfig>) -> Option<Connection> {
    let remote = incoming.remote_address();
    let connected = async { incoming.accept_with(config)?.await };
    connected
        .await
        .inspect_err(|error: &quinn::ConnectionError| tracing::debug!(%remote, %error, "QUIC handshake"))
        .ok()
}

async fn connected(shared: &Arc<Shared>, connection: &Connection) {
    let remote = connection.remote_address();
    let certificate = quic::certificate(connection);
    let node = match admitted(shared, certificate.as_ref()) {
        Ok(node) => node,
        Err(refusal) => {
            let code = match &refusal {
                Refusal::Refused(_) => quic::REFUSED,
                Refusal::Dismissed(_) => quic::DISMISSED,
            };
            tracing::info!(%remote, reason = refusal.reason(), "a node was refused");
            return connection.close(code, refusal.reason().as_bytes());
        }
    };
    // the first stream is opened by the node, and the only one
    let Ok(Ok((sender, receiver))) = timeout(GREETING_TIME_MAX, connection.accept_bi()).await else {
        return connection.close(quic::BROKEN, b"no stream was opened");
    };
    let stream = (Sender::Quic(sender), Frames::new(Receiver::Quic(receiver)));
    match quic::alpn(connection).as_deref() {
        Some(ALPN_CONTROL) => {
            let who = session::Who { node, remote, over: Transport::Quic, connection: Some(connection.clone()) };
            session::run(shared, who, stream).await;
        }
        Some(ALPN_BULK) => bulk_over_quic(shared, &node, connection, stream).await,
        _ => connection.close(quic::BROKEN, b"this protocol is spoken over TCP only"),
    }
}

async fn bulk_over_quic(shared: &Shared, node: &str, connection: &Connection, mut stream: (Sender, Frames)) {
    let joined = match join(&mut stream.1).await {
        Ok(join) => shared.find(&join.session, node),
        Err(error) => return connection.close(quic::BROKEN, error.chain().as_bytes()),
    };
    let Some(open) = joined else { return connection.close(quic::BROKEN, b"there is no such session") };
    if stream.0.send(&wire::encode(kind::JOINED, &[])).await.is_err() {
        return;
    }
    open.connection.send_replace(Some(connection.clone()));
    let _carried = open.bulk.carry_while(Carrier::Quic(connection.clone()));
    let mut asked = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => {
                let Ok((sender, receiver)) = accepted else { break };
                let sender = Sender::Quic(sender);
                sender.yield_to_others();
                asked.spawn(asks::serve((sender, Frames::new(Receiver::Quic(receiver))), open.asks.clone()));
            }
            Some(_) = asked.join_next() => {}
            () = open.closed.cancelled() => {
                connection.close(quic::CLOSED, b"the session has ended");
                break;
            }
        }
    }
    let id = connection.stable_id();
    open.connection.send_if_modified(|now| now.take_if(|now| now.stable_id() == id).is_some());
}

/// A stream that the API's listener has accepted.
pub(super) async fn tls(shared: Arc<Shared>, stream: TlsStream<TcpStream>, remote: SocketAddr) {
    let Ok(_slot) = shared.slots.clone().try_acquire_owned() else { return };
    let session = stream.get_ref().1;
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let chain: Vec<_> =
        session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
    let (mut sender, receiver) = transport::tls(stream);
    let node = verified(&shared, &chain).and_then(|()| admitted(&shared, chain.first()));
    let node = match node {
        Ok(node) => node,
        Err(refusal) => {
            tracing::info!(%remote, reason = refusal.reason(), "a node was refused");
            let dismissed = matches!(refusal, Refusal::Dismissed(_));
            let goodbye = wire::Goodbye { reason: refusal.reason().into(), refused: true, dismissed };
            return part(&mut sender, &goodbye).await;
        }
    };
    let stream = (sender, Frames::new(receiver));
    tokio::select! {
        () = over_tls(&shared, node, remote, alpn, stream) => {}
        () = shared.shutdown.cancelled() => {}
    }
}

async fn over_tls(
    shared: &Arc<Shared>,
    node: String,
    remote: SocketAddr,
    alpn: Option<Vec<u8>>,
    mut stream: (Sender, Frames),
) {
    if alpn.as_deref() == Some(ALPN_CONTROL) {
        let who = session::Who { node, remote, over: Transport::Tcp, connection: None };
        return session::run(shared, who, stream).await;
    }
    let joined = join(&mut stream.1).await.map(|join| (shared.find(&join.session, &node), join.stream));
    match (joined, alpn.as_deref()) {
        (Ok((Some(open), None)), Some(ALPN_BULK)) => {
            if stream.0.send(&wire::encode(kind::JOINED, &[])).await.is_ok() {
                tokio::select! {
                    () = packets::pump(&open.bulk, stream.0, stream.1) => {}
                    () = open.closed.cancelled() => {}
                }
            }
        }
        (Ok((Some(open), Some(number))), Some(ALPN_STREAM)) => open.arrive(number, stream),
        (Ok((Some(open), None)), Some(ALPN_STREAM)) => ask_over_tls(&open, stream).await,
        (Ok((None, _)), _) => goodbye(&mut stream.0, "there is no such session").await,
        (Ok(_), _) => goodbye(&mut stream.0, "this is not what the protocol's name says").await,
        (Err(error), _) => goodbye(&mut stream.0, &error.chain()).await,
    }
}

/// Answers what a node asks.
async fn ask_over_tls(open: &Open, mut stream: Arrival) {
    let Ok(_place) = open.asks_room.try_acquire() else { return asks::refuse(&mut stream.0, AskError::Busy).await };
    tokio::select! {
        () = asks::serve(stream, open.asks.clone()) => {}
        () = open.closed.cancelled() => {}
    }
}

/// To which session a connection belongs.
async fn join(frames: &mut Frames) -> Result<Join, StreamError> {
    let frame = timeout(GREETING_TIME_MAX, frames.next(BOUNDS)).await.unwrap_or(Err(StreamError::Slow("to join")))?;
    match frame.kind {
        kind::JOIN => Ok(wire::json("join", &frame.body)?),
        _ => Err(SessionError::Order("something came before the join").into()),
    }
}

/// Ends a stream with a reason.
pub(super) async fn goodbye(sender: &mut Sender, reason: &str) {
    part(sender, &wire::Goodbye { reason: reason.into(), refused: false, dismissed: false }).await;
}

async fn part(sender: &mut Sender, goodbye: &wire::Goodbye) {
    let ending = async {
        if sender.send(&wire::encode(kind::GOODBYE, &wire::to_json(goodbye))).await.is_ok() {
            sender.finish().await;
        }
    };
    // who does not listen is not told
    let _ = timeout(DRAIN_TIME_MAX, ending).await;
}

/// Checks what the API's listener may have taken from another authority.
fn verified(shared: &Shared, chain: &[CertificateDer<'static>]) -> Result<(), Refusal> {
    let (own, between) = chain.split_first().ok_or("a node must show a certificate")?;
    let verified = shared.verifier.verify_client_cert(own, between, UnixTime::now());
    verified.map(|_| ()).map_err(|error| format!("the certificate is not trusted: {error}").into())
}

/// The node of a certificate that TLS has found good, if the server wants it.
fn admitted(shared: &Shared, certificate: Option<&CertificateDer<'static>>) -> Result<String, Refusal> {
    let certificate = certificate.ok_or("a node must show a certificate")?;
    let node = tls::node_name(certificate).map_err(|error| error.to_string())?;
    (shared.admit)(&node, certificate)?;
    Ok(node)
}
