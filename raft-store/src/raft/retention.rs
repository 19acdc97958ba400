//! How much of the log is kept once a snapshot has it.

use std::sync::Arc;

use raftserve_model::LogIndex;

use crate::snapshot::Snapshots;
use crate::wal::Wal;

/// Entries kept after they are in a snapshot, so that a peer that was away for a while catches up from the log: what is
/// written at full load in three seconds, in which a snapshot of a million sessions is sent. A receiver that takes
/// longer needs another one, until the load falls.
pub const LOG_KEPT: u64 = 100_000;

/// Bytes of the newest entries that are kept, at most: as many large entries as [`LOG_KEPT`] would fill disks, and every
/// start reads all of them. Far more than followers that keep up are behind, and than is written between two snapshots.
pub const LOG_BYTES_KEPT: u64 = 1 << 30;

/// Entries purged at a time: purging costs a sync, and files go only whole.
const BATCH: u64 = 4096;

/// Bytes purged at a time: a file of the log.
const BATCH_BYTES: u64 = 64 << 20;

/// Tells up to where the log may be forgotten. Openraft purges by entries alone, so that it is told to purge nothing
/// by itself: it asserts that what it has in mind to purge grows, and both could have different entries in mind.
#[derive(Clone, Debug)]
pub struct Retention {
    wal: Arc<Wal>,
    snapshots: Arc<Snapshots>,
    /// As [`LOG_KEPT`].
    pub(crate) entries: u64,
    /// As [`LOG_BYTES_KEPT`].
    pub(crate) bytes: u64,
    /// As [`BATCH`].
    pub(crate) batch: u64,
}

impl Retention {
    pub(crate) fn new(wal: Arc<Wal>, snapshots: Arc<Snapshots>) -> Self {
        Self {
            wal,
            snapshots,
            entries: LOG_KEPT,
            bytes: LOG_BYTES_KEPT,
            batch: BATCH,
        }
    }

    /// The same, with so many entries kept, at least one, instead of [`LOG_KEPT`].
    #[must_use]
    pub fn keeping(self, entries: u64) -> Self {
        Self {
            entries,
            batch: BATCH.min(entries),
            ..self
        }
    }

    /// The last entry that is to be purged; none if that is not worth its while yet. It is in the newest snapshot, and
    /// older than all that followers which keep up need.
    #[must_use]
    pub fn purgeable(&self) -> Option<LogIndex> {
        let snapshot = self.snapshots.current().and_then(|it| it.head.last)?;
        let by_entries = (snapshot.index.0 + 1).saturating_sub(self.entries);
        let end = by_entries.max(self.wal.start_of(self.bytes));
        let end = end.min(snapshot.index.0 + 1);
        let start = self.wal.range().start;
        let entries = end.saturating_sub(start);
        let enough = entries >= self.batch || self.wal.bytes_of(start..end) >= BATCH_BYTES;
        (entries > 0 && enough).then(|| LogIndex(end - 1))
    }
}
