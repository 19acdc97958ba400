//! The trail of what happened, for watchers.

use std::cmp::Ordering;
use std::sync::Arc;

use bincode::{Decode, Encode};
use imbl::Vector;
use raftserve_model::status::ReplicaStatus;
use raftserve_model::{ClusterVersion, LogIndex, NodeId, ServiceName, ServiceVersion, WallTime};

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
    /// Of the records of `kept`.
    sum: Sum,
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        self.append(Arc::new(event));
        if self.kept.len() > EVENTS_MAX
            && let Some(dropped) = self.kept.pop_front()
        {
            self.compacted = dropped.index;
            self.sum = self.sum.minus(Sum::of(&Record::Event(dropped)));
        }
    }

    /// Appends without a bound: what a snapshot holds is bounded already.
    pub(super) fn append(&mut self, event: Arc<Event>) {
        self.sum = self.sum.plus(Sum::of(&Record::Event(Arc::clone(&event))));
        self.kept.push_back(event);
    }

    pub(super) fn sum(&self) -> Sum {
        self.sum
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

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.kept.iter()
    }

    pub(super) fn restore_compacted(&mut self, compacted: LogIndex) {
        self.compacted = compacted;
    }
}
