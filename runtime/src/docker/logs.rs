//! A container's log, read back from Docker as the kubelet would print it.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, Bytes};
use futures::stream::{BoxStream, StreamExt, empty, unfold};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::connect::Ask;
use super::error::{Cause, DockerError, engine, found};
use super::frames::{Frames, Piece};
use super::{Docker, DockerContainer};
use crate::Output;
use crate::logs::ReadOptions;

/// Docker's time of a record and the space after it: `2026-11-20T20:00:00.000000000Z `.
const STAMP_BYTES: usize = 31;

impl DockerContainer {
    /// The container's own log, as [`Docker::logs`].
    pub async fn logs(
        &self,
        options: ReadOptions,
        stdout: bool,
        stderr: bool,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, DockerError> {
        self.docker().logs(self.id(), options, stdout, stderr).await
    }
}

impl Docker {
    /// The log of a container, running or not: of these outputs, for a terminal everything is standard output.
    ///
    /// Docker cuts lines longer than 16 KiB into records. `tail_lines` counts those, and of a terminal's log each record
    /// has its time.
    pub async fn logs(
        &self,
        id: &str,
        options: ReadOptions,
        stdout: bool,
        stderr: bool,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, DockerError> {
        if !stdout && !stderr || options.limit_bytes == Some(0) {
            return Ok(empty().boxed());
        }
        let missing = || DockerError::NotFound { id: id.to_owned() };
        let inspecting = self.0.connection.client()?.inspect_container(id, None).await;
        let inspected = found(inspecting).map_err(engine("inspect a container"))?.ok_or_else(missing)?;
        let tty = inspected.config.and_then(|config| config.tty) == Some(true);

        let flag = |on: bool| u8::from(on).to_string();
        let mut query = vec![
            ("stdout", flag(stdout)),
            ("stderr", flag(stderr)),
            ("follow", flag(options.follow)),
            ("timestamps", flag(options.timestamps)),
            ("tail", options.tail_lines.map_or_else(|| "all".to_owned(), |lines| lines.to_string())),
        ];
        if let Some(since) = options.since {
            query.push(("since", format!("{}.{:09}", since.as_second(), since.subsec_nanosecond())));
        }
        let path = format!("/containers/{id}/logs");
        let ask = Ask { method: http::Method::GET, path: &path, query: &query, body: None, upgrade: false };
        let response = self.0.connection.ask(ask).await.map_err(|cause| match cause {
            Cause::Refused(404, _) => missing(),
            Cause::Refused(_, detail) => DockerError::Engine { act: "read a log", detail },
            Cause::Lost(detail) => DockerError::Unreachable { detail },
        })?;
        let reader = Reader {
            body: response.into_body(),
            frames: Frames::new(tty),
            lines: Lines::new(options.timestamps && !tty),
            left_bytes: options.limit_bytes,
            ready: VecDeque::new(),
        };
        Ok(unfold(Some(reader), async |reader| reader?.next().await).boxed())
    }
}

struct Reader {
    body: Incoming,
    frames: Frames,
    lines: Lines,
    left_bytes: Option<u64>,
    /// Pieces of the last chunk.
    ready: VecDeque<Bytes>,
}

impl Reader {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Option<Reader>)> {
        loop {
            if let Some(mut piece) = self.ready.pop_front() {
                if let Some(left) = &mut self.left_bytes {
                    piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        return Some((Ok(piece), None));
                    }
                }
                return Some((Ok(piece), Some(self)));
            }
            let mut chunk = match self.body.frame().await? {
                Ok(frame) => frame.into_data().unwrap_or_default(),
                Err(error) => return Some((Err(io::Error::other(error)), None)),
            };
            while let Some(piece) = self.frames.next(&mut chunk) {
                let text = self.lines.next(piece);
                if !text.is_empty() {
                    self.ready.push_back(text);
                }
            }
        }
    }
}

/// Drops the time from records that continue a line: Docker puts one on each record.
struct Lines {
    stamped: bool,
    /// Whether the next record of standard output, and of standard error, begins a line.
    starts: [bool; 2],
    /// Bytes of this record's time that are still to be dropped.
    drop_bytes: usize,
}

impl Lines {
    fn new(stamped: bool) -> Lines {
        Lines { stamped, starts: [true, true], drop_bytes: 0 }
    }

    fn next(&mut self, piece: Piece) -> Bytes {
        let (mut text, start) = match piece.output {
            Output::Stdout(text) => (text, &mut self.starts[0]),
            Output::Stderr(text) => (text, &mut self.starts[1]),
        };
        if !self.stamped {
            return text;
        }
        if piece.begins {
            self.drop_bytes = if *start { 0 } else { STAMP_BYTES };
        }
        if piece.ends {
            *start = text.ends_with(b"\n");
        }
        let dropped = self.drop_bytes.min(text.len());
        text.advance(dropped);
        self.drop_bytes -= dropped;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_has_one_time() {
        let stamp = "2026-11-20T20:00:00.000000000Z ";
        assert_eq!(stamp.len(), STAMP_BYTES);
        let records = [
            (false, format!("{stamp}begin ")),
            (true, format!("{stamp}other\n")),
            (false, format!("{stamp}middle ")),
            (false, format!("{stamp}end\n")),
            (false, format!("{stamp}next\n")),
        ];
        let mut lines = Lines::new(true);
        let (mut out, mut err) = (String::new(), String::new());
        for (is_err, record) in records {
            // However the record was cut on its way.
            let (head, tail) = record.as_bytes().split_at(7);
            for (bytes, begins, ends) in [(head, true, false), (tail, false, true)] {
                let bytes = Bytes::copy_from_slice(bytes);
                let output = if is_err { Output::Stderr(bytes) } else { Output::Stdout(bytes) };
                let text = lines.next(Piece { output, begins, ends });
                let all = if is_err { &mut err } else { &mut out };
                all.push_str(std::str::from_utf8(&text).unwrap());
            }
        }
        assert_eq!(out, format!("{stamp}begin middle end\n{stamp}next\n"));
        assert_eq!(err, format!("{stamp}other\n"));
    }
}
