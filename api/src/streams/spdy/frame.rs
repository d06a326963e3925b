//! SPDY/3.1's frames: bytes to frames and back. Pure; every length is bounded before anything is kept.

use super::headers::{Headers, Packer, Unpacker};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a control frame. Data has no such bound: it is passed on in pieces as it comes.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// Bytes of data passed on at once.
pub const PIECE_BYTES_MAX: usize = 32 * 1024;

const HEAD_BYTES: usize = 8;
const VERSION: u16 = 3;
const FIN: u8 = 0x01;
const UNIDIRECTIONAL: u8 = 0x02;
const ID_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why bytes are no SPDY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error("SPDY version {0} is not spoken here")]
    Version(u16),
    /// A control frame beyond the bound.
    #[error("a control frame of {0} bytes is too large")]
    TooLarge(usize),
    /// A control frame shorter than what it must carry.
    #[error("a control frame of type {0} is malformed")]
    Malformed(u16),
    /// A header block that is none, or too large.
    #[error("a header block is malformed or too large")]
    Headers,
    /// A header block that does not unpack.
    #[error("a header block does not unpack")]
    Compression,
}

/// A frame, as far as anybody here cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A stream begins.
    SynStream {
        /// The stream.
        id: u32,
        /// Its opener sends nothing on it.
        fin: bool,
        /// The other side may send nothing on it.
        unidirectional: bool,
        /// What it is for.
        headers: Headers,
    },
    /// It is taken.
    SynReply {
        /// The stream.
        id: u32,
        /// The taker sends nothing on it.
        fin: bool,
        /// Further words.
        headers: Headers,
    },
    /// It is broken off.
    Reset {
        /// The stream.
        id: u32,
        /// Why: 1 protocol error, 3 refused, 5 cancelled.
        status: u32,
    },
    /// Are you there; the same number comes back.
    Ping {
        /// Odd from a client, even from a server.
        id: u32,
    },
    /// No further stream will be taken.
    GoAway {
        /// The last stream that was.
        last: u32,
    },
    /// Further headers of a stream.
    Headers {
        /// The stream.
        id: u32,
        /// Nothing follows on it.
        fin: bool,
    },
    /// Room for further data.
    WindowUpdate {
        /// The stream; 0 is the connection.
        id: u32,
        /// Bytes.
        delta: u32,
    },
    /// Data, or a piece of it.
    Data {
        /// The stream.
        id: u32,
        /// Nothing follows on it.
        fin: bool,
        /// The data.
        bytes: Bytes,
    },
}

/// Reads one direction.
pub struct Decoder {
    unpacker: Unpacker,
    data: Option<Rest>,
}

/// What is still to come of a data frame.
struct Rest {
    id: u32,
    fin: bool,
    bytes: usize,
}

impl Decoder {
    /// At a connection's begin.
    pub fn new() -> Self {
        Self { unpacker: Unpacker::new(), data: None }
    }

