//! Several streams over one WebSocket: the first byte of a message names its channel. And what the versions of that differ in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Message;

/// The channel whose messages name a channel that has ended.
pub const CLOSE: u8 = 255;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// As it is negotiated.
    pub name: &'static str,
    /// The payload is base64 and the channel a digit, in text messages.
    pub is_text: bool,
    /// How a program ended is told by a `Status` as JSON; before, failures were told in words.
    pub has_status: bool,
    /// A channel can be ended by itself.
    pub can_close: bool,
}

const fn protocol(name: &'static str, is_text: bool, has_status: bool, can_close: bool) -> Protocol {
    Protocol { name, is_text, has_status, can_close }
}

/// The versions.
pub const PROTOCOLS: &[Protocol] = &[
    protocol("v5.channel.k8s.io", false, true, true),
    protocol("v4.channel.k8s.io", false, true, false),
    protocol("v4.base64.channel.k8s.io", true, true, false),
    protocol("v3.channel.k8s.io", false, false, false),
    protocol("v2.channel.k8s.io", false, false, false),
    protocol("channel.k8s.io", false, false, false),
    protocol("base64.channel.k8s.io", true, false, false),
    // of a client that names none
    protocol("", false, false, false),
];

/// The first of a client's protocols that is spoken here. A client that names none gets the oldest.
pub fn choose(offered: &[String]) -> Option<Protocol> {
    let find = |name: &str| PROTOCOLS.iter().find(|known| known.name == name).copied();
    if offered.is_empty() { find("") } else { offered.iter().find_map(|name| find(name)) }
}

impl Protocol {
    /// A message of a channel.
    pub fn message(&self, channel: u8, payload: &[u8]) -> Message {
        if self.is_text {
            let digit = char::from(b'0'.wrapping_add(channel));
            return Message::text(format!("{digit}{}", STANDARD.encode(payload)));
        }
        let mut bytes = BytesMut::with_capacity(1 + payload.len());
        bytes.put_u8(channel);
        bytes.put_slice(payload);
        Message::Binary(bytes.freeze())
    }

    /// A message's channel and payload; `None` for one that is empty or not in the protocol.
    pub fn read(&self, message: Bytes) -> Option<(u8, Bytes)> {
        let first = *message.first()?;
        let payload = message.slice(1..);
        if !self.is_text {
            return Some((first, payload));
        }
        let channel = first.checked_sub(b'0').filter(|channel| *channel < 10)?;
        Some((channel, STANDARD.decode(payload).ok()?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_order_decides() {
        let chosen = |offered: &[&str]| {
            let offered: Vec<String> = offered.iter().map(|name| (*name).to_owned()).collect();
            choose(&offered).map(|protocol| protocol.name)
        };
        assert_eq!(chosen(&[]), Some(""));
        assert_eq!(chosen(&["v9", "v4.channel.k8s.io", "v5.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!(chosen(&["v9"]), None);
    }

    #[test]
    fn messages_come_back() {
        for protocol in PROTOCOLS {
            let message = protocol.message(3, b"\x00text");
            assert_eq!(message.is_text(), protocol.is_text);
            assert_eq!(protocol.read(message.into_data()), Some((3, Bytes::from_static(b"\x00text"))));
            assert_eq!(protocol.read(Bytes::new()), None);
        }
        let base64 = choose(&["base64.channel.k8s.io".into()]).unwrap();
        for bad in ["x", "0!", "\u{1}aa"] {
            assert_eq!(base64.read(Bytes::from(bad)), None, "{bad:?}");
        }
    }
}
