//! Log files of containers, in the CRI format Kubernetes' tools know:
//! `2026-11-20T20:00:00.000000000Z stdout F line`.
//!
//! A container's directory holds `N.log` for the instance with restart count N, and `N.log.000000`, `N.log.000001`, ...
//! for what was rotated away, oldest first. [`LogFile`] writes them, [`read`] reads them back, in order and across
//! rotations, and follows a live one. Which pod they belong to, and when a directory goes, is the agent's affair.

mod read;
mod record;
mod write;

use std::path::{Path, PathBuf};

pub use self::read::{ReadOptions, read};
pub use self::record::Stream;
pub use self::write::LogFile;

/// Bounds of one container instance's log files.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Bytes of one file before it is rotated.
    pub file_bytes_max: u64,
    /// Files of one instance, the current one included.
    pub files_max: usize,
}

impl Default for LogLimits {
    /// The kubelet's.
    fn default() -> Self {
        LogLimits { file_bytes_max: 10 << 20, files_max: 5 }
    }
}

fn current_path(dir: &Path, restarts: u32) -> PathBuf {
    dir.join(format!("{restarts}.log"))
}

fn rotated_path(dir: &Path, restarts: u32, sequence: u64) -> PathBuf {
    dir.join(format!("{restarts}.log.{sequence:06}"))
}

/// What a file name in a log directory stands for: the instance, and the sequence number if it was rotated away.
fn parse_name(name: &str) -> Option<(u32, Option<u64>)> {
    let (restarts, rest) = name.split_once(".log")?;
    let restarts = restarts.parse().ok()?;
    match rest.strip_prefix('.') {
        Some(sequence) => Some((restarts, Some(sequence.parse().ok()?))),
        None => rest.is_empty().then_some((restarts, None)),
    }
}

/// The rotated files of an instance, oldest first.
fn rotated(dir: &Path, restarts: u32) -> Vec<u64> {
    let mut found: Vec<u64> = names(dir)
        .filter_map(|name| match parse_name(&name)? {
            (instance, Some(sequence)) if instance == restarts => Some(sequence),
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok())
}
