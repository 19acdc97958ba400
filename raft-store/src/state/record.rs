//! The state as a stream of records: what snapshots and digests are made of.

use std::sync::Arc;

use bincode::{Decode, Encode};
use raftserve_model::spec::ServiceSpec;
use raftserve_model::{
    ClusterId, ClusterVersion, LogIndex, LogTime, ReplicaId, ServiceId, ServiceVersion, SessionKey,
    WallTime,
};

use super::clients::{Client, ClientRecord};
use super::events::Event;
use super::kv::{KvChange, KvEntry, KvKey};
use super::registry::PeerEntry;
use super::replica::Replica;
use super::service::{Service, ServiceRecord};
use super::sessions::Session;
use super::summed::{Digest, Recorded, Sum};
use super::{Control, Lineage, State};
use crate::command::ClientId;

/// How many sessions share a record: about 24 KB.
const SESSIONS_PER_RECORD: usize = 512;

/// A part of the state. New kinds are added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Record {
    /// What there is one of. First in every stream.
    Head {
        /// The cluster's id.
        cluster: Option<ClusterId>,
        /// Where the cluster comes from.
        lineage: Option<Lineage>,
        /// Log time.
        now: LogTime,
        /// The reign in force.
        control: Control,
        /// The session fence.
        fence: LogIndex,
        /// The port that was given to a replica last.
        last_port: u16,
        /// Events up to here may have been dropped.
        events_compacted: LogIndex,
        /// The last change to routing.
        routes_changed: LogIndex,
        /// The last change to what the controller plans from.
        plan_changed: LogIndex,
        /// The newest entry's wall time.
        wall: WallTime,
        /// The cluster's version.
        version: ClusterVersion,
    },
    /// A service, without its specifications.
    Service(ServiceRecord),
    /// One specification of a service that came before.
    Spec {
        /// The service.
        service: ServiceId,
        /// Of which version.
        version: ServiceVersion,
        /// What it says: 2 MiB at most.
        spec: Arc<ServiceSpec>,
    },
    /// A replica; its service came before.
    Replica(Arc<Replica>),
    /// The marks of a service's sessions.
    SessionMarks {
        /// The service.
        service: ServiceId,
        /// The greatest index that a session waits for.
        moved: LogIndex,
        /// Sessions that are to be removed.
        expired: Option<(LogTime, LogIndex)>,
    },
    /// Some sessions of a service.
    Sessions(ServiceId, Vec<(SessionKey, Session)>),
    /// A client session.
    Client(ClientRecord),
    /// An event.
    Event {
        /// Its number, counted from the first that ever happened.
        number: u64,
        /// What happened.
        event: Arc<Event>,
    },
    /// Some keys.
    KeyValues(Vec<(KvKey, Arc<KvEntry>)>),
    /// A peer that something was decided about.
    Peer(PeerEntry),
    /// What became of a key.
    KeyChange {
        /// Its number, counted from the first change that ever was.
        number: u64,
        /// What became of which key.
        change: Arc<KvChange>,
    },
}

/// A stream of records that is not a state.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The first record must be the head, and no other may be; a specification follows its service, and events
    /// and changes of keys follow each other.
    #[error("record {at} is out of place")]
    OutOfPlace {
        /// Its number in the stream, from 0.
        at: usize,
    },
    /// There was none.
    #[error("the stream is empty")]
    Empty,
    /// A service's newest specification was not among the records.
    #[error("service {service} lacks its newest specification")]
    NoSpec {
        /// Its id.
        service: ServiceId,
    },
}

impl State {
    /// The whole state as records. Equal states give equal streams.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let services = self.services.iter().flat_map(|(id, service)| {
            let mut records = Vec::with_capacity(1 + service.specs.len());
            service.records_beyond(id, None, &mut |record| records.push(record));
            records
        });
        let replicas = self.replicas.values().cloned().map(Record::Replica);
        std::iter::once(self.head_record())
            .chain(services)
            .chain(replicas)
            .chain(self.session_records())
            .chain(self.clients.records())
            .chain(self.events.records_from(0))
            .chain(self.keys.records())
            .chain(
                self.peers
                    .values()
                    .map(|peer| Record::Peer(peer.as_ref().clone())),
            )
            .chain(self.keys.change_records())
    }

    /// Equal on every peer that has applied the same log, and different wherever anything that the cluster
    /// agreed on is. Costs the hash of one record for each service, whatever else there is: the rest was
    /// added up when it changed. Comparable between peers whose encoding of records is the same.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let marks = self.sessions.iter().map(|(id, table)| {
            let marks = Sum::of(&table.marks_record(*id));
            marks.plus(table.sum())
        });
        let rest = [
            Sum::of(&self.head_record()),
            self.services.sum(),
            self.replicas.sum(),
            self.clients.sum(),
            self.events.sum(),
            self.keys.sum(),
            self.peers.sum(),
        ];
        marks.chain(rest).fold(Sum::default(), Sum::plus).digest()
    }

    pub(super) fn head_record(&self) -> Record {
        Record::Head {
            cluster: self.cluster,
            lineage: self.lineage,
            now: self.now,
            control: self.control,
            fence: self.fence,
            last_port: self.last_port,
            events_compacted: self.events.compacted(),
            routes_changed: self.routes_changed,
            plan_changed: self.plan_changed,
            wall: self.wall,
            version: self.version,
        }
    }

    fn session_records(&self) -> impl Iterator<Item = Record> + '_ {
        self.sessions.iter().flat_map(|(id, table)| {
            let marks = table.marks_record(*id);
            let mut rest = table.iter_after(None);
            let chunks = std::iter::from_fn(move || {
                let chunk: Vec<_> = rest
                    .by_ref()
                    .take(SESSIONS_PER_RECORD)
                    .map(|(key, session)| (*key, *session))
                    .collect();
                (!chunk.is_empty()).then_some(Record::Sessions(*id, chunk))
            });
            std::iter::once(marks).chain(chunks)
        })
    }

    /// The state that a stream of records describes.
    ///
    /// # Errors
    /// [`RecordError`] if the stream does not begin with its one head.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Self, RecordError> {
        let mut restoring = Restoring::default();
        for record in records {
            restoring.add(record)?;
        }
        restoring.finish()
    }

    fn from_head(head: Record) -> Self {
        let Record::Head {
            cluster,
            lineage,
            now,
            control,
            fence,
            last_port,
            events_compacted,
            routes_changed,
            plan_changed,
            wall,
            version,
        } = head
        else {
            return Self::default();
        };
        let mut state = Self {
            cluster,
            lineage,
            now,
            control,
            fence,
            last_port,
            routes_changed,
            plan_changed,
            wall,
            version,
            ..Self::default()
        };
        state.events.restore_compacted(events_compacted);
        // What became of keys before is the parent's.
        let began = state.lineage.map_or(LogIndex::default(), |it| it.began);
        state.keys.restore_compacted(began);
        state
    }

    fn restore_replica(&mut self, replica: Arc<Replica>) {
        let ready = replica.phase == super::Phase::Ready;
        self.sessions
            .entry(replica.id.service)
            .or_default()
            .set_candidate(replica.id, ready);
        self.replicas.insert(replica.id, replica);
    }
}