    /// Takes the next frame off `buffer`; `None` when more bytes are needed. After an error the connection is of no use.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(rest) = self.data.as_mut() {
                let length = rest.bytes.min(buffer.len()).min(PIECE_BYTES_MAX);
                if length == 0 && rest.bytes > 0 {
                    return Ok(None);
                }
                rest.bytes -= length;
                let is_last = rest.bytes == 0;
                let (id, fin) = (rest.id, rest.fin && is_last);
                if is_last {
                    self.data = None;
                }
                return Ok(Some(Frame::Data { id, fin, bytes: buffer.split_to(length).freeze() }));
            }
            let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let flags = head[4];
            let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
            if first & !ID_MASK == 0 {
                buffer.advance(HEAD_BYTES);
                self.data = Some(Rest { id: first, fin: flags & FIN != 0, bytes: length });
                continue;
            }
            let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if length > CONTROL_BYTES_MAX {
                return Err(FrameError::TooLarge(length));
            }
            if buffer.len() < HEAD_BYTES + length {
                return Ok(None);
            }
            buffer.advance(HEAD_BYTES);
            let body = buffer.split_to(length);
            if let Some(frame) = self.control(kind, flags, &body)? {
                return Ok(Some(frame));
            }
        }
    }

    /// A control frame; none for those that change nothing here (SETTINGS, and types there are not).
    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Frame>, FrameError> {
        let word = |at: usize| -> Result<u32, FrameError> {
            let bytes = body.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or(FrameError::Malformed(kind))?;
            Ok(u32::from_be_bytes(*bytes))
        };
        let fin = flags & FIN != 0;
        let frame = match kind {
            SYN_STREAM => {
                let block = body.get(10..).ok_or(FrameError::Malformed(kind))?;
                let headers = self.unpacker.unpack(block)?;
                let unidirectional = flags & UNIDIRECTIONAL != 0;
                Frame::SynStream { id: word(0)? & ID_MASK, fin, unidirectional, headers }
            }
            SYN_REPLY => {
                let block = body.get(4..).ok_or(FrameError::Malformed(kind))?;
                Frame::SynReply { id: word(0)? & ID_MASK, fin, headers: self.unpacker.unpack(block)? }
            }
            HEADERS => {
                let block = body.get(4..).ok_or(FrameError::Malformed(kind))?;
                // unpacked though nobody reads them: the next block builds on it
                self.unpacker.unpack(block)?;
                Frame::Headers { id: word(0)? & ID_MASK, fin }
            }
            RST_STREAM => Frame::Reset { id: word(0)? & ID_MASK, status: word(4)? },
            PING => Frame::Ping { id: word(0)? },
            GOAWAY => Frame::GoAway { last: word(0)? & ID_MASK },
            WINDOW_UPDATE => Frame::WindowUpdate { id: word(0)? & ID_MASK, delta: word(4)? & ID_MASK },
            SETTINGS => {
                word(0)?;
                return Ok(None);
            }
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

/// Writes one direction.
pub struct Encoder {
    packer: Packer,
}

impl Encoder {
    /// At a connection's begin.
    ///
    /// # Errors
    /// When there is no compressor.
    pub fn new() -> Result<Self, FrameError> {
        Ok(Self { packer: Packer::new()? })
    }

    /// Writes a frame. Data must be shorter than 16 MiB; the driver's pieces are.
    ///
    /// # Errors
    /// When headers are too large for a frame.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), FrameError> {
        let flags = |fin: bool| if fin { FIN } else { 0 };
        match frame {
            Frame::Data { id, fin, bytes } => {
                out.put_u32(id & ID_MASK);
                put_flags_and_length(out, flags(*fin), bytes.len())?;
                out.put_slice(bytes);
            }
            Frame::SynStream { id, fin, unidirectional, headers } => {
                let block = self.packer.pack(headers)?;
                let flags = flags(*fin) | if *unidirectional { UNIDIRECTIONAL } else { 0 };
                put_head(out, SYN_STREAM, flags, 10 + block.len())?;
                out.put_u32(id & ID_MASK);
                // no associated stream, the highest priority, no slot
                out.put_bytes(0, 6);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => {
                let block = self.packer.pack(headers)?;
                put_head(out, SYN_REPLY, flags(*fin), 4 + block.len())?;
                out.put_u32(id & ID_MASK);
                out.put_slice(&block);
            }
            Frame::Headers { id, fin } => {
                let block = self.packer.pack(&Headers::default())?;
                put_head(out, HEADERS, flags(*fin), 4 + block.len())?;
                out.put_u32(id & ID_MASK);
                out.put_slice(&block);
            }
            Frame::Reset { id, status } => put_words(out, RST_STREAM, &[id & ID_MASK, *status])?,
            Frame::Ping { id } => put_words(out, PING, &[*id])?,
            Frame::GoAway { last } => put_words(out, GOAWAY, &[last & ID_MASK, 0])?,
            Frame::WindowUpdate { id, delta } => put_words(out, WINDOW_UPDATE, &[id & ID_MASK, delta & ID_MASK])?,
        }
        Ok(())
    }
}

fn put_words(out: &mut BytesMut, kind: u16, words: &[u32]) -> Result<(), FrameError> {
    put_head(out, kind, 0, words.len() * 4)?;
    words.iter().for_each(|word| out.put_u32(*word));
    Ok(())
}

fn put_head(out: &mut BytesMut, kind: u16, flags: u8, length: usize) -> Result<(), FrameError> {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_flags_and_length(out, flags, length)
}

fn put_flags_and_length(out: &mut BytesMut, flags: u8, length: usize) -> Result<(), FrameError> {
    let short = u32::try_from(length).ok().filter(|length| *length < 1 << 24).ok_or(FrameError::TooLarge(length))?;
    out.put_u32(u32::from(flags) << 24 | short);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let headers = Headers::new([("streamtype", "stdin")]);
        vec![
            Frame::SynStream { id: 1, fin: true, unidirectional: false, headers: headers.clone() },
            Frame::SynStream { id: 3, fin: false, unidirectional: true, headers: headers.clone() },
            Frame::SynReply { id: 1, fin: false, headers },
            Frame::Data { id: 1, fin: false, bytes: Bytes::from_static(b"hello") },
            Frame::Data { id: 3, fin: true, bytes: Bytes::new() },
            Frame::Headers { id: 1, fin: true },
            Frame::Reset { id: 3, status: 5 },
            Frame::Ping { id: 7 },
            Frame::WindowUpdate { id: 0, delta: 65536 },
            Frame::GoAway { last: 3 },
        ]
    }

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let (frames, mut wire) = (frames(), BytesMut::new());
        let mut encoder = Encoder::new().unwrap();
        frames.iter().for_each(|frame| encoder.encode(frame, &mut wire).unwrap());
        for size in [1, 3, 7, 64, wire.len()] {
            let (mut decoder, mut buffer, mut found) = (Decoder::new(), BytesMut::new(), Vec::new());
            for piece in wire.chunks(size) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    found.push(frame);
                }
            }
            if size >= 64 {
                assert_eq!(found, frames, "{size}");
            }
            let sent = |frames: &[Frame]| -> Vec<u8> {
                let data = frames.iter().filter_map(|frame| match frame {
                    Frame::Data { id: 1, bytes, .. } => Some(bytes.to_vec()),
                    _ => None,
                });
                data.flatten().collect()
            };
            assert_eq!(sent(&found), b"hello", "{size}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let refused = |bytes: &[u8]| Decoder::new().decode(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(refused(b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01"), FrameError::Version(2));
        assert_eq!(refused(b"\x80\x03\0\x01\0\xff\xff\xff"), FrameError::TooLarge(0xff_ffff));
        assert_eq!(refused(b"\x80\x03\0\x06\0\0\0\x02\0\0"), FrameError::Malformed(PING));
        assert_eq!(refused(b"\x80\x03\0\x01\0\0\0\x02\0\0"), FrameError::Malformed(SYN_STREAM));
        assert_eq!(refused(b"\x80\x03\0\x02\0\0\0\x06\0\0\0\x01xx"), FrameError::Compression);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        // SplitMix64, so that a failure comes again
        let mut seed = 1_u64;
        let mut random = move || {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed ^ (mixed >> 27)) as u8
        };
        for _ in 0..20_000 {
            let mut bytes = vec![0x80, 3, 0, random() % 10, random() % 4, 0, 0, random() % 40];
            bytes.extend((0..48).map(|_| random()));
            let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(&bytes[..]));
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }
}
