//! The replicated state machine: everything that the cluster has agreed on.
//!
//! [`State::apply`] is pure. It reads the state, the entry's index and the command, and nothing
//! else: no clock, no randomness, no I/O. Equal logs therefore give equal states on every peer,
//! which [`State::digest`] makes comparable. All collections are ordered and persistent
//! (structurally shared), so that a clone for a reader or a snapshot costs a few pointers, and a
//! change costs the path to what it touches.

mod clients;
mod control;
mod edits;
mod events;
mod kv;
mod lineage;
mod record;
mod registry;
mod replica;
mod requests;
mod service;
mod sessions;
mod summed;
mod trail;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use raftserve_model::status::{ReplicaStatus, ServiceStatus};
use raftserve_model::{
    ClusterId, ClusterVersion, Generation, Incarnation, LogIndex, LogTime, NodeId, ReplicaId,
    ServiceId, ServiceName, SessionKey, Stamp, WallTime,
};

pub use clients::{CLIENT_BYTES_MAX, CLIENT_TTL, CLIENTS_MAX, OUTCOMES_MAX};
pub use edits::{Edit, Key, Trails};
pub use events::{EVENTS_MAX, Event, EventKind};
pub use kv::{
    KV_BYTES_MAX, KV_CHANGES_BYTES_MAX, KV_CHANGES_MAX, KV_KEY_BYTES_MAX, KV_KEYS_MAX,
    KV_VALUE_BYTES_MAX, KvChange, KvCondition, KvEntry, KvKey, KvKeyError,
};
pub use lineage::{Claim, Lineage, REPLICA_NUMBERS_SKIPPED};
pub use record::{Record, RecordError, Restoring};
pub use registry::{
    PEER_ADDRESS_BYTES_MAX, PEERS_MAX, PeerEntry, PeerStanding, Predecessor, Promotion,
    REMOVED_PEERS_MAX,
};
pub use replica::{Phase, Replica};
pub use service::{SERVICE_PORTS, SERVICES_MAX, Service};
pub use sessions::{SESSIONS_REMOVED_MAX, Session};
pub use summed::Digest;
pub use trail::Compacted;

use crate::command::{Action, Command, Outcome};
use crate::entry::Membership;
use clients::Clients;
use events::Events;
use kv::KeyValues;
use sessions::SessionTable;
use summed::Summed;

/// The present reign of a controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Control {
    /// The fence: what a change must carry to be applied.
    pub generation: Generation,
    /// The leader that reigns.
    pub node: NodeId,
    /// Its process's life.
    pub incarnation: Incarnation,
}

/// Everything that the cluster has agreed on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct State {
    cluster: Option<ClusterId>,
    lineage: Option<Lineage>,
    /// Never goes back, whatever the clocks of successive leaders say.
    now: LogTime,
    /// The newest entry's wall time, for people.
    wall: WallTime,
    /// Only ever raised.
    version: ClusterVersion,
    control: Control,
    services: Summed<ServiceId, Arc<Service>>,
    /// Names of exactly the services in `services`.
    names: OrdMap<ServiceName, ServiceId>,
    replicas: Summed<ReplicaId, Arc<Replica>>,
    sessions: OrdMap<ServiceId, SessionTable>,
    /// Rebound sessions are usable up to this index.
    fence: LogIndex,
    clients: Clients,
    events: Events,
    keys: KeyValues,
    /// Peers that something was decided about.
    peers: Summed<NodeId, Arc<PeerEntry>>,
    /// The port that was given to a replica last; ports are given in turn, so that a peer that lags
    /// does not meet another replica where it knew the former.
    last_port: u16,
    /// The last index at which something changed that routing depends on.
    routes_changed: LogIndex,
    /// The last index at which something changed that the controller plans from.
    plan_changed: LogIndex,
}

impl State {
    /// As [`State::apply_among`] in a cluster whose members are all on record here: of founders about whom nothing was
    /// decided since, only the membership tells.
    pub fn apply(&mut self, index: LogIndex, command: &Command) -> Outcome {
        self.apply_among(index, command, &Membership::default())
    }

    /// Applies the entry at `index`, which must be above every index applied before, in a cluster whose membership is
    /// then `members`, by the last entry before this one that changed it.
    pub fn apply_among(
        &mut self,
        index: LogIndex,
        command: &Command,
        members: &Membership,
    ) -> Outcome {
        self.now = self.now.max(command.now);
        self.wall = command.wall;
        match &command.action {
            Action::InitCluster { cluster } => {
                self.cluster.get_or_insert(*cluster);
                Outcome::Done
            }
            Action::OpenClient => {
                self.clients.open(index, self.now);
                Outcome::Index(index)
            }
            Action::Client {
                client,
                sequence,
                acknowledged,
                request,
            } => self.apply_in_session(index, *client, *sequence, *acknowledged, request),
            Action::StartControl { node, incarnation } => {
                self.start_control(index, *node, *incarnation)
            }
            Action::Control {
                generation,
                changes,
            } => self.apply_changes(index, *generation, changes),
            Action::BindSessions { service, keys } => self.bind_sessions(index, *service, keys),
            Action::AdvanceFence { generation, upto } => self.advance_fence(*generation, *upto),
            Action::Request(request) => self
                .execute(index, request)
                .unwrap_or_else(Outcome::Refused),
            Action::Tick => {
                self.clients.expire(self.now);
                self.mark_expired_sessions(index);
                Outcome::Done
            }
            Action::RaiseVersion { version } => self.raise_version(index, *version),
            Action::CompareStates => Outcome::Index(index),
            Action::AdmitPeer {
                nonce,
                address,
                promotion,
                replaces,
            } => self
                .admit_peer(index, *nonce, address, *promotion, *replaces, members)
                .unwrap_or_else(Outcome::Refused),
            Action::DismissPeer {
                node,
                nonce,
                address,
            } => self.dismiss_peer(index, *node, *nonce, address),
            Action::RetirePeer { node } => self.retire_peer(index, *node),
            Action::PromotePeer { node } => self
                .promote_peer(index, *node)
                .unwrap_or_else(Outcome::Refused),
        }
    }

