//! The one place where openraft's types meet ours: the log and the state machine as openraft wants them,
//! its configuration, and conversions. Nothing of openraft is stored; see [`crate::entry`].

mod config;
mod convert;
mod log_store;
mod machine;
mod trigger;

pub use crate::entry::PeerRecord;
pub use config::{LOG_KEPT, Profile, raft_config};
pub use convert::{
    EntryError, decode_entry, encode_entry, log_id_from, log_id_to, membership_from, membership_to,
    vote_from, vote_to,
};
pub use log_store::{LogReader, LogStore};
pub use machine::{SnapshotBuilder, StateMachine, StateReader};
pub use trigger::{SNAPSHOT_BYTES, SNAPSHOT_ENTRIES, SnapshotTrigger};

pub(crate) use machine::Applied;

use crate::command::{Command, Outcome};
use raftserve_model::NodeId;

openraft::declare_raft_types!(
    /// The types that raftserve runs openraft with.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = PeerRecord,
);

#[cfg(test)]
mod tests;
