//! From a file to a program: digest, compiled code of an earlier time or the compiler, linking.
//!
//! Everything here blocks and runs on blocking threads. However many ask for the same digest at once, one compiles and
//! the others wait for it; a program in use is shared through a weak map.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::WasmConfig;
use super::cache::{Cache, Native};
use super::engine::{Kind, Parts, compile};
use super::program::{Loaded, P3_OFF, Program, link};
use crate::digest::{hex, read_digest};
use crate::spec::LoadError;

/// Digests and files remembered; beyond that the unused ones are forgotten.
const REMEMBERED_MAX: usize = 4096;

/// What is known of programs on this node.
pub(super) struct Loader {
    cache: Cache,
    config: WasmConfig,
    compiles: Arc<Semaphore>,
    slots: Mutex<HashMap<String, Slot>>,
    digests: Mutex<HashMap<PathBuf, (Stamp, String)>>,
}

/// One digest's place; its lock is held while it is being loaded.
type Slot = Arc<tokio::sync::Mutex<State>>;

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    Ready(Weak<Loaded>),
    /// The same bytes would fail the same way.
    Refused(Fault),
}

/// Why bytes are no program, whatever file they are in.
#[derive(Debug, Clone)]
enum Fault {
    NotWasm(String),
    Unsupported(String),
    Compile(String),
}

impl Fault {
    fn of(self, path: &Path) -> LoadError {
        let path = path.display().to_string();
        match self {
            Fault::NotWasm(detail) => LoadError::NotWasm { path, detail },
            Fault::Unsupported(detail) => LoadError::Unsupported { path, detail },
            Fault::Compile(detail) => LoadError::Compile { path, detail },
        }
    }
}

/// Gives back what the compiler used: several times the size of the code, which glibc would otherwise keep for ever.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn release_memory() {
    // SAFETY: `malloc_trim` takes its own locks and touches no memory in use.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn release_memory() {}

/// What tells whether a file is still the one whose digest is known.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stamp {
    bytes: u64,
    modified: SystemTime,
    device: u64,
    inode: u64,
}

impl Loader {
    pub(super) fn new(cache: Cache, config: WasmConfig) -> Loader {
        Loader {
            cache,
            compiles: Arc::new(Semaphore::new(config.compiles_max.max(1))),
            config,
            slots: Mutex::default(),
            digests: Mutex::default(),
        }
    }

    pub(super) async fn load(self: &Arc<Self>, path: &Path, parts: Arc<Parts>) -> Result<Program, LoadError> {
        let (this, file) = (self.clone(), path.to_owned());
        let digest = blocking(move || this.digest(&file)).await?;
        let mut state = self.slot(&digest).lock_owned().await;
        match &*state {
            State::Ready(loaded) => {
                if let Some(loaded) = loaded.upgrade() {
                    return Ok(Program(loaded));
                }
            }
            State::Refused(fault) => return Err(fault.clone().of(path)),
            State::Unknown => {}
        }
        let permit = self.compiles.clone().acquire_owned().await.map_err(|_| stopped())?;
        let (this, file) = (self.clone(), path.to_owned());
        // The lock and the permit go along, so that a caller who gives up does not let a second compilation start.
        let loading = move || {
            let _permit = permit;
            this.load_locked(&file, digest, parts, &mut state)
        };
        blocking(loading).await
    }

    fn load_locked(
        &self,
        path: &Path,
        digest: String,
        parts: Arc<Parts>,
        state: &mut OwnedMutexGuard<State>,
    ) -> Result<Program, LoadError> {
        let native = match self.cache.get(&parts.engine, &digest) {
            Some(native) => Ok(native),
            None => {
                let wasm = self.read(path, &digest)?;
                let native = self.compile(&parts, &digest, &wasm);
                drop(wasm);
                release_memory();
                native
            }
        };
        let code = native.and_then(|native| link(&parts, native).map_err(Fault::Unsupported));
        match code {
            Ok(code) => {
                let digest = format!("sha256:{digest}");
                let loaded = Arc::new(Loaded { digest, file: path.display().to_string(), parts, code });
                **state = State::Ready(Arc::downgrade(&loaded));
                Ok(Program(loaded))
            }
            Err(fault) => {
                // A full disk is not the program's fault.
                if !matches!(fault, Fault::Compile(_)) {
                    **state = State::Refused(fault.clone());
                }
                Err(fault.of(path))
            }
        }
    }

