//! The frame: length, kind, flags, body.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::read::{DeflateDecoder, DeflateEncoder};
use std::io::Read;

/// Kinds of frames. An end that does not know a kind ends the session, unless the kind is [`kind::IGNORABLE`] or above:
/// then it ignores the frame.
pub(crate) mod kind {
    // up
    pub(crate) const HELLO: u8 = 1;
    pub(crate) const WRITES: u8 = 2;
    pub(crate) const RENEW: u8 = 3;
    // down
    pub(crate) const WELCOME: u8 = 16;
    pub(crate) const SNAPSHOT: u8 = 17;
    pub(crate) const EVENT: u8 = 18;
    pub(crate) const REACHED: u8 = 19;
    pub(crate) const ANSWER: u8 = 20;
    pub(crate) const RENEWED: u8 = 21;
    pub(crate) const DIAL: u8 = 22;
    // both
    pub(crate) const GOODBYE: u8 = 31;
    // first on a connection or stream that belongs to a session
    pub(crate) const JOIN: u8 = 48;
    pub(crate) const JOINED: u8 = 49;
    // a call, to the node
    pub(crate) const CALL: u8 = 64;
    pub(crate) const DATA: u8 = 65;
    pub(crate) const END: u8 = 66;
    pub(crate) const RESIZE: u8 = 67;
    pub(crate) const GONE: u8 = 68;
    // a call, from the node
    pub(crate) const ACCEPTED: u8 = 72;
    pub(crate) const STDOUT: u8 = 73;
    pub(crate) const STDERR: u8 = 74;
    pub(crate) const EXIT: u8 = 75;
    pub(crate) const FAILED: u8 = 76;
    pub(crate) const DONE: u8 = 77;
    pub(crate) const INPUT_CLOSED: u8 = 78;
    // an ask, to the master
    pub(crate) const ASK: u8 = 80;
    // an ask, from the master
    pub(crate) const IMAGE: u8 = 88;
    pub(crate) const BYTES: u8 = 89;
    pub(crate) const WHOLE: u8 = 90;
    pub(crate) const REFUSED: u8 = 91;
    /// From here on, a kind that is not known is ignored.
    pub(crate) const IGNORABLE: u8 = 128;
    pub(crate) const PING: u8 = 128;
}

/// The body is raw DEFLATE.
const DEFLATED: u8 = 1;
/// Bytes of the length field.
const LENGTH_BYTES: usize = 4;
/// Bytes of kind and flags.
const HEAD_BYTES: usize = 2;
/// Bodies up to here are sent as they are.
const DEFLATE_BYTES_MIN: usize = 256;

/// Why bytes are no frame, or a frame's body is not what its kind says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a frame of {bytes} bytes; {bytes_max} are allowed")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("a frame of {0} bytes has no kind")]
    TooShort(usize),
    #[error("flags {0:#04x} are not known")]
    Flags(u8),
    #[error("a frame's body cannot be inflated")]
    Inflate(#[source] std::io::Error),
    #[error("a frame's body inflates to more than {bytes_max} bytes")]
    Bomb { bytes_max: usize },
    #[error("the body of {what}")]
    Json {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the body of {0} is cut short")]
    Cut(&'static str),
    #[error("an object in {what}")]
    Object {
        what: &'static str,
        #[source]
        source: state::DecodeError,
    },
    #[error("a frame of kind {0} is not known here")]
    Kind(u8),
}

/// A frame as it came, its body inflated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
}

/// How large frames may be that come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// As sent, without the length field.
    pub(crate) frame_bytes_max: usize,
    /// Of an inflated body.
    pub(crate) body_bytes_max: usize,
}

