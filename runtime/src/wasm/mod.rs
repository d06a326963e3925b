//! Wasm: programs in, running containers out.

use std::path::{Path, PathBuf};

use crate::spec::{
    Body, ContainerSpec, ExecError, Exit, HandleError, LoadError, LogSink, StartError, Usage, WasmError,
};

/// Settings of the engine and bounds of what runs in it.
#[derive(Debug, Clone)]
pub struct WasmConfig {
    /// Where compiled code is kept; created with mode 0700.
    pub cache_dir: PathBuf,
    /// The threads that run commands. HTTP guests run where [`Container::handle`] is awaited.
    pub commands: tokio::runtime::Handle,
    /// Live instances on the node.
    pub instances_max: u32,
    /// Bytes of one linear memory, whatever a container's own limit is.
    pub instance_memory_bytes_max: usize,
    /// Accept preview 3 programs at all.
    pub p3: bool,
    /// Bytes of a `.wasm` file.
    pub wasm_bytes_max: u64,
    /// Bytes of compiled code kept on disk; the least recently used go first.
    pub cache_bytes_max: u64,
    /// Programs compiled at once.
    pub compiles_max: usize,
    /// Requests one container works on at once.
    pub requests_max: usize,
    /// Requests that may wait for one of those; more are refused.
    pub requests_waiting_max: usize,
    /// Milliseconds from a request to the response's head.
    pub request_ms_max: u64,
}

impl WasmConfig {
    /// The defaults for a small node.
    pub fn new(cache_dir: PathBuf, commands: tokio::runtime::Handle) -> WasmConfig {
        WasmConfig {
            cache_dir,
            commands,
            instances_max: 10_000,
            instance_memory_bytes_max: 4 << 30,
            p3: false,
            wasm_bytes_max: 256 << 20,
            cache_bytes_max: 2 << 30,
            compiles_max: 2,
            requests_max: 256,
            requests_waiting_max: 1024,
            request_ms_max: 60_000,
        }
    }
}

/// The node's Wasm engine. Clones share it.
#[derive(Clone)]
pub struct Wasm;

impl Wasm {
    /// Prepares the engine; cheap, the engine itself is made when first needed.
    pub fn new(config: WasmConfig) -> Result<Wasm, WasmError> {
        todo!()
    }

    /// Compiles the file, or maps what was compiled before. Any number may ask for the same file at once.
    pub async fn load(&self, file: &Path) -> Result<Program, LoadError> {
        todo!()
    }

    /// Starts a container: a command runs at once, an HTTP component when a request comes.
    pub fn start(&self, spec: ContainerSpec) -> Result<Container, StartError> {
        todo!()
    }
}

/// Native code ready to run. Clones share it; the last one gone unmaps it.
#[derive(Clone)]
pub struct Program;

impl Program {
    /// `sha256:` and the digest of the `.wasm` file.
    pub fn digest(&self) -> &str {
        todo!()
    }
    /// What it can do.
    pub fn shape(&self) -> Shape {
        todo!()
    }
}

/// What a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A preview 1 core module with `_start`.
    Command,
    /// A component that exports `wasi:cli/run`.
    CommandComponent,
    /// A component that exports `wasi:http/incoming-handler` (or preview 3's `wasi:http/handler`).
    Http,
}

/// One container, running or ended. Clones are the same container; it is not killed when they are dropped.
#[derive(Clone)]
pub struct Container;

impl Container {
    /// Waits for the end. Any number may wait.
    pub async fn exited(&self) -> Exit {
        todo!()
    }
    /// The end, if it has come.
    pub fn exit(&self) -> Option<Exit> {
        todo!()
    }
    /// HTTP: takes no new requests, ends (code 0) when the running ones have. Commands: WASI has no signals, so nothing
    /// happens; the caller waits its grace period and kills.
    pub fn stop(&self) {
        todo!()
    }
    /// Ends it within a tick, whatever it does. Exit code 137.
    pub fn kill(&self) {
        todo!()
    }
    /// Has an HTTP component answer a request, on the caller's own task up to the response's head.
    pub async fn handle(&self, request: http::Request<Body>) -> Result<http::Response<Body>, HandleError> {
        todo!()
    }
    /// Runs the program once more beside itself, in the same sandbox, with other arguments (argv, `argv[0]` included).
    /// Dropping the future kills it.
    pub async fn exec(
        &self,
        args: Vec<String>,
        stdout: std::sync::Arc<dyn LogSink>,
        stderr: std::sync::Arc<dyn LogSink>,
    ) -> Result<Exit, ExecError> {
        todo!()
    }
    /// CPU time and memory, now.
    pub fn usage(&self) -> Usage {
        todo!()
    }
}