    /// The cluster's id; none before the first entry.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The cluster that this one comes from, if it began with another's state.
    #[must_use]
    pub fn lineage(&self) -> Option<Lineage> {
        self.lineage
    }

    /// Log time: the stamp of the newest entry, made non-decreasing.
    #[must_use]
    pub fn now(&self) -> LogTime {
        self.now
    }

    /// The newest entry's time, by both clocks.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp {
            log: self.now,
            wall: self.wall,
        }
    }

    /// What the wall clock says, or said, at a time of the log, reckoned from the newest entry. Right for
    /// what is yet to come if a leader goes on writing.
    #[must_use]
    pub fn wall_at(&self, time: LogTime) -> WallTime {
        if time >= self.now {
            self.wall.plus(time.since(self.now))
        } else {
            self.wall.minus(self.now.since(time))
        }
    }

    /// The version up to which every member can follow: what needs a later one is not proposed.
    #[must_use]
    pub fn version(&self) -> ClusterVersion {
        self.version
    }

    fn raise_version(&mut self, index: LogIndex, version: ClusterVersion) -> Outcome {
        if version > self.version {
            self.version = version;
            self.emit(index, None, EventKind::VersionRaised { version });
        }
        Outcome::Done
    }

    /// The reign in force.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control
    }

    /// The last index at which something changed that routing depends on.
    #[must_use]
    pub fn routes_changed(&self) -> LogIndex {
        self.routes_changed
    }

    /// The last index at which something changed that the controller plans from.
    #[must_use]
    pub fn plan_changed(&self) -> LogIndex {
        self.plan_changed
    }

    /// Every service, by id.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service of that id.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }

    /// The service of that name.
    #[must_use]
    pub fn service_by_name(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(self.names.get(name)?)
    }

    /// Every replica on record, by service and number.
    pub fn replicas(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.replicas.values()
    }

    /// The replicas on record of one service, by number; failed ones included.
    pub fn replicas_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Replica>> {
        let number = |number| ReplicaId { service, number };
        self.replicas
            .range(number(0)..=number(u32::MAX))
            .map(|(_, replica)| replica)
    }

    /// The replica of that id, if it is on record.
    #[must_use]
    pub fn replica(&self, id: ReplicaId) -> Option<&Arc<Replica>> {
        self.replicas.get(&id)
    }

    /// The status of a service, derived from its replicas.
    #[must_use]
    pub fn status_of(&self, service: &Service) -> ServiceStatus {
        let mut statuses = self.replicas_of(service.id).map(|replica| replica.status());
        if service.going_down.is_none() {
            ServiceStatus::of(statuses)
        } else if statuses.any(|status| status == ReplicaStatus::FailedCleanup) {
            ServiceStatus::FailedCleanup
        } else {
            ServiceStatus::ShuttingDown
        }
    }

    /// The binding of a session, if there is one; it may be expired, or wait for the fence.
    #[must_use]
    pub fn session(&self, service: ServiceId, key: &SessionKey) -> Option<&Session> {
        self.sessions.get(&service)?.get(key)
    }

    /// How many sessions a service holds.
    #[must_use]
    pub fn session_count(&self, service: ServiceId) -> usize {
        self.sessions.get(&service).map_or(0, SessionTable::len)
    }

    /// The sessions of a service in key order, from the first key above `after`.
    pub fn sessions_of(
        &self,
        service: ServiceId,
        after: Option<SessionKey>,
    ) -> impl Iterator<Item = (&SessionKey, &Session)> {
        self.sessions
            .get(&service)
            .into_iter()
            .flat_map(move |table| table.iter_after(after))
    }

    /// The index up to which rebound sessions are usable.
    #[must_use]
    pub fn fence(&self) -> LogIndex {
        self.fence
    }

    /// The index that the fence must reach before every session is usable, and whether expired
    /// sessions wait for it too; none if nothing waits.
    #[must_use]
    pub fn fence_wanted(&self) -> Option<LogIndex> {
        self.sessions
            .values()
            .filter_map(|table| table.fence_wanted(self.fence))
            .max()
    }

    /// The earliest time at which a session expires; the controller lets log time pass for it.
    #[must_use]
    pub fn next_expiry(&self) -> Option<LogTime> {
        self.sessions
            .values()
            .filter_map(SessionTable::next_expiry)
            .chain(self.clients.next_expiry())
            .min()
    }

    /// What happened after `index`, oldest first.
    ///
    /// # Errors
    /// [`Compacted`] if something after `index` is no longer kept.
    pub fn events_after(
        &self,
        index: LogIndex,
    ) -> Result<impl Iterator<Item = &Arc<Event>>, Compacted> {
        self.events.after(index)
    }

    /// How many client sessions are open.
    #[must_use]
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// The port that was given to a replica last; 0 before the first.
    #[must_use]
    pub fn last_port(&self) -> u16 {
        self.last_port
    }

    /// The ports in use or promised to replicas that are not gone.
    #[must_use]
    pub fn replica_ports(&self) -> std::collections::BTreeSet<u16> {
        self.replicas
            .values()
            .filter(|replica| replica.occupies_resources())
            .map(|replica| replica.port)
            .collect()
    }
}

/// The smallest of `0..end` that is not in `used`.
fn lowest_free(used: &OrdSet<u16>, end: u16) -> Option<u16> {
    (0..end).find(|slot| !used.contains(slot))
}

#[cfg(test)]
mod tests;
