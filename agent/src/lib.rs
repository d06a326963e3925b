//! The node's body: keeps the pods of one node as the cluster wants them.
//!
//! Layer 4. Folds its slice of the cluster's events into a [`state::World`] of its own, plans each pod against what runs,
//! lets `runtime` and `netproxy` carry the steps out, and writes back what became of them. It lives on when the link to
//! the master is dead. Deliberately absent: REST, placement, every object that is not this node's business.

mod addresses;
mod body;
mod config;
mod container;
mod events;
mod fields;
mod identity;
mod node;
mod pod;
mod probes;
mod routes;
mod uplink;
mod volumes;

pub use config::{AgentConfig, LogLimits, PODS_MAX, Taint, WasmLimits};
pub use netproxy::network::Cidr;
