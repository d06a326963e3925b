//! What went where, and what was dropped why.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts of packets since the start.
        #[derive(Debug, Default)]
        pub(super) struct Counting {
            $(pub(super) $name: Count,)*
        }

        /// Counts of packets since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counting {
            /// The counts now.
            pub(super) fn read(&self) -> Counters {
                Counters { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Sent over a connection to their node.
    sent_direct,
    /// Sent to the master.
    sent_relayed,
    /// Came over a connection from their node.
    received_direct,
    /// Came from the master.
    received_relayed,
    /// Passed on by the master.
    forwarded,
    /// No IPv4 packet, or no frame.
    dropped_malformed,
    /// Their source is not the sender's.
    dropped_source,
    /// Their destination is nobody's, or not the receiver's.
    dropped_destination,
    /// There was no connection, or no room on it.
    dropped_link,
}

/// One count.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
