//! The one place where openraft's types meet ours: the log and the state machine as openraft wants them,
//! its configuration, and conversions. Nothing of openraft is stored; see [`crate::entry`].

pub mod acked;
mod check;
mod config;
mod convert;
mod log_store;
mod machine;
mod retention;
mod trigger;

pub use crate::entry::PeerRecord;
pub use check::{CHECK_EVERY, CHECKS_KEPT, StateCheck};
pub use config::{Profile, raft_config, raft_config_keeping};
pub use convert::{
    EntryError, decode_entry, encode_entry, log_id_from, log_id_to, membership_from, membership_to,
    vote_from, vote_to,
};
pub use log_store::{LogReader, LogStore};
pub use machine::{SnapshotBuilder, StateMachine, StateReader};
pub use retention::{LOG_BYTES_KEPT, LOG_KEPT, Retention};
pub use trigger::{SNAPSHOT_BYTES, SNAPSHOT_ENTRIES, SnapshotTrigger, Turn};

pub(crate) use machine::Applied;

use std::future::Future;
use std::io;

use crate::command::{Command, Outcome};
use openraft::RaftTypeConfig;
use openraft::alias::{EntryOf, LeaderIdOf, PayloadOf, TermOf, VoteOf};
use raftserve_model::NodeId;

openraft::declare_raft_types!(
    /// The types that raftserve runs openraft with.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = PeerRecord,
);

/// [`TypeConfig`], or types that differ from it in nothing but the runtime: what the log and the state machine
/// need, so that a simulation runs the very code that a peer does.
pub trait StoreTypes:
    RaftTypeConfig<
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = PeerRecord,
        Term = TermOf<TypeConfig>,
        LeaderId = LeaderIdOf<TypeConfig>,
        Vote = VoteOf<TypeConfig>,
        Payload = PayloadOf<TypeConfig>,
        Entry = EntryOf<TypeConfig>,
    >
{
    /// Runs `job`, which blocks, where that holds up nothing else. Once begun, it ends even if nobody waits.
    ///
    /// # Errors
    /// The job panicked, or the runtime is shutting down.
    fn run_blocking<T: Send + 'static>(
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send;

    /// Runs `job`, which blocks and has time, so that everything else goes before it.
    ///
    /// # Errors
    /// As [`StoreTypes::run_blocking`].
    fn run_at_leisure<T: Send + 'static>(
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send {
        Self::run_blocking(job)
    }
}

impl StoreTypes for TypeConfig {
    async fn run_blocking<T: Send + 'static>(
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        tokio::task::spawn_blocking(job)
            .await
            .map_err(io::Error::other)
    }

    async fn run_at_leisure<T: Send + 'static>(
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Self::run_blocking(|| crate::precedence::at_leisure(job)).await?
    }
}

#[cfg(test)]
mod tests;
