//! Where a cluster comes from that began with another cluster's state, and what such a beginning changes
//! in that state: as little as keeps the two apart.

use bincode::{Decode, Encode};
use raftserve_model::{ClusterId, LogIndex};

use super::Record;

/// Replica numbers are left out up to the next multiple of this. The parent may have given numbers after the
/// state was taken, and a number is never given twice.
pub const REPLICA_NUMBERS_SKIPPED: u32 = 1_000_000;

/// What a cluster has to do with the replicas of the one that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Claim {
    /// They are its own from now on; the parent is gone for good.
    TakeOver,
    /// They stay the parent's, which goes on; this cluster makes others.
    Fork,
}

/// Where a cluster comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lineage {
    /// The cluster whose state this one began with.
    pub parent: ClusterId,
    /// The parent's last entry in that state.
    pub parent_index: LogIndex,
    /// What became of the parent's replicas.
    pub claim: Claim,
    /// The index that this cluster's log begins after: above everything that the parent ever published.
    pub began: LogIndex,
}

impl Record {
    /// This record of the parent's state as a record of `cluster`, which comes from it as `lineage` says; none
    /// if it is left behind.
    ///
    /// Watches of the parent cannot be resumed: they may have seen what this state does not hold. Replicas of
    /// a fork's parent are left behind, so that each service makes its own, and sessions bound to them move on
    /// their next request.
    pub(crate) fn renewed(self, cluster: ClusterId, lineage: Lineage) -> Option<Self> {
        match self {
            Self::Head {
                now,
                control,
                fence,
                last_port,
                wall,
                version,
                ..
            } => Some(Self::Head {
                cluster: Some(cluster),
                lineage: Some(lineage),
                now,
                control,
                fence,
                last_port,
                events_compacted: lineage.began,
                routes_changed: lineage.began,
                plan_changed: lineage.began,
                wall,
                version,
            }),
            Self::Service(service) => Some(Self::Service(service.renumbered())),
            Self::Replica(replica) => {
                (lineage.claim == Claim::TakeOver).then_some(Self::Replica(replica))
            }
            Self::Event { .. } | Self::KeyChange { .. } => None,
            Self::Spec { .. }
            | Self::SessionMarks { .. }
            | Self::Sessions(..)
            | Self::Client(_)
            | Self::KeyValues(_) => Some(self),
            // The parent's peers are not this cluster's, and its ids mean others.
            Self::Peer(_) => None,
        }
    }
}
