//! Who makes replicas exist: one trait, so that the controller does not know whether a replica is a
//! process on this host or something elsewhere.
//!
//! What every provider guarantees, because a leader can die or be paused at any instruction:
//!
//! - creating twice is creating once, whoever asks, as often as they ask, even at the same moment;
//! - what was stopped stays stopped: a late `ensure` by a paused old leader is refused;
//! - a replica's program is started at most once; one that ended is observed as ended, and replaced
//!   by the controller under a new id.
//!
//! Deciding what should exist is left to the controller. That includes orphans: `observe` lists all
//! that exists for the cluster, and the controller stops what the log does not know.

pub mod host;
pub mod kubernetes;
pub mod log_files;
pub mod port;
pub mod proc_table;
pub mod process;
pub mod record;
pub mod run_dir;
pub mod run_files;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use raftserve_model::spec::{FileMount, Placement};
use raftserve_model::{ClusterId, ReplicaId, ServiceId, ServiceName, ServiceVersion};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What a provider needs to find a replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaKey {
    /// The name of its service, for people who look at the provider's side.
    pub name: ServiceName,
    /// The replica.
    pub id: ReplicaId,
}

impl fmt::Display for ReplicaKey {
    /// `NAME-SERVICE-NUMBER`, unique within a cluster; also the name of what is created.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.name, self.id)
    }
}

impl ReplicaKey {
    /// Reads back what `Display` wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, number) = text.rsplit_once('-')?;
        let (name, service) = rest.rsplit_once('-')?;
        let key = Self {
            name: name.parse().ok()?,
            id: ReplicaId {
                service: ServiceId(service.parse().ok()?),
                number: number.parse().ok()?,
            },
        };
        // "+1" and "01" are numbers too, but nothing that we wrote.
        (key.to_string() == text).then_some(key)
    }
}

/// A replica to be created: final texts, nothing left to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaLaunch {
    /// The replica.
    pub replica: ReplicaKey,
    /// The version of the service that it runs.
    pub version: ServiceVersion,
    /// Shell text run once before `run`, with the declared port already replaced.
    pub setup: Option<String>,
    /// Shell text whose process is the replica, with the declared port already replaced.
    pub run: String,
    /// Environment of both. `PORT` and `SKYPILOT_SERVE_REPLICA_ID` are set over it.
    pub envs: BTreeMap<String, String>,
    /// More of it, set over `envs`, to be shown nowhere.
    pub secrets: BTreeMap<String, String>,
    /// The port that it must listen on.
    pub port: u16,
    /// What it asks for, as SkyServe's `resources` write it: `cpus`, `memory`.
    pub resources: BTreeMap<String, String>,
    /// What it runs in.
    pub placement: Placement,
    /// Files that it finds before `setup` begins.
    pub file_mounts: Vec<FileMount>,
    /// How long it may take from SIGTERM to its exit where it is stopped without a grace given.
    pub stop_grace: Duration,
    /// A unix socket whose end of file stops the replica; the launch fails if it cannot be reached.
    pub lifeline: Option<PathBuf>,
}

/// A replica that was created and is held back, to be let go by [`Provider::admit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The replica.
    pub replica: ReplicaKey,
    /// What was created for it, by the provider's name.
    pub name: String,
    /// Which one of that name.
    pub uid: String,
}

/// What came of creating a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launched {
    /// It is being set up, runs, or has ended before.
    Started,
    /// It exists, and nothing of it runs before it is admitted.
    Held(Hold),
}

/// Where something happened in a replica's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// In `setup`.
    Setup,
    /// In `run`.
    Run,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setup => "setup",
            Self::Run => "run",
        })
    }
}

/// How a replica ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// It could not be started at all.
    NotStarted,
    /// What watched over it died, and it with it; its exit was seen by nobody.
    Lost,
    /// Its place was taken from it, by whom it does not depend on.
    Preempted,
}

/// A replica's end, and what to tell people about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// What was running.
    pub step: Step,
    /// How it ended.
    pub end: End,
    /// One line: what ended, how, and the last thing it said.
    pub message: String,
}

/// What exists of a replica now. One of which nothing exists is not observed at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// Its creation began and got nowhere yet: `ensure` it again.
    Prepared,
    /// Its `setup` runs.
    SettingUp,
    /// Its `run` runs.
    Running {
        /// `host:port` where it is to answer.
        address: String,
    },
    /// Its program ended, or never started. It will not be started again; `stop` it to clean up.
    Exited(Exit),
    /// It was told to stop, and something of it may still run.
    Stopping,
    /// It was told to stop because its place is taken from it, and something of it may still run.
    Preempted,
    /// It was stopped; nothing of it runs.
    Stopped,
}

/// One replica, as it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Which one.
    pub replica: ReplicaKey,
    /// What exists of it.
    pub state: ReplicaState,
}

