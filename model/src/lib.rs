//! The vocabulary that raftserve's store and proxy share.
//!
//! Everything here is pure: ids, service specifications, statuses, key hashes and policy arithmetic.
//! There is no I/O, no clock, no async and no global state, so that a decision computed while a log
//! entry is applied and the same decision spent in the proxy are one piece of code.

pub mod id;
pub mod session;
pub mod spec;
pub mod status;
pub mod time;
pub mod version;

pub use id::{
    ClusterId, Generation, Incarnation, LogIndex, NodeId, ReplicaId, ServiceId, ServiceName,
    ServiceVersion,
};
pub use session::{SessionEpoch, SessionKey};
pub use time::{LogTime, Stamp, WallTime};
pub use version::{ClusterVersion, Unsupported, VersionRange};
