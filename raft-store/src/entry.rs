//! What the log and snapshots store about Raft, in structures of our own: a new release of the Raft
//! library cannot change a byte on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bincode::{Decode, Encode};
use raftserve_model::{LogIndex, NodeId};

use crate::command::Command;

/// Where an entry is, and under which leader it was written. Ordered by leader first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct LogId {
    /// The term of the leader that wrote it.
    pub term: u64,
    /// The leader that wrote it.
    pub node: NodeId,
    /// Its position.
    pub index: LogIndex,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term, self.node, self.index)
    }
}

/// A vote, once granted never taken back within its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// The candidate, or the leader.
    pub node: NodeId,
    /// Whether a quorum granted it: the node leads.
    pub committed: bool,
}

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

/// A configuration of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Membership {
    /// The voters: one set, or two while a joint change is under way.
    pub configs: Vec<BTreeSet<NodeId>>,
    /// Every member, learners included.
    pub nodes: BTreeMap<NodeId, PeerRecord>,
}

/// A configuration and the entry that set it; none before the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct AppliedMembership {
    /// The entry.
    pub log_id: Option<LogId>,
    /// The configuration.
    pub membership: Membership,
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Payload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// A command for the state machine.
    Command(Command),
    /// A new configuration.
    Membership(Membership),
}

/// The same bytes as [`Payload`], from a borrowed command.
#[derive(Encode)]
pub(crate) enum PayloadRef<'a> {
    Blank,
    Command(&'a Command),
    Membership(Membership),
}
