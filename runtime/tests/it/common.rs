//! A node for tests: an engine on a temporary directory, a pod network in memory, logs that can be waited for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use runtime::{
    Body, Container, ContainerSpec, ExecOptions, LogSink, Network, NetworkError, NetworkNamespace, Output, Program,
    Session, Wasm, WasmConfig,
};
use tempfile::TempDir;

pub struct Node {
    pub dir: TempDir,
    pub wasm: Wasm,
}

impl Node {
    pub fn new() -> Node {
        Node::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut WasmConfig)) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let mut config = WasmConfig::new(dir.path().join("cache"), tokio::runtime::Handle::current());
        config.instances_max = 100;
        change(&mut config);
        Node { wasm: Wasm::new(config).unwrap(), dir }
    }

    /// Loads a module written as text.
    pub async fn wat(&self, text: &str) -> Program {
        let file = self.file("module.wasm", &wat::parse_str(text).unwrap());
        self.wasm.load(&file).await.unwrap()
    }

    /// Loads one of the checked-in guests.
    pub async fn guest(&self, name: &str) -> Program {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests").join(name);
        self.wasm.load(&file).await.unwrap()
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let file = self.dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        file
    }

    pub fn start(&self, spec: ContainerSpec) -> Container {
        self.wasm.start(spec).unwrap()
    }
}

/// What a session said to its end, standard output and error apart, and its exit code.
pub async fn finish(session: Session) -> (String, String, i32) {
    let Session { input: _client, mut output, exit } = session;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(piece) = output.recv().await {
        match piece {
            Output::Stdout(bytes) => out.extend_from_slice(&bytes),
            Output::Stderr(bytes) => err.extend_from_slice(&bytes),
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(out), text(err), exit.await.unwrap())
}

/// Options of an execution without input.
pub fn argv(argv: &[&str]) -> ExecOptions {
    ExecOptions { argv: argv.iter().map(|arg| (*arg).to_owned()).collect(), stdin: false, tty: false }
}

/// A container with nothing special about it, and its log.
pub fn spec(program: Program, args: &[&str]) -> (ContainerSpec, Arc<Log>) {
    let log = Arc::new(Log::default());
    let spec = ContainerSpec {
        name: "default/test/main".into(),
        program,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Vec::new(),
        working_dir: None,
        mounts: Vec::new(),
        memory_bytes_max: None,
        cpu_millis_max: None,
        stdout: log.clone(),
        stderr: log.clone(),
        network: Arc::new(TestNetwork::default()),
        reuse_requests_max: 1,
        p3: false,
        stdin: false,
        stdin_once: false,
        tty: false,
    };
    (spec, log)
}

/// Output kept in memory.
#[derive(Default)]
pub struct Log {
    bytes: Mutex<Vec<u8>>,
    changed: tokio::sync::Notify,
}

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    pub fn len(&self) -> usize {
        self.bytes.lock().unwrap().len()
    }

    /// Waits until the output has `what` in it, and answers all of it.
    pub async fn wait_for(&self, what: &str) -> String {
        loop {
            let changed = self.changed.notified();
            let text = self.text();
            if text.contains(what) {
                return text;
            }
            changed.await;
        }
    }
}

impl LogSink for Log {
    fn write(&self, bytes: &[u8]) {
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        self.changed.notify_waiters();
        self.changed.notify_one();
    }
}

/// A pod's network: one address, some names and routes, and one backend.
pub struct TestNetwork {
    pub address: IpAddr,
    pub names: HashMap<String, IpAddr>,
    pub routes: HashMap<SocketAddr, SocketAddr>,
    pub namespace: Option<NetworkNamespace>,
}

impl Default for TestNetwork {
    fn default() -> Self {
        TestNetwork {
            address: Ipv4Addr::new(127, 66, 0, 1).into(),
            names: HashMap::new(),
            routes: HashMap::new(),
            namespace: None,
        }
    }
}

impl Network for TestNetwork {
    fn address(&self) -> IpAddr {
        self.address
    }

    fn namespace(&self) -> Option<&NetworkNamespace> {
        self.namespace.as_ref()
    }

    fn resolve(&self, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetworkError>> {
        let found = self.names.get(name).map(|address| vec![*address]);
        let found = found.ok_or_else(|| NetworkError::NameNotFound(name.to_owned()));
        async {
            tokio::task::yield_now().await;
            found
        }
        .boxed()
    }

    fn route(&self, to: SocketAddr, _: runtime::Transport) -> SocketAddr {
        self.routes.get(&to).copied().unwrap_or(to)
    }

    fn request(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<http::Response<Body>, NetworkError>> {
        let text = format!("{} {} {:?}", request.method(), request.uri(), request.headers().get("host"));
        async { Ok(http::Response::builder().status(202).body(body(text)).unwrap()) }.boxed()
    }
}

pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn get(path: &str) -> http::Request<Body> {
    http::Request::builder().uri(path).header("host", "example.com").body(body("")).unwrap()
}

pub async fn text(response: http::Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}
