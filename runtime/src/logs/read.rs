//! Reading a container's log back: from its start or its last lines, across rotations, and on as it grows.
//!
//! Works in steps of one chunk on blocking threads, so it holds a chunk and an unfinished record, whatever the size of
//! the log, and no faster than its reader.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, unfold};
use jiff::Timestamp;
use tokio::sync::watch;

use super::record::{Stream, decode};
use super::write::LogFile;
use super::{current_path, rotated, rotated_path};

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes of a line that can still be a record; what is longer is not ours and dropped.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What to read: the fields of Kubernetes' PodLogOptions.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Keep the stream open until the log is closed. Needs the open [`LogFile`].
    pub follow: bool,
    /// Only the last lines. Lines of the other output count where `stream` leaves them out.
    pub tail_lines: Option<u64>,
    /// Only what was written there; both outputs when None.
    pub stream: Option<Stream>,
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
    /// End after that many bytes.
    pub limit_bytes: Option<u64>,
    /// Begin each line with its time.
    pub timestamps: bool,
}

/// Reads the log of instance `restarts` in `dir`; `live` is its open [`LogFile`] if there is one. A log without a line
/// is an empty stream, a directory that was never made an error. Must be polled within a tokio runtime.
pub fn read(
    dir: &Path,
    restarts: u32,
    options: ReadOptions,
    live: Option<LogFile>,
) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
    std::fs::metadata(dir)?;
    let reader = Reader {
        source: Source { dir: dir.to_owned(), restarts, progress: live.as_ref().map(LogFile::progress), live },
        left_bytes: options.limit_bytes,
        options,
        started: false,
        file: None,
        line: Vec::new(),
        line_start: true,
        since_reached: false,
    };
    Ok(unfold(Some(reader), async |reader| next(reader?).await).boxed())
}

async fn next(mut reader: Reader) -> Option<(io::Result<Bytes>, Option<Reader>)> {
    loop {
        let stepping = tokio::task::spawn_blocking(move || {
            let step = reader.step();
            (reader, step)
        });
        let step;
        (reader, step) = match stepping.await {
            Ok(done) => done,
            Err(error) => return Some((Err(io::Error::other(error)), None)),
        };
        match step {
            Ok(Step::Chunk(chunk)) if chunk.is_empty() => {}
            Ok(Step::Chunk(chunk)) => return Some((Ok(chunk), Some(reader))),
            Ok(Step::Last(chunk)) if chunk.is_empty() => return None,
            Ok(Step::Last(chunk)) => return Some((Ok(chunk), None)),
            Ok(Step::Wait) => reader.source.grown().await,
            Err(error) => return Some((Err(error), None)),
        }
    }
}

enum Step {
    Chunk(Bytes),
    Last(Bytes),
    Wait,
}

struct Reader {
    source: Source,
    options: ReadOptions,
    left_bytes: Option<u64>,
    started: bool,
    /// The file being read, with its number.
    file: Option<(u64, File)>,
    /// The beginning of a record whose end has not been read.
    line: Vec<u8>,
    /// The next text begins a line of the reader's.
    line_start: bool,
    since_reached: bool,
}

impl Reader {
    fn step(&mut self) -> io::Result<Step> {
        if !self.started {
            self.started = true;
            self.file = self.source.start(self.options.tail_lines)?;
        }
        // Asked before reading, so that what is written in between is not missed.
        let (current, closed) = self.source.position();
        let Some((sequence, file)) = &mut self.file else {
            self.file = self.source.open(current)?;
            return Ok(match &self.file {
                Some(_) => Step::Chunk(Bytes::new()),
                None => self.at_end(closed),
            });
        };
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = file.read(&mut chunk)?;
        if read > 0 {
            return Ok(self.output(&chunk[..read]));
        }
        if *sequence < current {
            let next = *sequence + 1;
            self.line.clear();
            // A slow reader may find that the next files are gone, too.
            self.file = (next..=current).find_map(|sequence| self.source.open(sequence).transpose()).transpose()?;
            return Ok(Step::Chunk(Bytes::new()));
        }
        Ok(self.at_end(closed))
    }

    fn at_end(&self, closed: bool) -> Step {
        match self.options.follow && !closed {
            true => Step::Wait,
            false => Step::Last(Bytes::new()),
        }
    }

