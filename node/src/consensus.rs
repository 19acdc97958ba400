//! The agreed log as the rest of a peer sees it: propose, read, watch. Any peer may be asked; what
//! needs the leader is forwarded to it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use raftserve_model::{ClusterId, ClusterVersion, LogIndex, LogTime, NodeId, ReplicaId, ServiceId};
use raftserve_store::command::Action;
use raftserve_store::entry::LogId;
use raftserve_store::snapshot::{SnapshotError, SnapshotFile};
use raftserve_store::{Outcome, State};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::peer::core::Core;
use crate::peer::pace::paced;
use crate::peer::wire::RemarksRequest;
use crate::peer::{Announcement, Compared, FinalizeError, MemberHealth, Release, Remarks, Storage};

const STOPPED: &str = "this peer is stopping";

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
    /// Whether that was just now, and nobody has been missing in its place since.
    pub up: bool,
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
    /// It entered no log, since the cluster's version does not allow it. To try again is of no use before that is raised.
    #[error("not allowed yet: {reason}")]
    NotFinalized {
        /// Which version it needs, and what to do.
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

/// The state as a file, made for whoever asked; it goes with the last handle.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The cluster.
    pub cluster: ClusterId,
    /// The last entry in it.
    pub last: LogId,
    /// The file, verified.
    pub file: SnapshotFile,
}

/// Why the state was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It might lack something that was acknowledged.
    #[error(transparent)]
    NoQuorum(#[from] ReadError),
    /// It could not be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The peer ends.
    #[error("{STOPPED}")]
    Stopping,
}

/// Why nothing came of what was asked about a member.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ManageError {
    /// There is no such member.
    #[error("the cluster has no such peer")]
    NoSuchPeer,
    /// It must not be.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// Nothing was decided, and nothing will be. It may be asked again.
    #[error("nothing was decided: {reason}")]
    NotProposed {
        /// What stood in the way.
        reason: String,
    },
    /// It did not come about in time, and may be asked again.
    #[error("not done: {reason}")]
    NotDone {
        /// What stood in the way.
        reason: String,
    },
}

impl ManageError {
    fn stopped() -> Self {
        Self::NotDone {
            reason: STOPPED.to_owned(),
        }
    }
}

/// A handle on the log, cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    core: Arc<Core>,
}

impl Consensus {
    /// A handle on a running peer.
    pub(crate) fn over(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Runs what waits on Raft or its transport on their own threads. It goes on to its end even if
    /// the caller no longer waits.
    async fn on_raft<T, F>(&self, work: impl FnOnce(Arc<Core>) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let working = self.core.runtime.spawn(work(Arc::clone(&self.core)));
        // Cancelled when the peer stops.
        working.await.ok()
    }

    /// The cluster this peer belongs to.
    pub fn cluster_id(&self) -> ClusterId {
        self.core.identity.cluster
    }

    /// This peer's Raft id.
    pub fn node_id(&self) -> NodeId {
        self.core.identity.node
    }

    /// Proposes `action`; the leader stamps its clock. Returns once it is applied on the leader,
    /// with its index. Never waits longer than `deadline`.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(
        &self,
        action: Action,
        deadline: Duration,
    ) -> Result<(LogIndex, Outcome), ProposeError> {
        let until = Instant::now() + deadline;
        // On the leader nothing but Raft's queue lies between, which takes proposals from any thread. Once in
        // it, a proposal goes its way whether or not somebody waits.
        let action = match self.core.propose_if_leading(action, until).await {
            Ok(settled) => return settled,
            Err(action) => action,
        };
        self.on_raft(|core| async move { core.propose(action, until).await })
            .await
            .unwrap_or_else(|| {
                Err(ProposeError::OutcomeUnknown {
                    reason: STOPPED.to_owned(),
                })
            })
    }

