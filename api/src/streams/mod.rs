//! Streams both ways between a client and a pod: exec, attach, portforward.
//!
//! A request is checked, its node asked, and only then the connection leaves HTTP: what goes wrong before is an ordinary answer,
//! what goes wrong after is told on the error stream. Two ways to carry several streams are spoken: a WebSocket's channels
//! ([`channels`]) and SPDY ([`spdy`]), the latter also through a WebSocket ([`tunnel`]). [`program`] and [`ports`] are
//! the sessions over them. Bounds: sessions of a server (`Limits::sessions_max`), messages, streams of a connection, and four
//! hours without data. Deliberately absent: the older WebSocket ways of `kubectl attach` to nodes, and proxying.

pub mod spdy;
pub mod tunnel;
pub mod websocket;

mod channels;
mod options;
mod outcome;
mod ports;
mod program;

use crate::body::{self, Answer};
use crate::front::Call;
use crate::nodes::{CallError, Input, OutputStream};
use crate::status::Status;
use crate::transport::Patience;
use crate::verbs::find;
use bytes::Bytes;
use channels::Protocol;
use http::header::{CONNECTION, UPGRADE};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use options::Wanted;
use program::Program;
use spdy::{Connection, Side};
use state::Object;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::Role;
use tunnel::Tunnel;

/// Pieces of input that wait for the node.
const INPUTS_MAX: usize = 8;
/// How often a WebSocket's client is asked whether it lives; proxies between are kept awake by it.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A session that carries no data for so long is ended; the kubelet's time.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// How long a client may take to read the rest and hang up.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a connection may take to leave HTTP.
const UPGRADE_TIME_MAX: Duration = Duration::from_secs(10);

const SPDY: &str = "SPDY/3.1";
const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
/// SPDY's versions of a program's streams.
const SPDY_PROGRAMS: &[&str] =
    &["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// A connection's way out of HTTP.
pub(crate) struct Leaving {
    connection: Option<OnUpgrade>,
    patience: Option<Patience>,
}

impl Leaving {
    /// Of a request.
    pub fn of(extensions: &mut Extensions) -> Self {
        Self { connection: extensions.remove::<OnUpgrade>(), patience: extensions.remove::<Patience>() }
    }
}

/// When data last went either way.
struct Activity {
    began: Instant,
    seconds: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { began: Instant::now(), seconds: AtomicU64::new(0) }
    }
}

