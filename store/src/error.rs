//! Why the store did not do what it was asked.

use state::{DecodeError, Key, Revision};
use std::path::PathBuf;
use std::sync::Arc;

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("open {}: another process uses it", file.display())]
    Locked {
        /// The log's file.
        file: PathBuf,
    },
    /// Written by a version of Coracle that this one does not understand.
    #[error("open {}: format {found} is not the format {known} of this version", file.display())]
    Format {
        /// The log's file.
        file: PathBuf,
        /// What the file says.
        found: u64,
        /// What this version writes.
        known: u64,
    },
    /// A record of the log is not what was written.
    #[error("open {}: record {revision} is damaged", file.display())]
    Damaged {
        /// The log's file.
        file: PathBuf,
        /// The record.
        revision: Revision,
        /// What is wrong with it.
        #[source]
        source: Option<DecodeError>,
    },
    /// The database did not open or could not be read.
    #[error("open {}", file.display())]
    Disk {
        /// The log's file.
        file: PathBuf,
        /// redb's word.
        #[source]
        source: Box<redb::Error>,
    },
}

/// Why a commit was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The object to change or delete is not there.
    #[error("{key} does not exist")]
    Absent {
        /// The object.
        key: Key,
    },
    /// The object to create is there already.
    #[error("{key} exists already")]
    Exists {
        /// The object.
        key: Key,
    },
    /// The object is not at the revision that the write was decided on.
    #[error("{key} is at revision {found}, not {expected}")]
    Conflict {
        /// The object.
        key: Key,
        /// What the write expected.
        expected: Revision,
        /// Where it is.
        found: Revision,
    },
    /// The object of this name is another one.
    #[error("{key} has uid {found}, not {expected}")]
    Uid {
        /// The object.
        key: Key,
        /// What the write expected.
        expected: String,
        /// Its uid.
        found: String,
    },
    /// The object is larger than the store takes.
    #[error("{key} has {bytes} bytes of at most {bytes_max}")]
    TooLarge {
        /// The object.
        key: Key,
        /// Its size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The value is not an object, or not the one that its key names.
    #[error("{key} is not what its write holds")]
    Malformed {
        /// The object.
        key: Key,
        /// What is wrong with it.
        #[source]
        source: Option<Arc<DecodeError>>,
    },
    /// The disk did not take it; nothing of it is kept.
    #[error("write the log")]
    Disk(#[source] Arc<redb::Error>),
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
}

/// Why a watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The next event is no longer in the history: the watcher was away or too slow. It must list anew.
    #[error("the history begins after revision {oldest}")]
    Expired {
        /// The oldest revision a watch can start from.
        oldest: Revision,
    },
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
}
