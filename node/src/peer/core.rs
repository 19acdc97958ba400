//! The running Raft node and the ways to it: what the leader does for everybody, and how the others
//! ask it to.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bincode::Decode;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use raftserve_model::{Incarnation, LogIndex, LogTime, NodeId};
use raftserve_store::command::Action;
use raftserve_store::raft::acked::Acked;
use raftserve_store::wal::Wal;
use raftserve_store::{Command, Outcome};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::agreement::Agreement;
use super::calls::Method;
use super::clock::LogClock;
use super::directory::Directory;
use super::leadership::Confirmation;
use super::links::{CallError, Links, Purpose, frame, read};
use super::proposals::Proposals;
use super::remarks::Remarked;
use super::room::Seen;
use super::rounds::{Rounds, Shared};
use super::rpc::Frame;
use super::steward::{HealthBook, MembershipPolicy};
use super::store::{Identity, RaftHandle, Snapshots, StateReader};
use super::wire::{
    Announcement, COMMAND_BYTES_MAX, MoveLeaderReply, MoveLeaderRequest, ProposeReply,
    ProposeRequest, ReadIndexReply, ReadIndexRequest, command_size,
};
use crate::clock::WallClock;
use crate::consensus::{Leadership, ProposeError, ReadError, TransferError};

mod manage;
mod members;
mod place;
mod storage;
mod transfer;
mod version;

pub use self::storage::Storage;
pub(crate) use self::storage::Tidings;
pub use self::version::{FinalizeError, Release};

pub(crate) use transfer::{LAG_MAX, follows_from};

/// How long to wait before asking again where nothing has changed: an election takes some hundred
/// milliseconds, and a call that is refused costs the one who refuses it little.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// The first stamp of a reign waits until a millisecond has passed since the last one before it.
const STAMP_PAUSE: Duration = Duration::from_millis(1);

/// A forwarded call's answer may be this much later than its deadline, so that the leader's own
/// word about what became of it arrives rather than our "unknown".
const ANSWER_GRACE: Duration = Duration::from_millis(50);

/// How long a leader asks for its quorum's word on behalf of reads before it asks anew, for those that have come
/// meanwhile. Far over a round trip.
const CONFIRM_MAX: Duration = Duration::from_millis(300);

/// The running node.
pub(crate) struct Core {
    pub(crate) identity: Identity,
    pub(crate) raft: RaftHandle,
    pub(crate) reader: StateReader,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) links: Arc<Links>,
    /// What followers have acknowledged to this peer as leader.
    pub(crate) acked: Arc<Acked>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) confirmation: Arc<Confirmation>,
    pub(crate) announcement: Announcement,
    pub(crate) clock: LogClock,
    /// The last applied index whose entry was of more than keys, told at a pace.
    pub(crate) news: watch::Receiver<LogIndex>,
    /// Where proposals of this peer as leader gather.
    pub(crate) proposals: Proposals,
    /// Reads that wait for this peer's word as leader.
    pub(crate) reads: Shared<ReadIndexReply>,
    pub(crate) wall_clock: WallClock,
    pub(crate) agreement: Agreement,
    /// Why this peer ends, once it does.
    pub(crate) fatal: watch::Sender<Option<String>>,
    /// When members come and go by themselves.
    pub(crate) policy: MembershipPolicy,
    /// What the others said last of themselves.
    pub(crate) tidings: Tidings,
    /// How much room is left for the log.
    pub(crate) room: Seen,
    /// How long the others have been fit.
    pub(crate) health: HealthBook,
    /// Peers that have been restarted already by what restarts this one, as far as anybody has said.
    pub(crate) renewed: Mutex<BTreeSet<NodeId>>,
    /// Held while it is decided that somebody is to go.
    pub(crate) dismissing: tokio::sync::Mutex<()>,
    /// What this peer's controller sees, while it reigns.
    pub(crate) remarks: Remarked,
    /// Whether this peer was told that it is no member any more.
    pub(crate) removed: watch::Sender<bool>,
    /// Raft's own runtime: whatever waits on Raft or the transport runs there.
    pub(crate) runtime: tokio::runtime::Handle,
}

/// What stood in the way of reaching a leader, as last seen.
struct Obstacle(String);

impl Obstacle {
    fn no_leader() -> Self {
        Self("no leader with a quorum is known".to_owned())
    }
}

impl Core {
    /// This peer's id.
    pub(crate) fn me(&self) -> NodeId {
        self.identity.node
    }

