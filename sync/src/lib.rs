//! The hand that holds a node's link: what goes down, what comes up, and the calls a master makes.
//!
//! Layer 2. A node gets the part of the cluster's events that concerns it ([`slice`]) and sends writes; a master may call
//! it for bytes both ways ([`Call`]). The two ends are the same whatever carries them. Today that is memory
//! ([`local`]); QUIC comes with several nodes, behind the same ends, and so everything here can be serialized.
//! Deliberately absent: deciding, storing, authenticating.

mod call;
mod link;
pub mod slice;

pub use call::{
    Attach, Call, CallError, ContainerUsage, Exec, IncomingCall, Input, Logs, NodeUsage, Output, OutputStream,
    PodUsage, PortForward, Reply,
};
pub use link::{Caller, Down, IncomingWrites, Limits, MasterEnd, NodeEnd, Rejected, Uplink, local, no_input};
