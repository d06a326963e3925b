//! Header blocks: names and values, compressed with one context for each direction of a connection.

use super::dictionary::DICTIONARY;
use super::frame::FrameError;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Bytes of a header block, unpacked.
const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// Headers of one block.
const HEADERS_MAX: usize = 256;
/// Bytes unpacked at a time.
const PIECE_BYTES: usize = 4096;

/// Headers of a stream; names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Headers of names and values.
    pub fn new<N: AsRef<str>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let pairs = pairs.into_iter();
        Self(pairs.map(|(name, value)| (name.as_ref().to_ascii_lowercase(), value.into())).collect())
    }

    /// A header's (first) value.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        value.split('\0').next()
    }

    fn unpacked(block: &[u8]) -> Result<Self, FrameError> {
        let mut rest = block;
        let count = take_length(&mut rest)?;
        if count > HEADERS_MAX {
            return Err(FrameError::Headers);
        }
        let mut pairs = Vec::new();
        for _ in 0..count {
            let name = take_text(&mut rest)?;
            pairs.push((name, take_text(&mut rest)?));
        }
        if rest.is_empty() { Ok(Self(pairs)) } else { Err(FrameError::Headers) }
    }

    fn packed(&self) -> Vec<u8> {
        let mut block = length(self.0.len()).to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&length(text.len()));
            block.extend_from_slice(text.as_bytes());
        }
        block
    }
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn take_length(rest: &mut &[u8]) -> Result<usize, FrameError> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or(FrameError::Headers)?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| FrameError::Headers)
}

fn take_text(rest: &mut &[u8]) -> Result<String, FrameError> {
    let length = take_length(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(FrameError::Headers)?;
    *rest = after;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Packs the header blocks of one direction, in order.
pub struct Packer(Compress);

impl Packer {
    /// A fresh context.
    ///
    /// # Errors
    /// When the compressor does not take the dictionary.
    pub fn new() -> Result<Self, FrameError> {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&DICTIONARY).map_err(|_| FrameError::Compression)?;
        Ok(Self(compress))
    }

    /// A block as it goes over the wire.
    ///
    /// # Errors
    /// When the compressor fails.
    pub fn pack(&mut self, headers: &Headers) -> Result<Vec<u8>, FrameError> {
        let block = headers.packed();
        let mut packed = Vec::new();
        let began = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - began).map_err(|_| FrameError::Compression)?;
            packed.reserve(PIECE_BYTES);
            let rest = block.get(done..).unwrap_or_default();
            let compressed = self.0.compress_vec(rest, &mut packed, FlushCompress::Sync);
            compressed.map_err(|_| FrameError::Compression)?;
            let is_taken = self.0.total_in() - began == block.len() as u64;
            // room that is left says that nothing waits
            if is_taken && packed.len() < packed.capacity() {
                return Ok(packed);
            }
        }
    }
}

/// Unpacks the header blocks of one direction, in order.
pub struct Unpacker(Decompress);

impl Unpacker {
    /// A fresh context.
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// A block from the wire. After an error the context is of no use.
    ///
    /// # Errors
    /// When it is no header block, or larger than it may be.
    pub fn unpack(&mut self, packed: &[u8]) -> Result<Headers, FrameError> {
        let mut block = Vec::new();
        let began = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - began).map_err(|_| FrameError::Compression)?;
            let rest = packed.get(done..).unwrap_or_default();
            let before = (self.0.total_in(), self.0.total_out());
            block.reserve(PIECE_BYTES);
            match self.0.decompress_vec(rest, &mut block, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(FrameError::Compression),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| FrameError::Compression)?;
                    continue;
                }
                Err(_) => return Err(FrameError::Compression),
            }
            if block.len() > BLOCK_BYTES_MAX {
                return Err(FrameError::Headers);
            }
            let is_taken = self.0.total_in() - began == packed.len() as u64;
            if is_taken && block.len() < block.capacity() {
                return Headers::unpacked(&block);
            }
            if before == (self.0.total_in(), self.0.total_out()) {
                return Err(FrameError::Compression);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_share_a_context() {
        let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new());
        for at in 0..200 {
            let port = at.to_string();
            let headers = Headers::new([("StreamType", "data"), ("port", "8080"), ("requestID", port.as_str())]);
            let packed = packer.pack(&headers).unwrap();
            assert_eq!(unpacker.unpack(&packed).unwrap(), headers);
            assert_eq!(headers.get("requestid"), Some(port.as_str()));
        }
        let large = Headers::new([("x", "y".repeat(20_000))]);
        assert_eq!(unpacker.unpack(&packer.pack(&large).unwrap()).unwrap(), large);
        let too_large = Headers::new([("x", "y".repeat(BLOCK_BYTES_MAX))]);
        assert_eq!(unpacker.unpack(&packer.pack(&too_large).unwrap()), Err(FrameError::Headers));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        assert!(Unpacker::new().unpack(b"").is_err());
        assert!(Unpacker::new().unpack(b"no zlib stream").is_err());
        for block in [&b"\0\0\0\x01\0\0\0\x05ab"[..], b"\0\0", b"\xff\xff\xff\xff", b"\0\0\0\0x"] {
            assert_eq!(Headers::unpacked(block), Err(FrameError::Headers), "{block:?}");
        }
    }
}
