//! How the log and the snapshots of this peer do, and what the others say of the disks of theirs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use raftserve_model::{LogIndex, NodeId};
use raftserve_store::wal::Work;

use super::Core;
use crate::peer::foreign::Foreigner;
use crate::peer::room::Room;
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
    /// How much room is left there, once it was looked.
    pub room: Option<Room>,
    /// Peers of other clusters that were met lately, one of each.
    pub foreigners: Vec<Foreigner>,
}

/// For how long what a peer says of itself holds: several exchanges.
const FRESH: Duration = Duration::from_secs(2);

/// What a peer says of itself in an exchange, beside what its log says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tiding {
    /// For how long the disk of its log has not answered, if that is long.
    pub(crate) stalled_ms: Option<u64>,
    /// How much room is left there.
    pub(crate) room: Option<Room>,
    /// A peer of another cluster that it has met lately.
    pub(crate) foreigner: Option<Foreigner>,
}

/// What the others last said of themselves.
#[derive(Debug, Default)]
pub(crate) struct Tidings(Mutex<BTreeMap<NodeId, (Instant, Tiding)>>);

impl Tidings {
    /// Takes what `node` says at `at`.
    fn note(&self, node: NodeId, tiding: Tiding, at: Instant) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|_, (then, _)| at.saturating_duration_since(*then) < FRESH);
        said.insert(node, (at, tiding));
    }

    /// What `node` said lately; nothing if it was not heard.
    fn of(&self, node: NodeId, now: Instant) -> Tiding {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = said
            .get(&node)
            .filter(|(then, _)| now.saturating_duration_since(*then) < FRESH);
        fresh.map(|(_, tiding)| *tiding).unwrap_or_default()
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
            room: self.room.last(),
            foreigners: self.directory.foreigners(),
        }
    }

    fn stalled_for(&self) -> Option<Duration> {
        let stall = *self.wal.watch_stall().borrow();
        stall.map(|stall| Instant::now().saturating_duration_since(stall.began))
    }

    /// What this peer says of itself.
    fn own_tiding(&self) -> Tiding {
        Tiding {
            stalled_ms: self.stalled_for().map(super::millis),
            room: self.room.last(),
            foreigner: self.directory.foreigners().first().copied(),
        }
    }

    /// What heads this peer's part of an exchange with `other`.
    pub(crate) fn exchange_head(&self, other: NodeId) -> ExchangeHead {
        let Tiding {
            stalled_ms,
            room,
            foreigner,
        } = self.own_tiding();
        ExchangeHead {
            incarnation: self.incarnation(),
            known: self.directory.incarnation(other),
            checks: self.reader.checks(),
            stalled_ms,
            room,
            foreigner,
        }
    }

    /// Takes what heads the part of `other`.
    pub(crate) fn take_exchange_head(&self, other: NodeId, head: &ExchangeHead) {
        self.compare(other, &head.checks);
        let tiding = Tiding {
            stalled_ms: head.stalled_ms,
            room: head.room,
            foreigner: head.foreigner,
        };
        self.tidings.note(other, tiding, Instant::now());
    }

    /// What `node` says of itself: this peer now, another one when it was last heard, if that was lately.
    pub(crate) fn tiding_of(&self, node: NodeId) -> Tiding {
        match node == self.me() {
            true => self.own_tiding(),
            false => self.tidings.of(node, Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_said_of_itself_holds_until_it_says_otherwise_or_nothing_more() {
        let (tidings, begun) = (Tidings::default(), Instant::now());
        let [one, other] = [NodeId(1), NodeId(2)];
        let stalled = |ms| Tiding {
            stalled_ms: Some(ms),
            ..Tiding::default()
        };
        tidings.note(one, stalled(1_500), begun);
        tidings.note(other, stalled(9_000), begun);
        assert_eq!(tidings.of(one, begun + FRESH / 2), stalled(1_500));
        tidings.note(one, Tiding::default(), begun + FRESH / 2);
        assert_eq!(tidings.of(one, begun + FRESH / 2), Tiding::default());
        assert_eq!(tidings.of(other, begun + FRESH / 2), stalled(9_000));
        assert_eq!(tidings.of(other, begun + FRESH), Tiding::default());
        tidings.note(one, stalled(1), begun + FRESH * 2);
        assert_eq!(
            tidings.0.lock().unwrap().len(),
            1,
            "who is gone is forgotten"
        );
    }
}
