//! What the replicated log carries: commands and what became of them.
//!
//! A command holds everything that its effect depends on. Times and random ids are written into it
//! by the leader; applying it reads nothing else. Enums only ever gain variants at their end, since
//! bincode stores the variant's number.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use raftserve_model::spec::ServiceSpec;
use raftserve_model::{
    ClusterId, ClusterVersion, Generation, Incarnation, LogIndex, LogTime, NodeId, ReplicaId,
    ServiceId, ServiceName, ServiceVersion, SessionEpoch, SessionKey, WallTime,
};

use crate::state::{KvCondition, KvKey, Predecessor, Promotion};

/// A replicated client session: the log index of the entry that opened it.
pub type ClientId = LogIndex;

/// One entry's payload.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Command {
    /// When it was proposed, by agreed time as the leader reckons it. The state machine makes it
    /// non-decreasing.
    pub now: LogTime,
    /// When it was proposed, by the leader's wall clock: only ever shown.
    pub wall: WallTime,
    /// What to do.
    pub action: Action,
}

impl Command {
    /// A command without a wall time, as tests and tools want it.
    #[must_use]
    pub fn at(now: LogTime, action: Action) -> Self {
        Self {
            now,
            wall: WallTime::default(),
            action,
        }
    }
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Action {
    /// Names the cluster: the first entry that the bootstrapping peer proposes. Later ones change nothing.
    InitCluster {
        /// The id drawn at bootstrap.
        cluster: ClusterId,
    },
    /// Opens a client session, within which requests are executed exactly once.
    OpenClient,
    /// A request within a client session (Raft dissertation, 6.3).
    Client {
        /// The session.
        client: ClientId,
        /// The request's number within the session, from 1.
        sequence: u64,
        /// Every outcome up to this number has reached the client and may be forgotten.
        acknowledged: u64,
        /// What is asked for.
        request: Request,
    },
    /// A leader's controller begins its reign; the entry's index is its generation.
    StartControl {
        /// The leader.
        node: NodeId,
        /// Its process's life.
        incarnation: Incarnation,
    },
    /// Decisions of the controller, all applied or (from a past generation) none.
    Control {
        /// The generation under which they were made.
        generation: Generation,
        /// In order.
        changes: Vec<Change>,
    },
    /// Binds sessions that are not bound, rebinds those whose replica is going, and renews the
    /// rest. Safe to repeat.
    BindSessions {
        /// The service of all keys.
        service: ServiceId,
        /// At most [`BIND_KEYS_MAX`].
        keys: Vec<SessionKey>,
    },
    /// Moves the session fence: every peer has applied `upto`, or may no longer use what it read
    /// before (policy S2).
    AdvanceFence {
        /// The generation of the leader that made sure of it.
        generation: Generation,
        /// The index up to which rebound sessions become usable.
        upto: LogIndex,
    },
    /// Lets log time pass, which expires sessions and client sessions.
    Tick,
    /// Raises the cluster's version; a lower one changes nothing.
    RaiseVersion {
        /// What every member supports.
        version: ClusterVersion,
    },
    /// Changes nothing: every peer notes the digest of its state as of this entry, to be compared.
    CompareStates,
    /// A request outside every client session: executed as often as it is in the log, so whoever proposes it
    /// does so once, and again only while it is certain that it has not entered a log.
    Request(Request),
    /// Gives a peer with an empty data directory an id: this entry's index, or the one that the same directory was
    /// given before. Refused where another peer has or had that id, as founders have, who are numbered from 1.
    AdmitPeer {
        /// Of its data directory.
        nonce: u64,
        /// `host:port` of its peer port.
        address: String,
        /// When it becomes a voter.
        promotion: Promotion,
        /// The peer that ran at this address before, with a data directory that is lost.
        replaces: Option<Predecessor>,
    },
    /// The intent to remove a peer: it gets no leases any more, and then loses its vote.
    DismissPeer {
        /// The peer.
        node: NodeId,
        /// Of its data directory.
        nonce: u64,
        /// Where it was last said to be.
        address: String,
    },
    /// A peer that was leaving is no member any more: its id and data directory are refused for ever.
    RetirePeer {
        /// The peer.
        node: NodeId,
    },
    /// A learner becomes a voter once it is caught up, whatever number of voters that makes.
    PromotePeer {
        /// The learner.
        node: NodeId,
    },
}

impl Action {
    /// The cluster version that must be in force before this is proposed: older releases cannot apply it. A
    /// variant that is added, or a change of what one computes, comes with the version of its release.
    #[must_use]
    pub fn requires(&self) -> ClusterVersion {
        match self {
            Self::InitCluster { .. }
            | Self::OpenClient
            | Self::Client { .. }
            | Self::StartControl { .. }
            | Self::Control { .. }
            | Self::BindSessions { .. }
            | Self::AdvanceFence { .. }
            | Self::Tick
            | Self::RaiseVersion { .. }
            | Self::CompareStates
            | Self::Request(_)
            | Self::AdmitPeer { .. }
            | Self::DismissPeer { .. }
            | Self::RetirePeer { .. }
            | Self::PromotePeer { .. } => ClusterVersion::FIRST,
        }
    }

