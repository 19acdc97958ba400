//! When to take a snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use super::StateReader;
use crate::entry::LogId;
use crate::snapshot::Snapshots;
use crate::wal::Wal;

/// Entries from one snapshot that a peer takes to the next: a start applies so many in well under a second.
pub const SNAPSHOT_ENTRIES: u64 = 100_000;

/// Bytes of log since the last snapshot that make the next one due at the latest: a start reads so much in a second.
pub const SNAPSHOT_BYTES: u64 = 256 << 20;

/// Whose turn it is among the peers, that the disks of all are not busy with snapshots at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// How many other members come before this peer; below `of`.
    pub rank: u64,
    /// How many members there are; not 0.
    pub of: u64,
}

impl Turn {
    /// How many snapshots are due up to an entry. One is `every` so many entries, and those of the peers
    /// are as far apart as can be, for good: peers apply the same entries.
    fn count(self, index: u64, every: u64) -> u64 {
        let behind = every * self.rank / self.of;
        (index + every - behind) / every
    }

    /// The bytes of log that this peer waits for, from a half of [`SNAPSHOT_BYTES`] up: where the log grows by bytes,
    /// peers take their snapshots at different times, most of the time.
    fn bytes(self) -> u64 {
        SNAPSHOT_BYTES / (2 * self.of) * (self.of + self.rank + 1)
    }

    /// Whether the log since the snapshot up to entry `newest` (0 if there is none) has grown too long: up to entry
    /// `applied`, by so many bytes.
    fn has_come(self, newest: u64, applied: u64, bytes: u64, every: u64) -> bool {
        let counted = |index| self.count(index, every);
        applied > newest && (counted(applied) > counted(newest) || bytes >= self.bytes())
    }
}

/// From when on bytes are counted.
#[derive(Clone, Copy, Debug)]
struct Since {
    snapshot: Option<LogId>,
    /// Bytes of entries that followed it then.
    held: u64,
    /// Bytes of log that this process had written by then.
    written: u64,
}

impl Since {
    fn new(wal: &Wal, snapshot: Option<LogId>) -> Self {
        Self {
            snapshot,
            held: wal.bytes_after(snapshot),
            written: wal.bytes_written(),
        }
    }
}

/// Tells when the log has outgrown the last snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotTrigger {
    wal: Arc<Wal>,
    snapshots: Arc<Snapshots>,
    reader: StateReader,
    /// [`SNAPSHOT_ENTRIES`], or fewer in tests.
    entries: u64,
    since: Arc<Mutex<Since>>,
}

impl SnapshotTrigger {
    pub(crate) fn new(wal: Arc<Wal>, snapshots: Arc<Snapshots>, reader: StateReader) -> Self {
        let newest = snapshots.current().and_then(|it| it.head.last);
        let since = Since::new(&wal, newest);
        Self {
            wal,
            snapshots,
            reader,
            entries: SNAPSHOT_ENTRIES,
            since: Arc::new(Mutex::new(since)),
        }
    }

    /// The same, with a snapshot due every so many entries, at least one, instead of [`SNAPSHOT_ENTRIES`].
    #[must_use]
    pub fn after(self, entries: u64) -> Self {
        Self { entries, ..self }
    }

    fn newest(&self) -> Option<LogId> {
        self.snapshots.current().and_then(|it| it.head.last)
    }

    /// Bytes of log since the newest snapshot.
    pub(crate) fn bytes(&self) -> u64 {
        let newest = self.newest();
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.snapshot != newest {
            *since = Since::new(&self.wal, newest);
        }
        since.held + (self.wal.bytes_written() - since.written)
    }

    /// Whether the log begins after the newest snapshot ends, as where files were removed by hand: the state in memory is
    /// the only copy of what was before, and a start after a crash would have nothing to go on from.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.wal.purged() > self.newest()
    }

    /// Whether a snapshot should be taken now.
    #[must_use]
    pub fn is_due(&self, turn: Turn) -> bool {
        let newest = self.newest().map_or(0, |id| id.index.0);
        let applied = self.reader.last().map_or(0, |id| id.index.0);
        self.is_overdue() || turn.has_come(newest, applied, self.bytes(), self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Turn = Turn { rank: 0, of: 1 };

    fn has_come(turn: Turn, newest: u64, applied: u64, bytes: u64) -> bool {
        turn.has_come(newest, applied, bytes, SNAPSHOT_ENTRIES)
    }

    #[test]
    fn a_snapshot_is_due_by_entries_or_by_bytes_and_never_without_a_new_entry() {
        assert!(!has_come(
            ALONE,
            0,
            SNAPSHOT_ENTRIES - 1,
            SNAPSHOT_BYTES - 1
        ));
        assert!(has_come(ALONE, 0, SNAPSHOT_ENTRIES, 0));
        assert!(has_come(ALONE, 7, 8, SNAPSHOT_BYTES));
        assert!(!has_come(ALONE, 8, 8, u64::MAX));
        // The snapshot came from another peer, and is ahead of what was applied.
        assert!(!has_come(ALONE, 9, 8, u64::MAX));
    }

    /// The entries at which a peer that looks at each of them takes its snapshots.
    fn taken(turn: Turn) -> Vec<u64> {
        let mut newest = 0;
        let upto = 5 * SNAPSHOT_ENTRIES;
        let due = (1..=upto).filter(|applied| {
            let due = has_come(turn, newest, *applied, 0);
            newest = if due { *applied } else { newest };
            due
        });
        due.collect()
    }

    #[test]
    fn snapshots_of_the_peers_stay_apart_and_none_is_behind_by_more_than_is_allowed() {
        for of in [1, 2, 3, 5, 7] {
            let by_peer: Vec<_> = (0..of).map(|rank| taken(Turn { rank, of })).collect();
            for taken in &by_peer {
                assert!(taken[0] <= SNAPSHOT_ENTRIES);
                let steps = taken.iter().zip(&taken[1..]);
                let steps: Vec<_> = steps.map(|(one, next)| next - one).collect();
                assert_eq!(steps, vec![SNAPSHOT_ENTRIES; steps.len()]);
            }
            let mut all = by_peer.concat();
            all.sort_unstable();
            let nearest = all
                .iter()
                .zip(&all[1..])
                .map(|(one, next)| next - one)
                .min();
            assert!(nearest >= Some(SNAPSHOT_ENTRIES / of));
            let bytes = (0..of).map(|rank| Turn { rank, of }.bytes());
            assert!(bytes.clone().is_sorted_by(|one, next| one < next));
            assert!(bytes.max().is_some_and(|most| most <= SNAPSHOT_BYTES));
        }
    }
}