impl Activity {
    fn touch(&self) {
        self.seconds.store(self.began.elapsed().as_secs(), Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.began.elapsed().as_secs().saturating_sub(self.seconds.load(Ordering::Relaxed)) >= IDLE_TIME_MAX.as_secs()
    }
}

/// How the streams are carried.
#[derive(Clone, Copy, Debug)]
enum Carrier {
    Channels(Protocol),
    Tunnel,
    Spdy(&'static str),
}

/// What runs once the connection has left HTTP.
enum Session {
    Program(Program),
    Ports(Vec<u16>, ports::Target),
}

/// Whether a connection is asked to leave HTTP for a protocol.
fn upgrades_to(headers: &HeaderMap, protocol: &str) -> bool {
    let names = |header: HeaderName, wanted: &str| {
        let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|name| name.trim().eq_ignore_ascii_case(wanted))
    };
    names(CONNECTION, "upgrade") && names(UPGRADE, protocol)
}

/// Whether a subresource of a pod is one of these.
pub(crate) fn serves(kind: &str, subresource: &str) -> bool {
    kind == "Pod" && matches!(subresource, "exec" | "attach" | "portforward")
}

/// Answers GET and POST of `pods/x/exec`, `attach` and `portforward`.
///
/// # Errors
/// In Kubernetes' words; nothing has left HTTP then.
pub(crate) async fn answer(call: Call, verb: &str, leaving: Leaving) -> Result<Answer, Status> {
    if call.at.rest {
        return Err(Status::no_such_path());
    }
    if !matches!(verb, "get" | "create") {
        return Err(Status::method_not_allowed());
    }
    let pod = find(&call, &call.api.world())?;
    let wanted = options::of(&call, &pod.value())?;
    let (carrier, answer) = match carrier(&call, &wanted)? {
        Negotiated::Agreed(carrier, answer) => (carrier, answer),
        Negotiated::Refused(answer) => return Ok(answer),
    };
    let Some(connection) = leaving.connection else { return Err(Status::bad_request("Upgrade request required")) };
    let Ok(slot) = call.api.sessions.clone().try_acquire_owned() else {
        return Err(Status::too_many_requests("too many open exec, attach and portforward sessions", 1));
    };
    let session = open(&call, pod, wanted).await?;
    let ended = call.ended.clone();
    call.api.tracker.spawn(async move {
        let serving = async {
            let Ok(Ok(upgraded)) = timeout(UPGRADE_TIME_MAX, connection).await else { return };
            if let Some(patience) = leaving.patience {
                // who pauses a terminal's output takes no byte for as long as they like
                patience.extend(IDLE_TIME_MAX);
            }
            serve(TokioIo::new(upgraded), carrier, session).await;
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = serving => {}
        }
        drop(slot);
    });
    Ok(answer)
}

/// Asks the node for what needs its word before the connection leaves HTTP.
async fn open(call: &Call, pod: Arc<Object>, wanted: Wanted) -> Result<Session, Status> {
    let nodes = call.api.config.nodes.clone();
    let (input, receiver) = mpsc::channel(INPUTS_MAX);
    let (opened, streams, tells_exit) = match wanted {
        Wanted::Ports(ports) => return Ok(Session::Ports(ports, ports::Target { nodes, pod })),
        Wanted::Exec(options) => {
            let streams = options.streams;
            (nodes.exec(pod, options, receiver), streams, true)
        }
        Wanted::Attach(options) => {
            let streams = options.streams;
            (nodes.attach(pod, options, receiver), streams, false)
        }
    };
    let outputs: OutputStream = opened.await.map_err(|error| refusal(&error))?;
    if !streams.stdin {
        // there is room for one in an empty channel
        drop(input.try_send(Input::End));
    }
    Ok(Session::Program(Program { input, outputs, streams, tells_exit }))
}

fn refusal(error: &CallError) -> Status {
    match error {
        CallError::Unreachable { .. } => Status::internal(format!("error dialing backend: {error}")),
        CallError::Refused { message } => Status::bad_request(message.clone()),
        CallError::NotFound { message } | CallError::Failed { message } => {
            Status::new(500, "InternalError", format!("unable to upgrade connection: {message}"))
        }
    }
}

enum Negotiated {
    Agreed(Carrier, Answer),
    Refused(Answer),
}

/// Finds a way to carry the streams that both sides know.
fn carrier(call: &Call, wanted: &Wanted) -> Result<Negotiated, Status> {
    let headers = &call.headers;
    if websocket::is_asked(headers) {
        let offered = websocket::offered(headers);
        if matches!(wanted, Wanted::Ports(_)) && offered.iter().any(|offer| offer == TUNNELLED) {
            return Ok(Negotiated::Agreed(Carrier::Tunnel, websocket::agree(headers, TUNNELLED)?));
        }
        if matches!(wanted, Wanted::Ports(ports) if ports.is_empty()) {
            return Err(Status::bad_request("query parameter \"ports\" is required"));
        }
        let Some(protocol) = channels::choose(&offered) else {
            let offered = offered.join(" ");
            return Err(Status::bad_request(format!("none of the WebSocket's protocols [{offered}] is supported")));
        };
        return Ok(Negotiated::Agreed(Carrier::Channels(protocol), websocket::agree(headers, protocol.name)?));
    }
    if !upgrades_to(headers, SPDY) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let known = if matches!(wanted, Wanted::Ports(_)) { &[PORT_FORWARD] } else { SPDY_PROGRAMS };
    let offers = headers.get_all(&PROTOCOL_VERSION).iter().filter_map(|value| value.to_str().ok());
    let offers: Vec<&str> = offers.flat_map(|value| value.split(',')).map(str::trim).collect();
    if offers.is_empty() {
        return Err(Status::bad_request("unable to upgrade: \"X-Stream-Protocol-Version\" is missing"));
    }
    let chosen = offers.iter().find_map(|offer| known.iter().find(|known| *known == offer));
    let Some(chosen) = chosen else {
        let (offers, known_words) = (offers.join(" "), known.join(" "));
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{offers}], server accepts [{known_words}]"
        );
        let mut answer = body::text(403, text);
        for name in known {
            answer.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
        }
        return Ok(Negotiated::Refused(answer));
    };
    let mut answer = Answer::new(body::full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
    headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(chosen));
    Ok(Negotiated::Agreed(Carrier::Spdy(chosen), answer))
}

async fn serve<I>(io: I, carrier: Carrier, session: Session)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match (carrier, session) {
        (Carrier::Channels(protocol), Session::Program(program)) => {
            program::over_websocket(websocket::open(io, Role::Server).await, protocol, program).await;
        }
        (Carrier::Channels(protocol), Session::Ports(ports, target)) => {
            ports::over_websocket(websocket::open(io, Role::Server).await, protocol, ports, target).await;
        }
        (Carrier::Spdy(name), Session::Program(program)) => {
            let Ok(connection) = Connection::start(io, Side::Server, spdy::Limits::default()) else { return };
            let resizes = !matches!(name, "v2.channel.k8s.io" | "channel.k8s.io");
            let Some(protocol) = channels::choose(&[name.to_owned()]) else { return };
            program::over_spdy(connection, protocol, resizes, program).await;
        }
        (Carrier::Spdy(_), Session::Ports(_, target)) => {
            let Ok(connection) = Connection::start(io, Side::Server, spdy::Limits::default()) else { return };
            ports::over_spdy(connection, target).await;
        }
        (Carrier::Tunnel, session) => {
            let Session::Ports(_, target) = session else { return };
            let tunnel = Tunnel::new(websocket::open(io, Role::Server).await);
            let Ok(connection) = Connection::start(tunnel, Side::Server, spdy::Limits::default()) else { return };
            ports::over_spdy(connection, target).await;
        }
    }
}
