//! Replicas and their life cycle.

use bincode::{Decode, Encode};
use raftserve_model::status::ReplicaStatus;
use raftserve_model::{LogIndex, LogTime, ReplicaId, ServiceVersion, Stamp};

use crate::command::StopReason;

/// A replica on record.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Replica {
    /// Its id, never reused.
    pub id: ReplicaId,
    /// The version of its service that it counts as.
    pub version: ServiceVersion,
    /// The version whose specification it was launched from: older than `version` if an update
    /// left its process as it was.
    pub launched_as: ServiceVersion,
    /// The port it listens on.
    pub port: u16,
    /// `host:port` to send requests to, once its `run` has begun.
    pub address: Option<String>,
    /// When its creation was agreed.
    pub created_at: Stamp,
    /// When its `run` began.
    pub started_at: Option<LogTime>,
    /// When a probe first succeeded.
    pub first_ready_at: Option<Stamp>,
    /// Where it is in its life.
    pub phase: Phase,
    /// The last entry that changed it.
    pub changed: LogIndex,
}

/// Where a replica is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Phase {
    /// Its creation is agreed.
    Pending,
    /// The provider creates it, or its `setup` runs.
    Provisioning,
    /// Its `run` has begun, and no probe has succeeded yet.
    Starting,
    /// Its last probe succeeded.
    Ready,
    /// A probe succeeded once, and the last one failed.
    NotReady {
        /// What the probe saw.
        reason: String,
    },
    /// It takes no new requests, and is stopped once drained.
    Stopping {
        /// Why.
        reason: StopReason,
        /// Since when.
        since: LogTime,
        /// When it is stopped even if requests still run.
        drain_until: LogTime,
    },
    /// Nothing of it exists; the record tells what went wrong.
    Failed {
        /// What went wrong.
        reason: StopReason,
        /// When it was gone.
        at: LogTime,
    },
    /// It could not be stopped.
    CleanupFailed {
        /// Why it was to be stopped.
        reason: StopReason,
        /// What went wrong.
        error: String,
    },
}

impl Replica {
    /// Its status, as users see it.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        match &self.phase {
            Phase::Pending => ReplicaStatus::Pending,
            Phase::Provisioning => ReplicaStatus::Provisioning,
            Phase::Starting => ReplicaStatus::Starting,
            Phase::Ready => ReplicaStatus::Ready,
            Phase::NotReady { .. } => ReplicaStatus::NotReady,
            Phase::Stopping {
                reason: StopReason::Preempted(_),
                ..
            } => ReplicaStatus::Preempted,
            Phase::Stopping { .. } => ReplicaStatus::ShuttingDown,
            Phase::Failed { reason, .. } => match reason {
                StopReason::InitialDelay(_) => ReplicaStatus::FailedInitialDelay,
                StopReason::Probing(_) => ReplicaStatus::FailedProbing,
                StopReason::Provision(_) => ReplicaStatus::FailedProvision,
                StopReason::Preempted(_) => ReplicaStatus::Preempted,
                StopReason::Exited(_)
                | StopReason::ScaleDown
                | StopReason::Outdated
                | StopReason::ServiceDown
                | StopReason::Terminated => ReplicaStatus::Failed,
            },
            Phase::CleanupFailed { .. } => ReplicaStatus::FailedCleanup,
        }
    }

    /// Why it is in its phase, where there is something to say.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match &self.phase {
            Phase::Pending | Phase::Provisioning | Phase::Starting | Phase::Ready => None,
            Phase::NotReady { reason } => Some(reason.clone()),
            Phase::Stopping { reason, .. } | Phase::Failed { reason, .. } => {
                Some(reason.to_string())
            }
            Phase::CleanupFailed { error, .. } => Some(error.clone()),
        }
    }

    /// Whether it serves, or may yet: what counts towards the number of replicas wanted.
    #[must_use]
    pub fn is_live(&self) -> bool {
        match self.phase {
            Phase::Pending
            | Phase::Provisioning
            | Phase::Starting
            | Phase::Ready
            | Phase::NotReady { .. } => true,
            Phase::Stopping { .. } | Phase::Failed { .. } | Phase::CleanupFailed { .. } => false,
        }
    }

    /// Whether a session may stay bound to it: it was ready, and it is not going.
    #[must_use]
    pub fn keeps_sessions(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::NotReady { .. })
    }

    /// Whether something of it may exist: a process, a port.
    #[must_use]
    pub fn occupies_resources(&self) -> bool {
        !matches!(self.phase, Phase::Failed { .. })
    }
}
