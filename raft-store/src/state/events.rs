//! The trail of what happened, for watchers.

use std::cmp::Ordering;
use std::sync::Arc;

use bincode::{Decode, Encode};
use imbl::Vector;
use raftserve_model::status::ReplicaStatus;
use raftserve_model::{ClusterVersion, LogIndex, NodeId, ServiceName, ServiceVersion, WallTime};

use super::edits::Edit;
use super::record::Record;
use super::summed::Sum;

/// How many events are kept: about an hour of a busy cluster, and under 2 MB.
pub const EVENTS_MAX: usize = 10_000;

/// Something that happened. Events of one entry share its index, and are delivered together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Event {
    /// The entry that caused it.
    pub index: LogIndex,
    /// When, by the wall clock of the leader that wrote the entry.
    pub time: WallTime,
    /// The service it concerns; none if it concerns the cluster.
    pub service: Option<ServiceName>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum EventKind {
    /// A leader's controller began its reign.
    ControlStarted {
        /// The leader.
        node: NodeId,
    },
    /// A service was created.
    ServiceCreated,
    /// A service has a new version.
    ServiceUpdated {
        /// The version.
        version: ServiceVersion,
    },
    /// A service is being taken down.
    ServiceGoingDown,
    /// A service is forgotten.
    ServiceDeleted,
    /// A replica's status changed, or the reason for it.
    Replica {
        /// The replica's number.
        number: u32,
        /// Its status now.
        status: ReplicaStatus,
        /// Why, where there is something to say.
        reason: Option<String>,
    },
    /// A replica's record was removed: nothing of it exists any more.
    ReplicaRemoved {
        /// The replica's number.
        number: u32,
    },
    /// The cluster's version was raised.
    VersionRaised {
        /// The version.
        version: ClusterVersion,
    },
    /// A peer was admitted to the cluster.
    PeerAdmitted {
        /// Its id.
        node: NodeId,
        /// `host:port` of its peer port.
        address: String,
    },
    /// A peer was removed from the cluster.
    PeerRemoved {
        /// Its id.
        node: NodeId,
    },
}

/// The asked-for part of the trail is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "events up to index {upto} are no longer kept; list the present state and watch from there"
)]
pub struct Compacted {
    /// The oldest index from which a watch can resume.
    pub upto: LogIndex,
}

/// The newest events, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    kept: Vector<Arc<Event>>,
    /// Everything up to and including this index may have been dropped.
    compacted: LogIndex,
    /// The number of the oldest that is kept.
    first: u64,
    /// Of the records of `kept`.
    sum: Sum,
}

fn record(number: u64, event: Arc<Event>) -> Record {
    Record::Event { number, event }
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        self.append(Arc::new(event));
        if self.kept.len() > EVENTS_MAX
            && let Some(dropped) = self.kept.pop_front()
        {
            self.compacted = dropped.index;
            self.sum = self.sum.minus(Sum::of(&record(self.first, dropped)));
            self.first += 1;
        }
    }

    fn append(&mut self, event: Arc<Event>) {
        let number = self.end();
        self.sum = self.sum.plus(Sum::of(&record(number, Arc::clone(&event))));
        self.kept.push_back(event);
    }

    /// Appends what a snapshot holds, which is bounded already; says whether it follows what is there.
    pub(super) fn restore(&mut self, number: u64, event: Arc<Event>) -> bool {
        if self.kept.is_empty() {
            self.first = number;
        }
        let follows = number == self.end();
        if follows {
            self.append(event);
        }
        follows
    }

    pub(super) fn sum(&self) -> Sum {
        self.sum
    }

    /// The number that the next event will have, counted from the first that ever happened.
    fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }

    /// The records of the events from `number` on that are still kept.
    pub(super) fn records_from(&self, number: u64) -> impl Iterator<Item = Record> + '_ {
        let skipped = number
            .saturating_sub(self.first)
            .min(self.end() - self.first);
        let skip = usize::try_from(skipped).unwrap_or(usize::MAX);
        let rest = self.kept.focus().narrow(skip..).into_iter();
        (self.first + skipped..)
            .zip(rest)
            .map(|(number, event)| record(number, Arc::clone(event)))
    }

    /// What makes a store of `base`, which was before, one of these.
    pub(super) fn edits_since(&self, base: &Self) -> impl Iterator<Item = Edit> {
        // A trail that goes back has another history: nothing of it can be kept.
        let same = base.first <= self.first && base.end() <= self.end();
        let kept_from = if same { self.first } else { base.end() };
        let dropped = base.kept.iter().zip(base.first..kept_from.min(base.end()));
        let dropped = dropped.map(|(event, number)| {
            let record = record(number, Arc::clone(event));
            Edit::Remove(record.key())
        });
        let known = if same { base.end() } else { 0 };
        dropped.chain(self.records_from(known).map(Edit::Put))
    }

    pub(super) fn after(
        &self,
        index: LogIndex,
    ) -> Result<impl Iterator<Item = &Arc<Event>>, Compacted> {
        if index < self.compacted {
            return Err(Compacted {
                upto: self.compacted,
            });
        }
        let from = self
            .kept
            .binary_search_by(|event| event.index.cmp(&index).then(Ordering::Less))
            .unwrap_or_else(|from| from);
        Ok(self.kept.focus().narrow(from..).into_iter())
    }

    pub(super) fn compacted(&self) -> LogIndex {
        self.compacted
    }

    pub(super) fn restore_compacted(&mut self, compacted: LogIndex) {
        self.compacted = compacted;
    }
}
