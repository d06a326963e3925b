//! Frames of one call, over a stream of its own. Data is raw bytes and never deflated; the rest is JSON.

use super::body::{json, to_json};
use super::frame::{self, Bounds, Frame, WireError, kind};
use crate::{Attach, Call, CallError, Exec, Input, Logs, Output, PortForward};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Bytes of one piece of data.
pub(crate) const PIECE_BYTES_MAX: usize = 64 << 10;
/// Bounds of a call's frames: a command line may be long.
pub(crate) const BOUNDS: Bounds = Bounds { frame_bytes_max: 1 << 20, body_bytes_max: 4 << 20 };

/// [`Call`] as it travels.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum CallBody {
    Logs(Logs),
    Exec(Exec),
    Attach(Attach),
    PortForward(PortForward),
    Usage,
}

#[derive(Serialize, Deserialize)]
struct Size {
    columns: u16,
    rows: u16,
}

#[derive(Serialize, Deserialize)]
struct Exit {
    code: i32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Failure {
    Disconnected,
    NotFound(String),
    BadRequest(String),
    Failed(String),
}

/// What goes to the node after the call itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToNode {
    Input(Input),
    /// The client is gone without an [`Input::End`].
    Gone,
}

/// What comes from the node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromNode {
    Accepted,
    Output(Output),
    Failed(CallError),
    Done,
    /// The node reads no more input.
    InputClosed,
}

pub(crate) fn call(call: &Call) -> Bytes {
    let body = match call.clone() {
        Call::Logs(logs) => CallBody::Logs(logs),
        Call::Exec(exec) => CallBody::Exec(exec),
        Call::Attach(attach) => CallBody::Attach(attach),
        Call::PortForward(forward) => CallBody::PortForward(forward),
        Call::Usage => CallBody::Usage,
    };
    frame::encode(kind::CALL, &to_json(&body))
}

pub(crate) fn read_call(frame: &Frame) -> Result<Call, WireError> {
    if frame.kind != kind::CALL {
        return Err(WireError::Kind(frame.kind));
    }
    Ok(match json("call", &frame.body)? {
        CallBody::Logs(logs) => Call::Logs(logs),
        CallBody::Exec(exec) => Call::Exec(exec),
        CallBody::Attach(attach) => Call::Attach(attach),
        CallBody::PortForward(forward) => Call::PortForward(forward),
        CallBody::Usage => Call::Usage,
    })
}

/// Appends frames for the node.
pub(crate) fn put_input(out: &mut BytesMut, input: &ToNode) {
    match input {
        ToNode::Input(Input::Data(bytes)) => put_pieces(out, kind::DATA, bytes),
        ToNode::Input(Input::End) => frame::put_plain(out, kind::END, &[]),
        ToNode::Input(Input::Resize { columns, rows }) => {
            frame::put_plain(out, kind::RESIZE, &to_json(&Size { columns: *columns, rows: *rows }));
        }
        ToNode::Gone => frame::put_plain(out, kind::GONE, &[]),
    }
}

/// Reads a frame for the node; `None` when it may be ignored.
pub(crate) fn read_input(frame: Frame) -> Result<Option<ToNode>, WireError> {
    Ok(Some(match frame.kind {
        kind::DATA => ToNode::Input(Input::Data(frame.body)),
        kind::END => ToNode::Input(Input::End),
        kind::RESIZE => {
            let Size { columns, rows } = json("resize", &frame.body)?;
            ToNode::Input(Input::Resize { columns, rows })
        }
        kind::GONE => ToNode::Gone,
        kind::IGNORABLE.. => return Ok(None),
        other => return Err(WireError::Kind(other)),
    }))
}

/// Appends frames for the master.
pub(crate) fn put_output(out: &mut BytesMut, output: &FromNode) {
    match output {
        FromNode::Accepted => frame::put_plain(out, kind::ACCEPTED, &[]),
        FromNode::Output(Output::Stdout(bytes)) => put_pieces(out, kind::STDOUT, bytes),
        FromNode::Output(Output::Stderr(bytes)) => put_pieces(out, kind::STDERR, bytes),
        FromNode::Output(Output::Exit(code)) => frame::put_plain(out, kind::EXIT, &to_json(&Exit { code: *code })),
        FromNode::Failed(error) => {
            let failure = match error.clone() {
                CallError::Disconnected => Failure::Disconnected,
                CallError::NotFound(message) => Failure::NotFound(message),
                CallError::BadRequest(message) => Failure::BadRequest(message),
                CallError::Failed(message) => Failure::Failed(message),
            };
            out.extend_from_slice(&frame::encode(kind::FAILED, &to_json(&failure)));
        }
        FromNode::Done => frame::put_plain(out, kind::DONE, &[]),
        FromNode::InputClosed => frame::put_plain(out, kind::INPUT_CLOSED, &[]),
    }
}