impl Bounds {
    /// Takes a frame from the front of what came, if it is whole.
    pub(crate) fn take(self, buffer: &mut BytesMut) -> Result<Option<Frame>, WireError> {
        let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let bytes = u32::from_be_bytes(*length) as usize;
        // judged before the frame is waited for: nothing is kept of one that is too long
        if bytes > self.frame_bytes_max {
            return Err(WireError::TooLong { bytes, bytes_max: self.frame_bytes_max });
        }
        if bytes < HEAD_BYTES {
            return Err(WireError::TooShort(bytes));
        }
        if buffer.len() < LENGTH_BYTES + bytes {
            return Ok(None);
        }
        buffer.advance(LENGTH_BYTES);
        let mut frame = buffer.split_to(bytes);
        let (kind, flags) = (frame.get_u8(), frame.get_u8());
        let body = frame.freeze();
        let body = match flags {
            0 => body,
            DEFLATED => inflate(&body, self.body_bytes_max)?,
            other => return Err(WireError::Flags(other)),
        };
        if body.len() > self.body_bytes_max {
            return Err(WireError::Bomb { bytes_max: self.body_bytes_max });
        }
        Ok(Some(Frame { kind, body }))
    }
}

fn inflate(body: &[u8], bytes_max: usize) -> Result<Bytes, WireError> {
    let mut inflated = Vec::with_capacity(body.len().saturating_mul(3).min(bytes_max));
    DeflateDecoder::new(body).take(bytes_max as u64 + 1).read_to_end(&mut inflated).map_err(WireError::Inflate)?;
    if inflated.len() > bytes_max {
        return Err(WireError::Bomb { bytes_max });
    }
    Ok(inflated.into())
}

/// A whole frame, deflated where that pays.
pub(crate) fn encode(kind: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(LENGTH_BYTES + HEAD_BYTES + body.len());
    match deflate(body) {
        Some(deflated) => put(&mut out, kind, DEFLATED, &deflated),
        None => put(&mut out, kind, 0, body),
    }
    out.freeze()
}

/// Appends a frame of raw bytes, as they are.
pub(crate) fn put_plain(out: &mut BytesMut, kind: u8, body: &[u8]) {
    put(out, kind, 0, body);
}

fn put(out: &mut BytesMut, kind: u8, flags: u8, body: &[u8]) {
    // a body beyond 4 GiB cannot be in memory's bounds: all that is sent is bounded far below
    out.put_u32((HEAD_BYTES + body.len()) as u32);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_slice(body);
}

fn deflate(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() <= DEFLATE_BYTES_MIN {
        return None;
    }
    let mut deflated = Vec::with_capacity(body.len() / 2);
    // reading memory does not fail
    DeflateEncoder::new(body, Compression::default()).read_to_end(&mut deflated).ok()?;
    (deflated.len() < body.len()).then_some(deflated)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { frame_bytes_max: 1000, body_bytes_max: 4000 };

    fn taken(bytes: &[u8]) -> Result<Option<Frame>, String> {
        BOUNDS.take(&mut BytesMut::from(bytes)).map_err(|error| error.to_string())
    }

    #[test]
    fn frames_come_back_whole_however_they_are_cut() {
        let long = "abc".repeat(1000);
        let frames = [encode(1, b"{}"), encode(18, long.as_bytes()), encode(3, b"")];
        assert!(frames[1].len() < 200, "deflated");
        let all: Vec<u8> = frames.concat();
        for piece in [1, 2, 5, 7, all.len()] {
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for part in all.chunks(piece) {
                buffer.extend_from_slice(part);
                while let Some(frame) = BOUNDS.take(&mut buffer).unwrap() {
                    seen.push((frame.kind, frame.body.len()));
                }
            }
            assert_eq!(seen, [(1, 2), (18, 3000), (3, 0)]);
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let cases: [(&[u8], &str); 6] = [
            (&[0, 0, 0], "ok"),
            (&[0, 0, 0, 2, 1], "ok"),
            (&[0, 0, 3, 233, 1], "a frame of 1001 bytes; 1000 are allowed"),
            (&[0, 0, 0, 1, 1], "a frame of 1 bytes has no kind"),
            (&[0, 0, 0, 2, 1, 8], "flags 0x08 are not known"),
            (&[0, 0, 0, 4, 1, 1, 255, 255], "a frame's body cannot be inflated"),
        ];
        for (bytes, expected) in cases {
            let got = taken(bytes)
                .map_or_else(|error| error, |frame| if frame.is_none() { "ok".into() } else { "frame".into() });
            assert_eq!(got, expected, "{bytes:?}");
        }
        let bomb = encode(1, &vec![b'a'; 4001]);
        assert_eq!(taken(&bomb), Err("a frame's body inflates to more than 4000 bytes".into()));
    }
}
