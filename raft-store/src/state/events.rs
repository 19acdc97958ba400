//! What happens to services, replicas and peers.

use std::sync::Arc;

use bincode::{Decode, Encode};
use raftserve_model::status::ReplicaStatus;
use raftserve_model::{ClusterVersion, LogIndex, NodeId, ServiceName, ServiceVersion, WallTime};

use super::record::Record;
use super::trail::{Step, Trail};

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

/// The newest events, oldest first.
pub(super) type Events = Trail<Event>;

impl Step for Event {
    const STEPS_MAX: usize = EVENTS_MAX;
    /// Their number bounds them.
    const BYTES_MAX: u64 = u64::MAX;

    fn index(&self) -> LogIndex {
        self.index
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn record(number: u64, event: Arc<Self>) -> Record {
        Record::Event { number, event }
    }
}
