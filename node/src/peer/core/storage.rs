//! How the log and the snapshots of this peer do, and what the others say of the disks of theirs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
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

/// For how long what a peer says of its disk holds: several exchanges.
const FRESH: Duration = Duration::from_secs(2);

/// What the others last said of the disks of their logs.
#[derive(Debug, Default)]
pub(crate) struct Stalls(Mutex<BTreeMap<NodeId, Said>>);

#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    for_ms: u64,
}

impl Stalls {
    /// Takes what `node` says now: for how long its disk has not answered, if that is long.
    fn note(&self, node: NodeId, for_ms: Option<u64>, at: Instant) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|known, it| *known != node && at.saturating_duration_since(it.at) < FRESH);
        if let Some(for_ms) = for_ms {
            said.insert(node, Said { at, for_ms });
        }
    }

    /// For how long the disk of `node` had not answered when it told that lately, in milliseconds.
    fn of(&self, node: NodeId, now: Instant) -> Option<u64> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = said.get(&node)?;
        (now.saturating_duration_since(said.at) < FRESH).then_some(said.for_ms)
    }
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
        self.stalls.note(other, head.stalled_ms, Instant::now());
    }

    /// For how long the disk of another peer had not answered when it told that lately, in milliseconds.
    pub(crate) fn stalled_ms_of(&self, other: NodeId) -> Option<u64> {
        self.stalls.of(other, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_said_of_its_disk_holds_until_it_says_otherwise_or_nothing_more() {
        let (stalls, begun) = (Stalls::default(), Instant::now());
        let [one, other] = [NodeId(1), NodeId(2)];
        stalls.note(one, Some(1_500), begun);
        stalls.note(other, Some(9_000), begun);
        assert_eq!(stalls.of(one, begun + FRESH / 2), Some(1_500));
        stalls.note(one, None, begun + FRESH / 2);
        assert_eq!(stalls.of(one, begun + FRESH / 2), None);
        assert_eq!(stalls.of(other, begun + FRESH / 2), Some(9_000));
        assert_eq!(stalls.of(other, begun + FRESH), None);
        stalls.note(one, Some(1), begun + FRESH);
        assert_eq!(
            stalls.0.lock().unwrap().len(),
            1,
            "who is gone is forgotten"
        );
    }
}
