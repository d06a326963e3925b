//! Docker's two ways to stream output: frames, each with a header that says which output and how many bytes, and a
//! terminal's plain bytes.
//!
//! Pure and incremental: a frame's bytes are given on as they come, so memory does not depend on what a header claims.

use bytes::{Buf, Bytes};

use crate::Output;

/// Stream, three zeros, length.
const HEADER_BYTES: usize = 8;

/// Takes a stream apart.
pub(super) struct Frames {
    raw: bool,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    stderr: bool,
    left_bytes: u32,
}

/// A piece of output. Where frames have meaning (one is a record of a log), `begins` and `ends` say where they lie.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) output: Output,
    pub(super) begins: bool,
    pub(super) ends: bool,
}

impl Frames {
    /// `tty`: the container or execution has a terminal, whose bytes have no headers.
    pub(super) fn new(tty: bool) -> Frames {
        Frames { raw: tty, header: [0; HEADER_BYTES], header_bytes: 0, stderr: false, left_bytes: 0 }
    }

    /// Takes the next piece off `bytes`. `None`: more bytes are needed.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Option<Piece> {
        if self.raw {
            let all = bytes.split_to(bytes.len());
            return (!all.is_empty()).then_some(Piece { output: Output::Stdout(all), begins: false, ends: false });
        }
        let mut begins = false;
        while self.left_bytes == 0 {
            while self.header_bytes < HEADER_BYTES {
                if bytes.is_empty() {
                    return None;
                }
                self.header[self.header_bytes] = bytes.get_u8();
                self.header_bytes += 1;
            }
            let [stream, _, _, _, length @ ..] = self.header;
            self.header_bytes = 0;
            // 0 is standard input echoed, 3 an error of Docker's.
            self.stderr = stream >= 2;
            self.left_bytes = u32::from_be_bytes(length);
            begins = true;
        }
        if bytes.is_empty() {
            // The header is used up; whoever continues must still learn that the frame begins.
            if begins {
                self.header_bytes = HEADER_BYTES;
                self.left_bytes = 0;
            }
            return None;
        }
        let taken = bytes.split_to(bytes.len().min(self.left_bytes as usize));
        self.left_bytes -= taken.len() as u32;
        let output = if self.stderr { Output::Stderr(taken) } else { Output::Stdout(taken) };
        Some(Piece { output, begins, ends: self.left_bytes == 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, text: &str) -> Vec<u8> {
        let mut bytes = vec![stream, 0, 0, 0];
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn however_the_bytes_come() {
        let stream = [frame(1, "out\n"), frame(2, ""), frame(2, "err"), frame(1, "\u{1}\u{2}")].concat();
        for size in 1..=stream.len() {
            let mut frames = Frames::new(false);
            let (mut out, mut err, mut begun, mut ended) = (Vec::new(), Vec::new(), 0, 0);
            for chunk in stream.chunks(size) {
                let mut chunk = Bytes::copy_from_slice(chunk);
                while let Some(piece) = frames.next(&mut chunk) {
                    begun += usize::from(piece.begins);
                    ended += usize::from(piece.ends);
                    match piece.output {
                        Output::Stdout(bytes) => out.extend_from_slice(&bytes),
                        Output::Stderr(bytes) => err.extend_from_slice(&bytes),
                    }
                }
                assert!(chunk.is_empty());
            }
            assert_eq!((out.as_slice(), err.as_slice()), (&b"out\n\x01\x02"[..], &b"err"[..]), "chunks of {size}");
            assert_eq!((begun, ended), (3, 3), "chunks of {size}");
        }
    }

    #[test]
    fn a_terminal_may_print_anything() {
        let mut frames = Frames::new(true);
        let mut bytes = Bytes::from_static(&[1, 0, 0, 0, 255, 255, 255, 255, 7]);
        let piece = frames.next(&mut bytes).unwrap();
        assert_eq!(piece.output, Output::Stdout(Bytes::from_static(&[1, 0, 0, 0, 255, 255, 255, 255, 7])));
        assert_eq!(frames.next(&mut bytes), None);
    }

    #[test]
    fn a_claimed_length_takes_no_memory() {
        let mut frames = Frames::new(false);
        let mut bytes = Bytes::from_static(&[1, 0, 0, 0, 255, 255, 255, 255, b'x']);
        let piece = frames.next(&mut bytes).unwrap();
        assert_eq!(piece, Piece { output: Output::Stdout(Bytes::from_static(b"x")), begins: true, ends: false });
    }
}
