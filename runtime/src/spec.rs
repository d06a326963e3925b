//! The contract with the agent: what a container is given, what comes back, and how each act can fail.
//!
//! Plain data and two traits; nothing here runs anything.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use jiff::Timestamp;

use crate::namespace::NetworkNamespace;
use crate::wasm::Program;

/// Any error, for what crosses a body or comes from someone else's [`Network`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed HTTP body with back-pressure and trailers.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Everything one container needs to run. Cheap to clone.
#[derive(Clone)]
pub struct ContainerSpec {
    /// For messages and traces only: `namespace/pod/container`.
    pub name: String,
    /// What to run, from [`crate::Wasm::load`].
    pub program: Program,
    /// The whole argv, `argv[0]` included.
    pub args: Vec<String>,
    /// Environment variables; a name given twice keeps its last value.
    pub env: Vec<(String, String)>,
    /// Components see it as `initial-cwd`, preview 1 modules only as the variable `PWD` (it has no working directory).
    pub working_dir: Option<String>,
    /// Directories the guest may see. There is no other file system: not even `/`.
    pub mounts: Vec<Mount>,
    /// Linear memories and tables of one instance together; `None` is the node's own bound per memory.
    pub memory_bytes_max: Option<u64>,
    /// Thousandths of a core, over periods of 100 ms.
    pub cpu_millis_max: Option<u32>,
    /// Keep standard input open for clients that attach; otherwise it is empty. An HTTP component has none.
    pub stdin: bool,
    /// Standard input ends for good when the first client that attached to it leaves, instead of waiting for the next.
    pub stdin_once: bool,
    /// The program gets a terminal: one stream of output, lines edited before it reads them, Ctrl-C ends it. A
    /// terminal's size has no meaning to WASI.
    pub tty: bool,
    /// Where standard output goes.
    pub stdout: Arc<dyn LogSink>,
    /// Where standard error goes, and the backtrace of a guest that traps.
    pub stderr: Arc<dyn LogSink>,
    /// The pod's view of the network.
    pub network: Arc<dyn Network>,
    /// How many requests one instance of an HTTP component may serve; 1 is a fresh instance per request.
    pub reuse_requests_max: u32,
    /// Whether preview 3 programs are welcome.
    pub p3: bool,
}

/// A directory of the node shown to the guest under another name.
#[derive(Clone)]
pub struct Mount {
    /// The directory. The guest cannot leave it, whatever links lie in it.
    pub host: Arc<cap_std::fs::Dir>,
    /// The absolute path in the guest.
    pub guest: String,
    /// Refuse writes.
    pub read_only: bool,
}

impl Mount {
    /// Opens `host`, which must be a directory, with this process's own authority.
    pub fn open(host: &Path, guest: impl Into<String>, read_only: bool) -> std::io::Result<Mount> {
        let host = cap_std::fs::Dir::open_ambient_dir(host, cap_std::ambient_authority())?;
        Ok(Mount { host: Arc::new(host), guest: guest.into(), read_only })
    }
}

/// A receiver of output bytes, in whatever pieces the guest writes them.
pub trait LogSink: Send + Sync + 'static {
    /// Takes the bytes. Must never block for long and cannot fail: what cannot be kept is dropped.
    fn write(&self, bytes: &[u8]);
}

