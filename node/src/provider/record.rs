//! The documents in a replica's run directory, written by one process and read by others, perhaps
//! of another release: unknown fields are ignored, new ones must have a default.

use std::collections::BTreeMap;

use raftserve_model::{ClusterId, ServiceVersion};
use serde::{Deserialize, Serialize};

use super::proc_table::ProcessStamp;
use super::{Exit, Step};

/// What to run: written once, before the first shim is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchDocument {
    /// The cluster.
    pub cluster: ClusterId,
    /// The replica, as [`super::ReplicaKey`] prints it.
    pub replica: String,
    /// Its number within the service, which its program is told.
    pub number: u32,
    /// What tells its processes from all others: the value of [`super::proc_table::MARKER_NAME`] in
    /// their environment.
    pub marker: String,
    /// The version of the service.
    pub version: ServiceVersion,
    /// Shell text run once before `run`.
    pub setup: Option<String>,
    /// Shell text whose process is the replica.
    pub run: String,
    /// Environment of both.
    pub envs: BTreeMap<String, String>,
    /// The port that it must listen on.
    pub port: u16,
    /// The grace where it is stopped without one given.
    pub stop_grace_ms: u64,
    /// Files are kept beside this, to be put into the working directory.
    #[serde(default)]
    pub has_files: bool,
    /// The home of its program is the working directory, and not that of the peer's user.
    #[serde(default)]
    pub has_own_home: bool,
}

/// What is happening: written by the shim that holds the lock, whenever it changes. Its existence
/// says that the replica's program may have been started, and so never is again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The boot of the host in which it was written.
    pub boot_id: String,
    /// The shim.
    pub shim: ProcessStamp,
    /// The program, once it was started.
    pub child: Option<ProcessStamp>,
    /// How far it came.
    pub phase: Phase,
}

/// How far a replica came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// This step runs, or is about to.
    Active(Step),
    /// It ended.
    Exited(Exit),
}

/// What a shim can be asked over its control socket, one JSON document a line. The shim sends its
/// [`Record`] as such a line at once, and again whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    /// Send the record again.
    Status,
    /// Stop the program: SIGTERM, then SIGKILL after the grace.
    Stop {
        /// The grace.
        grace_ms: u64,
    },
}
