//! Compiled code on disk: `DIGEST-ENGINE.cwasm`, mapped into memory when used, and beside it the digest of that file.
//!
//! Native code is trusted by whoever maps it, so the directory must be ours alone, and a file whose digest does not fit
//! (a torn write, a worn-out card) is compiled again. Entries go by least recent use when the whole grows too large.

use std::fs::{self, DirBuilder, File, Permissions};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use crate::digest::{file_digest, hex};

/// A used entry's time is only written again after this long, to spare the disk.
const TOUCH_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The directory of compiled code.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
    bytes_max: u64,
}

/// Compiled code of either kind.
pub(super) enum Native {
    Module(Module),
    Component(Component),
}

impl Cache {
    /// Makes the directory, and sure that nobody else can write to it.
    pub(super) fn open(dir: &Path, bytes_max: u64) -> io::Result<Cache> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let found = fs::metadata(dir)?;
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
        }
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        }
        Ok(Cache { dir: dir.to_owned(), bytes_max })
    }

    /// The compiled code of the `.wasm` file with this digest, if it is there and intact.
    pub(super) fn get(&self, engine: &Engine, digest: &str) -> Option<Native> {
        let (code, sum) = self.paths(engine, digest);
        let want = fs::read_to_string(&sum).ok()?;
        match file_digest(&code) {
            Ok(found) if found == want.trim() => {}
            Ok(_) => {
                tracing::warn!(file = %code.display(), "compiled code is damaged and will be compiled again");
                return None;
            }
            Err(_) => return None,
        }
        touch(&code);
        match map(engine, &code) {
            Ok(native) => Some(native),
            Err(error) => {
                tracing::warn!(file = %code.display(), %error, "compiled code cannot be used and will be compiled again");
                None
            }
        }
    }

    /// Stores compiled code and maps it back.
    pub(super) fn put(&self, engine: &Engine, digest: &str, bytes: &[u8]) -> wasmtime::Result<Native> {
        let (code, sum) = self.paths(engine, digest);
        self.make_room(bytes.len() as u64);
        write_atomically(&self.dir, &sum, hex(&Sha256::digest(bytes)).as_bytes())?;
        write_atomically(&self.dir, &code, bytes)?;
        map(engine, &code)
    }

    fn paths(&self, engine: &Engine, digest: &str) -> (PathBuf, PathBuf) {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let stem = format!("{digest}-{:016x}", hasher.finish());
        (self.dir.join(format!("{stem}.cwasm")), self.dir.join(format!("{stem}.sha256")))
    }

    /// Removes the least recently used entries until there is room.
    fn make_room(&self, wanted_bytes: u64) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut found: Vec<(SystemTime, u64, PathBuf)> = entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "cwasm"))
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect();
        found.sort();
        let mut total: u64 = found.iter().map(|(_, bytes, _)| bytes).sum::<u64>().saturating_add(wanted_bytes);
        for (_, bytes, path) in found {
            if total <= self.bytes_max {
                break;
            }
            // Programs that run keep their mapping of the removed file.
            if fs::remove_file(&path).is_ok() {
                let _ = fs::remove_file(path.with_extension("sha256"));
                total = total.saturating_sub(bytes);
            }
        }
    }
}

/// Maps a file of compiled code.
#[allow(unsafe_code)]
fn map(engine: &Engine, code: &Path) -> wasmtime::Result<Native> {
    let kind = Engine::detect_precompiled_file(code)?;
    // SAFETY: the file was written by `put`, from the compiler's output, into a directory that is ours alone (see
    // `Cache::open`), its digest was that of the bytes written, and entries are replaced by renaming, never rewritten.
    unsafe {
        match kind {
            Some(Precompiled::Module) => Module::deserialize_file(engine, code).map(Native::Module),
            Some(Precompiled::Component) => Component::deserialize_file(engine, code).map(Native::Component),
            None => Err(wasmtime::Error::msg("not a file of compiled code")),
        }
    }
}

fn touch(file: &Path) {
    let now = SystemTime::now();
    let old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age > TOUCH_AFTER);
    if let Ok(opened) = File::open(file)
        && opened.metadata().and_then(|metadata| metadata.modified()).is_ok_and(old)
    {
        // Only the order of removal depends on it.
        let _ = opened.set_modified(now);
    }
}

fn write_atomically(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = dir.join(name);
    let mut file = File::create(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_data()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// FNV-1a: unlike the standard library's hasher the same in every build.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