/// The network as one pod sees it.
pub trait Network: Send + Sync + 'static {
    /// The pod's own address: what a guest's `0.0.0.0` and `127.0.0.1` become, unless the pod has a namespace.
    fn address(&self) -> IpAddr;
    /// The pod's network namespace, where it has one: the guest's sockets are made in it, so that `0.0.0.0` and
    /// `127.0.0.1` are left to mean the pod by themselves.
    fn namespace(&self) -> Option<&NetworkNamespace> {
        None
    }
    /// Looks a name up as the cluster's DNS would for this pod. No addresses is an error, not an empty list.
    fn resolve(&self, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetworkError>>;
    /// Where a connection or datagram to `to` should really go: the virtual address of a Service becomes one of its endpoints,
    /// anything else stays, and what is of the cluster becomes the address at which this machine has it.
    fn route(&self, to: SocketAddr, transport: Transport) -> SocketAddr;
    /// Where a socket that a guest binds to an address of the pod's really is: there, but on a node without privilege.
    fn bound(&self, address: SocketAddr) -> SocketAddr {
        address
    }
    /// What a guest sees in place of an address of this machine: the reverse of [`Network::bound`] and [`Network::route`].
    fn shown(&self, address: SocketAddr, _transport: Transport) -> SocketAddr {
        address
    }
    /// A datagram socket of the pod's is at `at` of this machine, and hears and sends from now on.
    fn hears(&self, _at: SocketAddr) {}
    /// Whether policies let the pod open a connection or send a datagram to `to`, which is routed already and as
    /// [`Network::shown`] has it. Not asked of a pod with a namespace: there the kernel knows.
    fn may_reach(&self, _to: SocketAddr, _transport: Transport) -> bool {
        true
    }
    /// Whether policies keep anybody from coming to the pod at all: if not, [`Network::may_come`] is not asked.
    fn is_guarded(&self) -> bool {
        false
    }
    /// Whether policies let `from`, as [`Network::shown`] has it, come to that port of the pod.
    fn may_come(&self, _from: IpAddr, _port: u16, _transport: Transport) -> bool {
        true
    }
    /// Whether `to`, as [`Network::shown`] has it, is in a network where the pod is known by its address, which its sockets then show.
    fn is_inside(&self, _to: IpAddr) -> bool {
        false
    }
    /// Sends an outgoing HTTP request of the guest, in process where the endpoint is. The request comes as the guest
    /// made it: a `localhost`, `127.0.0.1` or `[::1]` in it means the pod and must be sent there, never to the node.
    fn request(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<http::Response<Body>, NetworkError>>;
}

/// What carries bytes between sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// Why the network did not do what a guest asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No such name.
    #[error("no such host: {0}")]
    NameNotFound(String),
    /// The name server could not answer now.
    #[error("temporary failure in name resolution")]
    NameUnavailable,
    /// Nobody listens there, or a Service has no endpoints.
    #[error("connection refused")]
    Refused,
    /// Took too long.
    #[error("connection timed out")]
    TimedOut,
    /// Policy says no.
    #[error("denied by network policy")]
    Denied,
    /// Anything else.
    #[error("request failed")]
    Request(#[source] BoxError),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// As `docker` and Kubernetes show it: 137 when killed, 134 for a trap.
    pub code: i32,
    /// In Kubernetes' words.
    pub reason: ExitReason,
    /// For people; empty when it went well.
    pub message: String,
    /// When the guest began.
    pub started_at: Timestamp,
    /// When it was gone.
    pub finished_at: Timestamp,
}

/// `state.terminated.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code, a trap, or a kill.
    Error,
    /// Grew beyond its memory limit.
    OomKilled,
    /// The program could not be instantiated.
    ContainerCannotRun,
}

impl ExitReason {
    /// Kubernetes' spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            ExitReason::Completed => "Completed",
            ExitReason::Error => "Error",
            ExitReason::OomKilled => "OOMKilled",
            ExitReason::ContainerCannotRun => "ContainerCannotRun",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a container uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time its guests ran on a CPU since it started, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory of its live instances, in bytes. An HTTP component without a request in flight has none.
    pub memory_bytes: u64,
}

