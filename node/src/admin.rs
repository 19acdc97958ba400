//! The gRPC admin API `raftserve.v1`: what users and the CLI drive a cluster by.
//!
//! Any peer answers. Input is checked by the peer asked; writes go through the log exactly once;
//! reads are linearizable unless they ask to be stale. Nothing waits for a lost quorum: the caller is
//! told within two seconds. What the whole port may hold in memory is bounded: connections, requests
//! being worked on, bytes of a message, streams, and what a stream buffers for a slow client.
//!
//! The `.proto` files under `node/proto/raftserve/v1` are its reference.

pub mod errors;
pub mod v1;

mod access;
mod calls;
mod cluster;
mod door;
mod events;
mod gate;
mod keys;
mod ledger;
mod listener;
mod logs;
mod pages;
mod port;
mod proposer;
mod quick;
mod recheck;
mod replicas;
mod server;
mod services;
mod sessions;
mod shared;
mod snapshots;
mod told;
pub(crate) mod validate;
mod view;
mod waiting;
mod watch;

pub use door::Denials;
pub use proposer::WRITE_BUDGET;
pub use server::{AdminError, serve};
pub use shared::AdminParts;
pub use waiting::{Audience, serve as answer_while_waiting};
