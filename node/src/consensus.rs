//! The agreed log as the rest of a peer sees it: propose, read, watch. Any peer may be asked; what
//! needs the leader is forwarded to it.

use std::sync::Arc;
use std::time::Duration;

use raftserve_model::{ClusterId, LogIndex, NodeId};
use raftserve_store::command::Action;
use raftserve_store::{Outcome, State};
use tokio::sync::watch;

/// Who leads, as this peer knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// The leader that this peer follows, or itself; none while an election is open.
    pub leader: Option<NodeId>,
    /// Whether this peer leads, and a quorum has confirmed it lately.
    pub is_self: bool,
}

/// A member of the cluster as this peer sees it.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// Its Raft id.
    pub id: NodeId,
    /// `host:port` of its peer port.
    pub address: String,
    /// `host:port` of its admin port, if it has announced one to this peer.
    pub admin_address: Option<String>,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// How far its log is known to match the leader's; only the leader knows.
    pub matched: Option<LogIndex>,
    /// When this peer last had an answer from it; none if never. Zero for itself.
    pub last_contact: Option<Duration>,
}

/// Why a proposal did not come back with an outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// It never entered any log, and may be tried again freely.
    #[error("not proposed: {reason}")]
    NotProposed {
        /// What stood in the way.
        reason: String,
    },
    /// It may yet commit. Only a retry in the same client session with the same sequence number is safe.
    #[error("outcome unknown: {reason}")]
    OutcomeUnknown {
        /// What was seen last.
        reason: String,
    },
}

/// Why a linearizable read could not be made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no linearizable read: {reason}")]
pub struct ReadError {
    /// What stood in the way.
    pub reason: String,
}

/// Why leadership was not handed over.
#[derive(Debug, Clone, thiserror::Error)]
#[error("leadership not transferred: {reason}")]
pub struct TransferError {
    /// What stood in the way.
    pub reason: String,
}

/// A handle on the log, cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    _private: Arc<()>,
}

impl Consensus {
    /// The cluster this peer belongs to.
    pub fn cluster_id(&self) -> ClusterId {
        todo!()
    }

    /// This peer's Raft id.
    pub fn node_id(&self) -> NodeId {
        todo!()
    }

    /// Proposes `action`; the leader stamps its clock. Returns once it is applied on the leader,
    /// with its index. Never waits longer than `deadline`.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(
        &self,
        _action: Action,
        _deadline: Duration,
    ) -> Result<(LogIndex, Outcome), ProposeError> {
        todo!()
    }

    /// Proposes `action` only if this peer leads now: for the controller, which acts for itself.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose_as_leader(
        &self,
        _action: Action,
        _deadline: Duration,
    ) -> Result<(LogIndex, Outcome), ProposeError> {
        todo!()
    }

    /// Waits until this peer's state holds everything acknowledged before the call (ReadIndex).
    /// Returns the index from which `state()` may now be read.
    ///
    /// # Errors
    /// [`ReadError`] if no leader confirmed it within `deadline`.
    pub async fn read_barrier(&self, _deadline: Duration) -> Result<LogIndex, ReadError> {
        todo!()
    }

    /// This peer's applied state: cheap, local, perhaps behind.
    pub fn state(&self) -> Arc<State> {
        todo!()
    }

    /// The index up to which `state()` is applied, as it moves.
    pub fn applied(&self) -> watch::Receiver<LogIndex> {
        todo!()
    }

    /// Who leads, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        todo!()
    }

    /// The members of the cluster.
    pub fn members(&self) -> Vec<MemberView> {
        todo!()
    }

    /// Hands leadership to `target`, or to the peer that is furthest along, and waits until it
    /// leads. May be asked of any peer.
    ///
    /// # Errors
    /// [`TransferError`] if the target lags, is unknown, or did not take over in time.
    pub async fn transfer_leader(
        &self,
        _target: Option<NodeId>,
        _deadline: Duration,
    ) -> Result<NodeId, TransferError> {
        todo!()
    }
}
