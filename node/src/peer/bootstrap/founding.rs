//! Whether a cluster may be founded, as told by a memory that outlives the peers' volumes. Empty directories look
//! alike, whether they are new or whether all volumes were lost; only such a memory tells these two apart.

use std::fmt;

use futures_util::future::BoxFuture;
use raftserve_model::ClusterId;

/// What comes of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The cluster may be founded, under this id, and this has been written down.
    Granted(ClusterId),
    /// There was one before. Why that forbids it, and what is to be done.
    Refused(String),
    /// The memory cannot be reached now; why.
    NotYet(String),
}

/// A memory of which cluster was founded here.
pub trait Founding: fmt::Debug + Send + Sync {
    /// Addresses of peers that there are to be here, whether or not they are named to the one who founds: as long as one of
    /// them has not said that its directory is empty, nothing is claimed. None, if nothing is known beside the names.
    ///
    /// # Errors
    /// Why that cannot be told now.
    fn company(&self) -> BoxFuture<'_, Result<Vec<String>, String>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Claims to found a cluster, `cluster` by preference, for the directory that drew `nonce`. The same directory is
    /// granted the same id however often it asks, so that a crash at any point costs nothing.
    fn claim(&self, nonce: u64, cluster: ClusterId) -> BoxFuture<'_, Claim>;
}