/// Why a provider did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The replica was stopped, and ids are never used again. The asker is out of date.
    #[error("replica {0} was stopped already and is not started again")]
    Tombstoned(ReplicaKey),
    /// There is no such replica.
    #[error("there is no replica {0} on this host")]
    Unknown(ReplicaKey),
    /// Creating it failed before anything of it ran. It may be tried again.
    #[error("replica {replica} could not be created: {reason}")]
    Create {
        /// Which one.
        replica: ReplicaKey,
        /// What went wrong, and the remedy if there is one.
        reason: String,
    },
    /// Something of it still runs after all that could be done.
    #[error("replica {replica} could not be stopped: {reason}")]
    Stop {
        /// Which one.
        replica: ReplicaKey,
        /// What is left.
        reason: String,
    },
    /// Another cluster has them.
    #[error(
        "the replicas of cluster {cluster} were taken over by cluster {by}, and no other may have them: stop this \
         peer, or restore its cluster with --fork"
    )]
    TakenOver {
        /// Whose they were.
        cluster: ClusterId,
        /// Whose they are.
        by: ClusterId,
    },
    /// What makes replicas cannot be reached, or does not let us. Nothing was changed for certain, and it
    /// is to be tried again for as long as it is wanted.
    #[error("cannot {doing}: {reason}")]
    Unavailable {
        /// What was attempted.
        doing: &'static str,
        /// What was said, and the remedy if there is one.
        reason: String,
    },
    /// The provider's own records could not be read or written.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A replica's output, in pieces that need not end at line ends. At most one piece is read ahead.
pub type LogStream = BoxStream<'static, io::Result<Bytes>>;

/// Which part of a replica's output is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on until the replica has ended and everything was read.
    pub follow: bool,
    /// Start so many lines before the end; at the oldest kept line if not given.
    pub tail: Option<u32>,
}

/// Who makes replicas exist. See the module's promises; every call may be repeated, and dropped at
/// any await without harm.
pub trait Provider: Send + Sync + 'static {
    /// Its name, as `--provider` has it.
    fn name(&self) -> &'static str {
        "process"
    }

    /// Whether replicas run on the host that all peers have to share, where each needs a port of its own.
    fn shares_host(&self) -> bool {
        true
    }

    /// The directory that all peers have to share, if replicas run on one host.
    fn shared_root(&self) -> Option<&Path> {
        None
    }

    /// Creates the replica, or adopts the one that exists under this id. Returns once it is either
    /// being set up, running, known to have ended before, or held.
    ///
    /// # Errors
    /// [`ProviderError::Tombstoned`] if it was ever stopped; [`ProviderError::Create`] or
    /// [`ProviderError::Io`] if it could not be created, and nothing of it runs.
    fn ensure(&self, launch: ReplicaLaunch) -> BoxFuture<'_, Result<Launched, ProviderError>>;

    /// Lets go what `ensure` holds. To be called only once the log was seen to want the replica still, by a
    /// read that began after `ensure` had returned: whoever stops it later then finds what was created.
    ///
    /// # Errors
    /// [`ProviderError::Tombstoned`] if what was held is gone.
    fn admit(&self, hold: Hold) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Err(ProviderError::Unknown(hold.replica)) })
    }

    /// Stops the replica, whether it ever existed or not: SIGTERM, `grace`, SIGKILL. Returns once
    /// nothing of it runs, which is bounded by `grace` and a constant.
    ///
    /// # Errors
    /// [`ProviderError::Stop`] if something still runs; it will never be started anew all the same.
    fn stop<'a>(
        &'a self,
        replica: &'a ReplicaKey,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), ProviderError>>;

    /// Makes what exists for the cluster `from` this cluster's own, as it runs; refused to `from` from then on.
    ///
    /// # Errors
    /// [`ProviderError::TakenOver`] if a third cluster has it; [`ProviderError::Io`]. May be repeated.
    fn take_over(&self, from: ClusterId) -> BoxFuture<'_, Result<(), ProviderError>>;

    /// Makes sure that `observe` lacks nothing that existed before this call. `occupied` tells whether the log has
    /// replicas that were made: if so, they have to be where this provider looks.
    ///
    /// # Errors
    /// If it cannot be; nothing may be concluded from what is missing then.
    fn refresh(&self, _occupied: bool) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }

    /// What there is to tell people about replicas that do not run, or not for certain, as far as this peer sees.
    fn notes(&self) -> BTreeMap<ReplicaId, String> {
        BTreeMap::new()
    }

    /// What keeps this peer from seeing or making anything at all, and what to do about it.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// All that exists for this cluster, in the order of the keys.
    ///
    /// # Errors
    /// [`ProviderError::Io`] if it cannot be listed; nothing may be concluded from that.
    fn observe(&self) -> BoxFuture<'_, Result<Vec<Observation>, ProviderError>>;

    /// Moves whenever `observe` may have something new to say, at once for an exit.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The replica's output, of `setup` and `run` alike, errors and all.
    ///
    /// # Errors
    /// [`ProviderError::Unknown`] if it left nothing to read.
    fn logs<'a>(
        &'a self,
        replica: &'a ReplicaKey,
        query: LogQuery,
    ) -> BoxFuture<'a, Result<LogStream, ProviderError>>;

    /// Drops what is kept of the stopped replicas of a service that is gone, but for what refuses
    /// their late creation.
    ///
    /// # Errors
    /// [`ProviderError::Io`]; may be repeated.
    fn forget(&self, service: ServiceId) -> BoxFuture<'_, Result<(), ProviderError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_survives_its_text() {
        let key = ReplicaKey {
            name: "my-svc-2".parse().unwrap(),
            id: ReplicaId {
                service: ServiceId(17),
                number: 3,
            },
        };
        assert_eq!(key.to_string(), "my-svc-2-17-3");
        assert_eq!(ReplicaKey::parse("my-svc-2-17-3"), Some(key));
        for bad in ["", "a", "a-1", "a-1-x", "a-+1-2", "a-01-2", "9-1-2"] {
            assert_eq!(ReplicaKey::parse(bad), None, "{bad}");
        }
    }
}
