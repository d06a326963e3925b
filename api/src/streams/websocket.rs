//! The server's half of a WebSocket's begin, and its bounds. The protocol itself is tungstenite's.

use crate::body::{self, Answer};
use crate::status::Status;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL};
use http::header::{SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

/// A WebSocket.
pub type Socket<I> = WebSocketStream<I>;

/// Bytes of a message from a client: Kubernetes' clients send 32 KiB, but programs write what they have at once.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of our own that wait for the socket.
const WRITE_BYTES: usize = 64 * 1024;

/// Whether a request asks for a WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    super::upgrades_to(headers, "websocket")
}

/// The protocols that a client offers, in its order.
pub fn offered(headers: &HeaderMap) -> Vec<String> {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offers = offers.flat_map(|value| value.split(',')).map(str::trim);
    offers.filter(|offer| !offer.is_empty()).map(str::to_owned).collect()
}

/// The answer that agrees to a WebSocket that speaks `protocol` (empty: none was offered).
///
/// # Errors
/// 400 when the request is not a WebSocket's.
pub fn agree(headers: &HeaderMap, protocol: &str) -> Result<Answer, Status> {
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        return Err(Status::bad_request("a WebSocket's version is 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| Status::bad_request("a WebSocket's request has a Sec-WebSocket-Key"))?;
    let mut answer = Answer::new(body::full(bytes::Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)?;
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(protocol).map_err(Status::internal)?);
    }
    Ok(answer)
}

/// The WebSocket over a connection that was agreed on.
pub async fn open<I: AsyncRead + AsyncWrite + Unpin>(io: I, role: Role) -> Socket<I> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .write_buffer_size(WRITE_BYTES);
    WebSocketStream::from_raw_socket(io, role, Some(config)).await
}

/// The last message: all went well. Go's clients take an end without a code for an accident.
pub fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
}

/// Whether an error only says that the other side has gone.
pub fn is_over(error: &tungstenite::Error) -> bool {
    matches!(
        error,
        tungstenite::Error::ConnectionClosed
            | tungstenite::Error::AlreadyClosed
            | tungstenite::Error::Protocol(
                ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing
            )
    )
}