    fn output(&mut self, mut chunk: &[u8]) -> Step {
        let mut out = Vec::with_capacity(chunk.len());
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&chunk[..end]);
            chunk = &chunk[end + 1..];
            self.text(&mut out, &line);
        }
        self.line.extend_from_slice(chunk);
        if self.line.len() > LINE_BYTES_MAX {
            self.line.clear();
        }
        let Some(left) = &mut self.left_bytes else { return Step::Chunk(out.into()) };
        if out.len() as u64 >= *left {
            out.truncate(*left as usize);
            return Step::Last(out.into());
        }
        *left -= out.len() as u64;
        Step::Chunk(out.into())
    }

    fn text(&mut self, out: &mut Vec<u8>, line: &[u8]) {
        let Some(record) = decode(line).filter(|record| self.options.stream.is_none_or(|only| only == record.stream))
        else {
            return;
        };
        if let Some(since) = self.options.since
            && !self.since_reached
        {
            if record.time().is_none_or(|at| at < since) {
                return;
            }
            self.since_reached = true;
        }
        if self.options.timestamps && self.line_start {
            out.extend_from_slice(record.at);
            out.push(b' ');
        }
        out.extend_from_slice(record.text);
        if record.full {
            out.push(b'\n');
        }
        self.line_start = record.full;
    }
}

/// The files of one instance.
struct Source {
    dir: PathBuf,
    restarts: u32,
    live: Option<LogFile>,
    progress: Option<watch::Receiver<u64>>,
}

impl Source {
    /// The number of the current file, and whether nothing more will come.
    fn position(&mut self) -> (u64, bool) {
        match &self.live {
            Some(live) => {
                if let Some(progress) = &mut self.progress {
                    progress.mark_unchanged();
                }
                live.position()
            }
            None => (rotated(&self.dir, self.restarts).last().map_or(0, |last| last + 1), true),
        }
    }

    fn open(&self, sequence: u64) -> io::Result<Option<(u64, File)>> {
        if let Some(live) = &self.live {
            return Ok(live.open_file(sequence)?.map(|file| (sequence, file)));
        }
        let mut paths = VecDeque::from([rotated_path(&self.dir, self.restarts, sequence)]);
        if rotated(&self.dir, self.restarts).last().is_none_or(|last| *last < sequence) {
            paths.push_back(current_path(&self.dir, self.restarts));
        }
        for path in paths {
            match File::open(path) {
                Ok(file) => return Ok(Some((sequence, file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The first file to read, at the right place in it.
    fn start(&mut self, tail_lines: Option<u64>) -> io::Result<Option<(u64, File)>> {
        let (current, _) = self.position();
        let mut sequences = rotated(&self.dir, self.restarts);
        sequences.push(current);
        let Some(mut wanted) = tail_lines else {
            return sequences.into_iter().find_map(|sequence| self.open(sequence).transpose()).transpose();
        };
        let mut first = None;
        for sequence in sequences.into_iter().rev() {
            let Some((_, mut file)) = self.open(sequence)? else { continue };
            match seek_to_last_lines(&mut file, wanted)? {
                0 => return Ok(Some((sequence, file))),
                missing => wanted = missing,
            }
            first = Some((sequence, file));
        }
        Ok(first)
    }

    async fn grown(&mut self) {
        match &mut self.progress {
            // The sender lives as long as `live`.
            Some(progress) => drop(progress.changed().await),
            None => std::future::pending().await,
        }
    }
}

/// Moves to the start of the last `wanted` lines; answers how many of them the file does not have.
fn seek_to_last_lines(file: &mut File, wanted: u64) -> io::Result<u64> {
    let mut at = file.seek(SeekFrom::End(0))?;
    if wanted == 0 {
        return Ok(0);
    }
    let mut seen = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    while at > 0 {
        let bytes = at.min(CHUNK_BYTES as u64);
        at -= bytes;
        file.seek(SeekFrom::Start(at))?;
        let chunk = &mut chunk[..bytes as usize];
        file.read_exact(chunk)?;
        for (offset, _) in chunk.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            // The line end before the first wanted line.
            if seen == wanted {
                file.seek(SeekFrom::Start(at + offset as u64 + 1))?;
                return Ok(0);
            }
            seen += 1;
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(wanted - seen)
}
