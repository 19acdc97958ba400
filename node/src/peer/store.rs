//! The store as this peer uses it.

use std::sync::{Arc, Mutex, PoisonError};

use raftserve_model::{ClusterId, NodeId, VersionRange};
use raftserve_store::identity::{self, DataDir, IdentityError};
use raftserve_store::raft::{StateMachine, TypeConfig};
use raftserve_store::store::Store;

pub use raftserve_store::raft::Profile;
pub(crate) use raftserve_store::raft::{
    Retention, SnapshotTrigger, StateReader, Turn, raft_config,
};
pub(crate) use raftserve_store::snapshot::{SnapshotFile, Snapshots};
pub use raftserve_store::store::OpenError;
pub(crate) use raftserve_store::store::Opened;

/// openraft over our store.
pub(crate) type RaftHandle = openraft::Raft<TypeConfig, StateMachine>;

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

    /// Opens the log and the state.
    pub(crate) async fn open_store(&self, supports: VersionRange) -> Result<Opened, OpenError> {
        let store = Store {
            supports,
            ..Store::default()
        };
        self.with(move |dir| store.open(dir)).await
    }
}
