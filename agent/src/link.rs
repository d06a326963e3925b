//! The node's end of its link to the master, whatever carries it: news down, writes up, questions in between.
//!
//! The agent's rooms know only this; which carrier stands behind it (in process today, QUIC for a remote node) is decided
//! where the link is made.

use crate::inbox::News;
use crate::logs::{LogStream, LogsError, Wanted};
use crate::uplink::Uplink;
use futures::stream::BoxStream;
use runtime::logs::ReadOptions;
use tokio::sync::oneshot;

/// One end of a link.
pub struct Link {
    /// Writes to the cluster.
    pub up: Uplink,
    /// What happens in the cluster, as far as it concerns this node. Ends with the link.
    pub news: BoxStream<'static, News>,
    /// What the master asks of this node.
    pub calls: BoxStream<'static, Call>,
}

/// A question of the master.
pub enum Call {
    /// A container's log.
    Logs {
        /// Whose.
        wanted: Wanted,
        /// Which part of it.
        options: ReadOptions,
        /// Where the answer goes; gone when nobody waits any more.
        answer: oneshot::Sender<Result<LogStream, LogsError>>,
    },
}
