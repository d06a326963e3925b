//! The members of an archive, read one after the other in bounded memory, whatever its headers claim.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{EntryType, Header, PaxExtensions};

use super::view::PATH_BYTES_MAX;

const BLOCK_BYTES: usize = 512;
/// Bytes of a header's extensions.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;

/// An archive being read.
pub(super) struct Members<R> {
    input: R,
    /// Bytes of the current member's content and padding still to come.
    content_bytes: u64,
    padding_bytes: u64,
}

/// What an archive says of one member.
pub(super) struct Member {
    pub(super) path: PathBuf,
    pub(super) link: PathBuf,
    pub(super) kind: EntryType,
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

/// What extension headers say of the member that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size_bytes: Option<u64>,
    modified: Option<u64>,
    sparse: bool,
}

impl<R: Read> Members<R> {
    pub(super) fn new(input: R) -> Members<R> {
        Members { input, content_bytes: 0, padding_bytes: 0 }
    }

    /// The next member; its content is then read from `self`. `None` at the end, with all input taken.
    pub(super) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut extensions = Extensions::default();
        loop {
            let left = self.content_bytes + self.padding_bytes;
            (self.content_bytes, self.padding_bytes) = (0, 0);
            if io::copy(&mut (&mut self.input).take(left), &mut io::sink())? != left {
                return Err(cut_short());
            }
            let Some(header) = self.header()? else {
                io::copy(&mut self.input, &mut io::sink())?;
                return Ok(None);
            };
            let kind = header.entry_type();
            let extends = kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions();
            let stated = header.entry_size().map_err(|_| damaged())?;
            let size_bytes = if extends { stated } else { extensions.size_bytes.unwrap_or(stated) };
            self.content_bytes = size_bytes;
            self.padding_bytes = size_bytes.wrapping_neg() % BLOCK_BYTES as u64;
            if self.content_bytes.checked_add(self.padding_bytes).is_none() {
                return Err(damaged());
            }
            match kind {
                EntryType::GNULongName => extensions.path = Some(self.extension()?),
                EntryType::GNULongLink => extensions.link = Some(self.extension()?),
                EntryType::XHeader => extensions.take_pax(&self.extension()?)?,
                EntryType::XGlobalHeader => {}
                _ => return extensions.member(&header).map(Some),
            }
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.input.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(cut_short()),
                read => filled += read,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        // The sum is over the header with its own field (8 bytes at 148) as blanks.
        let field = 148..156;
        let sum = |(at, byte): (usize, &u8)| u32::from(if field.contains(&at) { b' ' } else { *byte });
        match header.cksum() {
            Ok(stated) if stated == block.iter().enumerate().map(sum).sum::<u32>() => Ok(Some(header.clone())),
            _ => Err(damaged()),
        }
    }

    /// The whole content of an extension header.
    fn extension(&mut self) -> io::Result<Vec<u8>> {
        if self.content_bytes > EXTENSION_BYTES_MAX {
            return Err(damaged());
        }
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        while content.last() == Some(&0) {
            content.pop();
        }
        Ok(content)
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = into.len().min(usize::try_from(self.content_bytes).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        match self.input.read(&mut into[..room])? {
            0 => Err(cut_short()),
            read => {
                self.content_bytes -= read as u64;
                Ok(read)
            }
        }
    }
}

impl Extensions {
    fn take_pax(&mut self, content: &[u8]) -> io::Result<()> {
        for extension in PaxExtensions::new(content) {
            let extension = extension.map_err(|_| damaged())?;
            let value = extension.value_bytes();
            let whole = || str::from_utf8(value).ok()?.split('.').next()?.parse::<u64>().ok();
            match extension.key_bytes() {
                b"path" => self.path = Some(value.to_owned()),
                b"linkpath" => self.link = Some(value.to_owned()),
                b"size" => self.size_bytes = Some(whole().ok_or_else(damaged)?),
                b"mtime" => self.modified = whole(),
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn member(self, header: &Header) -> io::Result<Member> {
        let path = self.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = self.link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        if path.len() > PATH_BYTES_MAX || link.len() > PATH_BYTES_MAX || path.contains(&0) || link.contains(&0) {
            return Err(damaged());
        }
        Ok(Member {
            path: Path::new(OsStr::from_bytes(&path)).to_owned(),
            link: Path::new(OsStr::from_bytes(&link)).to_owned(),
            kind: if self.sparse { EntryType::GNUSparse } else { header.entry_type() },
            mode: header.mode().unwrap_or(0o644),
            modified: self.modified.or(header.mtime().ok()).unwrap_or(0),
        })
    }
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "Unexpected EOF in archive")
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "This does not look like a tar archive")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(kind: EntryType, size_bytes: u64, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_path("name").unwrap();
        header.set_entry_type(kind);
        header.set_size(size_bytes);
        header.set_mode(0o644);
        header.set_cksum();
        [header.as_bytes(), content].concat()
    }

    #[test]
    fn what_headers_claim_is_bounded() {
        let endless = u64::MAX - 1000;
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let bytes = archive(kind, 1 << 40, b"x");
            let error = Members::new(bytes.as_slice()).next().map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{kind:?}");
        }
        let mut members = Members::new(io::Cursor::new(archive(EntryType::Regular, endless, b"abc")));
        members.next().unwrap().unwrap();
        let mut content = Vec::new();
        assert_eq!(members.read_to_end(&mut content).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(content, b"abc");
        let mut broken = archive(EntryType::Regular, 0, b"");
        broken[0] ^= 1;
        assert!(Members::new(broken.as_slice()).next().is_err());
        assert!(Members::new(&broken[..100]).next().is_err());
        assert!(Members::new(&[0u8; 2048][..]).next().unwrap().is_none());
        assert!(Members::new(&b""[..]).next().unwrap().is_none());
    }
}
