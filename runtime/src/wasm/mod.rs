//! Wasm: programs in, running containers out.
//!
//! [`load`] turns files into programs, [`container`] runs them: [`command`] once, [`http`] per request, [`session`] once
//! more for a client. All of them build instances from [`host`] (what one instance has), [`linkers`] (what guests may import) and [`account`] (what a
//! container uses and may use).

mod account;
mod attached;
mod body;
mod cache;
mod clock;
mod command;
mod console;
mod container;
mod engine;
mod files;
mod gate;
mod host;
mod http;
mod linkers;
mod load;
mod names;
mod outgoing;
mod pipe;
mod program;
mod session;
mod sockets;
mod stdio;
mod terminal;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use self::cache::Cache;
pub use self::container::Container;
use self::engine::Parts;
use self::load::Loader;
pub use self::program::{Program, Shape};
use crate::spec::{ContainerSpec, LoadError, StartError, WasmError};

/// Settings of the engine and bounds of what runs in it.
#[derive(Debug, Clone)]
pub struct WasmConfig {
    /// Where compiled code is kept; created with mode 0700.
    pub cache_dir: PathBuf,
    /// The threads that run commands. HTTP guests run where [`Container::handle`] is awaited.
    pub commands: tokio::runtime::Handle,
    /// Live instances on the node: running commands and requests; an idle HTTP component has none. Each takes
    /// [`WasmConfig::instance_memory_bytes_max`] of address space, and a thousand of them 0.4 MB and 2 ms when the
    /// engine is made. 10,000 of 4 GiB fit; beyond that comes the kernel's bound on mappings, about six each.
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
    /// Milliseconds from a request to the response's head, and from the response's end to the guest's.
    pub request_ms_max: u64,
}

impl WasmConfig {
    /// The defaults for a small node.
    pub fn new(cache_dir: PathBuf, commands: tokio::runtime::Handle) -> WasmConfig {
        WasmConfig {
            cache_dir,
            commands,
            instances_max: 4096,
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
pub struct Wasm(Arc<Inner>);

struct Inner {
    config: WasmConfig,
    loader: Arc<Loader>,
    /// Made when the first program is loaded: a node without Wasm pods does without it.
    parts: OnceLock<Result<Arc<Parts>, String>>,
}

impl Wasm {
    /// Prepares the engine; cheap, the engine itself is made when first needed.
    pub fn new(config: WasmConfig) -> Result<Wasm, WasmError> {
        let cache = Cache::open(&config.cache_dir, config.cache_bytes_max)
            .map_err(|source| WasmError::Cache { path: config.cache_dir.display().to_string(), source })?;
        let loader = Arc::new(Loader::new(cache, config.clone()));
        Ok(Wasm(Arc::new(Inner { config, loader, parts: OnceLock::new() })))
    }

    /// Compiles the file, or maps what was compiled before. Any number may ask for the same file at once.
    pub async fn load(&self, file: &Path) -> Result<Program, LoadError> {
        let inner = self.0.clone();
        let parts = tokio::task::spawn_blocking(move || inner.parts())
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|detail| LoadError::Engine {
                detail: format!("cannot set up the WebAssembly engine: {detail}"),
            })?;
        self.0.loader.load(file, parts).await
    }

    /// Starts a container: a command runs at once, an HTTP component when a request comes.
    pub fn start(&self, spec: ContainerSpec) -> Result<Container, StartError> {
        Container::start(spec, &self.0.config)
    }
}

impl Inner {
    fn parts(&self) -> Result<Arc<Parts>, String> {
        let made = || Parts::new(&self.config).map(Arc::new).map_err(|error| format!("{error:#}"));
        self.parts.get_or_init(made).clone()
    }
}
