//! Streams to and from a pod: the WebSocket that carries them, the terminal at our end, the pod they lead to.
//!
//! `exec`, `attach`, `cp`, `port-forward`, `run -i` and `debug -i` meet here. The connection, TLS and credentials are those of
//! every other request (`client`); the WebSocket itself is the tungstenite crate's. The kube crate has a client for these
//! subresources too: it drops what a refusing server says and cannot half-close a forwarded connection, so it is not used.
//! Deliberately absent: SPDY over TCP, which servers older than Kubernetes 1.30 want for some of this.

pub mod ports;
pub mod remote;
pub mod target;
pub mod terminal;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL};
use http::header::{SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, Request, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::client::Client;
use super::failure::{Failure, Result, fail};

/// The largest message taken from a server; Kubernetes' own send 32 KiB.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How often an idle connection is kept alive.
const PING_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// Channels by number, a `Status` as the last word, no way to close one channel.
pub const V4: &str = "v4.channel.k8s.io";
/// As V4, and a message on channel 255 closes the channel it names.
pub const V5: &str = "v5.channel.k8s.io";
/// The channel of V5 whose messages close other channels.
pub const CLOSE_CHANNEL: u8 = 255;

/// An open WebSocket and the protocol that the server chose.
pub struct Socket {
    /// The messages.
    pub messages: WebSocketStream<TokioIo<Upgraded>>,
    /// One of those that were offered.
    pub protocol: String,
}

/// Asks for a WebSocket at a path; what the server answers instead is told in its own words.
pub async fn open(client: &Client, path: &str, protocols: &[&str]) -> Result<Socket> {
    let key = generate_key();
    let request = Request::get(path)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, protocols.join(", "))
        .body(Body::empty());
    let response = client.upgrade(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return fail(format!("unable to upgrade connection: the server answered {}", response.status()));
    }
    let protocol = agreed(response.headers(), &key, protocols)
        .map_err(|why| Failure::Text(format!("unable to upgrade connection: {why}")))?;
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|error| Failure::Text(format!("unable to upgrade connection: {error}")))?;
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let messages = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await;
    Ok(Socket { messages, protocol })
}

/// Checks the server's half of the handshake (RFC 6455, 4.1) and says which protocol it chose.
fn agreed(headers: &HeaderMap, key: &str, offered: &[&str]) -> std::result::Result<String, &'static str> {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok()).unwrap_or_default();
    if !text(UPGRADE).eq_ignore_ascii_case("websocket") || !text(CONNECTION).to_lowercase().contains("upgrade") {
        return Err("the server switched to something that is no WebSocket");
    }
    if text(SEC_WEBSOCKET_ACCEPT) != derive_accept_key(key.as_bytes()) {
        return Err("the server's Sec-WebSocket-Accept does not fit the key");
    }
    match text(SEC_WEBSOCKET_PROTOCOL) {
        protocol if offered.contains(&protocol) => Ok(protocol.to_string()),
        _ => Err("the server chose no subprotocol that was offered"),
    }
}

/// What the end of a WebSocket means when nothing more was said: a normal one is no failure.
pub fn ended(close: Option<&CloseFrame>) -> Result<()> {
    match close {
        Some(frame) if frame.code == CloseCode::Normal => Ok(()),
        Some(frame) => fail(format!("websocket: close {}: {}", u16::from(frame.code), frame.reason)),
        None => fail("websocket: close 1006 (abnormal closure): unexpected EOF"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let headers = |upgrade: &str, accept: &str, protocol: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(UPGRADE, upgrade.parse().unwrap());
            headers.insert(CONNECTION, "Upgrade".parse().unwrap());
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept.parse().unwrap());
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
            headers
        };
        // the example of RFC 6455, 1.3
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        let check = |headers: HeaderMap| agreed(&headers, key, &[V5, V4]);
        assert_eq!(check(headers("WebSocket", accept, V4)), Ok(V4.to_string()));
        assert!(check(headers("SPDY/3.1", accept, V4)).is_err());
        assert!(check(headers("websocket", "x", V4)).is_err());
        assert!(check(headers("websocket", accept, "v1.channel.k8s.io")).is_err());
        assert!(check(HeaderMap::new()).is_err());
    }

    #[test]
    fn ends() {
        let frame = |code, reason: &'static str| CloseFrame { code, reason: reason.into() };
        assert!(ended(Some(&frame(CloseCode::Normal, ""))).is_ok());
        let failed = ended(Some(&frame(CloseCode::Error, "no"))).unwrap_err();
        assert_eq!(failed.message(), "error: websocket: close 1011: no");
        assert!(ended(None).unwrap_err().message().contains("1006"));
    }
}
