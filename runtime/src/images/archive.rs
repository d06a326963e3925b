//! Tar files, packed or not: the layers of container images, and images as files.
//!
//! Names that are longer than a tar header holds are read here and not by the tar crate, which would take as much
//! memory for them as the archive says. Deliberately absent: unpacking; one file is looked for, nothing else written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};

use super::error::PullError;
use super::registry::check;
use crate::digest::hex;

const ENTRIES_MAX: usize = 200_000;
const NAME_BYTES_MAX: u64 = 4096;
/// Extended headers hold times and owners beside names.
const EXTENDED_BYTES_MAX: u64 = 1 << 20;

/// What a layer says of the wanted file.
pub(super) enum Lookup {
    /// It was written to the output: the digest's hexadecimal digits, and its size.
    Here(String, u64),
    /// The layer removes what lower layers have there.
    Hidden,
    /// Lower layers may have it.
    Absent,
}

/// A reader that counts, digests, and stops at a bound.
struct Metered<R> {
    inner: R,
    hasher: Sha256,
    left: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| io::Error::other("it unpacks to too much"))?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// A file from its beginning, unpacked if it is packed.
pub(super) fn unpacked(file: &File) -> io::Result<Box<dyn Read + Send>> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(0))?;
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let file = io::BufReader::with_capacity(64 << 10, file);
    match magic[..] {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd] => Err(io::Error::other("zstd is not supported: use gzip")),
        _ => Ok(Box::new(file)),
    }
}

/// The bounds of what is read from an archive.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub unpacked_bytes_max: u64,
    pub wasm_bytes_max: u64,
}

/// Looks for the file `path` (without a slash before it) in a layer, and checks the layer against its digest.
pub(super) fn find(
    what: &str,
    layer: &File,
    diff_id: Option<&str>,
    path: &str,
    out: &mut File,
    bounds: Bounds,
) -> Result<Lookup, PullError> {
    let malformed = |error: io::Error| PullError::malformed(what, error);
    let inner = unpacked(layer).map_err(malformed)?;
    let mut reader = Metered { inner, hasher: Sha256::new(), left: bounds.unpacked_bytes_max };
    let mut found = Lookup::Absent;
    walk(what, &mut reader, |name, kind, entry| {
        if is_whiteout(name, path) && matches!(found, Lookup::Absent) {
            found = Lookup::Hidden;
        }
        if name != path {
            return Ok(());
        }
        if !kind.is_file() {
            return Err(PullError::malformed(what, format!("{path:?} is no regular file")));
        }
        let (blob, bytes) = copy(entry, out, path, bounds.wasm_bytes_max)?;
        found = Lookup::Here(blob, bytes);
        Ok(())
    })?;
    io::copy(&mut reader, &mut io::sink()).map_err(malformed)?;
    if let Some(expected) = diff_id {
        check(&format!("{what}, unpacked"), expected, &format!("sha256:{}", hex(&reader.hasher.finalize())))?;
    }
    Ok(found)
}

/// Everything that a reader has, into an empty file; answers its digest and size.
pub(super) fn copy(
    from: &mut dyn Read,
    out: &mut File,
    what: &str,
    bytes_max: u64,
) -> Result<(String, u64), PullError> {
    let disk = || PullError::disk(format!("cannot write {what:?}"));
    out.set_len(0).and_then(|()| out.seek(SeekFrom::Start(0))).map_err(disk())?;
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 64 << 10]);
    loop {
        let read = from.read(&mut buffer).map_err(|error| PullError::malformed(format!("{what:?}"), error))?;
        if read == 0 {
            return Ok((hex(&hasher.finalize()), bytes));
        }
        bytes += read as u64;
        if bytes > bytes_max {
            return Err(PullError::TooBig { what: format!("{what:?}"), bytes_max });
        }
        hasher.update(&buffer[..read]);
        out.write_all(&buffer[..read]).map_err(disk())?;
    }
}

/// Visits the entries with their whole names, without slashes at the ends.
pub(super) fn walk<R: Read>(
    what: &str,
    reader: R,
    mut visit: impl FnMut(&str, EntryType, &mut Entry<'_, R>) -> Result<(), PullError>,
) -> Result<(), PullError> {
    let malformed = |error: io::Error| PullError::malformed(what, error);
    let mut archive = Archive::new(reader);
    let mut longer: Option<Vec<u8>> = None;
    for (count, entry) in archive.entries().map_err(malformed)?.raw(true).enumerate() {
        let mut entry = entry.map_err(malformed)?;
        if count >= ENTRIES_MAX {
            return Err(PullError::malformed(what, format!("more than {ENTRIES_MAX} entries")));
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut name = read_bounded(&mut entry, NAME_BYTES_MAX + 1).map_err(malformed)?;
                while name.last() == Some(&0) {
                    name.pop();
                }
                longer = Some(name);
            }
            EntryType::XHeader => {
                let text = read_bounded(&mut entry, EXTENDED_BYTES_MAX).map_err(malformed)?;
                longer = extended_path(&text).or(longer);
            }
            EntryType::XGlobalHeader | EntryType::GNULongLink => {}
            kind => {
                let name = longer.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let name = String::from_utf8_lossy(&name).into_owned();
                let name = name.trim_start_matches("./").trim_matches('/');
                visit(name, kind, &mut entry)?;
            }
        }
    }
    Ok(())
}