/// Reads a frame for the master; `None` when it may be ignored.
pub(crate) fn read_output(frame: Frame) -> Result<Option<FromNode>, WireError> {
    Ok(Some(match frame.kind {
        kind::ACCEPTED => FromNode::Accepted,
        kind::STDOUT => FromNode::Output(Output::Stdout(frame.body)),
        kind::STDERR => FromNode::Output(Output::Stderr(frame.body)),
        kind::EXIT => FromNode::Output(Output::Exit(json::<Exit>("exit", &frame.body)?.code)),
        kind::FAILED => FromNode::Failed(match json("failure", &frame.body)? {
            Failure::Disconnected => CallError::Disconnected,
            Failure::NotFound(message) => CallError::NotFound(message),
            Failure::BadRequest(message) => CallError::BadRequest(message),
            Failure::Failed(message) => CallError::Failed(message),
        }),
        kind::DONE => FromNode::Done,
        kind::INPUT_CLOSED => FromNode::InputClosed,
        kind::IGNORABLE.. => return Ok(None),
        other => return Err(WireError::Kind(other)),
    }))
}

fn put_pieces(out: &mut BytesMut, kind: u8, bytes: &[u8]) {
    for piece in bytes.chunks(PIECE_BYTES_MAX) {
        frame::put_plain(out, kind, piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(mut buffer: BytesMut) -> Frame {
        let frame = BOUNDS.take(&mut buffer).unwrap().unwrap();
        assert!(buffer.is_empty());
        frame
    }

    #[test]
    fn calls_inputs_and_outputs_come_back_as_they_went() {
        let exec = Exec { command: vec!["sh".into(), "x".repeat(2000)], tty: true, ..Exec::default() };
        let logs =
            Logs { since: Some("2026-01-01T00:00:00Z".parse().unwrap()), tail_lines: Some(3), ..Logs::default() };
        let forward = PortForward { port: 80, ..PortForward::default() };
        let calls = [
            Call::Exec(exec),
            Call::Logs(logs),
            Call::Attach(Attach::default()),
            Call::PortForward(forward),
            Call::Usage,
        ];
        for sent in calls {
            assert_eq!(read_call(&frame(BytesMut::from(&call(&sent)[..]))).unwrap(), sent);
        }
        let inputs = [
            ToNode::Input(Input::Data(Bytes::from_static(b"text"))),
            ToNode::Input(Input::End),
            ToNode::Input(Input::Resize { columns: 80, rows: 24 }),
            ToNode::Gone,
        ];
        for sent in inputs {
            let mut out = BytesMut::new();
            put_input(&mut out, &sent);
            assert_eq!(read_input(frame(out)).unwrap(), Some(sent));
        }
        let outputs = [
            FromNode::Accepted,
            FromNode::Output(Output::Stdout(Bytes::from_static(b"out"))),
            FromNode::Output(Output::Stderr(Bytes::from_static(b"err"))),
            FromNode::Output(Output::Exit(-9)),
            FromNode::Failed(CallError::NotFound("no pod".into())),
            FromNode::Failed(CallError::Disconnected),
            FromNode::Done,
            FromNode::InputClosed,
        ];
        for sent in outputs {
            let mut out = BytesMut::new();
            put_output(&mut out, &sent);
            assert_eq!(read_output(frame(out)).unwrap(), Some(sent));
        }
    }

    #[test]
    fn frames_of_the_other_direction_are_refused_and_later_kinds_ignored() {
        let of = |kind| Frame { kind, body: Bytes::new() };
        assert!(read_input(of(kind::STDOUT)).is_err());
        assert!(read_output(of(kind::DATA)).is_err());
        assert!(read_call(&of(kind::DATA)).is_err());
        assert_eq!(read_input(of(200)).unwrap(), None);
        assert_eq!(read_output(of(255)).unwrap(), None);
    }
}
