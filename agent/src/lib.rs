//! The node's body: keeps the pods of one node as the cluster wants them.
//!
//! Layer 4. Folds its slice of the cluster's events into a [`state::World`] of its own, plans each pod against what runs,
//! lets `runtime` and `netproxy` carry the steps out, and writes back what became of them. It lives on when the link to
//! the master is dead. Deliberately absent: REST, placement, every object that is not this node's business.

pub mod addresses;
mod config;

pub use addresses::Cidr;
pub use config::{AgentConfig, LogLimits, PODS_MAX, Taint, WasmLimits};

use tokio_util::sync::CancellationToken;

/// Runs the node until `shutdown`, then stops its containers and returns.
///
/// Nothing of the node's state in the cluster is taken back at shutdown: an agent that starts again finds its pods.
///
/// # Errors
/// When the node cannot work at all: its data directory cannot be made, the Wasm engine does not start, or the link ends.
pub async fn run(
    config: AgentConfig,
    link: sync::NodeEnd,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let _ = (config, link, shutdown);
    anyhow::bail!("the agent's body is being built")
}
