//! Frames of one ask, over a stream of its own. Bytes of images are raw and never deflated; the rest is JSON.

use super::body::{json, to_json};
use super::frame::{self, Frame, WireError, kind};
use crate::{Ask, AskError, MasterImage, Piece};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::call::PIECE_BYTES_MAX;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Refusal {
    Disconnected,
    Unsupported,
    NotFound(String),
    Forbidden(String),
    Busy,
    Failed(String),
}

/// What comes from the master.
#[derive(Debug, PartialEq)]
pub(crate) enum FromMaster {
    Piece(Piece),
    /// Nothing follows: that was all.
    Whole,
    Refused(AskError),
}

pub(crate) fn ask(ask: &Ask) -> Bytes {
    frame::encode(kind::ASK, &to_json(ask))
}

pub(crate) fn read_ask(frame: &Frame) -> Result<Ask, WireError> {
    match frame.kind {
        kind::ASK => json("ask", &frame.body),
        other => Err(WireError::Kind(other)),
    }
}

/// Appends frames for the node.
pub(crate) fn put_answer(out: &mut BytesMut, said: &FromMaster) {
    match said {
        FromMaster::Piece(Piece::Image(image)) => {
            out.extend_from_slice(&frame::encode(kind::IMAGE, &to_json(&**image)));
        }
        FromMaster::Piece(Piece::Bytes(bytes)) => {
            for piece in bytes.chunks(PIECE_BYTES_MAX) {
                frame::put_plain(out, kind::BYTES, piece);
            }
        }
        FromMaster::Whole => frame::put_plain(out, kind::WHOLE, &[]),
        FromMaster::Refused(error) => {
            let refusal = match error.clone() {
                AskError::Disconnected => Refusal::Disconnected,
                AskError::Unsupported => Refusal::Unsupported,
                AskError::NotFound(message) => Refusal::NotFound(message),
                AskError::Forbidden(message) => Refusal::Forbidden(message),
                AskError::Busy => Refusal::Busy,
                AskError::Failed(message) => Refusal::Failed(message),
            };
            out.extend_from_slice(&frame::encode(kind::REFUSED, &to_json(&refusal)));
        }
    }
}

/// Reads a frame for the node; `None` when it may be ignored.
pub(crate) fn read_answer(frame: Frame) -> Result<Option<FromMaster>, WireError> {
    Ok(Some(match frame.kind {
        kind::IMAGE => FromMaster::Piece(Piece::Image(Box::new(json::<MasterImage>("image", &frame.body)?))),
        kind::BYTES => FromMaster::Piece(Piece::Bytes(frame.body)),
        kind::WHOLE => FromMaster::Whole,
        kind::REFUSED => FromMaster::Refused(match json("refusal", &frame.body)? {
            Refusal::Disconnected => AskError::Disconnected,
            Refusal::Unsupported => AskError::Unsupported,
            Refusal::NotFound(message) => AskError::NotFound(message),
            Refusal::Forbidden(message) => AskError::Forbidden(message),
            Refusal::Busy => AskError::Busy,
            Refusal::Failed(message) => AskError::Failed(message),
        }),
        kind::IGNORABLE.. => return Ok(None),
        other => return Err(WireError::Kind(other)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::call::BOUNDS;

    fn frame(mut buffer: BytesMut) -> Frame {
        let frame = BOUNDS.take(&mut buffer).unwrap().unwrap();
        assert!(buffer.is_empty());
        frame
    }

    #[test]
    fn asks_and_answers_come_back_as_they_went() {
        let asks = [
            (Ask::Image { image: "app:1".into() }, r#"{"image":{"image":"app:1"}}"#),
            (
                Ask::Blob { image: "app:1".into(), blob: "ab".into(), from: 7 },
                r#"{"blob":{"image":"app:1","blob":"ab","from":7}}"#,
            ),
        ];
        for (sent, text) in asks {
            let frame = frame(BytesMut::from(&ask(&sent)[..]));
            assert_eq!(frame.body, text);
            assert_eq!(read_ask(&frame).unwrap(), sent);
        }
        let later = Frame { kind: kind::ASK, body: Bytes::from_static(br#"{"certificate":{}}"#) };
        assert!(read_ask(&later).is_err());
        let image = MasterImage {
            digest: "sha256:00".into(),
            blob: "00".into(),
            bytes: 3,
            imported: true,
            container: false,
            config: serde_json::json!({"name": "app.wasm"}),
        };
        let answers = [
            FromMaster::Piece(Piece::Image(Box::new(image))),
            FromMaster::Piece(Piece::Bytes(Bytes::from_static(b"\0asm"))),
            FromMaster::Whole,
            FromMaster::Refused(AskError::Forbidden("no".into())),
            FromMaster::Refused(AskError::Busy),
        ];
        for sent in answers {
            let mut out = BytesMut::new();
            put_answer(&mut out, &sent);
            assert_eq!(read_answer(frame(out)).unwrap(), Some(sent));
        }
        assert_eq!(read_answer(Frame { kind: 200, body: Bytes::new() }).unwrap(), None);
        assert!(read_answer(Frame { kind: kind::STDOUT, body: Bytes::new() }).is_err());
    }
}
