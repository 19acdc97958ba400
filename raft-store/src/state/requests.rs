//! What users ask for, executed exactly once within a client session.

use std::sync::Arc;
use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use raftserve_model::spec::ServiceSpec;
use raftserve_model::{LogIndex, ReplicaId, ServiceId, ServiceName, ServiceVersion};

use super::clients::Seen;
use super::events::EventKind;
use super::replica::Phase;
use super::service::{SERVICE_PORTS, SERVICES_MAX, Service};
use super::{State, lowest_free};
use crate::command::{ClientId, Outcome, Precondition, Refusal, Request, StopReason};

impl State {
    pub(super) fn apply_in_session(
        &mut self,
        index: LogIndex,
        client: ClientId,
        sequence: u64,
        acknowledged: u64,
        request: &Request,
    ) -> Outcome {
        match self.clients.seen(client, sequence, acknowledged, self.now) {
            Seen::New => {
                let outcome = self
                    .execute(index, request)
                    .unwrap_or_else(Outcome::Refused);
                self.clients.executed(client, sequence, outcome.clone());
                outcome
            }
            Seen::Before(outcome) => outcome,
            Seen::Forgotten => Outcome::Refused(Refusal::AlreadyAcknowledged),
            Seen::NoSession => Outcome::Refused(Refusal::UnknownClient),
            Seen::TooMany => Outcome::Refused(Refusal::Limit(format!(
                "a client session may have {} requests in flight",
                super::OUTCOMES_MAX
            ))),
        }
    }

    pub(super) fn execute(
        &mut self,
        index: LogIndex,
        request: &Request,
    ) -> Result<Outcome, Refusal> {
        match request {
            Request::PutService {
                name,
                spec,
                precondition,
            }
            | Request::PutServiceWithFiles {
                name,
                spec,
                precondition,
            } => self.put_service(index, name, spec, *precondition),
            Request::DeleteService { name, purge } => self.delete_service(index, name, *purge),
            Request::TerminateReplica {
                name,
                number,
                purge,
            } => self.terminate_replica(index, name, *number, *purge),
            Request::PutKey {
                key,
                value,
                condition,
            } => self.put_key(index, key, value, *condition),
            Request::DeleteKey { key, condition } => self.delete_key(index, key, *condition),
        }
    }

    fn put_service(
        &mut self,
        index: LogIndex,
        name: &ServiceName,
        spec: &Arc<ServiceSpec>,
        precondition: Precondition,
    ) -> Result<Outcome, Refusal> {
        match self.service_by_name(name).cloned() {
            Some(service) if service.going_down.is_some() => {
                Err(Refusal::ServiceGoingDown(name.clone()))
            }
            Some(_) if precondition == Precondition::Absent => {
                Err(Refusal::ServiceExists(name.clone()))
            }
            Some(service) => Ok(self.update_service(index, &service, spec)),
            None if precondition == Precondition::Present => {
                Err(Refusal::NoSuchService(name.clone()))
            }
            None => self.create_service(index, name, spec),
        }
    }

    fn create_service(
        &mut self,
        index: LogIndex,
        name: &ServiceName,
        spec: &Arc<ServiceSpec>,
    ) -> Result<Outcome, Refusal> {
        if self.services.len() >= SERVICES_MAX {
            return Err(Refusal::Limit(format!(
                "a cluster holds at most {SERVICES_MAX} services"
            )));
        }
        // Host names do not tell them apart.
        let alike = |other: &&ServiceName| other.as_str().eq_ignore_ascii_case(name.as_str());
        if let Some(other) = self.names.keys().find(alike) {
            return Err(Refusal::ServiceExists(other.clone()));
        }
        let slots: OrdSet<u16> = self
            .services
            .values()
            .filter_map(|service| service.port_slot)
            .collect();
        let (id, version) = (ServiceId(index.0), ServiceVersion(1));
        let service = Service {
            id,
            name: name.clone(),
            version,
            specs: OrdMap::unit(version, Arc::clone(spec)),
            port_slot: lowest_free(&slots, SERVICE_PORTS),
            created_at: self.wall,
            first_ready_at: None,
            going_down: None,
            next_number: 1,
            last_good: None,
            changed: index,
        };
        self.services.insert(id, Arc::new(service));
        self.names.insert(name.clone(), id);
        self.sessions.insert(id, Default::default());
        self.touch(index);
        self.emit(index, Some(name.clone()), EventKind::ServiceCreated);
        Ok(Outcome::ServicePut {
            service: id,
            version,
        })
    }

