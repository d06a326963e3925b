//! Log files of containers, in the CRI format Kubernetes' tools know.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;

use crate::spec::LogSink;

/// Bounds of one container instance's log files.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Bytes of one file before it is rotated.
    pub file_bytes_max: u64,
    /// Files of one instance, the current one included.
    pub files_max: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        LogLimits { file_bytes_max: 10 << 20, files_max: 5 }
    }
}

/// The log of one instance of a container: `DIR/N.log`, N being its restart count.
#[derive(Clone)]
pub struct LogFile;

impl LogFile {
    /// Opens (creates, or continues) `dir/RESTARTS.log`; `dir` is made when missing.
    pub fn open(dir: &Path, restarts: u32, limits: LogLimits) -> io::Result<LogFile> {
        todo!()
    }
    /// The sink for standard output.
    pub fn stdout(&self) -> Arc<dyn LogSink> {
        todo!()
    }
    /// The sink for standard error.
    pub fn stderr(&self) -> Arc<dyn LogSink> {
        todo!()
    }
    /// The path of the current file.
    pub fn path(&self) -> PathBuf {
        todo!()
    }
    /// Writes out a last unfinished line and tells followers that nothing more will come. Idempotent.
    pub fn close(&self) {
        todo!()
    }
}

/// What to read: the fields of Kubernetes' PodLogOptions.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Keep the stream open until the log is closed.
    pub follow: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
    /// End after that many bytes.
    pub limit_bytes: Option<u64>,
    /// Begin each line with its time.
    pub timestamps: bool,
}

/// Reads the log of instance `restarts` in `dir`; `live` is its open [`LogFile`], needed to follow.
pub fn read(
    dir: &Path,
    restarts: u32,
    options: ReadOptions,
    live: Option<LogFile>,
) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
    todo!()
}
