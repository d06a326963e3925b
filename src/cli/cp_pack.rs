//! The local half of `cp` to a pod: a file or directory as a tar stream.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use bytes::Bytes;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

/// How much of an archive goes into one message.
const PIECE_BYTES: usize = 32 << 10;
/// How deep directories may nest.
const DEPTH_MAX: usize = 512;

/// The writing end of the stream.
pub struct Pipe(BufWriter<Raw>);

struct Raw(mpsc::Sender<Bytes>);

impl Pipe {
    /// A pipe into a channel; for threads that may block.
    pub fn new(sender: mpsc::Sender<Bytes>) -> Pipe {
        Pipe(BufWriter::with_capacity(PIECE_BYTES, Raw(sender)))
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(&bytes[..bytes.len().min(PIECE_BYTES)]);
        let count = piece.len();
        self.0.blocking_send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes `source` and all below it under the name it is to have.
pub fn pack(source: &Path, name: &str, out: impl Write) -> io::Result<()> {
    let mut archive = Builder::new(out);
    add(&mut archive, source, name, 0)?;
    archive.into_inner()?.flush()
}

/// One file, link or directory; directories have no entry of their own unless they are empty, as with kubectl.
fn add(archive: &mut Builder<impl Write>, path: &Path, name: &str, depth: usize) -> io::Result<()> {
    let said = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if depth > DEPTH_MAX {
        return Err(said(io::Error::other("directories nest too deep")));
    }
    let metadata = fs::symlink_metadata(path).map_err(said)?;
    let kind = metadata.file_type();
    let mut header = Header::new_gnu();
    header.set_metadata(&metadata);
    if kind.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(path).map_err(said)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        if names.is_empty() {
            return archive.append_data(&mut header, name, io::empty());
        }
        for child in names {
            let child_name = format!("{name}/{}", child.to_string_lossy());
            add(archive, &path.join(&child), &child_name, depth + 1)?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(said)?;
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        return archive.append_link(&mut header, name, target);
    }
    if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
        return Err(said(io::Error::other("is neither a file, a directory nor a link")));
    }
    let file = File::open(path).map_err(said)?;
    let size = metadata.len();
    // A file that grows meanwhile must not spill over what the header promised, one that shrinks must not end the archive early.
    let mut content = io::Read::take(file, size);
    let mut counted = Counted { inner: &mut content, count: 0 };
    archive.append_data(&mut header, name, io::Read::take(io::Read::chain(&mut counted, io::repeat(0)), size))?;
    if counted.count < size {
        return Err(said(io::Error::other("became shorter while it was read")));
    }
    Ok(())
}

struct Counted<'a, R> {
    inner: &'a mut R,
    count: u64,
}

impl<R: io::Read> io::Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}
