//! The hand that holds a node's link: what goes down, what comes up, and the calls a master makes.
//!
//! Layer 2. A node gets the part of the cluster's events that concerns it ([`slice`]) and sends writes; a master may call
//! it for bytes both ways ([`Call`]), a node its master for images ([`Ask`]); packets of pods go over [`Bulk`]. The ends are the same whatever carries them: memory
//! ([`local`], [`bulk_pair`]), or the two connections that a node dials ([`node`]) and a master accepts ([`master`]), over
//! QUIC or, where that is blocked, over TLS on TCP. docs/protocol.md is the protocol.
//!
//! ```text
//! wire/         frames and bodies: bytes <-> values; no state
//! session/      what each end does with a frame: no sockets, no clock
//! transport, quic, packets   what carries frames and packets
//! calls, asks   one call or ask over one stream, both ends
//! node/ master/ the drivers: connect and reconnect; accept
//! mesh/         packets between nodes, directly or by the master
//! ```
//! Deliberately absent: deciding, storing, and who may write what (the server's; here only certificates are checked).

mod ask;
mod asks;
mod bulk;
mod call;
mod calls;
mod cluster;
mod link;
pub mod master;
pub mod mesh;
pub mod node;
mod packets;
pub mod peers;
mod quic;
mod session;
pub mod slice;
pub mod tls;
mod transport;
mod wire;

pub use ask::{Ask, AskError, IncomingAsk, MasterImage, Piece, Pieces};
pub use bulk::{Bulk, SendError, bulk_pair};
pub use call::{
    Attach, Call, CallError, ContainerUsage, Exec, IncomingCall, Input, Logs, NodeUsage, Output, OutputStream,
    PodUsage, PortForward, Reply,
};
pub use cluster::{ClusterFacts, Hello, Position, Progress, Welcome};
pub use link::{
    Caller, Down, IncomingWrites, Limits, MasterEnd, NodeEnd, Rejected, Renewal, Up, Uplink, local, no_input,
};
pub use tls::Identity;
pub use wire::VERSION;
