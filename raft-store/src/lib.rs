//! Raft log, vote, replicated state machine and snapshots of raftserve.

pub mod checkpoint;
pub mod codec;
pub mod command;
pub mod disk;
pub mod entry;
#[cfg(test)]
#[path = "../tests/formats/fixture.rs"]
mod fixture;
pub mod formats;
pub mod identity;
pub mod precedence;
pub mod raft;
pub mod restore;
#[cfg(test)]
mod simulation;
pub mod snapshot;
pub mod state;
pub mod store;
pub mod wal;

pub use command::{Command, Outcome};
pub use identity::{DataDir, Identity};
pub use state::State;
pub use store::{OpenError, Opened, Store};
