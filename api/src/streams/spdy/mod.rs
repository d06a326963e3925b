//! SPDY/3.1, as far as Kubernetes uses it: many streams both ways over one connection.
//!
//! Clients up to kubectl 1.30, and every `kubectl port-forward`, speak it. `frame` is the pure codec, [`Connection`] the
//! driver over any byte stream, both the server's side and the client's. Deliberately absent: HTTP in streams, server push,
//! priorities, and holding data back until the other side's window opens: Kubernetes' own implementation neither opens windows
//! nor heeds them, so the socket's back-pressure is what holds data back. Windows are opened for those who heed them.

mod connection;
mod dictionary;
mod frame;
mod headers;
mod stream;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Limits, Opener, Side};
pub use frame::FrameError;
pub use headers::Headers;
pub use stream::{Gone, ReadHalf, Stream, WriteHalf};