    /// The new version. Replicas whose process it would not change count as the new version at
    /// once, as SkyServe's reuse does; the controller replaces the others.
    fn update_service(
        &mut self,
        index: LogIndex,
        before: &Service,
        spec: &Arc<ServiceSpec>,
    ) -> Outcome {
        let (id, old) = (before.id, before.version);
        let version = ServiceVersion(old.0 + 1);
        let reuse = before.spec().runs_the_same(spec);
        let mut service = before.clone();
        service.version = version;
        service.specs.insert(version, Arc::clone(spec));
        service.changed = index;
        let name = service.name.clone();
        self.services.insert(id, Arc::new(service));
        self.touch(index);
        self.emit(index, Some(name), EventKind::ServiceUpdated { version });
        if reuse {
            let same: Vec<ReplicaId> = self
                .replicas_of(id)
                .filter(|replica| replica.version == old && replica.is_live())
                .map(|replica| replica.id)
                .collect();
            for replica in same {
                self.change_replica(index, replica, |it, _| {
                    it.version = version;
                    Some(())
                });
            }
            if before.last_good == Some(old) {
                self.services.alter(&id, |service| {
                    Arc::make_mut(service).last_good = Some(version);
                });
            }
        }
        self.prune_specs(id);
        Outcome::ServicePut {
            service: id,
            version,
        }
    }

    fn delete_service(
        &mut self,
        index: LogIndex,
        name: &ServiceName,
        purge: bool,
    ) -> Result<Outcome, Refusal> {
        let service = self
            .service_by_name(name)
            .cloned()
            .ok_or_else(|| Refusal::NoSuchService(name.clone()))?;
        if purge {
            self.drop_service(index, service.id);
            return Ok(Outcome::Done);
        }
        if service.going_down.is_some() {
            return Ok(Outcome::Done);
        }
        let mut changed = Service::clone(&service);
        changed.going_down = Some(self.now);
        changed.changed = index;
        self.services.insert(service.id, Arc::new(changed));
        self.touch(index);
        self.emit(index, Some(name.clone()), EventKind::ServiceGoingDown);
        let drain = service.spec().drain_timeout;
        let replicas: Vec<ReplicaId> = self.replicas_of(service.id).map(|it| it.id).collect();
        for replica in replicas {
            self.stop_replica(index, replica, &StopReason::ServiceDown, drain);
        }
        Ok(Outcome::Done)
    }

    fn terminate_replica(
        &mut self,
        index: LogIndex,
        name: &ServiceName,
        number: u32,
        purge: bool,
    ) -> Result<Outcome, Refusal> {
        let service = self
            .service_by_name(name)
            .cloned()
            .ok_or_else(|| Refusal::NoSuchService(name.clone()))?;
        let id = ReplicaId {
            service: service.id,
            number,
        };
        let replica = self
            .replica(id)
            .ok_or_else(|| Refusal::NoSuchReplica(name.clone(), number))?;
        let drain = match &replica.phase {
            Phase::Stopping { .. } => {
                return Err(Refusal::AlreadyStopping(name.clone(), number));
            }
            Phase::Failed { .. } | Phase::CleanupFailed { .. } if !purge => {
                return Err(Refusal::NeedsPurge(name.clone(), number));
            }
            Phase::Failed { .. } => {
                self.remove_replica(index, id);
                return Ok(Outcome::Done);
            }
            Phase::CleanupFailed { .. }
            | Phase::Pending
            | Phase::Provisioning
            | Phase::Starting
            | Phase::NotReady { .. } => Duration::ZERO,
            Phase::Ready => service.spec().drain_timeout,
        };
        self.stop_replica(index, id, &StopReason::Terminated, drain);
        Ok(Outcome::Done)
    }
}
