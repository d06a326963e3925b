//! One record of a log file: a line, or a piece of a long one.

use jiff::Timestamp;

/// Bytes of text in one record; longer lines are split, all pieces but the last marked `P`.
pub(super) const TEXT_BYTES_MAX: usize = 16 << 10;

/// Where a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Appends a record. `full`: the text ends its line.
pub(super) fn encode(out: &mut Vec<u8>, at: &str, stream: Stream, full: bool, text: &[u8]) {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let tag = if full { "F" } else { "P" };
    for part in [at.as_bytes(), b" ", name.as_bytes(), b" ", tag.as_bytes(), b" ", text, b"\n"] {
        out.extend_from_slice(part);
    }
}

/// A time as records have it, always with nine digits.
pub(super) fn stamp(at: Timestamp) -> String {
    format!("{at:.9}")
}

/// A record read back.
#[derive(Debug, PartialEq)]
pub(super) struct Record<'a> {
    pub(super) at: &'a [u8],
    pub(super) stream: Stream,
    pub(super) full: bool,
    pub(super) text: &'a [u8],
}

impl Record<'_> {
    pub(super) fn time(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.at).ok()?.parse().ok()
    }
}

/// Takes a line apart; `None` for what is no record, such as one torn by a power cut.
pub(super) fn decode(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (at, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let text = parts.next()?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    (tag == b"F" || tag == b"P").then_some(Record { at, stream, full: tag == b"F", text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives() {
        let at = stamp(Timestamp::new(1_795_000_000, 5).unwrap());
        let mut line = Vec::new();
        encode(&mut line, &at, Stream::Stderr, false, b"two words ");
        assert_eq!(String::from_utf8_lossy(&line), "2026-11-18T11:06:40.000000005Z stderr P two words \n");
        let record = decode(&line[..line.len() - 1]).unwrap();
        assert_eq!((record.stream, record.full, record.text), (Stream::Stderr, false, &b"two words "[..]));
        assert_eq!(decode(b"2026-11-18T10:26:40"), None);
        assert_eq!(decode(b"a b F c"), None);
    }
}
