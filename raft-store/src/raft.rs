//! The one place where openraft's types meet ours.

use std::fmt;

use bincode::{Decode, Encode};
use raftserve_model::NodeId;

use crate::command::{Command, Outcome};

openraft::declare_raft_types!(
    /// The types that raftserve runs openraft with.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = PeerRecord,
);

/// What the membership knows about a peer. The address is where it was last said to be; a peer
/// announces its present one when it connects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct PeerRecord {
    /// Drawn at random when the peer's data directory was made: tells a wiped volume from the
    /// original.
    pub nonce: u64,
    /// `host:port` of the peer port.
    pub address: String,
}

impl fmt::Display for PeerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}
