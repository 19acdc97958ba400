//! Raft log, vote, replicated state machine and snapshots of raftserve.

pub mod command;
pub mod raft;
pub mod state;

pub use command::{Command, Outcome};
pub use state::State;