    /// Whether it changes keys and nothing else, apart from what comes with the time that it brings: nothing that
    /// routing, the controller or sessions of the data plane depend on.
    #[must_use]
    pub fn is_of_keys(&self) -> bool {
        match self {
            Self::Client { request, .. } | Self::Request(request) => {
                matches!(request, Request::PutKey { .. } | Request::DeleteKey { .. })
            }
            _ => false,
        }
    }
}

/// The most session keys in one entry, so that one entry stays a fraction of a millisecond to apply.
pub const BIND_KEYS_MAX: usize = 256;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Creates a service, or gives an existing one a new version.
    PutService {
        /// Its name.
        name: ServiceName,
        /// The checked specification.
        spec: Arc<ServiceSpec>,
        /// What must hold before.
        precondition: Precondition,
    },
    /// Takes a service down: replicas drain and stop, then the service is forgotten.
    DeleteService {
        /// Its name.
        name: ServiceName,
        /// Forget the service at once, with records of replicas that could not be stopped.
        purge: bool,
    },
    /// Stops one replica; the controller replaces it if it is still wanted.
    TerminateReplica {
        /// The service's name.
        name: ServiceName,
        /// The replica's number.
        number: u32,
        /// Also forget the record of a failed replica.
        purge: bool,
    },
    /// Sets a key.
    PutKey {
        /// The key.
        key: KvKey,
        /// Its new value.
        value: Arc<[u8]>,
        /// What must hold before.
        condition: KvCondition,
    },
    /// Deletes a key, if there is one.
    DeleteKey {
        /// The key.
        key: KvKey,
        /// What must hold before.
        condition: KvCondition,
    },
    /// As [`Self::PutService`], of a specification with files. A command of its own, so that a build from before files,
    /// which cannot read the specification, knows it for one of a later release and ends.
    PutServiceWithFiles {
        /// Its name.
        name: ServiceName,
        /// The checked specification.
        spec: Arc<ServiceSpec>,
        /// What must hold before.
        precondition: Precondition,
    },
}

impl Request {
    /// Creates a service, or gives an existing one a new version.
    #[must_use]
    pub fn put_service(
        name: ServiceName,
        spec: Arc<ServiceSpec>,
        precondition: Precondition,
    ) -> Self {
        match spec.file_mounts.is_empty() {
            true => Self::PutService {
                name,
                spec,
                precondition,
            },
            false => Self::PutServiceWithFiles {
                name,
                spec,
                precondition,
            },
        }
    }
}

/// What must hold for a service before it is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Precondition {
    /// It must not exist.
    Absent,
    /// It must exist and not be going down.
    Present,
    /// Either.
    Any,
}

/// One decision or observation of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Change {
    /// The intent to create a replica. Its number is assigned by applying this.
    Create {
        /// The service.
        service: ServiceId,
        /// The version whose specification it runs.
        version: ServiceVersion,
        /// The port it listens on, unused by every live replica.
        port: u16,
    },
    /// The provider has begun to create it.
    Provisioning {
        /// The replica.
        replica: ReplicaId,
    },
    /// Its `run` has begun.
    Started {
        /// The replica.
        replica: ReplicaId,
        /// `host:port` to send requests to.
        address: String,
    },
    /// A probe succeeded after none had, or after one failed.
    Ready {
        /// The replica.
        replica: ReplicaId,
    },
    /// A probe failed after one succeeded.
    NotReady {
        /// The replica.
        replica: ReplicaId,
        /// What the probe saw.
        reason: String,
    },
    /// The intent to stop it: it leaves rotation now, and is stopped once drained.
    Stop {
        /// The replica.
        replica: ReplicaId,
        /// Why.
        reason: StopReason,
        /// The longest it may drain.
        drain: Duration,
    },
    /// Nothing of it exists any more.
    Gone {
        /// The replica.
        replica: ReplicaId,
    },
    /// It could not be stopped.
    CleanupFailed {
        /// The replica.
        replica: ReplicaId,
        /// What went wrong.
        reason: String,
    },
    /// All replicas of a service that was taken down are gone: forget it.
    Forget {
        /// The service.
        service: ServiceId,
    },
}

/// Why a replica is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StopReason {
    /// Fewer replicas are wanted.
    ScaleDown,
    /// A newer version has taken its place.
    Outdated,
    /// The service is taken down.
    ServiceDown,
    /// A user asked for it.
    Terminated,
    /// Its program ended by itself.
    Exited(String),
    /// No probe succeeded within the initial delay.
    InitialDelay(String),
    /// Its probes failed for too long.
    Probing(String),
    /// It could not be created.
    Provision(String),
    /// Its place was taken from it: no fault of its own.
    Preempted(String),
}

impl StopReason {
    /// Whether the replica ended in an error or by force, so that its record is kept.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::ScaleDown | Self::Outdated | Self::ServiceDown | Self::Terminated => false,
            Self::Exited(_)
            | Self::InitialDelay(_)
            | Self::Probing(_)
            | Self::Provision(_)
            | Self::Preempted(_) => true,
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScaleDown => f.write_str("scaled down"),
            Self::Outdated => f.write_str("replaced by a newer version"),
            Self::ServiceDown => f.write_str("the service is taken down"),
            Self::Terminated => f.write_str("terminated by a user"),
            Self::Exited(why)
            | Self::InitialDelay(why)
            | Self::Probing(why)
            | Self::Provision(why)
            | Self::Preempted(why) => f.write_str(why),
        }
    }
}

