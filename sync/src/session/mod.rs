//! What each end of a session does with a frame: frames in, actions and frames out. No sockets, no clock, no tasks; the
//! drivers ([`crate::node`], [`crate::master`]) move the bytes, whatever carries them.

mod cache;
mod master;
mod node;
#[cfg(test)]
mod tests;

pub(crate) use cache::EventCache;
pub(crate) use master::{MasterAction, MasterSession};
pub(crate) use node::{NodeAction, NodeSession, Opened};

use crate::wire::WireError;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// What came is no protocol.
    #[error("the other end sent what cannot be read")]
    Wire(#[from] WireError),
    /// What came does not belong here.
    #[error("the other end broke the protocol: {0}")]
    Order(&'static str),
    /// The other end ended it.
    #[error("{reason}")]
    Goodbye {
        /// For people.
        reason: String,
        /// Trying again will not help for a while.
        refused: bool,
        /// The node has been taken out of the cluster.
        dismissed: bool,
    },
    /// A bound.
    #[error("{what}: more than {max} bytes")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: usize,
    },
}

impl SessionError {
    /// The error and its causes in one line.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
