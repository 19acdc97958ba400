//! How the log and the snapshots of this peer do, and what the others say of the disks of theirs.

use std::ops::Range;
use std::time::{Duration, Instant};

use raftserve_model::{LogIndex, NodeId};
use raftserve_store::wal::Work;

use super::Core;
use crate::peer::wire::ExchangeHead;

/// What a peer holds on its disk, and how the disk does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The entries in the log: the first, and the one after the last.
    pub log: Range<u64>,
    /// What the newest snapshot goes up to; none before the first.
    pub snapshot: Option<LogIndex>,
    /// What the writer of the log has done since this peer began.
    pub work: Work,
    /// For how long the disk of the log has not answered, if that is longer than any election: nothing that this peer
    /// is to acknowledge is acknowledged until it does.
    pub stalled_for: Option<Duration>,
}

impl Core {
    pub(crate) fn storage(&self) -> Storage {
        let snapshot = self.snapshots.current().and_then(|it| it.head.last);
        Storage {
            log: self.wal.range(),
            snapshot: snapshot.map(|last| last.index),
            work: self.wal.work(),
            stalled_for: self.stalled_for(),
        }
    }

    fn stalled_for(&self) -> Option<Duration> {
        let stall = *self.wal.watch_stall().borrow();
        stall.map(|stall| Instant::now().saturating_duration_since(stall.began))
    }

    /// What heads this peer's part of an exchange with `other`.
    pub(crate) fn exchange_head(&self, other: NodeId) -> ExchangeHead {
        ExchangeHead {
            incarnation: self.incarnation(),
            known: self.directory.incarnation(other),
            checks: self.reader.checks(),
            stalled_ms: self.stalled_for().map(super::millis),
        }
    }

    /// Takes what heads the part of `other`.
    pub(crate) fn take_exchange_head(&self, other: NodeId, head: &ExchangeHead) {
        self.compare(other, &head.checks);
        self.health.stalls(other, head.stalled_ms);
    }
}