/// A state that is being put together from its records.
#[derive(Debug, Default)]
pub struct Restoring {
    state: State,
    /// How many records were added.
    added: usize,
}

impl Restoring {
    /// Adds the next record.
    ///
    /// # Errors
    /// [`RecordError::OutOfPlace`]; nothing can be made of what follows then.
    pub fn add(&mut self, record: Record) -> Result<(), RecordError> {
        let at = self.added;
        let out_of_place = RecordError::OutOfPlace { at };
        self.added += 1;
        let state = &mut self.state;
        match record {
            Record::Head { .. } if at > 0 => return Err(out_of_place),
            Record::Head { .. } => *state = State::from_head(record),
            _ if at == 0 => return Err(out_of_place),
            Record::Service(record) => {
                let service = Service::from(record);
                state.names.insert(service.name.clone(), service.id);
                state.services.insert(service.id, Arc::new(service));
            }
            Record::Spec {
                service,
                version,
                spec,
            } => {
                let add = |service: &mut Arc<Service>| {
                    Arc::make_mut(service).specs.insert(version, spec);
                };
                let added = state.services.alter(&service, add);
                added.ok_or(out_of_place)?;
            }
            Record::Replica(replica) => state.restore_replica(replica),
            Record::SessionMarks {
                service,
                moved,
                expired,
            } => {
                let table = state.sessions.entry(service).or_default();
                table.restore_marks(moved, expired);
            }
            Record::Sessions(service, sessions) => {
                let table = state.sessions.entry(service).or_default();
                for (key, session) in sessions {
                    table.insert(key, session);
                }
            }
            Record::Client(record) => state.clients.restore(record),
            Record::KeyValues(entries) => state.keys.restore(entries),
            Record::Peer(entry) => state.restore_peer(entry),
            Record::KeyChange { number, change } => {
                if !state.keys.restore_change(number, change) {
                    return Err(out_of_place);
                }
            }
            Record::Event { number, event } => {
                if !state.events.restore(number, event) {
                    return Err(out_of_place);
                }
            }
        }
        Ok(())
    }

    /// The state, once every record was added.
    ///
    /// # Errors
    /// [`RecordError::Empty`], [`RecordError::NoSpec`].
    pub fn finish(self) -> Result<State, RecordError> {
        if self.added == 0 {
            return Err(RecordError::Empty);
        }
        let lacks_spec = |it: &&Arc<Service>| !it.specs.contains_key(&it.version);
        match self.state.services.values().find(lacks_spec) {
            Some(service) => Err(RecordError::NoSpec {
                service: service.id,
            }),
            None => Ok(self.state),
        }
    }
}

impl Recorded<ServiceId> for Arc<Service> {
    fn records_beyond(&self, id: &ServiceId, other: Option<&Self>, take: &mut dyn FnMut(Record)) {
        take(Record::Service(ServiceRecord::from(self.as_ref())));
        for (version, spec) in &self.specs {
            let same = other.and_then(|other| other.specs.get(version));
            if !same.is_some_and(|same| Arc::ptr_eq(same, spec)) {
                take(Record::Spec {
                    service: *id,
                    version: *version,
                    spec: Arc::clone(spec),
                });
            }
        }
    }
}

impl Recorded<ReplicaId> for Arc<Replica> {
    fn records_beyond(&self, _: &ReplicaId, _: Option<&Self>, take: &mut dyn FnMut(Record)) {
        take(Record::Replica(Arc::clone(self)));
    }
}

impl Recorded<SessionKey> for Session {
    fn records_beyond(&self, key: &SessionKey, _: Option<&Self>, take: &mut dyn FnMut(Record)) {
        take(Record::Sessions(self.replica.service, vec![(*key, *self)]));
    }
}

impl Recorded<ClientId> for Client {
    fn records_beyond(&self, id: &ClientId, _: Option<&Self>, take: &mut dyn FnMut(Record)) {
        take(Record::Client(self.record(*id)));
    }
}
