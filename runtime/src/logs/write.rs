//! Writing a container's log.
//!
//! Lines go to the file as they end, on the thread of whoever wrote them: one write to the page cache, nothing queued
//! that a crash would lose. A full disk loses lines, never the container.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use super::record::{Stream, TEXT_BYTES_MAX, encode, stamp};
use super::{LogLimits, current_path, names, parse_name, rotated, rotated_path};
use crate::spec::LogSink;

/// Bytes of records gathered before they are written, within one call.
const BATCH_BYTES_MAX: usize = 64 << 10;

/// The log of one instance of a container: `DIR/N.log`, N being its restart count. Clones write to the same file.
#[derive(Clone)]
pub struct LogFile(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    restarts: u32,
    limits: LogLimits,
    state: Mutex<State>,
    /// Changes with every write, for followers.
    progress: watch::Sender<u64>,
}

struct State {
    /// Opened at the first line: a container that says nothing costs no descriptor and no disk write.
    file: Option<File>,
    bytes: u64,
    /// The number the current file will get when it is rotated away.
    sequence: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    closed: bool,
    failing: bool,
}

impl LogFile {
    /// Opens the log of instance `restarts` in `dir`, which is made when missing; an existing file is continued. Logs of
    /// instances before the previous one are removed.
    pub fn open(dir: &Path, restarts: u32, limits: LogLimits) -> io::Result<LogFile> {
        fs::create_dir_all(dir)?;
        for name in names(dir) {
            if parse_name(&name).is_some_and(|(instance, _)| instance + 1 < restarts) {
                let _ = fs::remove_file(dir.join(name));
            }
        }
        let state = State {
            file: None,
            bytes: 0,
            sequence: rotated(dir, restarts).last().map_or(0, |last| last + 1),
            stdout: Vec::new(),
            stderr: Vec::new(),
            closed: false,
            failing: false,
        };
        Ok(LogFile(Arc::new(Shared {
            dir: dir.to_owned(),
            restarts,
            limits,
            state: Mutex::new(state),
            progress: watch::Sender::new(0),
        })))
    }

    /// The sink for standard output.
    pub fn stdout(&self) -> Arc<dyn LogSink> {
        Arc::new(Sink(self.0.clone(), Stream::Stdout))
    }

    /// The sink for standard error.
    pub fn stderr(&self) -> Arc<dyn LogSink> {
        Arc::new(Sink(self.0.clone(), Stream::Stderr))
    }

    /// The path of the current file; it exists from the first line on.
    pub fn path(&self) -> PathBuf {
        current_path(&self.0.dir, self.0.restarts)
    }

    /// Where [`super::read`] finds it: the directory, and the number of the instance.
    pub fn place(&self) -> (PathBuf, u32) {
        (self.0.dir.clone(), self.0.restarts)
    }

    /// Writes out a last unfinished line and tells followers that nothing more will come. Idempotent; what is written
    /// afterwards is dropped.
    pub fn close(&self) {
        let mut state = self.0.lock();
        if state.closed {
            return;
        }
        let mut out = Vec::new();
        let at = stamp(Timestamp::now());
        for (stream, text) in
            [(Stream::Stdout, std::mem::take(&mut state.stdout)), (Stream::Stderr, std::mem::take(&mut state.stderr))]
        {
            if !text.is_empty() {
                encode(&mut out, &at, stream, true, &text);
            }
        }
        self.0.append(&mut state, &out);
        state.closed = true;
        state.file = None;
        drop(state);
        self.0.progress.send_modify(|progress| *progress += 1);
    }

    pub(super) fn progress(&self) -> watch::Receiver<u64> {
        self.0.progress.subscribe()
    }

    /// The number of the current file, and whether it is complete.
    pub(super) fn position(&self) -> (u64, bool) {
        let state = self.0.lock();
        (state.sequence, state.closed)
    }

    /// Opens a file by its number, whether it is current or rotated away; `None` if it is not there (any more).
    pub(super) fn open_file(&self, sequence: u64) -> io::Result<Option<File>> {
        let state = self.0.lock();
        let path = match sequence == state.sequence {
            true => current_path(&self.0.dir, self.0.restarts),
            false => rotated_path(&self.0.dir, self.0.restarts, sequence),
        };
        match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

struct Sink(Arc<Shared>, Stream);

impl LogSink for Sink {
    fn write(&self, bytes: &[u8]) {
        self.0.write(self.1, bytes);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, stream: Stream, mut bytes: &[u8]) {
        let mut state = self.lock();
        if state.closed || bytes.is_empty() {
            return;
        }
        let at = stamp(Timestamp::now());
        let mut line = std::mem::take(state.line(stream));
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let room = TEXT_BYTES_MAX - line.len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let piece = end.unwrap_or(room.min(bytes.len()));
            line.extend_from_slice(&bytes[..piece]);
            bytes = &bytes[piece + usize::from(end.is_some())..];
            if end.is_some() || line.len() == TEXT_BYTES_MAX {
                encode(&mut out, &at, stream, end.is_some(), &line);
                line.clear();
            }
            if out.len() >= BATCH_BYTES_MAX {
                self.append(&mut state, &out);
                out.clear();
            }
        }
        // An idle container keeps no buffer.
        *state.line(stream) = if line.is_empty() { Vec::new() } else { line };
        let wrote = !out.is_empty();
        self.append(&mut state, &out);
        drop(state);
        if wrote {
            self.progress.send_modify(|progress| *progress += 1);
        }
    }

    fn append(&self, state: &mut State, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        let written = self.try_append(state, records);
        match written {
            Ok(()) => state.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut state.failing, true) {
                    tracing::warn!(dir = %self.dir.display(), %error, "log lines are being lost");
                }
            }
        }
    }

    fn try_append(&self, state: &mut State, records: &[u8]) -> io::Result<()> {
        if state.bytes > 0 && state.bytes + records.len() as u64 > self.limits.file_bytes_max {
            self.rotate(state)?;
        }
        let mut file = match state.file.take() {
            Some(file) => file,
            None => {
                let path = current_path(&self.dir, self.restarts);
                let file = OpenOptions::new().create(true).append(true).open(path)?;
                state.bytes = file.metadata()?.len();
                file
            }
        };
        let written = file.write_all(records);
        match written {
            Ok(()) => state.bytes += records.len() as u64,
            // Half a record would spoil the next one.
            Err(_) => file.set_len(state.bytes)?,
        }
        state.file = Some(file);
        written
    }

    fn rotate(&self, state: &mut State) -> io::Result<()> {
        state.file = None;
        let current = current_path(&self.dir, self.restarts);
        fs::rename(&current, rotated_path(&self.dir, self.restarts, state.sequence))?;
        state.sequence += 1;
        state.bytes = 0;
        let keep = self.limits.files_max.saturating_sub(1) as u64;
        for old in rotated(&self.dir, self.restarts) {
            if old + keep < state.sequence {
                fs::remove_file(rotated_path(&self.dir, self.restarts, old))?;
            }
        }
        Ok(())
    }
}

impl State {
    fn line(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}
