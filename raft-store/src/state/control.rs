//! What the controller decides and observes.

use std::sync::Arc;
use std::time::Duration;

use raftserve_model::status::ReplicaStatus;
use raftserve_model::{
    Generation, Incarnation, LogIndex, NodeId, ReplicaId, ServiceId, ServiceVersion,
};

use super::events::{Event, EventKind};
use super::replica::{Phase, Replica};
use super::service::Service;
use super::{Control, State};
use crate::command::{Change, Outcome, StopReason};

/// How many records of failed replicas a service keeps; the oldest go first.
const FAILED_KEPT_MAX: usize = 10;

impl State {
    pub(super) fn start_control(
        &mut self,
        index: LogIndex,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Outcome {
        self.control = Control {
            generation: Generation(index.0),
            node,
            incarnation,
        };
        self.emit(index, None, EventKind::ControlStarted { node });
        Outcome::Index(index)
    }

    pub(super) fn apply_changes(
        &mut self,
        index: LogIndex,
        generation: Generation,
        changes: &[Change],
    ) -> Outcome {
        if generation != self.control.generation {
            return Outcome::Fenced {
                current: self.control.generation,
            };
        }
        for change in changes {
            self.apply_change(index, change);
        }
        Outcome::Done
    }

    pub(super) fn advance_fence(&mut self, generation: Generation, upto: LogIndex) -> Outcome {
        if generation != self.control.generation {
            return Outcome::Fenced {
                current: self.control.generation,
            };
        }
        self.fence = self.fence.max(upto);
        self.remove_expired_sessions();
        Outcome::Done
    }

    /// Each change holds only from the phases that it makes sense in; a repeated or late one
    /// changes nothing.
    fn apply_change(&mut self, index: LogIndex, change: &Change) {
        match change {
            Change::Create {
                service,
                version,
                port,
            } => self.create_replica(index, *service, *version, *port),
            Change::Provisioning { replica } => self.change_replica(index, *replica, |it, _| {
                let pending = it.phase == Phase::Pending;
                pending.then(|| it.phase = Phase::Provisioning)
            }),
            Change::Started { replica, address } => {
                self.change_replica(index, *replica, |it, now| {
                    let unstarted = matches!(it.phase, Phase::Pending | Phase::Provisioning);
                    unstarted.then(|| {
                        it.phase = Phase::Starting;
                        it.started_at = Some(now.log);
                        it.address = Some(address.clone());
                    })
                });
            }
            Change::Ready { replica } => self.replica_ready(index, *replica),
            Change::NotReady { replica, reason } => {
                self.change_replica(index, *replica, |it, _| {
                    (it.phase == Phase::Ready).then(|| {
                        it.phase = Phase::NotReady {
                            reason: reason.clone(),
                        };
                    })
                });
            }
            Change::Stop {
                replica,
                reason,
                drain,
            } => self.stop_replica(index, *replica, reason, *drain),
            Change::Gone { replica } => self.replica_gone(index, *replica),
            Change::CleanupFailed { replica, reason } => {
                self.change_replica(index, *replica, |it, _| match &it.phase {
                    Phase::Stopping { reason: why, .. } => {
                        it.phase = Phase::CleanupFailed {
                            reason: why.clone(),
                            error: reason.clone(),
                        };
                        Some(())
                    }
                    _ => None,
                });
            }
            Change::Forget { service } => self.forget_service(index, *service),
        }
    }

    fn create_replica(
        &mut self,
        index: LogIndex,
        service: ServiceId,
        version: ServiceVersion,
        port: u16,
    ) {
        let now = self.stamp();
        let numbered = self.services.alter(&service, |it| {
            if it.going_down.is_some() || !it.specs.contains_key(&version) {
                return None;
            }
            let it = Arc::make_mut(it);
            it.next_number += 1;
            Some(it.next_number - 1)
        });
        let Some(number) = numbered.flatten() else {
            return;
        };
        self.last_port = port;
        let id = ReplicaId { service, number };
        let replica = Replica {
            id,
            version,
            launched_as: version,
            port,
            address: None,
            created_at: now,
            started_at: None,
            first_ready_at: None,
            phase: Phase::Pending,
            changed: index,
        };
        self.put_replica(index, replica);
    }

    fn replica_ready(&mut self, index: LogIndex, id: ReplicaId) {
        self.change_replica(index, id, |it, now| {
            matches!(it.phase, Phase::Starting | Phase::NotReady { .. }).then(|| {
                it.phase = Phase::Ready;
                it.first_ready_at.get_or_insert(now);
            })
        });
        let Some(replica) = self.replicas.get(&id).filter(|it| it.phase == Phase::Ready) else {
            return;
        };
        let (now, version) = (self.wall, Some(replica.version));
        let earlier = |it: &Arc<Service>| it.last_good < version;
        if self.services.get(&id.service).is_some_and(earlier) {
            self.services.alter(&id.service, |service| {
                let service = Arc::make_mut(service);
                service.first_ready_at.get_or_insert(now);
                service.last_good = version;
            });
        }
    }

    /// The intent to stop: also what requests of users do.
    pub(super) fn stop_replica(
        &mut self,
        index: LogIndex,
        id: ReplicaId,
        reason: &StopReason,
        drain: Duration,
    ) {
        self.change_replica(index, id, |it, now| {
            (it.is_live() || matches!(it.phase, Phase::CleanupFailed { .. })).then(|| {
                it.phase = Phase::Stopping {
                    reason: reason.clone(),
                    since: now.log,
                    drain_until: now.log.plus(drain),
                };
            })
        });
    }

    fn replica_gone(&mut self, index: LogIndex, id: ReplicaId) {
        let Some(replica) = self.replicas.get(&id) else {
            return;
        };
        let Phase::Stopping { reason, .. } = &replica.phase else {
            return;
        };
        if reason.is_failure() && self.services.contains_key(&id.service) {
            let reason = reason.clone();
            self.change_replica(index, id, |it, now| {
                it.phase = Phase::Failed {
                    reason,
                    at: now.log,
                };
                Some(())
            });
            self.prune_failed(index, id.service);
        } else {
            self.remove_replica(index, id);
        }
        self.prune_specs(id.service);
    }

    fn prune_failed(&mut self, index: LogIndex, service: ServiceId) {
        let failed: Vec<ReplicaId> = self
            .replicas_of(service)
            .filter(|replica| matches!(replica.phase, Phase::Failed { .. }))
            .map(|replica| replica.id)
            .collect();
        for id in &failed[..failed.len().saturating_sub(FAILED_KEPT_MAX)] {
            self.remove_replica(index, *id);
        }
    }

    /// Forgets the specifications of versions that nothing runs any more.
    pub(super) fn prune_specs(&mut self, id: ServiceId) {
        let used: Vec<ServiceVersion> = self
            .replicas_of(id)
            .filter(|replica| replica.occupies_resources())
            .flat_map(|replica| [replica.version, replica.launched_as])
            .collect();
        if let Some(service) = self.services.get(&id) {
            let (newest, good) = (service.version, service.last_good);
            let unused: Vec<ServiceVersion> = service
                .specs
                .keys()
                .filter(|version| {
                    **version != newest && Some(**version) != good && !used.contains(version)
                })
                .copied()
                .collect();
            if !unused.is_empty() {
                self.services.alter(&id, |service| {
                    let service = Arc::make_mut(service);
                    for version in unused {
                        service.specs.remove(&version);
                    }
                });
            }
        }
    }

    pub(super) fn forget_service(&mut self, index: LogIndex, id: ServiceId) {
        let Some(service) = self.services.get(&id).cloned() else {
            return;
        };
        let left = self
            .replicas_of(id)
            .any(|replica| replica.occupies_resources());
        if service.going_down.is_none() || left {
            return;
        }
        self.drop_service(index, id);
    }

    /// Removes a service and everything on record about it.
    pub(super) fn drop_service(&mut self, index: LogIndex, id: ServiceId) {
        let Some(service) = self.services.remove(&id) else {
            return;
        };
        let replicas: Vec<ReplicaId> = self.replicas_of(id).map(|replica| replica.id).collect();
        for replica in replicas {
            self.replicas.remove(&replica);
        }
        self.names.remove(&service.name);
        self.sessions.remove(&id);
        self.touch(index);
        self.emit(index, Some(service.name.clone()), EventKind::ServiceDeleted);
    }

    pub(super) fn remove_replica(&mut self, index: LogIndex, id: ReplicaId) {
        if self.replicas.remove(&id).is_none() {
            return;
        }
        if let Some(table) = self.sessions.get_mut(&id.service) {
            table.set_candidate(id, false);
        }
        self.touch(index);
        if let Some(service) = self.services.get(&id.service) {
            let name = service.name.clone();
            self.emit(
                index,
                Some(name),
                EventKind::ReplicaRemoved { number: id.number },
            );
        }
    }

    /// Changes a replica if `change` says that it did, and tells everyone who must know.
    pub(super) fn change_replica(
        &mut self,
        index: LogIndex,
        id: ReplicaId,
        change: impl FnOnce(&mut Replica, raftserve_model::Stamp) -> Option<()>,
    ) {
        let Some(replica) = self.replicas.get(&id) else {
            return;
        };
        let mut changed = Replica::clone(replica);
        if change(&mut changed, self.stamp()).is_some() {
            changed.changed = index;
            self.put_replica(index, changed);
        }
    }

    fn put_replica(&mut self, index: LogIndex, replica: Replica) {
        let (id, status, reason) = (replica.id, replica.status(), replica.reason());
        self.replicas.insert(id, Arc::new(replica));
        self.sessions
            .entry(id.service)
            .or_default()
            .set_candidate(id, status == ReplicaStatus::Ready);
        self.touch(index);
        if let Some(service) = self.services.get(&id.service) {
            let name = service.name.clone();
            self.emit(
                index,
                Some(name),
                EventKind::Replica {
                    number: id.number,
                    status,
                    reason,
                },
            );
        }
    }

    pub(super) fn touch(&mut self, index: LogIndex) {
        self.routes_changed = index;
        self.plan_changed = index;
    }

    pub(super) fn emit(
        &mut self,
        index: LogIndex,
        service: Option<raftserve_model::ServiceName>,
        kind: EventKind,
    ) {
        self.events.push(Event {
            index,
            time: self.wall,
            service,
            kind,
        });
    }
}
