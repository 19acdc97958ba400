//! Statuses of services and replicas, as SkyServe names and shows them.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// The name that users see.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

named_enum! {
    /// Where a replica is in its life.
    ReplicaStatus {
        /// Its creation is agreed; nothing runs yet.
        Pending = "PENDING",
        /// It is being created, or its `setup` runs.
        Provisioning = "PROVISIONING",
        /// Its `run` was started; no probe has succeeded yet.
        Starting = "STARTING",
        /// Its last probe succeeded.
        Ready = "READY",
        /// It was ready before, and its last probe failed.
        NotReady = "NOT_READY",
        /// It takes no new requests; it drains, then stops.
        ShuttingDown = "SHUTTING_DOWN",
        /// Its program ended by itself.
        Failed = "FAILED",
        /// No probe succeeded within the initial delay.
        FailedInitialDelay = "FAILED_INITIAL_DELAY",
        /// It was ready once, and its probes failed for too long.
        FailedProbing = "FAILED_PROBING",
        /// It could not be created.
        FailedProvision = "FAILED_PROVISION",
        /// It could not be stopped.
        FailedCleanup = "FAILED_CLEANUP",
        /// Its place was taken from it, by a pod of higher priority, a drain or the loss of its node; it stops, or has stopped.
        Preempted = "PREEMPTED",
    }
}

impl ReplicaStatus {
    /// Whether it ended in an error.
    #[must_use]
    pub fn is_failed(self) -> bool {
        matches!(
            self,
            Self::Failed
                | Self::FailedInitialDelay
                | Self::FailedProbing
                | Self::FailedProvision
                | Self::FailedCleanup
        )
    }

    /// Whether it will never serve again.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::ShuttingDown | Self::Preempted) || self.is_failed()
    }
}

named_enum! {
    /// The state of a service as a whole.
    ServiceStatus {
        /// No replica is ready yet, and none has failed.
        ReplicaInit = "REPLICA_INIT",
        /// At least one replica is ready.
        Ready = "READY",
        /// The user took it down; its replicas are being stopped.
        ShuttingDown = "SHUTTING_DOWN",
        /// No replica is ready and at least one has failed.
        Failed = "FAILED",
        /// A replica could not be stopped.
        FailedCleanup = "FAILED_CLEANUP",
        /// There is no replica.
        NoReplica = "NO_REPLICA",
    }
}

impl ServiceStatus {
    /// The status of a service that is not being taken down, from those of its replicas: SkyServe's
    /// intended rule (`serve_state.py`, `from_replica_statuses`), which its own caller never reaches.
    #[must_use]
    pub fn of(replicas: impl IntoIterator<Item = ReplicaStatus>) -> Self {
        let mut any = false;
        let mut failed = false;
        for status in replicas {
            match status {
                ReplicaStatus::Ready => return Self::Ready,
                status => failed |= status.is_failed(),
            }
            any = true;
        }
        match (any, failed) {
            (false, _) => Self::NoReplica,
            (true, true) => Self::Failed,
            (true, false) => Self::ReplicaInit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_status_follows_the_intended_rule() {
        use ReplicaStatus::{FailedProbing, NotReady, Ready, Starting};
        assert_eq!(ServiceStatus::of([]), ServiceStatus::NoReplica);
        assert_eq!(
            ServiceStatus::of([Starting, NotReady]),
            ServiceStatus::ReplicaInit
        );
        assert_eq!(
            ServiceStatus::of([Starting, FailedProbing]),
            ServiceStatus::Failed
        );
        assert_eq!(
            ServiceStatus::of([FailedProbing, Ready]),
            ServiceStatus::Ready
        );
    }
}
