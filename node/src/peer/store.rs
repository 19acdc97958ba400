//! The store as this peer uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raftserve_model::{ClusterId, NodeId, VersionRange};
use raftserve_store::identity::{self, DataDir, IdentityError};
use raftserve_store::raft::{LOG_KEPT, SNAPSHOT_ENTRIES, StateMachine, TypeConfig};
use raftserve_store::store::Store;
use raftserve_store::wal::WalOptions;

pub use raftserve_store::raft::Profile;
pub(crate) use raftserve_store::raft::{
    Retention, SnapshotTrigger, StateReader, Turn, raft_config_keeping,
};
pub(crate) use raftserve_store::snapshot::{SnapshotFile, Snapshots};
pub use raftserve_store::store::OpenError;
pub(crate) use raftserve_store::store::Opened;

/// openraft over our store.
pub(crate) type RaftHandle = openraft::Raft<TypeConfig, StateMachine>;

/// How far the log grows, and how its growth is looked at. Only tests change it, so that they see within seconds what
/// otherwise takes a hundred thousand entries.
#[derive(Clone, Copy, Debug)]
pub struct LogGrowth {
    /// Entries since the last snapshot that make the next one due.
    pub snapshot_entries: u64,
    /// How often it is looked whether one is due.
    pub look: Duration,
    /// How often it is looked what may be purged, which looks at each entry that is held.
    pub purge_look: Duration,
    /// Entries kept after they are in a snapshot.
    pub kept: u64,
    /// Bytes of a segment of the log.
    pub segment_size: u64,
}

impl Default for LogGrowth {
    fn default() -> Self {
        Self {
            snapshot_entries: SNAPSHOT_ENTRIES,
            // At full load it grows by a tenth of what makes a snapshot due.
            look: Duration::from_millis(250),
            purge_look: Duration::from_secs(2),
            kept: LOG_KEPT,
            segment_size: WalOptions::default().segment_size,
        }
    }
}

/// Who a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) nonce: u64,
}

impl Identity {
    /// The identity that a directory holds; none while it is pristine.
    pub(crate) fn held_by(dir: &DataDir) -> Option<Self> {
        match dir.identity() {
            identity::Identity::Pristine { .. } => None,
            identity::Identity::Member {
                nonce,
                cluster,
                node,
            } => Some(Self {
                cluster,
                node,
                nonce,
            }),
        }
    }
}

/// The data directory, locked for this process, and used off the threads that must not block.
#[derive(Clone)]
pub(crate) struct SharedDir(Arc<Mutex<DataDir>>);

impl SharedDir {
    pub(crate) fn new(dir: DataDir) -> Self {
        Self(Arc::new(Mutex::new(dir)))
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut DataDir) -> T + Send + 'static,
    ) -> T {
        let dir = Arc::clone(&self.0);
        let working = tokio::task::spawn_blocking(move || {
            // The directory changes what it believes only once the disk has it.
            work(&mut dir.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match working.await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Makes this peer a member, durably.
    pub(crate) async fn join(&self, identity: Identity) -> Result<(), IdentityError> {
        self.with(move |dir| dir.join(identity.cluster, identity.node))
            .await
    }

    /// Notes that the log has lost entries, durably.
    pub(crate) async fn note_log_cut(&self) -> Result<(), IdentityError> {
        self.with(DataDir::note_log_cut).await
    }

    /// Notes that the cluster has removed this peer, durably.
    pub(crate) async fn note_removed(&self) {
        if let Err(error) = self.with(DataDir::note_removed).await {
            tracing::warn!(error = %crate::controller::chain(&error), "cannot note that this peer is removed");
        }
    }

    /// Opens the log and the state.
    pub(crate) async fn open_store(
        &self,
        supports: VersionRange,
        growth: LogGrowth,
    ) -> Result<Opened, OpenError> {
        let store = Store {
            wal: WalOptions {
                segment_size: growth.segment_size,
                ..WalOptions::default()
            },
            supports,
            ..Store::default()
        };
        self.with(move |dir| store.open(dir)).await
    }
}