    /// Proposes `action` only if this peer leads now: for the controller, which acts for itself.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose_as_leader(
        &self,
        action: Action,
        deadline: Duration,
    ) -> Result<(LogIndex, Outcome), ProposeError> {
        let until = Instant::now() + deadline;
        self.on_raft(|core| async move { core.propose_as_leader(action, until).await })
            .await
            .unwrap_or_else(|| {
                Err(ProposeError::OutcomeUnknown {
                    reason: STOPPED.to_owned(),
                })
            })
    }

    /// Waits until this peer's state holds everything acknowledged before the call (ReadIndex).
    /// Returns the index from which `state()` may now be read.
    ///
    /// # Errors
    /// [`ReadError`] if no leader confirmed it within `deadline`.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<LogIndex, ReadError> {
        let until = Instant::now() + deadline;
        if let Some(index) = self.core.read_barrier_if_leading(until).await {
            return Ok(index);
        }
        self.on_raft(|core| async move { core.read_barrier(until).await })
            .await
            .unwrap_or_else(|| {
                Err(ReadError {
                    reason: STOPPED.to_owned(),
                })
            })
    }

    /// The state as a file: with everything that was acknowledged before the call, as of one entry. What is
    /// applied meanwhile is not held up.
    ///
    /// # Errors
    /// [`ExportError`]; a quorum is waited for no longer than `deadline`, the disk as long as it takes.
    pub async fn export(&self, deadline: Duration) -> Result<Exported, ExportError> {
        self.read_barrier(deadline).await?;
        let core = Arc::clone(&self.core);
        let cluster = self.cluster_id();
        let writing = tokio::task::spawn_blocking(move || core.reader.export(&core.snapshots));
        let (head, file) = writing.await.map_err(|_| ExportError::Stopping)??;
        Ok(Exported {
            cluster,
            last: head.last.unwrap_or_default(),
            file,
        })
    }

    /// This peer's applied state: cheap, local, perhaps behind.
    pub fn state(&self) -> Arc<State> {
        self.core.reader.state()
    }

    /// The index up to which `state()` is applied, as it moves.
    pub fn applied(&self) -> watch::Receiver<LogIndex> {
        self.core.reader.applied()
    }

    /// As [`Consensus::applied`], told at most every few milliseconds, and always of the newest: for whoever acts on
    /// whatever is written, and would otherwise be woken by every write. To be called within a runtime.
    pub fn applied_paced(&self) -> watch::Receiver<LogIndex> {
        paced(self.core.reader.applied())
    }

    /// The last applied index whose entry may concern routing, controller or sessions, told at the same pace. Writes of
    /// keys, of which there may be tens of thousands a second, do not move it.
    pub fn news(&self) -> watch::Receiver<LogIndex> {
        self.core.news.clone()
    }

    /// The time that an entry of this peer's would be stamped with now: the log's clock.
    pub fn log_now(&self) -> LogTime {
        self.core.log_now()
    }

    /// The boot time at which the newest message was sent that a quorum has answered: until then
    /// this peer led for sure. None if it does not lead.
    pub fn confirmed_at(&self) -> Option<Duration> {
        self.core.confirmation.get()
    }

    /// How long a leader is believed without a quorum's word.
    pub fn patience(&self) -> Duration {
        self.core.confirmation.patience()
    }

    /// Who leads, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.core.leadership.clone()
    }

    /// The members of the cluster.
    pub fn members(&self) -> Vec<MemberView> {
        self.core.members()
    }

    /// For how long this peer has looked for the others, whoever led meanwhile.
    pub fn looked_for(&self) -> Duration {
        self.core.directory.age()
    }

    /// The members as the leader sees them. May be asked of any peer.
    ///
    /// # Errors
    /// [`ManageError::NotProposed`] or [`ManageError::NotDone`] if no leader answered within `deadline`.
    pub async fn member_health(
        &self,
        deadline: Duration,
    ) -> Result<Vec<MemberHealth>, ManageError> {
        let until = Instant::now() + deadline;
        self.on_raft(|core| async move { core.member_health(until).await })
            .await
            .unwrap_or_else(|| Err(ManageError::stopped()))
    }

    /// Removes a member for good, and waits until it is none any more. May be asked of any peer, and again.
    ///
    /// # Errors
    /// [`ManageError`]; `Refused` if the others could not go on without it.
    pub async fn remove_member(&self, node: NodeId, deadline: Duration) -> Result<(), ManageError> {
        let until = Instant::now() + deadline;
        self.on_raft(move |core| async move { core.remove_member(node, until).await })
            .await
            .unwrap_or_else(|| Err(ManageError::stopped()))
    }

    /// Decides, if this peer leads, that all `nodes` are to go for good. They go in one change, some seconds later.
    ///
    /// # Errors
    /// [`ManageError`]; `Refused` if the others could not go on without them, and then nothing is decided.
    pub async fn dismiss_members(
        &self,
        nodes: BTreeSet<NodeId>,
        deadline: Duration,
    ) -> Result<(), ManageError> {
        let until = Instant::now() + deadline;
        self.on_raft(move |core| async move { core.dismiss_all(nodes, until).await })
            .await
            .unwrap_or_else(|| Err(ManageError::stopped()))
    }

    /// Gives a learner a vote, and waits until it has it. May be asked of any peer, and again.
    ///
    /// # Errors
    /// [`ManageError`].
    pub async fn promote_member(
        &self,
        node: NodeId,
        deadline: Duration,
    ) -> Result<(), ManageError> {
        let until = Instant::now() + deadline;
        self.on_raft(move |core| async move { core.promote_member(node, until).await })
            .await
            .unwrap_or_else(|| Err(ManageError::stopped()))
    }

    /// Says which peers have been restarted already by what restarts this one, so that one of them leads after it if it can.
    pub fn note_renewed(&self, renewed: BTreeSet<NodeId>) {
        self.core.note_renewed(renewed);
    }

    /// Says what this peer's controller sees now, in the place of what it saw before; nothing once it reigns no more.
    pub fn remark(&self, seen: Remarks) {
        self.core.remarks.set(seen);
    }

    /// What the leader's controller sees of some services and replicas, as far as that can be had at once. May be asked of
    /// any peer.
    pub async fn remarks(&self, services: Vec<ServiceId>, replicas: Vec<ReplicaId>) -> Remarks {
        let asked = RemarksRequest { services, replicas };
        let known = *self.core.leadership.borrow();
        match known.leader {
            _ if asked == RemarksRequest::default() => Remarks::default(),
            Some(leader) if leader == self.node_id() => self.core.remarks.of(&asked),
            Some(leader) => {
                let told =
                    self.on_raft(move |core| async move { core.remarks_of(leader, asked).await });
                told.await.unwrap_or_default()
            }
            None => Remarks::default(),
        }
    }

    /// Whether the session fence waits for `node`, so that it may be given a lease.
    #[must_use]
    pub fn counts(&self, node: NodeId) -> bool {
        self.core.counts(node)
    }

    /// What `peer` has announced about itself in its present life, if it has reached this peer.
    #[must_use]
    pub fn peer_info(&self, peer: NodeId) -> Option<Announcement> {
        self.core.announced(peer)
    }

    /// Hands leadership to `target`, or to the peer that is furthest along, and waits until it
    /// leads. May be asked of any peer.
    ///
    /// # Errors
    /// [`TransferError`] if the target lags, is unknown, or did not take over in time.
    pub async fn transfer_leader(
        &self,
        target: Option<NodeId>,
        deadline: Duration,
    ) -> Result<NodeId, TransferError> {
        let until = Instant::now() + deadline;
        self.on_raft(|core| async move { core.transfer_leader(target, until).await })
            .await
            .unwrap_or_else(|| {
                Err(TransferError {
                    reason: STOPPED.to_owned(),
                })
            })
    }

    /// The members' releases, as this peer knows them.
    #[must_use]
    pub fn releases(&self) -> Vec<Release> {
        self.core.releases()
    }

    /// What this peer holds on its disk, and how the disk does.
    #[must_use]
    pub fn storage(&self) -> Storage {
        self.core.storage()
    }

    /// How far the states of the peers are known to be equal.
    #[must_use]
    pub fn compared(&self) -> Compared {
        self.core.agreement.compared()
    }

    /// Raises the cluster's version to the newest that every member supports; true if it was lower. May be
    /// asked of any peer. A version that was raised is never taken back.
    ///
    /// # Errors
    /// [`FinalizeError`] if a member has not been heard or does not support it, or the entry did not come back.
    pub async fn finalize(
        &self,
        deadline: Duration,
    ) -> Result<(ClusterVersion, bool), FinalizeError> {
        let until = Instant::now() + deadline;
        self.on_raft(|core| async move { core.finalize(until).await })
            .await
            .unwrap_or_else(|| {
                Err(FinalizeError::Propose(ProposeError::OutcomeUnknown {
                    reason: STOPPED.to_owned(),
                }))
            })
    }

    /// Compares the states of all members as of one new entry. Returns its index, and for each member whether it
    /// has this peer's state; none for one that was not heard within `deadline`.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn compare_states(
        &self,
        deadline: Duration,
    ) -> Result<(LogIndex, BTreeMap<NodeId, Option<bool>>), ProposeError> {
        let until = Instant::now() + deadline;
        self.on_raft(|core| async move { core.compare_states(until).await })
            .await
            .unwrap_or_else(|| {
                Err(ProposeError::OutcomeUnknown {
                    reason: STOPPED.to_owned(),
                })
            })
    }
}
