//! When to take a snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use super::StateReader;
use crate::entry::LogId;
use crate::snapshot::Snapshots;
use crate::wal::Wal;

/// Entries applied since the last snapshot that make the next one due: reading and applying so many at a start
/// takes well under a second.
pub const SNAPSHOT_ENTRIES: u64 = 100_000;

/// Bytes of log written since the last snapshot that make the next one due: a start reads so much in a second.
pub const SNAPSHOT_BYTES: u64 = 256 << 20;

/// Tells when the log has outgrown the last snapshot. Peers ask at times of their own, so that they do not
/// all write one at once.
#[derive(Clone, Debug)]
pub struct SnapshotTrigger {
    wal: Arc<Wal>,
    snapshots: Arc<Snapshots>,
    reader: StateReader,
    /// [`SNAPSHOT_ENTRIES`], or fewer in tests.
    entries: u64,
    /// The newest snapshot seen, and the bytes of log written by then.
    since: Arc<Mutex<(Option<LogId>, u64)>>,
}

impl SnapshotTrigger {
    pub(crate) fn new(wal: Arc<Wal>, snapshots: Arc<Snapshots>, reader: StateReader) -> Self {
        let newest = snapshots.current().and_then(|it| it.head.last);
        Self {
            wal,
            snapshots,
            reader,
            entries: SNAPSHOT_ENTRIES,
            since: Arc::new(Mutex::new((newest, 0))),
        }
    }

    /// The same, with a snapshot due after so many entries instead of [`SNAPSHOT_ENTRIES`].
    #[must_use]
    pub fn after(self, entries: u64) -> Self {
        Self { entries, ..self }
    }

    /// Whether the log begins after the newest snapshot ends, as where files were removed by hand: the state in memory is
    /// the only copy of what was before, and a start after a crash would have nothing to go on from.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        let newest = self.snapshots.current().and_then(|it| it.head.last);
        self.wal.purged() > newest
    }

    /// Whether a snapshot should be taken now.
    #[must_use]
    pub fn is_due(&self) -> bool {
        if self.is_overdue() {
            return true;
        }
        let newest = self.snapshots.current().and_then(|it| it.head.last);
        let written = self.wal.bytes_written();
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.0 != newest {
            *since = (newest, written);
        }
        let (bytes, newest) = (written - since.1, newest.map_or(0, |id| id.index.0));
        let applied = self.reader.last();
        applied.is_some_and(|applied| has_outgrown(newest, applied.index.0, bytes, self.entries))
    }
}

/// Whether the log since the snapshot up to entry `newest` (0 if there is none) has grown too long: up to entry
/// `applied`, by so many bytes; it may grow by fewer entries than `entries_max`.
fn has_outgrown(newest: u64, applied: u64, bytes: u64, entries_max: u64) -> bool {
    let entries = applied.saturating_sub(newest);
    entries >= entries_max || (entries > 0 && bytes >= SNAPSHOT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_outgrown(newest: u64, applied: u64, bytes: u64) -> bool {
        super::has_outgrown(newest, applied, bytes, SNAPSHOT_ENTRIES)
    }

    #[test]
    fn a_snapshot_is_due_by_entries_or_by_bytes_and_never_without_a_new_entry() {
        assert!(!has_outgrown(0, SNAPSHOT_ENTRIES - 1, SNAPSHOT_BYTES - 1));
        assert!(has_outgrown(0, SNAPSHOT_ENTRIES, 0));
        assert!(has_outgrown(7, SNAPSHOT_ENTRIES + 7, 0));
        assert!(!has_outgrown(7, SNAPSHOT_ENTRIES + 6, 0));
        assert!(has_outgrown(7, 8, SNAPSHOT_BYTES));
        assert!(!has_outgrown(8, 8, u64::MAX));
        // The snapshot came from another peer, and is ahead of what was applied.
        assert!(!has_outgrown(9, 8, u64::MAX));
    }
}