/// Why the engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WasmError {
    /// The directory for compiled code is not usable.
    #[error("cannot use {path} for compiled code")]
    Cache {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The settings and this machine do not go together.
    #[error("cannot set up the WebAssembly engine")]
    Engine(#[source] BoxError),
}

/// Why a file is not a program that can run here. Retrying helps only where the file changes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// No such file.
    #[error("{path}: no such file")]
    NotFound {
        /// The file.
        path: String,
    },
    /// It is there but cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Larger than what is accepted.
    #[error("{path} has {found} bytes, more than the limit of {wasm_bytes_max}")]
    TooBig {
        /// The file.
        path: String,
        /// Its size.
        found: u64,
        /// The bound.
        wasm_bytes_max: u64,
    },
    /// The first bytes say so, or the validator.
    #[error("{path} is not a WebAssembly file: {detail}")]
    NotWasm {
        /// The file.
        path: String,
        /// The first line of the validator's complaint.
        detail: String,
    },
    /// Valid WebAssembly that is neither a command nor an HTTP component, or wants something that is not here.
    #[error("{path} cannot run here: {detail}")]
    Unsupported {
        /// The file.
        path: String,
        /// What it lacks, or what is lacking for it.
        detail: String,
    },
    /// The compiler failed.
    #[error("cannot compile {path}: {detail}")]
    Compile {
        /// The file.
        path: String,
        /// The compiler's words.
        detail: String,
    },
    /// The engine could not be made (see [`WasmError`]).
    #[error("{detail}")]
    Engine {
        /// Why.
        detail: String,
    },
}

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program is for preview 3 and the container did not opt in.
    #[error("{program} is a WASI preview 3 program; preview 3 is switched off for this container")]
    P3Off {
        /// The program's file.
        program: String,
    },
    /// A mount of the spec cannot be shown to the guest.
    #[error("cannot mount {guest}")]
    Mount {
        /// The path in the guest.
        guest: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The program could not be linked.
    #[error("cannot link {program}: {detail}")]
    Link {
        /// The program's file.
        program: String,
        /// Why.
        detail: String,
    },
}

/// Why a request was not answered by the guest.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The container does not serve HTTP.
    #[error("the container is not an HTTP component")]
    NotHttp,
    /// The container has been stopped. Another endpoint may answer.
    #[error("the container is stopping")]
    Stopping,
    /// As many requests as the bounds allow are running and waiting. 503.
    #[error("too many requests in flight")]
    Busy,
    /// No instance could be made: the node is out of instances or memory for them. 503.
    #[error("no instance available: {detail}")]
    Instantiate {
        /// Why.
        detail: String,
    },
    /// The guest trapped before it answered. 500.
    #[error("the guest failed: {message}")]
    Trap {
        /// The trap.
        message: String,
    },
    /// The guest ended without an answer, or with an error code of its own. 502.
    #[error("the guest gave no response: {message}")]
    NoResponse {
        /// What it did instead.
        message: String,
    },
    /// The guest grew beyond its memory limit. 500.
    #[error("the guest exceeded its memory limit")]
    OutOfMemory,
    /// The guest took longer than a request may. 504.
    #[error("the guest took longer than {request_ms_max} ms")]
    TimedOut {
        /// The bound.
        request_ms_max: u64,
    },
    /// The request itself is not one the guest could be given. 400.
    #[error("bad request: {detail}")]
    BadRequest {
        /// Why.
        detail: String,
    },
}

impl HandleError {
    /// The HTTP status a proxy should answer with.
    pub fn status(&self) -> http::StatusCode {
        use http::StatusCode as S;
        match self {
            HandleError::NotHttp | HandleError::NoResponse { .. } => S::BAD_GATEWAY,
            HandleError::Stopping | HandleError::Busy | HandleError::Instantiate { .. } => S::SERVICE_UNAVAILABLE,
            HandleError::Trap { .. } | HandleError::OutOfMemory => S::INTERNAL_SERVER_ERROR,
            HandleError::TimedOut { .. } => S::GATEWAY_TIMEOUT,
            HandleError::BadRequest { .. } => S::BAD_REQUEST,
        }
    }
}

/// Why a client did not get a session with a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// There is nothing that could be run again.
    #[error(
        "cannot exec in {name}: it is an HTTP component, which has no command to run (no wasi:cli/run); \
         export one beside the handler, or send it a request (kubectl port-forward)"
    )]
    NotACommand {
        /// The container.
        name: String,
    },
    /// No argv at all.
    #[error("cannot exec in {name}: no command given")]
    NoCommand {
        /// The container.
        name: String,
    },
    /// The container has ended or is stopping.
    #[error("{name}: the container is not running")]
    NotRunning {
        /// The container.
        name: String,
    },
    /// As many are open already as may be.
    #[error("{name}: too many sessions at once")]
    Busy {
        /// The container.
        name: String,
    },
    /// Docker did not do it.
    #[error("{name}: {detail}")]
    Engine {
        /// The container.
        name: String,
        /// Docker's words.
        detail: String,
    },
}