    fn compile(&self, parts: &Parts, digest: &str, wasm: &[u8]) -> Result<Native, Fault> {
        let began = std::time::Instant::now();
        let code = compile(&self.config, kind(wasm)?, wasm).map_err(|error| fault(parts, &error))?;
        tracing::info!(digest, wasm_bytes = wasm.len(), code_bytes = code.len(), took = ?began.elapsed(), "compiled");
        self.cache.put(&parts.engine, digest, &code).map_err(|error| Fault::Compile(format!("{error:#}")))
    }

    /// The file's bytes, which must still be those with the digest.
    fn read(&self, path: &Path, digest: &str) -> Result<Vec<u8>, LoadError> {
        let mut wasm = Vec::new();
        let opened = File::open(path).map_err(|error| unreadable(path, error))?;
        opened.take(self.config.wasm_bytes_max + 1).read_to_end(&mut wasm).map_err(|error| unreadable(path, error))?;
        if hex(&Sha256::digest(&wasm)) != digest {
            return Err(unreadable(path, io::Error::other("it changed while it was read")));
        }
        Ok(wasm)
    }

    fn digest(&self, path: &Path) -> Result<String, LoadError> {
        let stamp = stamp(path).map_err(|error| unreadable(path, error))?;
        if stamp.bytes > self.config.wasm_bytes_max {
            let path = path.display().to_string();
            return Err(LoadError::TooBig { path, found: stamp.bytes, wasm_bytes_max: self.config.wasm_bytes_max });
        }
        let known = self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some((known, digest)) = known
            && known == stamp
        {
            return Ok(digest);
        }
        let digest =
            File::open(path).and_then(|mut file| read_digest(&mut file)).map_err(|error| unreadable(path, error))?;
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if digests.len() >= REMEMBERED_MAX {
            digests.clear();
        }
        digests.insert(path.to_owned(), (stamp, digest.clone()));
        Ok(digest)
    }

    fn slot(&self, digest: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= REMEMBERED_MAX {
            slots.retain(|_, slot| match slot.try_lock() {
                Ok(state) => matches!(&*state, State::Ready(loaded) if loaded.strong_count() > 0),
                Err(_) => true,
            });
        }
        slots.entry(digest.to_owned()).or_default().clone()
    }
}

/// Tells modules from components by the header, so that other files are named for what they are.
fn kind(wasm: &[u8]) -> Result<Kind, Fault> {
    match wasm {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(Kind::Module),
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => Ok(Kind::Component),
        [] => Err(Fault::NotWasm("it is empty".into())),
        [0, b'a', b's', b'm', ..] => Err(Fault::NotWasm("unknown version in its header".into())),
        _ => Err(Fault::NotWasm("it does not begin with the bytes `\\0asm`".into())),
    }
}

fn fault(parts: &Parts, error: &wasmtime::Error) -> Fault {
    let text = format!("{error:#}");
    let line = text.lines().next().unwrap_or_default().to_owned();
    if !parts.p3 && line.contains("component model async") {
        return Fault::Unsupported(P3_OFF.into());
    }
    // The validator names the place; everything else is the compiler's or the pool's.
    match line.contains("at offset") {
        true => Fault::NotWasm(line),
        false => Fault::Unsupported(line),
    }
}

/// Looks before anything is opened: opening a pipe would wait for its writer.
fn stamp(path: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(Stamp { bytes: metadata.len(), modified: metadata.modified()?, device: metadata.dev(), inode: metadata.ino() })
}

fn unreadable(path: &Path, error: io::Error) -> LoadError {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::NotFound => LoadError::NotFound { path },
        _ => LoadError::Read { path, source: Arc::new(error) },
    }
}

fn stopped() -> LoadError {
    LoadError::Engine { detail: "the node is shutting down".into() }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Only a panic of the compiler or the end of the executor.
        Err(error) => Err(LoadError::Engine { detail: error.to_string() }),
    }
}