/// What became of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// Nothing to report: a blank or membership entry, a tick, an internal command that applied.
    #[default]
    Done,
    /// The entry's index, as an id: of an opened client session, or of a begun control.
    Index(LogIndex),
    /// A service was put.
    ServicePut {
        /// Its id.
        service: ServiceId,
        /// The version that the entry made.
        version: ServiceVersion,
    },
    /// A control command of a past generation: nothing was changed, and the sender must stop.
    Fenced {
        /// The generation in force.
        current: Generation,
    },
    /// One per key of a bind command, in order.
    Bound(Vec<Result<Binding, BindRefusal>>),
    /// The request was understood and refused; nothing changed.
    Refused(Refusal),
    /// A key was set.
    KeyPut {
        /// The entry that created the key.
        created: LogIndex,
        /// The entry that set it now.
        modified: LogIndex,
        /// How often it was put since it was created.
        version: u64,
    },
    /// There is no such key now.
    KeyDeleted {
        /// The entry that had last changed it; none if there was no such key before.
        modified: Option<LogIndex>,
    },
}

impl Outcome {
    /// The bytes that it takes up beyond its own size: texts, and lists.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Refused(refusal) => refusal.text_bytes(),
            Self::Bound(bound) => size_of_val(bound.as_slice()),
            Self::Done
            | Self::Index(_)
            | Self::ServicePut { .. }
            | Self::Fenced { .. }
            | Self::KeyPut { .. }
            | Self::KeyDeleted { .. } => 0,
        }
    }
}

impl Refusal {
    fn text_bytes(&self) -> usize {
        match self {
            Self::UnknownClient
            | Self::AlreadyAcknowledged
            | Self::PeerRemoved(_)
            | Self::NoSuchPeer(_)
            | Self::PeerIdTaken(_) => 0,
            Self::ServiceExists(name)
            | Self::NoSuchService(name)
            | Self::ServiceGoingDown(name)
            | Self::NoSuchReplica(name, _)
            | Self::AlreadyStopping(name, _)
            | Self::NeedsPurge(name, _) => name.as_str().len(),
            Self::Limit(text) => text.len(),
            Self::KeyConflict { key, .. } => key.as_str().len(),
        }
    }
}

/// A session's binding to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Binding {
    /// Where every request of the session goes.
    pub replica: ReplicaId,
    /// Which binding this is.
    pub epoch: SessionEpoch,
    /// The index that the fence must reach before the binding may be used; 0 if at once.
    pub usable_from: LogIndex,
}

/// Why a session was not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum BindRefusal {
    /// No such service, or it has no session affinity.
    NoService,
    /// No replica is ready.
    NoReplica,
    /// The service holds as many bindings as it may.
    TooMany,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Refusal {
    /// The client session is not known: never opened, or expired. The request was not executed now.
    UnknownClient,
    /// The outcome of this sequence number was acknowledged and forgotten.
    AlreadyAcknowledged,
    /// A service of that name exists.
    ServiceExists(ServiceName),
    /// There is no service of that name.
    NoSuchService(ServiceName),
    /// The service is being taken down.
    ServiceGoingDown(ServiceName),
    /// The service has no replica of that number.
    NoSuchReplica(ServiceName, u32),
    /// The replica is being stopped already.
    AlreadyStopping(ServiceName, u32),
    /// A failed replica's record is only removed with purge.
    NeedsPurge(ServiceName, u32),
    /// A bound on the state would be exceeded.
    Limit(String),
    /// A key is not what the condition asks for.
    KeyConflict {
        /// The key.
        key: KvKey,
        /// The entry that last changed it; none if there is no such key.
        modified: Option<LogIndex>,
    },
    /// The peer was removed, or is about to be: its data directory is of no use any more.
    PeerRemoved(NodeId),
    /// No such peer is on record.
    NoSuchPeer(NodeId),
    /// A member has, or a peer had, the id that a peer would be admitted under. A later entry has another one.
    PeerIdTaken(NodeId),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.action {
            Action::InitCluster { .. } => "init-cluster",
            Action::OpenClient => "open-client",
            Action::Client { .. } => "client",
            Action::StartControl { .. } => "start-control",
            Action::Control { .. } => "control",
            Action::BindSessions { .. } => "bind-sessions",
            Action::AdvanceFence { .. } => "advance-fence",
            Action::Tick => "tick",
            Action::RaiseVersion { .. } => "raise-version",
            Action::CompareStates => "compare-states",
            Action::Request(_) => "request",
            Action::AdmitPeer { .. } => "admit-peer",
            Action::DismissPeer { .. } => "dismiss-peer",
            Action::RetirePeer { .. } => "retire-peer",
            Action::PromotePeer { .. } => "promote-peer",
        };
        write!(f, "{name} at {}", self.now)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
