//! The histories that this master's log has been through, so that a node may resume at a revision of one of them.
//!
//! A master begins a new lineage at each start and notes how far the one before it had come. A node names a revision
//! together with the lineage it was told in; the two are good while this log still holds that very history. A master whose
//! data were restored from an older copy finds less in its log than it once had: then the lineages end where that log ends,
//! and nodes that know more start over.

use crate::pki::write_private;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use state::Revision;
use std::fs;
use std::path::Path;
use sync::Position;

/// Lineages that are remembered.
const LINEAGES_MAX: usize = 64;
/// Bytes of the file: far more than so many lineages have.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The lineages of a log.
#[derive(Debug)]
pub struct Lineages {
    /// The name of the current one.
    pub current: String,
    ended: Vec<Lineage>,
}

/// One start of a master.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Lineage {
    /// Its name.
    lineage: String,
    /// The last durable revision when it began.
    first: u64,
    /// The last durable revision that the next start found; none while it runs.
    #[serde(default)]
    end: Option<u64>,
}

impl Lineages {
    /// Begins a new lineage, named `fresh`, in the log that ends at `durable`.
    ///
    /// # Errors
    /// When the file cannot be read or written. One that makes no sense is replaced: then all nodes start over.
    pub fn begin(file: &Path, durable: Revision, fresh: String) -> Result<Self> {
        let mut all = read(file)?;
        for lineage in &mut all {
            lineage.end = Some(lineage.end.unwrap_or(durable.0).min(durable.0));
        }
        let superfluous = (all.len() + 1).saturating_sub(LINEAGES_MAX);
        let ended = all.split_off(superfluous);
        let mut kept = ended.clone();
        kept.push(Lineage { lineage: fresh.clone(), first: durable.0, end: None });
        write_private(file, &serde_json::to_vec_pretty(&kept)?)?;
        Ok(Self { current: fresh, ended })
    }

    /// Whether this log holds the history up to a node's position; `head` is how far it is now.
    pub fn holds(&self, position: &Position, head: Revision) -> bool {
        if position.lineage == self.current {
            return position.revision <= head;
        }
        let known = self.ended.iter().find(|lineage| lineage.lineage == position.lineage);
        known.and_then(|lineage| lineage.end).is_some_and(|end| position.revision.0 <= end)
    }
}

fn read(file: &Path) -> Result<Vec<Lineage>> {
    use std::io::Read;
    let open = match fs::File::open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let mut text = Vec::new();
    open.take(FILE_BYTES_MAX).read_to_end(&mut text).with_context(|| format!("read {}", file.display()))?;
    Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "lineages forgotten: all nodes start over");
        Vec::new()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lineage: &str, revision: u64) -> Position {
        Position { lineage: lineage.into(), revision: Revision(revision) }
    }

    #[test]
    fn a_position_is_good_as_far_as_its_history_is_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lineages.json");
        let begin = |durable: u64, name: &str| Lineages::begin(&file, Revision(durable), name.into()).unwrap();
        let first = begin(0, "one");
        assert!(first.holds(&at("one", 5), Revision(5)));
        assert!(!first.holds(&at("one", 6), Revision(5)), "nobody knows what has not been");
        assert!(!first.holds(&at("other", 0), Revision(5)));
        let second = begin(100, "two");
        assert!(second.holds(&at("one", 100), Revision(10_000)));
        assert!(!second.holds(&at("one", 101), Revision(10_000)), "that was never durable");
        // the log is replaced by an older one
        let restored = begin(40, "three");
        assert!(restored.holds(&at("one", 40), Revision(10_000)) && restored.holds(&at("two", 40), Revision(10_000)));
        assert!(
            !restored.holds(&at("one", 41), Revision(10_000)) && !restored.holds(&at("two", 120), Revision(10_000))
        );
        let later = begin(500, "four");
        assert!(!later.holds(&at("two", 120), Revision(20_000)), "what was lost does not come back");
        assert!(later.holds(&at("three", 500), Revision(20_000)));
    }

    #[test]
    fn the_newest_are_kept_and_a_broken_file_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lineages.json");
        for start in 0..LINEAGES_MAX as u64 + 3 {
            Lineages::begin(&file, Revision(start), format!("l{start}")).unwrap();
        }
        assert_eq!(read(&file).unwrap().len(), LINEAGES_MAX);
        fs::write(&file, "{").unwrap();
        let next = Lineages::begin(&file, Revision(100), "next".into()).unwrap();
        assert!(!next.holds(&at("l60", 1), Revision(100)));
        assert!(next.holds(&at("next", 100), Revision(100)));
    }
}