fn read_bounded(entry: &mut impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(bytes_max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(io::Error::other("a header that is too long")),
        false => Ok(bytes),
    }
}

/// The `path` of an extended header: lines of `LENGTH NAME=VALUE\n`.
fn extended_path(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut path = None;
    while let Some(space) = text.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(value.to_vec());
        }
        text = &text[length..];
    }
    path
}

/// Whether this entry removes `path`, or a directory that it is in, from the layers below.
fn is_whiteout(name: &str, path: &str) -> bool {
    let (dir, file) = name.rsplit_once('/').map_or(("", name), |(dir, file)| (dir, file));
    let Some(gone) = file.strip_prefix(".wh.") else { return false };
    let inside = |place: &str| path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match gone {
        ".wh..opq" => dir.is_empty() || (inside(dir) && path != dir),
        gone if dir.is_empty() => inside(gone),
        gone => inside(&format!("{dir}/{gone}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn layer(files: &[(&str, &[u8])], packed: bool) -> File {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        let mut bytes = builder.into_inner().unwrap();
        if packed {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&bytes).unwrap();
            bytes = encoder.finish().unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn look(file: &File, path: &str, bounds: Bounds) -> String {
        let mut out = tempfile::tempfile().unwrap();
        match find("layer", file, None, path, &mut out, bounds) {
            Ok(Lookup::Here(_, bytes)) => format!("{bytes} bytes"),
            Ok(Lookup::Hidden) => "hidden".into(),
            Ok(Lookup::Absent) => "absent".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn one_file_of_a_layer() {
        let bounds = Bounds { unpacked_bytes_max: 1 << 20, wasm_bytes_max: 1000 };
        let long = format!("{}/app.wasm", "d".repeat(90).repeat(3));
        for (files, path, want) in [
            (&[("app.wasm", &b"12345"[..])][..], "app.wasm", "5 bytes"),
            (&[("./srv/app.wasm", b"12345"), ("other", b"")], "srv/app.wasm", "5 bytes"),
            (&[(&long, b"123")], &long, "3 bytes"),
            (&[("srv/.wh.app.wasm", b"")], "srv/app.wasm", "hidden"),
            (&[(".wh.srv", b"")], "srv/app.wasm", "hidden"),
            (&[("srv/.wh..wh..opq", b"")], "srv/app.wasm", "hidden"),
            (&[("srv/.wh..wh..opq", b""), ("srv/app.wasm", b"1")], "srv/app.wasm", "1 bytes"),
            (&[("srv/.wh.app", b""), ("x/.wh.srv", b"")], "srv/app.wasm", "absent"),
            (&[("app.wasm", &[0; 1001])], "app.wasm", "\"app.wasm\" has more than the 1000 bytes that are taken"),
        ] {
            for packed in [false, true] {
                assert_eq!(look(&layer(files, packed), path, bounds), want, "{path} {packed}");
            }
        }
    }

    #[test]
    fn bad_layers() {
        let bounds = Bounds { unpacked_bytes_max: 100_000, wasm_bytes_max: 100_000 };
        let bomb = layer(&[("zeros", &[0; 200_000])], true);
        assert_eq!(look(&bomb, "app.wasm", bounds), "layer: it unpacks to too much");
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(&[b'x'; 2000]).unwrap();
        assert!(look(&text, "a", bounds).starts_with("layer: "));
        let mut zstd = tempfile::tempfile().unwrap();
        zstd.write_all(&[0x28, 0xb5, 0x2f, 0xfd, 0]).unwrap();
        assert_eq!(look(&zstd, "a", bounds), "layer: zstd is not supported: use gzip");
        let file = layer(&[("a", b"1")], false);
        let mut out = tempfile::tempfile().unwrap();
        let error = find("layer", &file, Some("sha256:00"), "a", &mut out, bounds).err().unwrap();
        assert!(error.to_string().starts_with("layer, unpacked: unexpected digest sha256:"), "{error}");
    }
}