    /// This process's life.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.announcement.incarnation
    }

    /// The agreed time as this peer reckons it.
    pub(crate) fn log_now(&self) -> LogTime {
        self.clock.now()
    }

    /// Notes when stamps are applied, as long as Raft runs.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        let mut applied = self.reader.applied();
        while applied.changed().await.is_ok() {
            self.clock.observe(self.reader.last_stamp());
        }
    }

    /// The time for an entry of this peer, which leads. Waits until every stamp of leaders before it is
    /// applied, which is a round trip after it was elected.
    async fn stamp(&self, until: Instant) -> Result<LogTime, ProposeReply> {
        let mut leadership = self.leadership.clone();
        let mut applied = self.reader.applied();
        loop {
            let known = *leadership.borrow_and_update();
            if !known.is_self {
                let leader = known.leader.filter(|leader| *leader != self.me());
                return Err(ProposeReply::NotLeader { leader });
            }
            applied.mark_unchanged();
            if let Some(time) = self.clock.stamp(known.term) {
                return Ok(time);
            }
            self.clock.observe(self.reader.last_stamp());
            let changed = async {
                tokio::select! {
                    changed = leadership.changed() => changed.is_ok(),
                    changed = applied.changed() => changed.is_ok(),
                    () = sleep(STAMP_PAUSE) => true,
                }
            };
            if timeout_at(until, changed).await != Ok(true) {
                return Err(ProposeReply::NotProposed(
                    "the new leader has not applied the log in time".to_owned(),
                ));
            }
        }
    }

    /// Whether the cluster's version allows `action`: peers of the release before would stop at it.
    fn allows(&self, action: &Action) -> Result<(), ProposeReply> {
        let (version, required) = (self.reader.state().version(), action.requires());
        if required <= version {
            return Ok(());
        }
        Err(ProposeReply::NotFinalized(format!(
            "this needs cluster version {required}, and the cluster is at {version}: bring every peer to a release \
             that supports it, and run `raftserve cluster finalize`"
        )))
    }

    /// Proposes to this peer's own Raft, which must lead.
    pub(crate) async fn propose_here(&self, action: Action, until: Instant) -> ProposeReply {
        let now = match self.stamp(until).await {
            Ok(now) => now,
            Err(refused) => return refused,
        };
        // By now this peer leads and has applied what former leaders have agreed to, a higher version too.
        if let Err(refused) = self.allows(&action) {
            return refused;
        }
        let command = Command {
            now,
            wall: (self.wall_clock)(),
            action,
        };
        let size = command_size(&command);
        if size > COMMAND_BYTES_MAX {
            return ProposeReply::NotProposed(format!(
                "the command takes {size} bytes, and {COMMAND_BYTES_MAX} are allowed"
            ));
        }
        self.proposals.propose(command, until).await
    }

    /// Proposes if this peer leads; gives the action back where it is certain not to have entered a log, so that
    /// it may be proposed wherever the leader is.
    pub(crate) async fn propose_if_leading(
        &self,
        action: Action,
        until: Instant,
    ) -> Result<Result<(LogIndex, Outcome), ProposeError>, Action> {
        if !self.leadership.borrow().is_self {
            return Err(action);
        }
        match self.propose_here(action.clone(), until).await {
            ProposeReply::Done { index, outcome } => Ok(Ok((LogIndex(index), outcome))),
            ProposeReply::Unknown(reason) => Ok(Err(ProposeError::OutcomeUnknown { reason })),
            ProposeReply::NotProposed(reason) => Ok(Err(ProposeError::NotProposed { reason })),
            ProposeReply::NotFinalized(reason) => Ok(Err(ProposeError::NotFinalized { reason })),
            ProposeReply::NotLeader { .. } => Err(action),
        }
    }

    /// Asks the leader for what only it can do, and reads its answer.
    async fn forward<A: Decode<()>>(
        &self,
        leader: NodeId,
        method: Method,
        within: Duration,
        message: Frame,
    ) -> Result<A, CallError> {
        self.links
            .call(leader, Purpose::Forwards, within, method, message)
            .await
            .and_then(|answer| read(leader, &answer))
    }

    async fn propose_at(
        &self,
        leader: NodeId,
        action: Action,
        until: Instant,
    ) -> Result<ProposeReply, Obstacle> {
        let within = until.saturating_duration_since(Instant::now());
        let message = frame(&ProposeRequest {
            action,
            within_ms: millis(within),
        });
        let within = within + ANSWER_GRACE;
        match self.forward(leader, Method::Propose, within, message).await {
            Ok(reply) => Ok(reply),
            // Neither reached the leader's log.
            Err(error @ (CallError::NotSent { .. } | CallError::Refused { .. })) => {
                Err(Obstacle(error.to_string()))
            }
            Err(error) => Ok(ProposeReply::Unknown(error.to_string())),
        }
    }

    /// Proposes wherever the leader is. Every further attempt follows an answer by which the action
    /// is certain not to have entered a log.
    pub(crate) async fn propose(
        &self,
        action: Action,
        until: Instant,
    ) -> Result<(LogIndex, Outcome), ProposeError> {
        let mut watch = self.leadership.clone();
        let mut obstacle = Obstacle::no_leader();
        let mut hint = None;
        loop {
            let known = *watch.borrow_and_update();
            let reply = match hint.take().or(known.leader) {
                Some(leader) if leader == self.me() => {
                    Ok(self.propose_here(action.clone(), until).await)
                }
                Some(leader) => self.propose_at(leader, action.clone(), until).await,
                None => Err(obstacle),
            };
            obstacle = match reply {
                Ok(ProposeReply::Done { index, outcome }) => {
                    return Ok((LogIndex(index), outcome));
                }
                Ok(ProposeReply::Unknown(reason)) => {
                    return Err(ProposeError::OutcomeUnknown { reason });
                }
                Ok(ProposeReply::NotProposed(reason)) => {
                    return Err(ProposeError::NotProposed { reason });
                }
                Ok(ProposeReply::NotFinalized(reason)) => {
                    return Err(ProposeError::NotFinalized { reason });
                }
                Ok(ProposeReply::NotLeader { leader }) => {
                    hint = leader.filter(|leader| Some(*leader) != known.leader);
                    Obstacle::no_leader()
                }
                Err(obstacle) => obstacle,
            };
            if hint.is_none() && !pause(&mut watch, known.leader.is_none(), until).await {
                let reason = obstacle.0;
                return Err(ProposeError::NotProposed { reason });
            }
        }
    }

    /// Proposes if this peer leads, and otherwise not at all.
    pub(crate) async fn propose_as_leader(
        &self,
        action: Action,
        until: Instant,
    ) -> Result<(LogIndex, Outcome), ProposeError> {
        let not_leader = || ProposeError::NotProposed {
            reason: "this peer does not lead".to_owned(),
        };
        if !self.leadership.borrow().is_self {
            return Err(not_leader());
        }
        match self.propose_here(action, until).await {
            ProposeReply::Done { index, outcome } => Ok((LogIndex(index), outcome)),
            ProposeReply::NotLeader { .. } => Err(not_leader()),
            ProposeReply::NotProposed(reason) => Err(ProposeError::NotProposed { reason }),
            ProposeReply::NotFinalized(reason) => Err(ProposeError::NotFinalized { reason }),
            ProposeReply::Unknown(reason) => Err(ProposeError::OutcomeUnknown { reason }),
        }
    }

    /// The index from which a read begun now is linearizable; this peer must lead (ReadIndex, Raft
    /// dissertation, 6.4). Reads that come while one is being confirmed share the next confirmation.
    pub(crate) async fn read_index_here(&self, until: Instant) -> ReadIndexReply {
        match timeout_at(until, self.reads.confirmed()).await {
            Ok(reply) => reply,
            Err(_) => ReadIndexReply::Failed("no quorum answered in time".to_owned()),
        }
    }

    /// Answers reads that wait for this peer's word as leader, until the node ends.
    pub(crate) async fn confirm_reads(self: Arc<Self>, mut rounds: Rounds<ReadIndexReply>) {
        while let Some(round) = rounds.next().await {
            let until = Instant::now() + CONFIRM_MAX;
            round.settle(self.confirm_leadership(until).await);
        }
    }

    async fn confirm_leadership(&self, until: Instant) -> ReadIndexReply {
        let asked = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match timeout_at(until, asked).await {
            Ok(Ok(linearizer)) => ReadIndexReply::Index(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                ReadIndexReply::NotLeader {
                    leader: to.leader_id.filter(|leader| *leader != self.me()),
                }
            }
            Ok(Err(error)) => ReadIndexReply::Failed(error.to_string()),
            Err(_) => ReadIndexReply::Failed("no quorum answered in time".to_owned()),
        }
    }

    async fn read_index_at(&self, leader: NodeId, until: Instant) -> ReadIndexReply {
        let within = until.saturating_duration_since(Instant::now());
        let message = frame(&ReadIndexRequest {
            within_ms: millis(within),
        });
        self.forward(leader, Method::ReadIndex, within, message)
            .await
            .unwrap_or_else(|error| ReadIndexReply::Failed(error.to_string()))
    }

    /// As `read_barrier`, if this peer leads and can confirm it.
    pub(crate) async fn read_barrier_if_leading(&self, until: Instant) -> Option<LogIndex> {
        if !self.leadership.borrow().is_self {
            return None;
        }
        match self.read_index_here(until).await {
            ReadIndexReply::Index(index) => self.await_applied(LogIndex(index), until).await.ok(),
            ReadIndexReply::NotLeader { .. } | ReadIndexReply::Failed(_) => None,
        }
    }

    /// Waits until this peer's state holds everything that was acknowledged before the call.
    pub(crate) async fn read_barrier(&self, until: Instant) -> Result<LogIndex, ReadError> {
        let index = self.read_index(until).await?;
        self.await_applied(index, until).await
    }

    /// Waits until this peer's state holds entry `index`.
    async fn await_applied(&self, index: LogIndex, until: Instant) -> Result<LogIndex, ReadError> {
        let mut applied = self.reader.applied();
        if *applied.borrow() >= index {
            return Ok(index);
        }
        let waited = timeout_at(until, applied.wait_for(|applied| *applied >= index)).await;
        let failed = |reason: String| ReadError { reason };
        match waited {
            Ok(Ok(_)) => Ok(index),
            Ok(Err(_)) => Err(failed("the state machine has stopped".to_owned())),
            Err(_) => Err(failed(format!(
                "this peer has not caught up with entry {index} in time"
            ))),
        }
    }

    async fn read_index(&self, until: Instant) -> Result<LogIndex, ReadError> {
        let mut watch = self.leadership.clone();
        let mut obstacle = Obstacle::no_leader();
        let mut hint = None;
        loop {
            let known = *watch.borrow_and_update();
            let reply = match hint.take().or(known.leader) {
                Some(leader) if leader == self.me() => Some(self.read_index_here(until).await),
                Some(leader) => Some(self.read_index_at(leader, until).await),
                None => None,
            };
            match reply {
                Some(ReadIndexReply::Index(index)) => return Ok(LogIndex(index)),
                Some(ReadIndexReply::Failed(reason)) => obstacle = Obstacle(reason),
                Some(ReadIndexReply::NotLeader { leader }) => {
                    hint = leader.filter(|leader| Some(*leader) != known.leader);
                }
                None => {}
            }
            if hint.is_none() && !pause(&mut watch, known.leader.is_none(), until).await {
                let reason = obstacle.0;
                return Err(ReadError { reason });
            }
        }
    }

    async fn move_leader_at(
        &self,
        leader: NodeId,
        target: Option<NodeId>,
        until: Instant,
    ) -> MoveLeaderReply {
        let within = until.saturating_duration_since(Instant::now());
        let message = frame(&MoveLeaderRequest {
            target,
            within_ms: millis(within),
        });
        self.forward(leader, Method::MoveLeader, within + ANSWER_GRACE, message)
            .await
            .unwrap_or_else(|error| MoveLeaderReply::Failed(error.to_string()))
    }

    /// Hands leadership over, wherever it is, and waits until this peer too follows the new leader.
    pub(crate) async fn transfer_leader(
        &self,
        target: Option<NodeId>,
        until: Instant,
    ) -> Result<NodeId, TransferError> {
        let failed = |reason: String| TransferError { reason };
        let mut watch = self.leadership.clone();
        let mut hint = None;
        let moved = loop {
            let known = *watch.borrow_and_update();
            let reply = match hint.take().or(known.leader) {
                Some(leader) if leader == self.me() => self.move_leader_here(target, until).await,
                Some(leader) => self.move_leader_at(leader, target, until).await,
                None => MoveLeaderReply::NotLeader { leader: None },
            };
            match reply {
                MoveLeaderReply::Moved(leader) => break leader,
                MoveLeaderReply::Failed(reason) => return Err(failed(reason)),
                MoveLeaderReply::NotLeader { leader } => {
                    hint = leader.filter(|leader| Some(*leader) != known.leader);
                }
            }
            if hint.is_none() && !pause(&mut watch, known.leader.is_none(), until).await {
                return Err(failed(Obstacle::no_leader().0));
            }
        };
        let follows = watch.wait_for(|now| now.leader == Some(moved));
        // Whether this peer has heard of it yet does not change that it happened.
        let _ = timeout_at(until, follows).await;
        Ok(moved)
    }
}

/// Waits for leadership to change, or, if a leader is known, for a moment. False once `until` has
/// passed.
async fn pause(watch: &mut watch::Receiver<Leadership>, patiently: bool, until: Instant) -> bool {
    if Instant::now() >= until {
        return false;
    }
    let longest = if patiently {
        until.saturating_duration_since(Instant::now())
    } else {
        RETRY_PAUSE
    };
    if let Ok(Err(_)) = timeout(longest, watch.changed()).await {
        // Raft has stopped: nothing will change any more.
        sleep(RETRY_PAUSE).await;
    }
    Instant::now() < until
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
